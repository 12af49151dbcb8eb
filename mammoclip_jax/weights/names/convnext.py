"""ConvNeXt as transformers, timm and its authors name it. Ours is named after transformers'."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.convnext import VARIANTS, Variant
from mammoclip_jax.weights.names.shapes import Shapes, check_config, depths
from mammoclip_jax.weights.naming import Leaf, Naming

_STEM = "embeddings/patch_embeddings"
_SCALE = "layer_scale_parameter"  # an array that stands beside the layers of a block
_XXLARGE = Variant((3, 4, 30, 3), 384)  # timm's and OpenCLIP's, whose norms all have another epsilon


def _leaf(path: str, names: Mapping[str, str]) -> Leaf:
    """Where our array is: `names` has their layer for each of ours, with {} for its numbers.

    Raises:
        UserError: PyTorch's networks have no such array.
    """
    layer, _, kind = path.rpartition("/")
    layer = path if kind == _SCALE else layer
    pattern = re.sub(r"_\d+", "_{}", layer)
    if pattern not in names:
        raise UserError(f"ConvNeXt state dicts have no place for {path}; without it the network is another one.")
    name = names[pattern].format(*re.findall(r"_(\d+)", layer))
    if kind == _SCALE:
        return Leaf(name)
    if kind != "kernel":
        return Leaf(f"{name}.{'bias' if kind == 'bias' else 'weight'}")
    return Leaf(f"{name}.weight", "depthwise" if "dwconv" in layer else "dense" if "pwconv" in layer else "conv")


def _options(shapes: Shapes, stem: str, block: str) -> dict:
    """The shapes say all but the epsilon."""
    if shapes.get(stem, ())[2:] != (4, 4):
        what = f"has the shape {shapes[stem]}" if stem in shapes else "is missing"
        raise UserError(
            f"{stem} {what}: the ConvNeXt here starts with patches of 4 x 4. Those with an overlapping "
            "stem (timm's convnext_nano_ols) are other networks."
        )
    network = Variant(depths(shapes, block), shapes[stem][0])
    return next(
        ({"variant": name} for name, variant in VARIANTS.items() if variant == network),
        {"width": network.width, "depths": network.depths},
    )


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm(shapes: Shapes, config: Any) -> dict:
    options = _options(shapes, TIMM.stem, r"stages\.(\d+)\.blocks\.(\d+)\.")
    for key, shape in shapes.items():
        if key.endswith("mlp.fc1.weight") and len(shape) == 4:
            raise UserError(
                f"{key} has the shape {shape}: a 1 x 1 convolution in place of a linear layer, as timm's "
                "convnext_atto to convnext_nano have it. Reshape every mlp.fc1.weight and mlp.fc2.weight "
                "to its first two axes; the network stays the same."
            )
    if (options.get("depths"), options.get("width")) == _XXLARGE:
        raise UserError(
            "these are the blocks of timm's convnext_xxlarge, whose norms have an epsilon of 1e-5; the "
            "ConvNeXt here has 1e-6, and would compute something else."
        )
    return options


_TIMM = {
    _STEM: "stem.0",
    "embeddings/layernorm": "stem.1",
    "encoder/stages_{}/downsampling_layer_{}": "stages.{}.downsample.{}",
    "encoder/stages_{}/layers_{}/dwconv": "stages.{}.blocks.{}.conv_dw",
    "encoder/stages_{}/layers_{}/layernorm": "stages.{}.blocks.{}.norm",
    "encoder/stages_{}/layers_{}/pwconv1": "stages.{}.blocks.{}.mlp.fc1",
    "encoder/stages_{}/layers_{}/pwconv2": "stages.{}.blocks.{}.mlp.fc2",
    "encoder/stages_{}/layers_{}/layer_scale_parameter": "stages.{}.blocks.{}.gamma",
    "layernorm": "head.norm",
}

TIMM = Naming(
    encoder="convnext",
    leaf=functools.partial(_leaf, names=_TIMM),
    options=_timm,
    signs=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    stem="stem.0.weight",
    unused=r"head\.(pre_logits\.)?fc\.(weight|bias)",
)


# --- the authors ------------------------------------------------------------------------------------------------------


def _authors(shapes: Shapes, config: Any) -> dict:
    return _options(shapes, AUTHORS.stem, r"stages\.(\d+)\.(\d+)\.")


AUTHORS = Naming(
    encoder="convnext",
    leaf=functools.partial(
        _leaf,
        names={
            _STEM: "downsample_layers.0.0",
            "embeddings/layernorm": "downsample_layers.0.1",
            "encoder/stages_{}/downsampling_layer_{}": "downsample_layers.{}.{}",
            "encoder/stages_{}/layers_{}/dwconv": "stages.{}.{}.dwconv",
            "encoder/stages_{}/layers_{}/layernorm": "stages.{}.{}.norm",
            "encoder/stages_{}/layers_{}/pwconv1": "stages.{}.{}.pwconv1",
            "encoder/stages_{}/layers_{}/pwconv2": "stages.{}.{}.pwconv2",
            "encoder/stages_{}/layers_{}/layer_scale_parameter": "stages.{}.{}.gamma",
            "layernorm": "norm",
        },
    ),
    options=_authors,
    signs=("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    stem="downsample_layers.0.0.weight",
    unused=r"head\.(weight|bias)",
)


# --- transformers -----------------------------------------------------------------------------------------------------


def _huggingface(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    options = _options(shapes, HUGGINGFACE.stem, r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")
    counts, width = VARIANTS[options["variant"]] if "variant" in options else (options["depths"], options["width"])
    config = config or {}
    check_config(
        config,
        {
            "num_stages": len(counts),
            "hidden_sizes": [width * 2**i for i in range(len(counts))],
            "depths": list(counts),
            "hidden_act": "gelu",
            "patch_size": 4,
        },
    )
    return options | {"layer_norm_eps": config.get("layer_norm_eps", 1e-12)}  # as its published configs


HUGGINGFACE = Naming(
    encoder="convnext",
    leaf=functools.partial(_leaf, names={layer: layer.replace("_{}", ".{}").replace("/", ".") for layer in _TIMM}),
    options=_huggingface,
    signs=("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight"),
    stem="embeddings.patch_embeddings.weight",
    unused=r"classifier\.(weight|bias)",
)
