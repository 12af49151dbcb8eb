"""EfficientNet whose blocks are counted within their stage: timm and torchvision.

Both have pads of (k - 1) / 2 on all sides, save for timm's networks that came from TensorFlow ("tf_..."). These have
the same keys; only the `architecture` in config.json of a hub folder tells them apart.
"""

import functools
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.models.efficientnet import VARIANTS, EfficientNet, block_name, block_specs
from mammoclip_jax.weights.names.efficientnet import leaf, variant
from mammoclip_jax.weights.names.shapes import Shapes
from mammoclip_jax.weights.naming import Leaf, Naming


def _layers(options: Mapping[str, Any]) -> dict[str, str]:
    """{"block03": "stage2.0", ...}: stages count from 1, blocks in their stage from 0."""
    scaling = VARIANTS[options.get("variant", EfficientNet.variant)]
    specs = block_specs(options.get("width") or scaling.width, options.get("depth") or scaling.depth, scaling.lite)
    names, counts = {}, {}
    for i, spec in enumerate(specs):
        names[block_name(i)] = f"stage{spec.stage}.{counts.get(spec.stage, 0)}"
        counts[spec.stage] = counts.get(spec.stage, 0) + 1
    return names


def _leaf(
    path: str, outer: Mapping[str, str], first: Mapping[str, str], later: Mapping[str, str], prefix: str, offset: int
) -> Leaf:
    """`first` names the layers in the blocks of the first stage, which have no expansion."""
    inner = first if path.startswith("stage1.") else later

    def block(name):
        stage, index = name.removeprefix("stage").split(".")
        return f"{prefix}.{int(stage) + offset}.{index}"

    return leaf(path, outer, inner, block)


# --- timm -------------------------------------------------------------------------------------------------------------


def _timm(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    name = variant(shapes, TIMM.stem, "conv_head.weight", "blocks.0.0.se.conv_reduce.weight")
    if (config or {}).get("architecture", "").startswith("tf_"):
        return {"variant": name, "pads": "same"}
    return {"variant": name, "pads": "symmetric", "batch_norm_eps": 1e-5}


_TIMM_EXCITE = {"se/reduce": "se.conv_reduce", "se/expand": "se.conv_expand"}

TIMM = Naming(
    encoder="efficientnet",
    leaf=functools.partial(
        _leaf,
        outer={"stem": "conv_stem", "stem_bn": "bn1", "head": "conv_head", "head_bn": "bn2"},
        first={"depthwise": "conv_dw", "depthwise_bn": "bn1", "project": "conv_pw", "project_bn": "bn2"} | _TIMM_EXCITE,
        later={
            "expand": "conv_pw",
            "expand_bn": "bn1",
            "depthwise": "conv_dw",
            "depthwise_bn": "bn2",
            "project": "conv_pwl",
            "project_bn": "bn3",
        }
        | _TIMM_EXCITE,
        prefix="blocks",
        offset=-1,
    ),
    options=_timm,
    layers=_layers,
    signs=("conv_stem.weight", "blocks.0.0.conv_dw.weight", "conv_head.weight"),
    stem="conv_stem.weight",
    unused=r"classifier\.(weight|bias)",
)


# --- torchvision ------------------------------------------------------------------------------------------------------


def _torchvision(shapes: Shapes, config: Any) -> dict:
    name = variant(shapes, TORCHVISION.stem, "features.8.0.weight", "features.1.0.block.1.fc1.weight")
    eps = 1e-3 if name in ("b5", "b6", "b7") else 1e-5  # as its builders set it
    return {"variant": name, "pads": "symmetric", "batch_norm_eps": eps}


TORCHVISION = Naming(
    encoder="efficientnet",
    leaf=functools.partial(
        _leaf,
        outer={"stem": "features.0.0", "stem_bn": "features.0.1", "head": "features.8.0", "head_bn": "features.8.1"},
        first={
            "depthwise": "block.0.0",
            "depthwise_bn": "block.0.1",
            "se/reduce": "block.1.fc1",
            "se/expand": "block.1.fc2",
            "project": "block.2.0",
            "project_bn": "block.2.1",
        },
        later={
            "expand": "block.0.0",
            "expand_bn": "block.0.1",
            "depthwise": "block.1.0",
            "depthwise_bn": "block.1.1",
            "se/reduce": "block.2.fc1",
            "se/expand": "block.2.fc2",
            "project": "block.3.0",
            "project_bn": "block.3.1",
        },
        prefix="features",
        offset=0,
    ),
    options=_torchvision,
    layers=_layers,
    signs=("features.0.0.weight", "features.1.0.block.0.0.weight", "features.8.0.weight"),
    stem="features.0.0.weight",
    unused=r"classifier\.1\.(weight|bias)",
)
