"""Vision transformers: ViT and DINOv2 as transformers names them, DINOv2 as its authors do, and timm's.

transformers' are the names in its files; its modules in memory have others since version 5.

At the nominal size all compute the same. At others, positions are resampled as transformers does for its own, and as
timm does with `dynamic_img_size` for timm's (always with antialiasing). DINOv2's authors do as transformers where there
are registers. Where there are none they give the scale (patches + 0.1) / 37 for patches / 37 (`interpolate_offset`),
which moves what is read by up to a tenth of a patch towards the first row and column: that is not imitated.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.vit import DINOV2, VIT, Variant, VisionTransformer, dinov2, vit
from mammoclip_jax.weights.names.shapes import Shapes, shape_of
from mammoclip_jax.weights.naming import Leaf, Naming

_shape = functools.partial(shape_of, what="vision transformer of this kind")
STEM, POSITIONS, _REGISTERS = (
    f"embeddings/{name}" for name in ("patch_embeddings/projection", "position_embeddings", "register_tokens")
)
FUSED = ("query", "key", "value")  # in the order of a fused kernel's rows
_HEADS = {variant.width: variant.heads for variant in (*VIT.values(), *DINOV2.values())}


class Names(NamedTuple):
    """Their names of our modules and bare arrays: those around the blocks, those in a block, the list of the blocks.

    A name that ends with "_" is joined to "weight" and "bias" as it is. `kinds` are those of bare arrays with other axes.
    """

    outer: Mapping[str, str]
    inner: Mapping[str, str]
    blocks: str
    kinds: Mapping[str, str] = {}


def leaf_of(names: Names, path: str) -> Leaf:
    """Where our array is.

    Raises:
        UserError: PyTorch's networks have no such array.
    """
    block = re.fullmatch(r"encoder/layer_(\d+)/(.+)", path)
    table, rest, prefix = (names.inner, block[2], f"{names.blocks}.{block[1]}.") if block else (names.outer, path, "")
    if rest in table:
        return Leaf(prefix + table[rest], names.kinds.get(rest, "same"))
    module, _, last = rest.rpartition("/")
    if module not in table:
        raise UserError(
            f"state dicts of this naming ({names.outer[POSITIONS]}, {names.blocks}.N, ...) have no place "
            f"for {path}; without it the network is another one."
        )
    kind = "same" if last != "kernel" else "conv" if module == STEM else "dense"
    name = table[module]
    part = (FUSED.index(module.rpartition("/")[2]), 3) if list(table.values()).count(name) == len(FUSED) else (0, 1)
    dot = "" if name.endswith("_") else "."
    return Leaf(f"{prefix}{name}{dot}{'bias' if last == 'bias' else 'weight'}", kind, part)


def measured(names: Names, shapes: Shapes, heads: int | None = None) -> dict:
    """Fields of `VisionTransformer` from the shapes; `heads`, which these do not tell, are by default those published.

    Raises:
        UserError: arrays are missing, there is no class token, patches or their grid are no squares, or `heads` is not
            given and no such width is published.
    """
    stem = f"{names.outer[STEM]}.weight"
    width, *_, patch = _shape(shapes, stem)
    if shapes[stem][2:] != (patch, patch):
        raise UserError(f"{stem} has the shape {shapes[stem]}; here patches are square, [width, channels, side, side].")
    positions = _shape(shapes, names.outer[POSITIONS])[-2]
    side = math.isqrt(positions)
    if 1 + side**2 != positions:
        raise UserError(
            f"{names.outer[POSITIONS]} has {positions} positions; the vision transformer here has one for "
            "a class token and one for each patch of a square, as in 197 = 1 + 14 x 14."
        )
    if heads is None and width not in _HEADS:
        raise UserError(
            f"no published vision transformer is {width} wide, and the state dict does not say how many "
            f"heads it has. Known: {', '.join(map(str, _HEADS))}. Give transformers' config.json, or load "
            "it into a model of your config instead."
        )
    norm = re.compile(rf"{names.blocks}\.\d+\.{names.inner['norm1']}\.weight")
    first = f"{names.blocks}.0."
    return {
        "width": width,
        "depth": sum(bool(norm.fullmatch(key)) for key in shapes),
        "heads": heads or _HEADS[width],
        "patch": patch,
        "size": side * patch,
        "registers": shapes.get(names.outer.get(_REGISTERS), (1, 0))[1],
        "feed_forward": "swiglu" if _is_gated(names, shapes, first) else "mlp",
        "layer_scale": 1.0 if first + names.inner.get("layer_scale1/lambda1", "") in shapes else None,
    }


def _is_gated(names, shapes, block):
    """Gate and value are one kernel, with twice as many rows as the next has columns; timm names both kinds alike."""
    rows, columns = (f"{block}{names.inner.get(f'mlp/weights_{way}')}.weight" for way in ("in", "out"))
    return rows in shapes and shapes[rows][0] == 2 * _shape(shapes, columns)[1]


def options_of(build: Callable[..., VisionTransformer], variants: Mapping[str, Variant], fields: Mapping) -> dict:
    """What `build` has to be told for `fields`: the variant of this width, the size, and what differs."""
    options = {"variant": name for name, variant in variants.items() if variant.width == fields["width"]}
    options |= {key: fields[key] for key in ("size", "registers") if fields[key]}
    published = build(**options)
    return options | {key: value for key, value in fields.items() if getattr(published, key) != value}


def _dotted(*names: str) -> dict[str, str]:
    return {name: name.replace("/", ".") for name in names}


def _mask_token(key: str, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.zeros((1, models.image_encoder({"name": "dinov2"} | dict(options)).width), np.float32)}


# --- transformers -----------------------------------------------------------------------------------------------------


_FIXED = {"hidden_act": "gelu", "qkv_bias": True}


def _huggingface(
    names: Names,
    build: Callable[..., VisionTransformer],
    variants: Mapping[str, Variant],
    shapes: Shapes,
    config: Mapping[str, Any] | None,
) -> dict:
    config = config or {}
    fields = measured(names, shapes, config.get("num_attention_heads"))
    of_arrays = {
        "hidden_size": fields["width"],
        "num_hidden_layers": fields["depth"],
        "patch_size": fields["patch"],
        "num_register_tokens": fields["registers"],
        "use_swiglu_ffn": fields["feed_forward"] == "swiglu",
    }
    for who, values in (("the vision transformer here has", _FIXED), ("the arrays of the file are of", of_arrays)):
        for key, value in values.items():
            if set(_sides(config.get(key, value))) != {value}:
                raise UserError(f"config.json has {key} {config[key]}; {who} {value}.")
    for length in _sides(config.get("image_size", fields["size"])):
        if length // fields["patch"] != fields["size"] // fields["patch"]:
            raise UserError(
                f"config.json has image_size {config['image_size']}; the positions in the file are for "
                f"{fields['size']}, a square."
            )
    return options_of(
        build, variants, fields | ({"eps": config["layer_norm_eps"]} if "layer_norm_eps" in config else {})
    )


def _sides(value):
    """Of a size in a config, which is one number or two; other values are as one number."""
    return value if isinstance(value, list | tuple) else [value]


def _pooler(options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    width = models.image_encoder({"name": "vit"} | dict(options)).width
    return {
        "pooler.dense.weight": np.zeros((width, width), np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }


_OUTER = _dotted("embeddings/cls_token", POSITIONS, STEM, "layernorm")
_ATTENTION = _dotted(*(f"attention/attention/{name}" for name in FUSED), "attention/output/dense")
_VIT = Names(
    _OUTER,
    _ATTENTION
    | {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp/fc1": "intermediate.dense",
        "mlp/fc2": "output.dense",
    },
    "encoder.layer",
)
_DINOV2 = Names(
    _OUTER | _dotted(_REGISTERS),
    _ATTENTION
    | _dotted(
        "norm1",
        "norm2",
        "mlp/fc1",
        "mlp/fc2",
        "mlp/weights_in",
        "mlp/weights_out",
        "layer_scale1/lambda1",
        "layer_scale2/lambda1",
    ),
    "encoder.layer",
)

HUGGINGFACE_VIT = Naming(
    encoder="vit",
    leaf=functools.partial(leaf_of, _VIT),
    options=functools.partial(_huggingface, _VIT, vit, VIT),
    signs=("embeddings.cls_token", "encoder.layer.0.layernorm_before.weight"),
    stem="embeddings.patch_embeddings.projection.weight",
    unused=r"(pooler\.dense|classifier)\.(weight|bias)|embeddings\.mask_token",
    filled=_pooler,
)
HUGGINGFACE_DINOV2 = Naming(
    encoder="dinov2",
    leaf=functools.partial(leaf_of, _DINOV2),
    options=functools.partial(_huggingface, _DINOV2, dinov2, DINOV2),
    signs=("embeddings.cls_token", "encoder.layer.0.norm1.weight", "encoder.layer.0.layer_scale1.lambda1"),
    stem="embeddings.patch_embeddings.projection.weight",
    unused=r"classifier\.(weight|bias)|embeddings\.mask_token",
    filled=functools.partial(_mask_token, "embeddings.mask_token"),
)


# --- DINOv2's authors, timm -------------------------------------------------------------------------------------------


_REFUSED = {
    "reg_token": "its class token has no position where there are registers; take the authors' file or transformers'",
    "norm_pre.weight": "it has a LayerNorm before the blocks",
    "fc_norm.weight": "its last LayerNorm stands behind the pooling",
}


def _authors(shapes: Shapes, config: Any) -> dict:
    return options_of(dinov2, DINOV2, measured(_AUTHORS, shapes))


def _timm(shapes: Shapes, config: Any) -> dict:
    for key, why in _REFUSED.items():
        if key in shapes:
            raise UserError(f"the file has {key}: timm's network is not the one here, since {why}.")
    return options_of(vit, VIT, measured(_TIMM, shapes) | {"eps": 1e-6, "antialias": True})


_FLAT = {"embeddings/cls_token": "cls_token", POSITIONS: "pos_embed", STEM: "patch_embed.proj", "layernorm": "norm"}
_BLOCK = {
    **{f"attention/attention/{name}": "attn.qkv" for name in FUSED},
    "attention/output/dense": "attn.proj",
    **_dotted("norm1", "norm2", "mlp/fc1", "mlp/fc2"),
    "layer_scale1/lambda1": "ls1.gamma",
    "layer_scale2/lambda1": "ls2.gamma",
}
_AUTHORS = Names(
    _FLAT | {_REGISTERS: "register_tokens"},
    _BLOCK | {"mlp/weights_in": "mlp.w12", "mlp/weights_out": "mlp.w3"},
    "blocks",
)
_TIMM = Names(_FLAT, _BLOCK | {"mlp/weights_in": "mlp.fc1", "mlp/weights_out": "mlp.fc2"}, "blocks")

# Looked for before timm's, whose signs it has as well.
AUTHORS_DINOV2 = Naming(
    encoder="dinov2",
    leaf=functools.partial(leaf_of, _AUTHORS),
    options=_authors,
    signs=("mask_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"),
    stem="patch_embed.proj.weight",
    unused="mask_token",
    filled=functools.partial(_mask_token, "mask_token"),
)
TIMM = Naming(
    encoder="vit",
    leaf=functools.partial(leaf_of, _TIMM),
    options=_timm,
    signs=("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    stem="patch_embed.proj.weight",
    unused=r"head\.(weight|bias)",
)
