"""CLIP as OpenAI publishes it (Radford et al. 2021, arXiv:2103.00020), as transformers does, and RegionCLIP (arXiv:2112.09106).

OpenAI's files are TorchScript archives (torch_file.py), others of the same keys state dicts:

    visual.*                                    ViT, with visual.proj [width, dim]; or ResNet with its attention pool
    transformer.*  token_embedding.weight       text tower
    positional_embedding  ln_final.*
    text_projection [width, dim]  logit_scale   the latter before exp
    input_resolution  context_length  vocab_size

RegionCLIP's, {"model": ...} of detectron2, have the ResNet below `backbone.`, the text tower with text_projection below
`lang_encoder.`, beside a teacher, proposals and heads, which have no counterpart here; its temperature of .01 is its
config's. transformers' have `vision_model.`, `text_model.`, `visual_projection.weight` and `text_projection.weight`.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.clip_text import ClipTextConfig
from mammoclip_jax.weights import names
from mammoclip_jax.weights.layouts.parts import Layout, Model, below, dual_encoder, leftover, linear, tower
from mammoclip_jax.weights.naming import TRACKED, State, Tower, read, write

# Means over the three colours: here all channels are one grey.
IMAGE = {"mean": 0.4491643, "std": 0.26856974, "channels": 3, "intensity": "range"}
_TOKENIZER = "openai/clip-vit-base-patch32"  # that of all its models
_SIZES = ("input_resolution", "context_length", "vocab_size")
_BESIDE = ("text_projection", "logit_scale", *_SIZES)
_OF_REGIONS = math.log(100)  # before exp: RegionCLIP's temperature of .01
# What else a RegionCLIP checkpoint may hold.
_REGION_CLIP_OTHERS = ("teacher_", "offline_", "proposal_generator.", "roi_heads.", "pixel_", "concept_emb")
_NAMINGS = {"clip_vit": "clip_vit/openai", "clip_resnet": "clip_resnet/openai"}
_NOTES = [
    "OpenAI normalises each colour by its own mean and deviation; here images are grey, and normalised by their means."
]


def _model(
    image: Tower,
    text: Tower,
    kernels: Mapping[str, np.ndarray],
    scale: np.ndarray,
    *,
    size: int,
    notes: list[str],
    unused: list[str],
) -> Model:
    """`kernels` are those of the projections, [in, out], of "image" (not of a ResNet) and "text"."""
    return Model(
        "dual_encoder",
        image=IMAGE,
        preprocessing={"geometry": "fit", "height": size, "width": size, "intensity": "voi", "bits": 8},
        text_length=text.options.get("max_position_embeddings", ClipTextConfig.max_position_embeddings),
        tokenizer=_TOKENIZER,
        notes=_NOTES + notes,
        unused=unused,
        **dual_encoder(
            image,
            text,
            {f"{name}_projection": {"dense": {"kernel": kernel}} for name, kernel in kernels.items()},
            scale,
            projection={"kind": "linear", "dropout": 0.0, "bias": False},
            pooling="eot",
            **({} if "image" in kernels else {"projected": ("image",)}),
        ),
    )


def _needed(state: State, keys: tuple[str, ...]) -> list[np.ndarray]:
    if missing := [key for key in keys if key not in state]:
        raise UserError(f"the file has no {', '.join(missing)}: is it a whole checkpoint of this layout?")
    return [np.asarray(state[key], np.float32) for key in keys]


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    text_projection, scale = _needed(state, ("text_projection", "logit_scale"))
    image = tower(state, "visual.")
    kernels = {"text": text_projection}
    if image.options["name"] == "clip_vit":
        kernels["image"] = _needed(state, ("visual.proj",))[0]
    rest_of = {key: value for key, value in state.items() if not key.startswith("visual.") and key not in _BESIDE}
    text = read(names.naming("clip_text/openai"), rest_of)
    notes = []
    if "input_resolution" not in state:
        notes.append(
            "QuickGELU is taken to be its activation, as in all that OpenAI published; keys do not tell. Of a model that "
            "open_clip trained with GELU set config.model.image.act and config.model.text.hidden_act to gelu."
        )
    size = image.options.get("size", 224)
    unused = [key for key in image.unused if key != "visual.proj"] + [key for key in _SIZES if key in state]
    return _model(image, text, kernels, scale, size=size, notes=notes, unused=unused + text.unused)


def _read_region_clip(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    (text_projection,) = _needed(state, ("lang_encoder.text_projection",))
    image = tower(state, "backbone.")
    image = image._replace(options=image.options | {"frozen_norms": True})
    part = below(state, "lang_encoder.")
    scale = np.asarray(part.get("logit_scale", _OF_REGIONS), np.float32)
    text = read(names.naming("clip_text/openai"), {key: value for key, value in part.items() if key not in _BESIDE})
    unused = image.unused + [f"lang_encoder.{key}" for key in text.unused]
    notes = [
        "RegionCLIP saw images of 640 to 800 pixels, and the whole image as one more region of 14 x 14 cells; here the "
        "attention pool looks at all cells of an image (positions are resampled), and at regions by `of_regions`."
    ]
    unused += leftover(state, ("backbone.", "lang_encoder."), _REGION_CLIP_OTHERS)
    return _model(image, text, {"text": text_projection}, scale, size=800, notes=notes, unused=unused)


def _read_huggingface(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image, text = (
        tower(state, f"{part}_model.", naming, config)
        for part, naming in (("vision", "clip_vit"), ("text", "clip_text"))
    )
    prefixes = {"image": "visual_projection.", "text": "text_projection."}
    kernels = {name: linear(state, prefix)["kernel"] for name, prefix in prefixes.items()}
    (scale,) = _needed(state, ("logit_scale",))
    leftover(state, ("vision_model.", "text_model.", "logit_scale", *prefixes.values()))
    size = image.options.get("size", 224)
    return _model(image, text, kernels, scale, size=size, notes=[], unused=image.unused + text.unused)


def _write(
    variables: Mapping[str, Any], meta: Mapping[str, Any], visual: str = "visual.", language: str = ""
) -> dict[str, np.ndarray]:
    """The state dict that OpenAI's `build_model` takes, below the prefixes, in float32.

    Raises:
        UserError: the model is of a kind that the original code does not have.
    """
    model, params = meta["config"]["model"], variables["params"]
    _check_original(model)
    state: dict[str, np.ndarray] = {}
    for name, prefix, naming in (
        ("image", visual, _NAMINGS[model["image"]["name"]]),
        ("text", language, "clip_text/openai"),
    ):
        part = {
            collection: tree[f"{name}_encoder"] for collection, tree in variables.items() if f"{name}_encoder" in tree
        }
        state |= {prefix + key: value for key, value in write(names.naming(naming), part, model[name]).items()}
    if model["image"]["name"] == "clip_vit":
        state[f"{visual}proj"] = np.asarray(params["image_projection"]["dense"]["kernel"])
    state[f"{language}text_projection"] = np.asarray(params["text_projection"]["dense"]["kernel"])
    return state | {f"{language}logit_scale": np.asarray(params["logit_scale"], np.float32).reshape(())}


def _write_openai(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    state = _write(variables, meta)
    # As in OpenAI's files: of a ResNet the positions of its pool are of cells of 32 pixels, of a ViT of patches.
    places, cell = (
        (state["visual.attnpool.positional_embedding"], 32)
        if "visual.attnpool.positional_embedding" in state
        else (state["visual.positional_embedding"], state["visual.conv1.weight"].shape[-1])
    )
    sizes = (
        math.isqrt(len(places) - 1) * cell,
        len(state["positional_embedding"]),
        len(state["token_embedding.weight"]),
    )
    return {"state_dict": state | {key: np.asarray(size, np.int64) for key, size in zip(_SIZES, sizes, strict=True)}}


def _write_region_clip(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """Its frozen batch norms count no batches, and it has no scale where that is its config's."""
    if meta["config"]["model"]["image"]["name"] != "clip_resnet":
        raise UserError("RegionCLIP's code has CLIP's ResNets alone: export with the layout clip.")
    state = _write(variables, meta, "backbone.", "lang_encoder.")
    if state["lang_encoder.logit_scale"] == np.float32(_OF_REGIONS):
        del state["lang_encoder.logit_scale"]
    return {"model": {key: value for key, value in state.items() if not key.endswith(TRACKED)}}


