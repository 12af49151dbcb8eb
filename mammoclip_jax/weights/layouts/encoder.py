"""A single encoder: a hub folder, or a file of timm, torchvision, efficientnet_pytorch or the DINOv2 authors."""

from collections.abc import Mapping
from typing import Any

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import names
from mammoclip_jax.weights.layouts.parts import IMAGENET, Layout, Model
from mammoclip_jax.weights.names.text import strip
from mammoclip_jax.weights.naming import State, read

# Modules that hold an encoder in hub checkpoints with a task's head.
_PREFIXES = (
    "",
    "vit.",
    "dinov2.",
    "dinov2_with_registers.",
    "resnet.",
    "convnext.",
    "swin.",
    "efficientnet.",
    "backbone.",
    "visual.",
    "vision_model.",
    "encoder.",
)


def _found(state: State) -> tuple[str, dict, list[str]] | None:
    """(naming, state without prefix, keys outside the encoder), or None."""
    for prefix in _PREFIXES:
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for candidate in (part, strip(part)):
            try:
                return names.detect(candidate), candidate, [key for key in state if not key.startswith(prefix)]
            except UserError:
                continue
    return None


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    match = _found(state)
    if match is None:
        names.detect(state)  # raises, and says which there are
    naming, part, outside = match
    tower = read(names.naming(naming), part, config)
    is_text = tower.options["name"] in models.TEXT_ENCODERS
    kind = "text" if is_text else "image"
    size = tower.options.get("size", 224)
    return Model(
        f"{kind}_encoder",
        model={kind: tower.options, "dtype": "float32"},
        variables={collection: {f"{kind}_encoder": tree} for collection, tree in tower.variables.items()},
        image={} if is_text else IMAGENET | {"channels": tower.channels},
        preprocessing={}
        if is_text
        else {"geometry": "fit", "height": size, "width": size, "intensity": "voi", "bits": 8},
        text_length=0,
        tokenizer="",
        unused=tower.unused + outside,
        notes=[f"One encoder alone, named as by {naming}: start a training from it (config.warm_start)."],
    )


ENCODER = Layout("single encoder", "unknown", lambda state: _found(state) is not None, _read)
