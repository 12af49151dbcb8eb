"""EfficientNet whose blocks are counted through: efficientnet_pytorch, Mammo-CLIP, the Lite networks, transformers.

Those whose blocks are counted within their stage are in efficientnet_staged.py.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.efficientnet import STAGES, VARIANTS, block_name, block_specs, outer_channels, pads
from mammoclip_jax.weights.names.shapes import Shapes
from mammoclip_jax.weights.naming import KINDS, Leaf, Naming

# The published stages in the words of transformers' config.json.
_STAGES = dict(
    zip(
        ("num_block_repeats", "kernel_sizes", "strides", "expand_ratios", "in_channels", "out_channels"),
        map(list, zip(*STAGES)),
    )
)
_FIXED = _STAGES | {"squeeze_expansion_ratio": 0.25, "depth_divisor": 8, "hidden_act": "swish"}
_POOLING = {"mean": "avg", "max": "max"}


def leaf(path: str, outer: Mapping[str, str], inner: Mapping[str, str], block: Callable[[str], str]) -> Leaf:
    """Where our array is: `outer` names the layers around the blocks, `inner` those in a block, `block` a block.

    Raises:
        UserError: PyTorch's networks have no such array.
    """
    layer, _, kind = path.rpartition("/")
    first, _, rest = layer.partition("/")
    if layer not in outer and rest not in inner:
        raise UserError(f"EfficientNet state dicts have no place for {path}; without it the network is another one.")
    name = outer[layer] if layer in outer else f"{block(first)}.{inner[rest]}"
    layout = "same"
    if kind == "kernel":
        layout = "conv" if layer == "stem" else "depthwise" if rest == "depthwise" else "pointwise"
    return Leaf(f"{name}.{KINDS[kind]}", layout)


def variant(shapes: Shapes, stem: str, head: str, excite: str) -> str:
    """The published variant with these blocks and channels.

    Args:
        stem, head: keys of the first kernel and of the last, [head's channels, last stage's channels, 1, 1].
        excite: key of a squeeze-excite array, which the Lite networks have not.

    Raises:
        UserError: there is none; the message has what was found and what the published ones have.
    """
    if head not in shapes:
        raise UserError(f"{head} is missing: is the file complete, without a prefix before its keys?")
    depthwise = [
        shape for key, shape in shapes.items() if key != stem and len(shape) == 4 and shape[1] == 1 and shape[2] > 1
    ]
    sizes = len(depthwise), *shapes[head][1::-1], excite not in shapes
    table = {name: _measures(name) for name in VARIANTS}
    for name, measures in table.items():
        if measures == sizes:
            return name
    known = "; ".join(f"{name} {blocks}, {last}, {features}" for name, (blocks, last, features, _) in table.items())
    raise UserError(
        f"no published EfficientNet has {sizes[0]} blocks, {sizes[1]} channels after the last, {sizes[2]} features and "
        f"{'no ' if sizes[3] else ''}squeeze-excite. Known: {known}. For a network with other multipliers of width "
        "and depth the state dict does not say which; load it into a model of your config instead."
    )


def _measures(name):
    """Blocks, channels of the last stage and of the head, whether it has no squeeze-excite."""
    scaling = VARIANTS[name]
    specs = block_specs(scaling.width, scaling.depth, scaling.lite)
    return len(specs), specs[-1].outputs, outer_channels(1280, scaling), scaling.lite


# --- efficientnet_pytorch, Mammo-CLIP, efficientnet_lite_pytorch ------------------------------------------------------


def _lukemelas(shapes: Shapes, config: Any) -> dict:
    return {"variant": variant(shapes, LUKEMELAS.stem, "_conv_head.weight", "_blocks.0._se_reduce.weight")}


LUKEMELAS = Naming(
    encoder="efficientnet",
    leaf=functools.partial(
        leaf,
        outer={"stem": "_conv_stem", "stem_bn": "_bn0", "head": "_conv_head", "head_bn": "_bn1"},
        inner={
            "expand": "_expand_conv",
            "expand_bn": "_bn0",
            "depthwise": "_depthwise_conv",
            "depthwise_bn": "_bn1",
            "se/reduce": "_se_reduce",
            "se/expand": "_se_expand",
            "project": "_project_conv",
            "project_bn": "_bn2",
        },
        block=lambda name: f"_blocks.{int(name.removeprefix('block'))}",
    ),
    options=_lukemelas,
    signs=("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_conv_head.weight"),
    stem="_conv_stem.weight",
    unused=r"_fc\.(weight|bias)",
)


# --- transformers -----------------------------------------------------------------------------------------------------


def _huggingface(shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    if config is None:
        return {
            "variant": variant(
                shapes, HUGGINGFACE.stem, "encoder.top_conv.weight", "encoder.blocks.0.squeeze_excite.reduce.weight"
            )
        }
    for key, value in _FIXED.items():
        if key in config and config[key] != value:
            raise UserError(f"config.json has {key} {config[key]}; the EfficientNet here has {value}.")
    pooling = config.get("pooling_type", "mean")
    if pooling not in _POOLING:
        raise UserError(f"config.json has pooling_type {pooling!r}; known: {', '.join(_POOLING)}.")
    scaling = _scaling(config["width_coefficient"], config["depth_coefficient"], config.get("depthwise_padding", []))
    return scaling | {"pooling": _POOLING[pooling], "batch_norm_eps": config.get("batch_norm_eps", 1e-3)}


def _scaling(width, depth, listed):
    """Variant, pads and multipliers; `listed` are the blocks whose stride-2 convolution has equal pads on both sides.

    transformers has no nominal size: its authors listed the blocks that meet an odd size on the way from the
    variant's. A config without that list has the pads that are called "detector" here.
    """
    published = [name for name, value in VARIANTS.items() if value[:2] == (width, depth) and not value.lite]
    specs = block_specs(width, depth)
    for i, spec in enumerate(specs):
        if i and spec.stage == specs[i - 1].stage:
            continue
        if spec.stride == 1 and spec.inputs == spec.outputs:
            raise UserError(
                f"width_coefficient {width} gives block {i} as many output channels as inputs, "
                f"{spec.inputs}: the network here has a shortcut there, that of transformers has none."
            )
    strided = {i for i, spec in enumerate(specs) if spec.stride == 2}
    for name in published or [name for name, value in VARIANTS.items() if not value.lite]:
        for kind in ("nominal", "detector"):
            table = pads(name, kind, depth)
            if {i for i in strided if len(set(table[block_name(i)][0])) == 1} == strided & set(listed):
                return {"variant": name, "pads": kind} | ({} if published else {"width": width, "depth": depth})
    raise UserError(
        f"depthwise_padding {sorted(listed)} of config.json fits no published EfficientNet's input size at "
        f"width_coefficient {width}, depth_coefficient {depth}; the strided blocks are {sorted(strided)}."
    )


HUGGINGFACE = Naming(
    encoder="efficientnet",
    leaf=functools.partial(
        leaf,
        outer={
            "stem": "embeddings.convolution",
            "stem_bn": "embeddings.batchnorm",
            "head": "encoder.top_conv",
            "head_bn": "encoder.top_bn",
        },
        inner={
            "expand": "expansion.expand_conv",
            "expand_bn": "expansion.expand_bn",
            "depthwise": "depthwise_conv.depthwise_conv",
            "depthwise_bn": "depthwise_conv.depthwise_norm",
            "se/reduce": "squeeze_excite.reduce",
            "se/expand": "squeeze_excite.expand",
            "project": "projection.project_conv",
            "project_bn": "projection.project_bn",
        },
        block=lambda name: f"encoder.blocks.{int(name.removeprefix('block'))}",
    ),
    options=_huggingface,
    signs=(
        "embeddings.convolution.weight",
        "encoder.blocks.0.depthwise_conv.depthwise_conv.weight",
        "encoder.top_conv.weight",
    ),
    stem="embeddings.convolution.weight",
    unused=r"classifier\.(weight|bias)",
)
