"""The same training step in PyTorch: efficientnet_pytorch, transformers' BERT, Mammo-CLIP's loss, AdamW.

It shares no code with this package's models, losses or training. A worker of `benchmarks.against`; the specification
is that of `against.peer_specification`. Modules are named as in Mammo-CLIP's checkpoints.

Settings: "reference" is efficientnet_pytorch as it is (NCHW, its memory-efficient swish); "tuned" is the same network
with channels_last weights and images and PyTorch's SiLU; "folded" is the tuned one where convolutions pad by themselves,
as far as their zeros are symmetric, which spares a copy of each map; "bf16" is the folded one in PyTorch's autocast to
bfloat16; "compiled" is the tuned one through `torch.compile`.
"""

import math
import os
import sys

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.model import MemoryEfficientSwish
from efficientnet_pytorch.utils import Conv2dStaticSamePadding
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mammoclip_jax.benchmarks import worker

SETTINGS = ("reference", "tuned", "folded", "bf16", "compiled")
FOLDED = ("folded", "bf16")


class ImageEncoder(EfficientNet):
    """Pooled features [N, C] after dropout; with `checkpointed`, each block is computed again in the backward pass.

    Running statistics then move twice a step, as always with PyTorch's checkpointing.
    """

    checkpointed = False

    def forward(self, images):
        x = self._swish(self._bn0(self._conv_stem(images)))
        for i, block in enumerate(self._blocks):
            rate = self._global_params.drop_connect_rate * i / len(self._blocks)
            x = checkpoint(block, x, rate, use_reentrant=False) if self.checkpointed else block(x, rate)
        x = self._swish(self._bn1(self._conv_head(x)))
        return F.dropout(x.mean((2, 3)), self._global_params.dropout_rate, self.training)


class Projection(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, x):
        return F.normalize(self.projection(x), dim=-1)


class TextEncoder(nn.Module):
    """The state of each text's last token, as Mammo-CLIP pools."""

    def __init__(self, options):
        super().__init__()
        # transformers imports torchvision, which BERT does not need and which fails beside a PyTorch without CUDA.
        sys.modules.setdefault("torchvision", None)
        from transformers import BertConfig, BertModel

        config = BertConfig(**options, attn_implementation="sdpa")
        self.text_encoder = BertModel(config, add_pooling_layer=False)

    def forward(self, ids, mask):
        states = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states[torch.arange(len(ids)), mask.sum(1) - 1]


class Clip(nn.Module):
    """Both towers, and Mammo-CLIP's loss for two views and two texts of each breast."""

    def __init__(self, image, specification):
        super().__init__()
        self.image_encoder, self.weights = image, specification["loss"]
        self.text_encoder = TextEncoder(specification["text"])
        self.image_projection = Projection(image._bn1.num_features, specification["dim"])
        self.text_projection = Projection(self.text_encoder.text_encoder.config.hidden_size, specification["dim"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images, ids, mask):
        image = self.image_projection(self.image_encoder(images)).unflatten(0, (-1, 2)).unbind(1)
        text = self.text_projection(self.text_encoder(ids, mask)).unflatten(0, (-1, 2)).unbind(1)
        target = torch.arange(len(image[0]))
        scale = self.logit_scale.exp()

        def info_nce(queries, keys):
            return F.cross_entropy(scale * queries @ keys.T, target)

        across = sum(info_nce(i, t) + info_nce(t, i) for i in image for t in text) / 8
        views = (info_nce(*image) + info_nce(*image[::-1])) / 2
        texts = (info_nce(*text) + info_nce(*text[::-1])) / 2
        weights = self.weights
        return weights["image_text"] * across + weights["image_image"] * views + weights["text_text"] * texts


class ImageTower(nn.Module):
    """The image tower alone: the mean square of its features is the loss."""

    def __init__(self, image):
        super().__init__()
        self.image_encoder = image

    def forward(self, images):
        return self.image_encoder(images).square().mean()


class TextTower(nn.Module):
    """The text tower alone: the mean square of every second feature, since that of all is constant behind a norm."""

    def __init__(self, specification):
        super().__init__()
        self.text_encoder = TextEncoder(specification["text"])

    def forward(self, ids, mask):
        return self.text_encoder(ids, mask)[:, ::2].square().mean()


def fold_pads(module: nn.Module) -> None:
    """Moves symmetric zeros from efficientnet_pytorch's padding modules into the convolutions behind them."""
    for convolution in module.modules():
        if isinstance(convolution, Conv2dStaticSamePadding) and isinstance(convolution.static_padding, nn.ZeroPad2d):
            left, right, top, bottom = convolution.static_padding.padding
            if (left, top) == (right, bottom):
                convolution.padding, convolution.static_padding = (top, left), nn.Identity()


def build(specification) -> nn.Module:
    """The module in its setting, in training mode; its call gives the loss."""
    if specification["work"] == "text_tower":
        model = TextTower(specification)
        if specification["weights"]:
            _load(model, specification["weights"])
        return model.train()
    options = dict(specification["image"])
    image = ImageEncoder.from_name(f"efficientnet-{options.pop('variant')}", include_top=False, **options)
    image.checkpointed = specification["checkpoint"]
    model = ImageTower(image) if specification["work"] == "image_tower" else Clip(image, specification)
    if specification["weights"]:
        _load(model, specification["weights"])
    if specification["setting"] != "reference":
        for module in list(image.modules()):
            for name, child in module.named_children():
                if isinstance(child, MemoryEfficientSwish):
                    setattr(module, name, nn.SiLU())
        image.to(memory_format=torch.channels_last)
    if specification["setting"] in FOLDED:
        fold_pads(image)
    return model.train()


def _load(model, path):
    state = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [key for key in missing if not key.endswith("num_batches_tracked")]:
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")


def inputs(specification) -> tuple[torch.Tensor, ...]:
    """The arrays of the specification's file, `against.write_inputs`: uint8 images [N, H, W]; token ids, lengths."""
    arrays = np.load(specification["inputs"])
    images = torch.from_numpy(arrays["image"])
    if specification["work"] == "image_tower":
        return (images,)
    texts = torch.from_numpy(arrays["token_ids"]).long(), torch.from_numpy(arrays["token_mask"]).long()
    return texts if specification["work"] == "text_tower" else (images, *texts)


def normalised(images, specification):
    """Each image from its minimum to its maximum, mean and deviation, three equal channels [N, 3, H, W]."""
    x = images.float()
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    x = ((x - low) / (high - low) - specification["mean"]) / specification["std"]
    x = x[:, None].expand(-1, 3, -1, -1)
    layout = torch.contiguous_format if specification["setting"] == "reference" else torch.channels_last
    return x.contiguous(memory_format=layout)


def make(specification):
    """For `worker.serve`."""
    torch.manual_seed(specification["seed"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = build(specification)
    adam = specification["adamw"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=adam["lr"],
        betas=(adam["b1"], adam["b2"]),
        eps=adam["eps"],
        weight_decay=adam["weight_decay"],
        fused=True,
    )
    arrays = inputs(specification)
    loss_of = torch.compile(model) if specification["setting"] == "compiled" else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        given = arrays if specification["work"] == "text_tower" else (normalised(arrays[0], specification), *arrays[1:])
        with torch.autocast("cpu", torch.bfloat16, enabled=specification["setting"] == "bf16"):
            loss = loss_of(*given)
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "setting": specification["setting"],
    }, step


if __name__ == "__main__":
    worker.serve(make)
