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
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.layouts.parts import Layout, Model, below, dual_encoder, leftover, linear, tower
from mammoclip_jax.weights.names import heads
from mammoclip_jax.weights.naming import State

_IMAGE, _TEXT = "img_encoder_q.model.", "text_encoder_q.model."
_HEADS = {"image_projection": "img_encoder_q.global_embed.", "text_projection": "text_encoder_q.global_embed."}
_ALPHA = 32  # of its LoRA; the rank is the adapters' own


def _fits(state: State) -> bool:
    return {f"{_IMAGE}cls_token", "logit_scale", *(f"{prefix}weight" for prefix in _HEADS.values())} <= set(state)


def merge_lora(state: State) -> tuple[dict[str, np.ndarray], int]:
    """(GPT-2's own state dict, number of adapters merged) of one that PEFT has wrapped.

    W + alpha / rank * (B A)^T, since GPT-2's kernels are [in, out] (PEFT's fan_in_fan_out).
    """
    plain = {
        re.sub(r"^base_model\.model\.", "", key).replace(".base_layer.", "."): value for key, value in state.items()
    }
    adapters = [key for key in plain if key.endswith("lora_A.default.weight")]
    for key in adapters:
        down, up = plain.pop(key), plain.pop(key.replace("lora_A", "lora_B"))
        kernel = key.replace("lora_A.default.", "")
        if kernel not in plain:
            raise UserError(f"the adapter {key} has no kernel {kernel} in the file.")
        product = (up.astype(np.float32) @ down.astype(np.float32)).T
        plain[kernel] = plain[kernel].astype(np.float32) + _ALPHA / len(down) * product
    return plain, len(adapters)


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image = tower(state, _IMAGE)
    merged, adapters = merge_lora(below(state, _TEXT))
    gpt2 = any(key.startswith("transformer.") for key in merged)
    prefix = "transformer." if gpt2 else ""
    head = [key for key in merged if not key.startswith(prefix)]
    text = tower(merged, prefix, "gpt2" if gpt2 else "bert")
    modules = {name: {"dense": linear(state, prefix)} for name, prefix in _HEADS.items()}
    arrays, options, used = heads.read(state)
    others = {key: value for key, value in state.items() if key not in used}
    unused = leftover(others, (_IMAGE, _TEXT, *_HEADS.values(), "logit_scale"), ("confmat.",))
    size = image.options.get("size", 518)
    return Model(
        "dual_encoder",
        preprocessing={"geometry": "fit", "height": size, "width": size, "intensity": "voi", "bits": 8},
        image={"mean": 0.5, "std": 0.5, "channels": 3, "intensity": "range"},
        text_length=144,
        tokenizer="stanford-crfm/BioMedLM" if gpt2 else "emilyalsentzer/Bio_ClinicalBERT",
        notes=[
            f"{adapters} LoRA adapters were merged into the text encoder.",
            "Texts are pooled over their real tokens. The original counts padding in training, and takes the first "
            "padding token in zero-shot tests: neither is imitated.",
            "Its tokenizer has six tokens more than BioMedLM's: give the tokenizer that belongs to the weights.",
            "The original crops by Otsu's threshold and stretches to a square; here the aspect is kept.",
        ],
        unused=unused + image.unused + text.unused + head,
        **_with_heads(
            arrays,
            options,
            image._replace(options=image.options | {"pooling": "all"}),
            text,
            modules,
            state["logit_scale"],
            projection={"kind": "linear", "dropout": 0.0, "bias": True},
            pooling="mean",
        ),
    )


def _with_heads(arrays: Mapping[str, np.ndarray], options: dict, *towers, **more) -> dict:
    """`parts.dual_encoder` with the heads that the file has."""
    made = dual_encoder(*towers, **more, **({"heads": options} if options else {}))
    return made | {"variables": unflatten_dict(flatten_dict(made["variables"], sep="/") | dict(arrays), sep="/")}


MAMA = Layout("MaMA checkpoint", "mama", _fits, _read)
