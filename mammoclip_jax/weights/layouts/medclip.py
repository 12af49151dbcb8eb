"""MedCLIP checkpoints (Wang et al. 2022, arXiv:2210.10163): ResNet-50 or Swin-T beside Bio_ClinicalBERT.

vision_model.model.*                        torchvision's ResNet-50 with fc [512, 2048], or the hub's Swin-T
vision_model.projection_head.weight         with Swin-T
text_model.model.*                          BERT; the states are the mean of layers 1, 2 and the last
text_model.projection_head.weight           without bias
logit_scale                                 before exp
"""

from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.layouts.parts import Layout, Model, dual_encoder, leftover, linear, tower
from mammoclip_jax.weights.naming import State

_VISION, _TEXT = "vision_model.model.", "text_model.model."
_HEADS = {
    "image_projection": ("vision_model.projection_head.", f"{_VISION}fc."),
    "text_projection": ("text_model.projection_head.",),
}


def _fits(state: State) -> bool:
    return {"text_model.projection_head.weight", "logit_scale", f"{_TEXT}embeddings.word_embeddings.weight"} <= set(
        state
    )


def _read(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image, text = tower(state, _VISION), tower(state, _TEXT, "bert")
    heads = {
        name: next((prefix for prefix in prefixes if prefix + "weight" in state), prefixes[0])
        for name, prefixes in _HEADS.items()
    }
    modules = {name: {"dense": linear(state, prefix)} for name, prefix in heads.items()}
    for name, module in modules.items():
        if "bias" in module["dense"]:
            raise UserError(
                f"{heads[name]}bias is there: published MedCLIP weights have projections without bias, and "
                "an older version of its code, which pooled otherwise, had one. It cannot be told which "
                "pooling these weights were trained with."
            )
    leftover(state, (_VISION, _TEXT, *heads.values(), "logit_scale"))
    unused = [key for key in image.unused + text.unused if not key.startswith(heads["image_projection"])]
    return Model(
        "dual_encoder",
        preprocessing={
            "geometry": "fit",
            "height": 224,
            "width": 224,
            "intensity": "voi",
            "bits": 8,
            "crop": "none",
            "outside": "kept",
            "chest_wall": "centre",
        },
        image={"mean": 0.5862785803043838, "std": 0.27950088968644304, "channels": 3, "intensity": "range"},
        text_length=77,
        tokenizer="emilyalsentzer/Bio_ClinicalBERT",
        unused=unused,
        notes=[
            "Texts are pooled over their real tokens; the original also counts the padding of its batch, so that "
            "its vector of a text depends on the longest text beside it. A text alone gives the same here.",
            "Images are whole chest radiographs, padded to a square around their middle, as of the original (docs/chest.md).",
        ],
        **dual_encoder(
            image,
            text._replace(options=text.options | {"average_layers": [1, 2, -1]}),
            modules,
            state["logit_scale"],
            projection={"kind": "linear", "dropout": 0.0, "bias": False},
            pooling="mean",
        ),
    )


MEDCLIP = Layout("MedCLIP checkpoint", "medclip", _fits, _read)