def _check_original(model: Mapping[str, Any]) -> None:
    """Raises UserError where the original code has no such model, or would compute something else from its weights."""
    projection, image, text = model["projection"], model["image"], model["text"]
    resnet = image["name"] == "clip_resnet"
    wanted = {
        "text.name": (text["name"], "clip_text"),
        "text.hidden_act": (text.get("hidden_act", "quick_gelu"), "quick_gelu"),
        "pooling": (model["pooling"], "eot"),
        "projection": ((projection["kind"], projection.get("bias", True)), ("linear", False)),
        "projected": (tuple(model.get("projected", ())), ("image",) if resnet else ()),
        "heads": (dict(model.get("heads") or {}), {}),
        "logit_bias": (model.get("logit_bias"), None),
    }
    if not resnet:
        wanted |= {
            "image.name": (image["name"], "clip_vit"),
            "image.act": (image.get("act", "quick_gelu"), "quick_gelu"),
            "image.pooling": (image.get("pooling", "cls"), "cls"),
        }
    for name, (found, theirs) in wanted.items():
        if found != theirs:
            raise UserError(f"the original code has {theirs!r} for config.model.{name}, this model {found!r}.")


def _fits(keys: frozenset[str], state: State) -> bool:
    return keys <= set(state)


CLIP = Layout(
    "CLIP of OpenAI",
    "clip",
    functools.partial(_fits, frozenset(("visual.conv1.weight", "token_embedding.weight", "ln_final.weight"))),
    _read,
    _write_openai,
)
CLIP_TRANSFORMERS = Layout(
    "CLIP, as transformers has it",
    "clip",
    functools.partial(_fits, frozenset(("vision_model.pre_layrnorm.weight", "text_model.final_layer_norm.weight"))),
    _read_huggingface,
    _write_openai,
)
REGION_CLIP = Layout(
    "RegionCLIP pretraining checkpoint",
    "region_clip",
    functools.partial(_fits, frozenset(("backbone.attnpool.k_proj.weight", "lang_encoder.token_embedding.weight"))),
    _read_region_clip,
    _write_region_clip,
)
