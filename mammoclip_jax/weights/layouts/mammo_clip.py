"""Mammo-CLIP pretraining checkpoints (B2, B5, the baselines of its repository), and Mammo-FM, which shares the keys.

    image_encoder.*                             EfficientNet of efficientnet_pytorch (or another image encoder)
    text_encoder.text_encoder.*                 BERT; in Mammo-FM text_encoder.* is a ModernBERT
    image_projection.*  text_projection.*       projection, and in the MLP form fc and layer_norm
    logit_scale                                 before exp

The file around them: {"model", "optimizer", "scheduler", "config", "epoch", "train_loss"}.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import names
from mammoclip_jax.weights.layouts.parts import Layout, Model, dual_encoder, leftover, linear, tower, write_linear
from mammoclip_jax.weights.names.downstream import check_published
from mammoclip_jax.weights.naming import State, write

PREPROCESSING = {
    "geometry": "stretch",
    "height": 1520,
    "width": 912,
    "intensity": "published",
    "bits": 8,
    "crop": "published",
}
IMAGE = {"mean": 0.3089279, "std": 0.25053555408335154, "channels": 3, "intensity": "minmax"}
TEXT_LENGTH = 256
BERT_TOKENIZER, MODERNBERT_TOKENIZER = "emilyalsentzer/Bio_ClinicalBERT", "answerdotai/ModernBERT-base"
_PROJECTIONS = ("image_projection", "text_projection")
_BERT, _MODERN = "text_encoder.text_encoder.", "text_encoder."
_POOLINGS = ("eos", "bos", "mean")  # of the original code; ours have the same names
# What it calls our encoders (breastclip/model/modules/__init__.py).
_ORIGINAL = {"b5": "tf_efficientnet_b5_ns-detect", "b2": "tf_efficientnetv2-detect"}


def _fits(state: State) -> bool:
    return {"image_projection.projection.weight", "text_projection.projection.weight", "logit_scale"} <= set(state)


def _is_modern(state: State) -> bool:
    return _fits(state) and f"{_MODERN}embeddings.tok_embeddings.weight" in state


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None, *, modern: bool = False) -> Model:
    prefix = _MODERN if modern else _BERT
    image = tower(state, "image_encoder.")
    text = tower(state, prefix, "modernbert/mammo_fm" if modern else "bert")
    original = rest.get("config")
    mlp = any(f"{name}.fc.weight" in state for name in _PROJECTIONS)
    keys = {"logit_scale"} | {
        f"{name}.{layer}.{kind}"
        for name in _PROJECTIONS
        for kind in ("weight", "bias")
        for layer in ("projection", *(("fc", "layer_norm") if mlp else ()))
    }
    if missing := sorted(keys - set(state)):
        raise UserError(f"the file has no {', '.join(missing)}: is it a whole checkpoint of this layout?")
    leftover({key: value for key, value in state.items() if key not in keys}, ("image_encoder.", prefix))
    modules = {name: {"dense": linear(state, f"{name}.projection.")} for name in _PROJECTIONS}
    for name in _PROJECTIONS if mlp else ():
        norm = {
            ours: np.asarray(state[f"{name}.layer_norm.{theirs}"], np.float32)
            for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        }
        modules[name] |= {"hidden": linear(state, f"{name}.fc."), "norm": norm}
    base = _section(original, "base")
    pooling = _section(original, "model", "text_encoder").get("pooling", "eos")
    if pooling not in _POOLINGS:
        raise UserError(f"its config has the text pooling {pooling!r}; the original code knows {', '.join(_POOLINGS)}.")
    tokenizer = (
        MODERNBERT_TOKENIZER
        if modern
        else _section(original, "tokenizer").get("pretrained_model_name_or_path", BERT_TOKENIZER)
    )
    notes = ["Texts are cut at 256 tokens, as in the released configurations."]
    if modern:
        notes += [
            "The last LayerNorm of the text encoder is left out, as its authors' code does.",
            "A run name says that texts had up to 2,048 tokens; no such configuration was released.",
        ]
    return Model(
        "dual_encoder",
        preprocessing=PREPROCESSING,
        text_length=TEXT_LENGTH,
        tokenizer=tokenizer,
        notes=notes,
        image=IMAGE | {key: float(base[key]) for key in ("mean", "std") if key in base},
        unused=image.unused + text.unused,
        **dual_encoder(
            image,
            text,
            modules,
            state["logit_scale"],
            pooling=pooling,
            projection={"kind": "mlp" if mlp else "linear", "dropout": 0.0, "bias": True},
        ),
    )


def _section(config: Any, *names: str) -> Mapping[str, Any]:
    """Of the config in the file; {} where it has none, or holds an object of the original's libraries there."""
    for name in names:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def _write(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The checkpoint that the original code loads, from our variables.

    Raises:
        UserError: the model is of a kind that the original code does not have.
    """
    model, image = meta["config"]["model"], meta["config"]["image"]
    modern = model["text"]["name"] == "modernbert"
    _check_original(model, image)
    state: dict[str, np.ndarray] = {}
    for name, prefix, naming in (
        ("image_encoder", "image_encoder.", "efficientnet/lukemelas"),
        ("text_encoder", _MODERN if modern else _BERT, "modernbert/mammo_fm" if modern else "bert"),
    ):
        part = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        options = model["image" if name == "image_encoder" else "text"]
        state |= {prefix + key: value for key, value in write(names.naming(naming), part, options).items()}
    params = variables["params"]
    for name in _PROJECTIONS:
        state |= write_linear(f"{name}.projection.", params[name]["dense"])
        if "hidden" in params[name]:
            state |= write_linear(f"{name}.fc.", params[name]["hidden"])
            state |= {
                f"{name}.layer_norm.weight": params[name]["norm"]["scale"],
                f"{name}.layer_norm.bias": params[name]["norm"]["bias"],
            }
    state["logit_scale"] = np.asarray(params["logit_scale"], np.float32).reshape(())
    return {"model": state, "config": _original_config(model, image, modern), "epoch": 0}


def _check_original(model: Mapping[str, Any], image: Mapping[str, Any]) -> None:
    """Raises UserError where the original code has no such model, or would compute something else from its weights."""
    check_published(model["image"], "nominal")
    text, projection = model["text"], model["projection"]
    if text["name"] not in ("bert", "modernbert") or text.get("final_norm", True) == (text["name"] == "modernbert"):
        raise UserError(
            "the original code has BERT, and ModernBERT without its final norm (final_norm=False); "
            f"config.model.text is {dict(text)}."
        )
    if model.get("projected") or not projection.get("bias", True) or model["pooling"] not in _POOLINGS:
        raise UserError(
            f"the original code has projections with bias, of both towers, and the poolings {', '.join(_POOLINGS)}; this "
            f"model has the projection {dict(projection)} and the pooling {model['pooling']}."
        )
    if (image["channels"], image["intensity"]) != (3, "minmax"):
        raise UserError(
            "the original code has images of 3 channels, each stretched to [0, 1] (config.image.intensity "
            f"minmax); this model's have {image['channels']} channels and {image['intensity']}."
        )


def _original_config(model: Mapping, image: Mapping, modern: bool) -> dict:
    """The fields that the original code reads from a checkpoint's config."""
    name = MODERNBERT_TOKENIZER if modern else BERT_TOKENIZER
    return {
        "base": {"mean": float(image["mean"]), "std": float(image["std"])},
        "tokenizer": {"source": "huggingface", "pretrained_model_name_or_path": name},
        "model": {
            "name": "clip_custom",
            "temperature": 0.07,
            "image_encoder": {
                "source": "cnn",
                "name": _ORIGINAL[model["image"]["variant"]],
                "pretrained": True,
                "model_type": "cnn",
            },
            "text_encoder": {
                "source": "huggingface",
                "name": name,
                "pretrained": True,
                "gradient_checkpointing": False,
                "pooling": model["pooling"],
                "cache_dir": "~/.cache/huggingface/hub",
                "trust_remote_code": True,
                "mlm_head": True,
            },
            "projection_head": {"name": model["projection"]["kind"], "dropout": 0.1, "proj_dim": int(model["dim"])},
        },
    }


MAMMO_CLIP = Layout(
    "Mammo-CLIP pretraining checkpoint",
    "mammo_clip",
    lambda state: _fits(state) and not _is_modern(state),
    _read,
    _write,
)
MAMMO_FM = Layout(
    "Mammo-FM pretraining checkpoint", "mammo_fm", _is_modern, functools.partial(_read, modern=True), _write
)
