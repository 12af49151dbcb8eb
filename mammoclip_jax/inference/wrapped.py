"""What models share that ask others: `mirrored`, `windows` and `ensemble` say how."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from mammoclip_jax.boxes import iou
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import exam, image_model
from mammoclip_jax.inference.looks import Meant
from mammoclip_jax.models.nms import Detections, nms


class Wrapped(Meant):
    """A model that asks another one, `inner`.

    It has what is named in PASSED, and what its class defines: what else `inner` can, it would do without the looks.
    """

    KINDS: tuple[str, ...] = ("classifier", "detector", "dual_encoder")
    PASSED = frozenset(
        """kind labels config preprocessing step provenance trained_on stages local_heads attribute_stages map_stage
        stage_grid logit_scale similarity embed_text text_directions""".split()
    )

    def __init__(self, inner):
        if inner.kind not in self.KINDS:
            raise UserError(
                f"mirrored looks, windows and ensembles are for a {', '.join(self.KINDS)}; this model is a {inner.kind}."
            )
        self.inner = inner
        self.calibration, self.calibrated = inner.calibration, inner.calibrated

    def __getattr__(self, name: str):
        if name in self.PASSED and "inner" in self.__dict__:
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}: what a single look can do, ask of `.inner`.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.inner!r}>"

    def fingerprint(self) -> str:
        """Of the weights; how they look is told apart by `looks`."""
        return self.inner.fingerprint()

    def read_images(self, files: Sequence[str | Path]) -> Shaped[np.ndarray, "N H W"]:
        """Files as this model wants its images: see `ImageModel.read_images`."""
        return image_model.read(files, self.preprocessing)

    def predict(self, folder: str | Path, out: str | Path | None = None, **options) -> dict[str, Any]:
        """Scores of the exams in a folder: see `inference.exam.predict`."""
        return exam.predict(self, folder, out, **options)


def rescaled(heats: Float[np.ndarray, "N H W"], raw: bool = False) -> Float[np.ndarray, "N H W"]:
    """Maps with their largest value at 1, unless all is 0; `raw` ones as they are."""
    if raw:
        return heats
    highest = heats.max(axis=(1, 2), keepdims=True)
    return heats / np.where(highest > 0, highest, 1)


def merged(parts: Sequence[Detections], labels: int, *, mean: bool, **options) -> Detections:
    """The boxes of several looks at the same N images: `models.nms.nms` of all together.

    Args:
        parts: of each look, [N, K, 4], on the same canvas.
        labels: how many classes there are.
        mean: a box's score is the mean over the looks of the highest score of a box of its class that overlaps it (its own
            included), 0 of a look without one. Else it is that of the highest box, as where looks show different places.
        options: of `nms`, as they were given to each look.
    """
    boxes, scores, classes = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts], axis=1)
        for name in ("boxes", "scores", "classes")
    )
    look = np.repeat(np.arange(len(parts)), [part.scores.shape[1] for part in parts])
    found = [
        _of_image(*rows, look if mean else None, labels, options) for rows in zip(boxes, scores, classes, strict=True)
    ]
    return detections(np.stack(field) for field in zip(*found, strict=True))


def detections(fields: Iterable[Any]) -> Detections:
    """Detections of NumPy arrays."""
    return Detections(*fields)


def _of_image(boxes, scores, classes, look, labels: int, options) -> Detections:
    """Of one image: boxes [M, 4], scores, classes and look [M]; without look a box's score stays its own."""
    by_class = np.zeros((len(boxes), labels), np.float32)
    real = classes >= 0
    by_class[real, classes[real]] = scores[real]
    kept = detections(map(np.array, _nms(boxes, by_class, tuple(sorted({**options, "candidates": None}.items())))))
    if look is None:
        return kept
    overlap, threshold = (options.get(name, usual) for name, usual in (("overlap", 0.5), ("threshold", 0.05)))
    same = (iou(kept.boxes[:, None], boxes) > overlap) & (kept.classes[:, None] == classes)
    highest = [np.where(same & (look == k), scores, 0).max(axis=1, initial=0) for k in range(look.max() + 1)]
    means = np.where(kept.valid, np.mean(highest, axis=0), 0)
    valid = means > threshold
    order = np.argsort(-np.where(valid, means, -1), kind="stable")
    blank = {"boxes": 0, "scores": 0, "classes": -1, "valid": False}
    fields = {**kept._asdict(), "scores": means.astype(np.float32)}.items()
    return detections(
        np.where(valid.reshape(-1, *[1] * (field.ndim - 1)), field, blank[name])[order] for name, field in fields
    )


@functools.partial(jax.jit, static_argnums=2)
def _nms(boxes, scores, options):
    return nms(boxes, scores, **dict(options))
