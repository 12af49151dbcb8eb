"""CLIP's encoders as OpenAI names them: its ViT and ResNet below `visual.`, its text tower; ViT as transformers does.

Of a ViT the last linear map (`proj`), of the text tower `text_projection` is the dual encoder's here, and no part of the
encoder; of a ResNet it is (`attnpool.c_proj`).
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.clip_resnet import STRIDE, VARIANTS, ClipResNet, Variant
from mammoclip_jax.models.clip_text import ClipTextConfig
from mammoclip_jax.models.vit import CLIP, clip
from mammoclip_jax.weights.names.shapes import Shapes, check_config, depths, shape_of
from mammoclip_jax.weights.names.text import CLIP_TEXT, count, fields_of
from mammoclip_jax.weights.names.vit import FUSED, POSITIONS, STEM, Names, leaf_of, measured, options_of
from mammoclip_jax.weights.naming import KINDS, Leaf, Naming

_HEAD = 64  # channels of each head of all its transformers
_QKV = ("q_proj", "k_proj", "v_proj")  # in the order of a fused kernel's rows
_KINDS = {"embeddings/cls_token": "row", POSITIONS: "table"}

# --- vision transformers ----------------------------------------------------------------------------------------------

_OPENAI_VIT = Names(
    {
        "embeddings/cls_token": "class_embedding",
        POSITIONS: "positional_embedding",
        STEM: "conv1",
        "pre_layernorm": "ln_pre",
        "layernorm": "ln_post",
    },
    {
        **{f"attention/attention/{name}": "attn.in_proj_" for name in FUSED},
        "attention/output/dense": "attn.out_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "mlp/fc1": "mlp.c_fc",
        "mlp/fc2": "mlp.c_proj",
    },
    "transformer.resblocks",
    _KINDS,
)
_HUGGINGFACE_VIT = Names(
    {
        "embeddings/cls_token": "embeddings.class_embedding",
        POSITIONS: "embeddings.position_embedding.weight",
        STEM: "embeddings.patch_embedding",
        "pre_layernorm": "pre_layrnorm",  # so in its files
        "layernorm": "post_layernorm",
    },
    {
        **{f"attention/attention/{name}": f"self_attn.{name[0]}_proj" for name in FUSED},
        "attention/output/dense": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "mlp/fc1": "mlp.fc1",
        "mlp/fc2": "mlp.fc2",
    },
    "encoder.layers",
    _KINDS,
)


def _vit(names: Names, shapes: Shapes, config: Mapping[str, Any] | None) -> dict:
    config = (config or {}).get("vision_config") or config or {}
    width = shape_of(shapes, f"{names.outer[STEM]}.weight", "vision transformer of CLIP")[0]
    fields = measured(names, shapes, config.get("num_attention_heads", max(width // _HEAD, 1)))
    check_config(
        config,
        {
            "hidden_size": width,
            "num_hidden_layers": fields["depth"],
            "patch_size": fields["patch"],
            "image_size": fields["size"],
            "intermediate_size": 4 * width,
        },
    )
    said = {"act": config.get("hidden_act", "quick_gelu"), "eps": config.get("layer_norm_eps", 1e-5)}
    return options_of(clip, CLIP, fields | said)


OPENAI_VIT = Naming(
    encoder="clip_vit",
    leaf=functools.partial(leaf_of, _OPENAI_VIT),
    options=functools.partial(_vit, _OPENAI_VIT),
    signs=("class_embedding", "conv1.weight", "ln_pre.weight", "transformer.resblocks.0.attn.in_proj_weight"),
    stem="conv1.weight",
    unused="proj",
)
HUGGINGFACE_VIT = Naming(
    encoder="clip_vit",
    leaf=functools.partial(leaf_of, _HUGGINGFACE_VIT),
    options=functools.partial(_vit, _HUGGINGFACE_VIT),
    signs=("embeddings.class_embedding", "pre_layrnorm.weight", "encoder.layers.0.self_attn.q_proj.weight"),
    stem="embeddings.patch_embedding.weight",
    unused=r"embeddings\.position_ids",
)


# --- ResNets ----------------------------------------------------------------------------------------------------------


def _resnet_leaf(path: str) -> Leaf:
    """Where our array is; their names are ours, but for lists.

    Raises:
        UserError: CLIP's ResNets have no such array.
    """
    layer, _, last = path.rpartition("/")
    if path == "attnpool/positional_embedding":
        return Leaf("attnpool.positional_embedding")
    block = re.fullmatch(r"layer(\d)_(\d+)/((?:conv|bn)[123]|downsample_([01]))", layer)
    pool = re.fullmatch(r"attnpool/([qkvc]_proj)", layer)
    if not (block or pool or re.fullmatch("(conv|bn)[123]", layer)) or last not in KINDS:
        raise UserError(f"CLIP's ResNets have no place for {path}; without it the network is another one.")
    name = layer.replace("/", ".")
    if block:
        name = f"layer{block[1]}.{block[2]}.{block[3].replace('downsample_', 'downsample.')}"
    small = block and block[3] in ("conv1", "conv3", "downsample_0")
    kind = "same" if last != "kernel" else "dense" if pool else "pointwise" if small else "conv"
    return Leaf(f"{name}.{KINDS[last]}", kind)


def _resnet(shapes: Shapes, config: Any) -> dict:
    shape = functools.partial(shape_of, shapes, what="ResNet of CLIP")
    cells = shape("attnpool.positional_embedding")[0] - 1
    side = math.isqrt(cells)
    if side**2 != cells:
        raise UserError(f"attnpool.positional_embedding has {cells} places beside the mean's: those of no square.")
    found = Variant(
        shape("layer1.0.conv1.weight")[0],
        depths(shapes, r"layer(\d+)\.(\d+)\."),
        shape("attnpool.c_proj.weight")[0],
        side * STRIDE,
    )
    name = next((name for name, variant in VARIANTS.items() if variant == found), ClipResNet.variant)
    published = VARIANTS[name]._asdict()
    return {"variant": name} | {key: value for key, value in found._asdict().items() if value != published[key]}


# Looked for before torchvision's, whose signs it has as well.
OPENAI_RESNET = Naming(
    encoder="clip_resnet",
    leaf=_resnet_leaf,
    options=_resnet,
    signs=("attnpool.positional_embedding", "conv3.weight", "layer1.0.conv3.weight"),
    stem="conv1.weight",
)


# --- the text tower ---------------------------------------------------------------------------------------------------

_TEXT = {
    "embeddings/token_embedding/embedding": "token_embedding.weight",
    "embeddings/position_embedding/embedding": "positional_embedding",
    "final_layer_norm/scale": "ln_final.weight",
    "final_layer_norm/bias": "ln_final.bias",
}
_IN_BLOCK = {
    **{f"self_attn/{name}": "attn.in_proj_" for name in _QKV},
    "self_attn/out_proj": "attn.out_proj.",
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "mlp/fc1": "mlp.c_fc.",
    "mlp/fc2": "mlp.c_proj.",
}


def _text_leaf(path: str) -> Leaf:
    if path in _TEXT:
        return Leaf(_TEXT[path])
    number, layer, last = re.fullmatch(r"encoder/layers_(\d+)/(.+)/(\w+)", path).groups()
    part = (_QKV.index(layer.rpartition("/")[2]), 3) if _IN_BLOCK[layer] == "attn.in_proj_" else (0, 1)
    key = f"transformer.resblocks.{number}.{_IN_BLOCK[layer]}{'bias' if last == 'bias' else 'weight'}"
    return Leaf(key, "dense" if last == "kernel" else "same", part)


def _text(shapes: Shapes, config: Any) -> dict:
    shape = functools.partial(shape_of, shapes, what="text tower of CLIP")
    vocabulary, width = shape("token_embedding.weight")
    return fields_of(
        ClipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=count(shapes, "transformer.resblocks."),
            num_attention_heads=max(width // _HEAD, 1),
            intermediate_size=shape("transformer.resblocks.0.mlp.c_fc.weight")[0],
            max_position_embeddings=shape("positional_embedding")[0],
        )
    )


OPENAI_TEXT = Naming(
    CLIP_TEXT.encoder,
    _text_leaf,
    _text,
    ("token_embedding.weight", "ln_final.weight", "transformer.resblocks.0.attn.in_proj_weight"),
)
