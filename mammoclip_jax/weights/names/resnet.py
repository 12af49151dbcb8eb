"""ResNet as torchvision and timm name it, which have the same keys, and as transformers does."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.resnet import VARIANTS, ResNet, Variant
from mammoclip_jax.weights.names.shapes import Shapes, check_config, depths
from mammoclip_jax.weights.naming import KINDS, Leaf, Naming

_SMOOTHED = ("resnetaa", "resnetblur")  # timm's with a filter without parameters before each stride


def _leaf(path: str, outer: Mapping[str, str], inner: Mapping[str, str], block: Callable[[int, int], str]) -> Leaf:
    """Where our array is: `outer` names the layers around the blocks, `inner` those in a block, `block` a block.

    Raises:
        UserError: these state dicts have no such array.
    """
    layer, _, kind = path.rpartition("/")
    top, _, rest = layer.partition("/")
    if layer not in outer and rest not in inner:
        raise UserError(f"ResNet state dicts of this kind have no place for {path}; without it the network is another.")
    if layer in outer:
        name = outer[layer]
    else:
        stage, index = re.fullmatch(r"\D+(\d+)_(\d+)", top).groups()
        name = f"{block(int(stage), int(index))}.{inner[rest]}"
    layout = "same"
    if kind == "kernel":
        small = rest in ("conv3", "downsample_0") or (rest == "conv1" and top.startswith("bottleneck"))
        layout = "pointwise" if small else "dense" if layer == "fc" else "conv"
    return Leaf(f"{name}.{KINDS[kind]}", layout)


def _layers(options: Mapping[str, Any]) -> dict[str, str]:
    """{"layer1_0": "bottleneck1_0", ...} where the blocks are bottlenecks: their first convolution is 1 x 1."""
    variant = VARIANTS[options.get("variant", ResNet.variant)]
    if not variant.bottleneck:
        return {}
    counts = options.get("depths") or variant.depths
    return {f"layer{i}_{j}": f"bottleneck{i}_{j}" for i, count in enumerate(counts, start=1) for j in range(count)}


def _options(shapes: Shapes, stem: str, block: str, third: str) -> dict:
    """The shapes say all; `third` is the key of a bottleneck's third convolution."""
    if shapes.get(stem, ())[2:] != (7, 7):
        what = f"has the shape {shapes[stem]}" if stem in shapes else "is missing"
        raise UserError(
            f"{stem} {what}: the ResNet here starts with one convolution of 7 x 7. Those with a deep or "
            "another stem (timm's resnet50d, CLIP's ResNets, RegNet) are other networks."
        )
    width, network = shapes[stem][0], Variant(depths(shapes, block), third in shapes)
    options = next(
        ({"variant": name} for name, variant in VARIANTS.items() if variant == network),
        {"variant": "50" if network.bottleneck else "18", "depths": network.depths},
    )
    return options | ({} if width == ResNet.width else {"width": width})


# --- torchvision, timm ------------------------------------------------------------------------------------------------


def _torchvision(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    architecture = (config or {}).get("architecture", "")
    if architecture.startswith(_SMOOTHED):
        raise UserError(
            f"config.json has the architecture {architecture}, which has the keys of a plain ResNet, but "
            "smooths its maps before each stride; the ResNet here does not."
        )
    return _options(shapes, TORCHVISION.stem, r"layer(\d+)\.(\d+)\.", "layer1.0.conv3.weight")


# The stem is no sign, so that those with another one are found, and refused with the reason. `fc` is written where
# our network has it; whether a file's is a classifier or MedCLIP's projection, its layout knows.
TORCHVISION = Naming(
    encoder="resnet",
    leaf=functools.partial(
        _leaf,
        outer={"conv1": "conv1", "bn1": "bn1", "fc": "fc"},
        inner={
            "conv1": "conv1",
            "bn1": "bn1",
            "conv2": "conv2",
            "bn2": "bn2",
            "conv3": "conv3",
            "bn3": "bn3",
            "downsample_0": "downsample.0",
            "downsample_1": "downsample.1",
        },
        block=lambda stage, index: f"layer{stage}.{index}",
    ),
    options=_torchvision,
    layers=_layers,
    signs=("bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"),
    stem="conv1.weight",
    unused=r"fc\.(weight|bias)",
)


# --- transformers -----------------------------------------------------------------------------------------------------


def _huggingface(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    options = _options(
        shapes,
        HUGGINGFACE.stem,
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.",
        "encoder.stages.0.layers.0.layer.2.convolution.weight",
    )
    variant, width = VARIANTS[options["variant"]], options.get("width", ResNet.width)
    counts = options.get("depths", variant.depths)
    first = 4 * width if variant.bottleneck else width
    check_config(
        config or {},
        {
            "layer_type": "bottleneck" if variant.bottleneck else "basic",
            "embedding_size": width,
            "hidden_sizes": [first * 2**i for i in range(len(counts))],
            "depths": list(counts),
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        },
    )
    return options


HUGGINGFACE = Naming(
    encoder="resnet",
    leaf=functools.partial(
        _leaf,
        outer={"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"},
        inner={
            "conv1": "layer.0.convolution",
            "bn1": "layer.0.normalization",
            "conv2": "layer.1.convolution",
            "bn2": "layer.1.normalization",
            "conv3": "layer.2.convolution",
            "bn3": "layer.2.normalization",
            "downsample_0": "shortcut.convolution",
            "downsample_1": "shortcut.normalization",
        },
        block=lambda stage, index: f"encoder.stages.{stage - 1}.layers.{index}",
    ),
    options=_huggingface,
    layers=_layers,
    signs=("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.0.convolution.weight"),
    stem="embedder.embedder.convolution.weight",
    unused=r"classifier\.1\.(weight|bias)",
)
