"""Mammo-CLIP's detector in PyTorch, written from its description, with the keys of its published files.

The backbone is that of `efficientnet_pytorch` with other pads: zeros (0, 1) at every 3 x 3 of stride 2 and (1, 2) at
every 5 x 5. For the tests that compare with it, and for golden files.
"""

import efficientnet_pytorch
import torch
from torch import nn
from torch.nn import functional


def backbone(name, classes, **options):
    """`efficientnet_pytorch`'s network of that name, with the detector's pads."""
    net = efficientnet_pytorch.EfficientNet.from_name(name, num_classes=classes, **options)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and tuple(layer.stride) == (2, 2):
            before, after = {3: (0, 1), 5: (1, 2)}[layer.kernel_size[0]]
            layer.static_padding = nn.ZeroPad2d((before, after, before, after))
    return net


class Subnet(nn.Module):
    def __init__(self, outputs, features):
        super().__init__()
        for name, channels in [*((f"conv{i}", features) for i in range(1, 5)), ("output", outputs)]:
            setattr(self, name, nn.Conv2d(features, channels, 3, padding=1))

    def forward(self, x, values):
        for i in range(1, 5):
            x = functional.relu(getattr(self, f"conv{i}")(x))
        return self.output(x).permute(0, 2, 3, 1).reshape(len(x), -1, values)


class Detector(nn.Module):
    """`taps` are the blocks of C3 and C4; `channels` those of C3, C4 and C5."""

    def __init__(self, net, taps, channels, classes, features=256):
        super().__init__()
        self.taps, self.classes = taps, classes
        c3, c4, c5 = channels
        self.fpn = nn.ModuleDict(
            {
                "P5_1": nn.Conv2d(c5, features, 1),
                "P5_2": nn.Conv2d(features, features, 3, padding=1),
                "P4_1": nn.Conv2d(c4, features, 1),
                "P4_2": nn.Conv2d(features, features, 3, padding=1),
                "P3_1": nn.Conv2d(c3, features, 1),
                "P3_2": nn.Conv2d(features, features, 3, padding=1),
                "P6": nn.Conv2d(c5, features, 3, 2, 1),
                "P7_2": nn.Conv2d(features, features, 3, 2, 1),
            }
        )
        self.regressionModel = Subnet(9 * 4, features)
        self.classificationModel = Subnet(9 * classes, features)
        self.efficientnet = net

    def forward(self, image):
        """(logits [N A classes], regressions [N A 4]) of images [N 3 H W] whose sides are multiples of 32."""
        levels = self.pyramid(*self.maps(image))
        logits = torch.cat([self.classificationModel(level, self.classes) for level in levels], 1)
        return logits, torch.cat([self.regressionModel(level, 4) for level in levels], 1)

    def maps(self, image):
        net = self.efficientnet
        x = functional.silu(net._bn0(net._conv_stem(image)))
        kept = []
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in self.taps:
                kept.append(x)
        return *kept, functional.silu(net._bn1(net._conv_head(x)))

    def pyramid(self, c3, c4, c5):
        def twice(x):
            return functional.interpolate(x, scale_factor=2, mode="nearest")

        fpn = self.fpn
        p5 = fpn["P5_1"](c5)
        p4 = twice(p5) + twice(fpn["P4_1"](c4))
        p3 = twice(fpn["P3_1"](c3)) + twice(p4)
        p6 = fpn["P6"](c5)
        return [fpn["P3_2"](p3), fpn["P4_2"](p4), fpn["P5_2"](p5), p6, fpn["P7_2"](functional.relu(p6))]


def published(variant, classes):
    """The detector on B2 or B5 as published, with PyTorch's random numbers."""
    taps, channels = {"b5": ((26, 37), (176, 512, 2048)), "b2": ((15, 21), (120, 352, 1408))}[variant]
    return Detector(backbone(f"efficientnet-{variant}", classes), taps, channels, classes)


def randomise(net, seed=0):
    """Weights and running statistics that keep activations about one; in evaluation mode.

    With PyTorch's own a deep network's outputs hardly depend on its input, and agreement says nothing.
    """
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                nn.init.uniform_(values, 0.8, 1.2)
            for values in (layer.bias, layer.running_mean):
                nn.init.normal_(values, std=0.1)
    for name, layer in net.named_modules():
        if name.endswith("._bn2"):  # ends a residual branch; B5 has so many that their sum would grow
            layer.weight.data *= 0.6
    return net.eval()
