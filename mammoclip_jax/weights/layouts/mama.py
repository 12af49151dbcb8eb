"""MaMA checkpoints (Du et al. 2024, arXiv:2409.18119): DINOv2 with registers beside BioMedLM with LoRA, or BERT; and
those of its successor GLAM (arXiv:2509.10344).

    img_encoder_q.model.*                       DINOv2 as its authors name it
    img_encoder_q.global_embed.*                projection
    text_encoder_q.model.*                      GPT-2, as PEFT wraps it: base_model.model.transformer.h.N...; or BERT
    text_encoder_q.global_embed.*               projection
    logit_scale                                 before exp; the heads and their scales: weights/names/heads.py

The file is PyTorch Lightning's: {"state_dict", "hyper_parameters", ...}.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.lora import ADAPTERS
from mammoclip_jax.names import check_name
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
from mammoclip_jax.weights.names import heads
from mammoclip_jax.weights.naming import Leaf, State, Tower, from_torch, to_torch, write

_IMAGE, _TEXT = "img_encoder_q.model.", "text_encoder_q.model."
_HEADS = {"image_projection": "img_encoder_q.global_embed.", "text_projection": "text_encoder_q.global_embed."}
_PEFT, _BASE = "base_model.model.", "base_layer."  # PEFT's names of the model that it wraps, and of an adapted layer
_ADAPTER = re.compile(r"(.+)\.lora_([AB])\.default\.weight")
_HALVES = {"A": "lora_a", "B": "lora_b"}
_LORA = {"alpha": 32.0, "dropout": 0.1}  # of its code; the rank is the adapters' own
_PREFIX = {"gpt2": "transformer.", "bert": ""}  # of its text encoders
_PIXELS = {"mean": 0.5, "std": 0.5, "channels": 3, "intensity": "range"}


def _fits(state: State) -> bool:
    return {f"{_IMAGE}cls_token", "logit_scale", *(f"{prefix}weight" for prefix in _HEADS.values())} <= set(state)


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image = tower(state, _IMAGE)
    plain, adapters = _unwrapped(below(state, _TEXT))
    kind = "gpt2" if any(key.startswith(_PREFIX["gpt2"]) for key in plain) else "bert"
    text = tower(plain, _PREFIX[kind], kind)
    head = [key for key in plain if not key.startswith(_PREFIX[kind])]
    arrays, lora = _read_lora(adapters, text, kind) if adapters else ({}, {})
    more, options, used = heads.read(state)
    others = {key: value for key, value in state.items() if key not in used}
    unused = leftover(others, (_IMAGE, _TEXT, *_HEADS.values(), "logit_scale"), ("confmat.",))
    size = image.options.get("size", 518)
    model = dual_encoder(
        image._replace(options=image.options | {"pooling": "all"}),
        text,
        {name: {"dense": linear(state, prefix)} for name, prefix in _HEADS.items()},
        state["logit_scale"],
        projection={"kind": "linear", "dropout": 0.0, "bias": True},
        pooling="mean",
        **({"heads": options} if options else {}),
        **({"lora": lora} if lora else {}),
    )
    variables = flatten_dict(model["variables"], sep="/") | arrays | more
    return Model(
        "dual_encoder",
        model["model"],
        unflatten_dict(variables, sep="/"),
        preprocessing={"geometry": "fit", "height": size, "width": size, "intensity": "voi", "bits": 8},
        image=_PIXELS,
        text_length=144,
        tokenizer="stanford-crfm/BioMedLM" if kind == "gpt2" else "emilyalsentzer/Bio_ClinicalBERT",
        notes=[
            f"{len(adapters)} LoRA adapters stay beside the text encoder's kernels (config.model.lora); their alpha, "
            f"{_LORA['alpha']:g}, is that of the released code: the file does not say it.",
            "Texts are pooled over their real tokens. The original counts padding in training, and takes the first "
            "padding token in zero-shot tests: neither is imitated.",
            "Its tokenizer has six tokens more than BioMedLM's: give the tokenizer that belongs to the weights.",
            "The original crops by Otsu's threshold and stretches to a square; here the aspect is kept.",
        ],
        unused=unused + image.unused + text.unused + head,
    )


def _unwrapped(state: State) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """(a text encoder's own state dict, its adapters {layer: {"lora_a", "lora_b"}} in our axes) of what PEFT may have
    wrapped.

    Raises:
        UserError: an adapter has no kernel, or no other half.
    """
    plain = {key.removeprefix(_PEFT).replace(f".{_BASE}", "."): value for key, value in state.items()}
    adapters: dict[str, dict[str, np.ndarray]] = {}
    for key in list(plain):
        if found := _ADAPTER.fullmatch(key):
            layer, half = found.groups()
            adapters.setdefault(layer, {})[_HALVES[half]] = from_torch(Leaf(key, "dense"), plain.pop(key))
    for layer, halves in adapters.items():
        if f"{layer}.weight" not in plain or len(halves) < len(_HALVES):
            raise UserError(f"the adapter of {layer} has no kernel, or no other half, in the file: is it whole?")
    return plain, adapters


def _read_lora(adapters: Mapping[str, Mapping], text: Tower, kind: str) -> tuple[dict[str, np.ndarray], dict]:
    """({our path: array}, config.model.lora).

    Raises:
        UserError: the adapters are of several ranks, or a layer has none where others of its name have.
    """
    params = flatten_dict(text.variables["params"], sep="/")
    layers = _layers((path for path in params if path.endswith("/kernel")), kind)
    names_of = {re.sub(r"^.*?_\d+/", "", layers[layer]) for layer in adapters}
    pattern = "|".join(f"text_encoder/.*/{name}" for name in sorted(names_of))
    meant = {layer for layer, path in layers.items() if re.match(pattern, f"text_encoder/{path}")}
    ranks = {halves["lora_a"].shape[1] for halves in adapters.values()}
    if len(ranks) > 1 or meant != set(adapters):
        raise UserError(
            f"{len(adapters)} of {len(meant)} layers that have a name in common have adapters, of rank "
            f"{', '.join(map(str, sorted(ranks)))}: only one rank, in all of these layers, can be read."
        )
    arrays = {
        f"params/{ADAPTERS}/text_encoder/{layers[layer]}/{half}": value
        for layer, halves in adapters.items()
        for half, value in halves.items()
    }
    return arrays, {"pattern": pattern, "rank": ranks.pop(), **_LORA}


def _layers(kernels: Iterable[str], kind: str) -> dict[str, str]:
    """{name of a layer in the file: our path of its kernel} of a text encoder."""
    leaf = names.naming(kind).leaf
    return {_PREFIX[kind] + leaf(path).key.removesuffix(".weight"): path for path in kernels}


def _write(variables: Mapping[str, Any], meta: Mapping[str, Any]) -> dict:
    """The checkpoint that the original code loads, from our variables: adapters stay adapters.

    Raises:
        UserError: the model is of a kind that the original code does not have.
    """
    model, params = meta["config"]["model"], variables["params"]
    _check_original(model, meta["config"]["image"])
    kind = model["text"]["name"]
    image = write(names.naming("dinov2/authors"), {"params": params["image_encoder"]}, model["image"])
    text = write(names.naming(kind), {"params": params["text_encoder"]}, model["text"])
    text = {_PREFIX[kind] + key: value for key, value in text.items()}
    adapters = params.get(ADAPTERS, {}).get("text_encoder")
    state = {_IMAGE + key: value for key, value in image.items()}
    state |= {_TEXT + key: value for key, value in (_wrapped(text, adapters, kind) if adapters else text).items()}
    for name, prefix in _HEADS.items():
        state |= write_linear(prefix, params[name]["dense"])
    state |= heads.write(flatten_dict(dict(variables), sep="/"), model.get("heads") or {})
    return {"state_dict": state | {"logit_scale": np.asarray(params["logit_scale"], np.float32).reshape(())}}


def _wrapped(state: State, adapters: Mapping[str, Any], kind: str) -> dict[str, np.ndarray]:
    """The way back from `_unwrapped` and `_read_lora`."""
    halves = flatten_dict(adapters, sep="/")
    layers, wrapped = _layers(dict.fromkeys(path.rpartition("/")[0] for path in halves), kind), {}
    for key, value in state.items():
        layer, _, last = key.rpartition(".")
        wrapped[f"{_PEFT}{layer}.{_BASE}{last}" if layer in layers else _PEFT + key] = value
    for layer, path in layers.items():
        for half, ours in _HALVES.items():
            value = to_torch(Leaf("", "dense"), np.asarray(halves[f"{path}/{ours}"]))
            wrapped[f"{_PEFT}{layer}.lora_{half}.default.weight"] = value
    return wrapped


def _check_original(model: Mapping[str, Any], image: Mapping[str, Any]) -> None:
    """Raises UserError where the original code has no such model, or would compute something else from its weights."""
    projection, lora, others = model["projection"], model.get("lora") or {}, model.get("heads") or {}
    wanted = {
        "model.image.name": (model["image"]["name"], "dinov2"),
        "model.image.pooling": (model["image"].get("pooling", "cls"), "all"),
        "model.pooling": (model["pooling"], "mean"),
        "model.projection": ((projection["kind"], projection.get("bias", True)), ("linear", True)),
        "model.projected": (tuple(model.get("projected", ())), ()),
        "model.lora.alpha": (lora.get("alpha", _LORA["alpha"]), _LORA["alpha"]),
        **{f"image.{name}": (image[name], value) for name, value in _PIXELS.items()},
        **{f"model.heads.{name}": (options.get("kind", name), name) for name, options in others.items()},
    }
    for name, (found, theirs) in wanted.items():
        if found != theirs:
            raise UserError(f"the original code has {theirs!r} for config.{name}, this model {found!r}.")
    check_name(model["text"]["name"], _PREFIX, "text encoder of the original code")
    for name in others:
        check_name(name, heads.SIGNS, "head of the original code")


MAMA = Layout("MaMA checkpoint", "mama", _fits, _read, _write, adapters=True)
