"""Mammo-CLIP's downstream checkpoints: a classifier of images, and a RetinaNet detector.

The classifier's file is {"model": {image_encoder.*, classifier.classification_head.*}, "auroc" or "accuracy", ...}, the
detector's {"state_dict": {efficientnet.*, fpn.*, regressionModel.*, classificationModel.*}, "MAP" or "best_MAP"}.
Neither says which label it was trained for: `--labels` does.
"""

from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.layouts.mammo_clip import IMAGE, PREPROCESSING
from mammoclip_jax.weights.layouts.parts import Layout, Model
from mammoclip_jax.weights.names import downstream
from mammoclip_jax.weights.naming import State

_CLASSES_BY_COUNT = {4: ("density_A", "density_B", "density_C", "density_D"), 3: ("birads_0", "birads_1", "birads_2")}


def _labels(rest: Mapping[str, Any], count: int) -> list[str]:
    wanted = list(rest.get("labels", ()))
    if wanted and len(wanted) != count:
        raise UserError(f"--labels names {len(wanted)} labels, {', '.join(wanted)}; the file has {count} outputs.")
    return wanted or list(_CLASSES_BY_COUNT.get(count, [f"output_{i}" for i in range(count)]))


def _read_classifier(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    image, variables, unused = downstream.read_classifier(state)
    count = variables["params"]["classification_head"]["kernel"].shape[1]
    labels = _labels(rest, count)
    notes = [] if rest.get("labels") else [f"The file does not name its outputs: they are called {', '.join(labels)}."]
    return Model(
        "classifier",
        variables=variables,
        image=IMAGE,
        preprocessing=PREPROCESSING,
        text_length=0,
        tokenizer="",
        notes=notes,
        unused=unused,
        model={
            "image": image,
            "labels": labels,
            "activation": "softmax" if count > 2 else "sigmoid",
            "dtype": "float32",
        },
    )


def _read_detector(state: State, rest: Mapping[str, Any], config: Mapping[str, Any] | None) -> Model:
    options, variables, unused = downstream.read_detector(state)
    labels = _labels(rest, options.pop("classes"))
    notes = [] if rest.get("labels") else [f"The file does not name its classes: they are called {', '.join(labels)}."]
    notes.append("The original stretches images to 512 x 512 once more.")
    return Model(
        "detector",
        variables=variables,
        image=IMAGE,
        text_length=0,
        tokenizer="",
        notes=notes,
        unused=unused,
        preprocessing=PREPROCESSING | {"height": 512, "width": 512},
        model=options | {"labels": labels, "dtype": "float32"},
    )


MAMMO_CLIP_CLASSIFIER = Layout(
    "Mammo-CLIP classifier", "mammo_clip", downstream.is_classifier, _read_classifier, downstream.write_classifier
)
MAMMO_CLIP_DETECTOR = Layout(
    "Mammo-CLIP detector", "mammo_clip", downstream.is_detector, _read_detector, downstream.write_detector
)
