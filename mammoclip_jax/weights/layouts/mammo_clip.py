"""Mammo-CLIP pretraining checkpoints (B2, B5, the baselines of its repository), and Mammo-FM, which shares the keys.

    image_encoder.*                             EfficientNet of efficientnet_pytorch (or another image encoder)
    text_encoder.text_encoder.*                 BERT; in Mammo-FM text_encoder.* is a ModernBERT
    image_projection.*  text_projection.*       projection, and in the MLP form fc and layer_norm
    logit_scale                                 before exp

The file around them: {"model", "optimizer", "scheduler", "config", "epoch", "train_loss"}.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import names
from mammoclip_jax.weights.layouts.parts import (
    Layout,
    Model,
    below,
    dual_encoder,
    leftover,
    linear,
    tower,
    write_linear,
)
from mammoclip_jax.weights.naming import State, write

PREPROCESSING = {"geometry": "stretch", "height": 1520, "width": 912, "intensity": "published", "bits": 8,
                 "crop": "published"}
IMAGE = {"mean": 0.3089279, "std": 0.25053555408335154, "channels": 3, "intensity": "minmax"}
TEXT_LENGTH = 256
BERT_TOKENIZER, MODERNBERT_TOKENIZER = "emilyalsentzer/Bio_ClinicalBERT", "answerdotai/ModernBERT-base"
_ROOT = ("image_encoder.", "text_encoder.", "image_projection.", "text_projection.", "logit_scale")
_BERT, _MODERN = "text_encoder.text_encoder.", "text_encoder."
# What the original code calls our encoders (breastclip/model/modules/__init__.py).
_ORIGINAL = {"b5": "tf_efficientnet_b5_ns-detect", "b2": "tf_efficientnetv2-detect"}


def _fits(state: State) -> bool:
    return {"image_projection.projection.weight", "text_projection.projection.weight", "logit_scale"} <= set(state)


def _is_modern(state: State) -> bool:
    return _fits(state) and f"{_MODERN}embeddings.tok_embeddings.weight" in state


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    modern = _is_modern(state)
    image = tower(state, "image_encoder.")
    text = tower(state, _MODERN if modern else _BERT, "modernbert/mammo_fm" if modern else "bert")
    original = _plain(rest.get("config"))
    projection, modules = {"kind": "linear", "dropout": 0.0, "bias": True}, {}
    for name in ("image_projection", "text_projection"):
        modules[name] = {"dense": linear(state, f"{name}.projection.")}
        if f"{name}.fc.weight" in state:
            projection["kind"] = "mlp"
            norm = below(state, f"{name}.layer_norm.")
            modules[name] |= {"hidden": linear(state, f"{name}.fc."),
                              "norm": {"scale": norm["weight"], "bias": norm["bias"]}}
    leftover(state, _ROOT)
    pooling = original.get("model", {}).get("text_encoder", {}).get("pooling", "eos")
    base = original.get("base", {})
    tokenizer = MODERNBERT_TOKENIZER if modern else original.get("tokenizer", {}).get(
        "pretrained_model_name_or_path", BERT_TOKENIZER)
    notes = ["Texts are cut at 256 tokens, as in the released configurations."]
    if modern:
        notes += ["The last LayerNorm of the text encoder is left out, as its authors' code does.",
                  "A run name says that texts had up to 2,048 tokens; no such configuration was released."]
    return Model(
        "dual_encoder", preprocessing=PREPROCESSING, text_length=TEXT_LENGTH, tokenizer=tokenizer, notes=notes,
        image=IMAGE | {key: float(base[key]) for key in ("mean", "std") if key in base},
        unused=image.unused + text.unused,
        **dual_encoder(image, text, modules, state["logit_scale"], projection=projection, pooling=pooling))


def _plain(config: Any) -> dict:
    """The config in the file as dictionaries; {} where it holds something else."""
    if not isinstance(config, Mapping):
        return {}
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in config.items()}


def _write(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The checkpoint that the original code loads, from our variables.

    Raises:
        UserError: the model is of a kind that the original code does not have.
    """
    model, image = meta["config"]["model"], meta["config"]["image"]
    variant = model["image"].get("variant")
    modern = model["text"]["name"] == "modernbert"
    if model["image"]["name"] != "efficientnet" or variant not in _ORIGINAL:
        raise UserError(f"the original Mammo-CLIP code has EfficientNet-B2 and -B5 alone; this is {model['image']}.")
    if model["text"]["name"] not in ("bert", "modernbert") or not model["projection"].get("bias", True):
        raise UserError(f"the original Mammo-CLIP code has no text encoder {model['text']['name']} with the projection "
                        f"{model['projection']}.")
    state: dict[str, np.ndarray] = {}
    for name, prefix, naming in (("image_encoder", "image_encoder.", "efficientnet/lukemelas"),
                                 ("text_encoder", _MODERN if modern else _BERT,
                                  "modernbert/mammo_fm" if modern else "bert")):
        part = {collection: tree[name] for collection, tree in variables.items() if name in tree}
        options = model["image" if name == "image_encoder" else "text"]
        state |= {prefix + key: value for key, value in write(names.naming(naming), part, options).items()}
    params = variables["params"]
    for name in ("image_projection", "text_projection"):
        state |= write_linear(f"{name}.projection.", params[name]["dense"])
        if "hidden" in params[name]:
            state |= write_linear(f"{name}.fc.", params[name]["hidden"])
            state |= {f"{name}.layer_norm.weight": params[name]["norm"]["scale"],
                      f"{name}.layer_norm.bias": params[name]["norm"]["bias"]}
    state["logit_scale"] = np.asarray(params["logit_scale"], np.float32).reshape(())
    return {"model": state, "config": _original_config(model, image, modern), "epoch": 0}


def _original_config(model: Mapping, image: Mapping, modern: bool) -> dict:
    """The fields that the original code reads from a checkpoint's config."""
    name = MODERNBERT_TOKENIZER if modern else BERT_TOKENIZER
    return {
        "base": {"mean": float(image["mean"]), "std": float(image["std"])},
        "tokenizer": {"source": "huggingface", "pretrained_model_name_or_path": name},
        "model": {
            "name": "clip_custom", "temperature": 0.07,
            "image_encoder": {"source": "cnn", "name": _ORIGINAL[model["image"]["variant"]], "pretrained": True,
                              "model_type": "cnn"},
            "text_encoder": {"source": "huggingface", "name": name, "pretrained": True,
                             "gradient_checkpointing": False, "pooling": model["pooling"],
                             "cache_dir": "~/.cache/huggingface/hub", "trust_remote_code": True, "mlm_head": True},
            "projection_head": {"name": model["projection"]["kind"], "dropout": 0.1, "proj_dim": int(model["dim"])},
        },
    }


MAMMO_CLIP = Layout("Mammo-CLIP pretraining checkpoint", "mammo_clip",
                    lambda state: _fits(state) and not _is_modern(state), _read, _write)
MAMMO_FM = Layout("Mammo-FM pretraining checkpoint", "mammo_fm", _is_modern, _read, _write)
