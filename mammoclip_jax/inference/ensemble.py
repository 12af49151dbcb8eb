"""Several models of the same labels as one: the mean of what they say, and how far they are apart.

Means are of probabilities (Lakshminarayanan et al. 2017, arXiv:1612.01474), of a dual encoder's cosines, of maps each
scaled to 1. Members may prepare images in different ways: then each renders the files for itself, and what takes arrays
takes one for each member, as `read_images` gives them.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mammoclip_jax import provenance
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.looks import Found
from mammoclip_jax.inference.looks import found as found_by
from mammoclip_jax.inference.wrapped import Wrapped, merged, rescaled
from mammoclip_jax.models.nms import Detections
from mammoclip_jax.weights import licences


class Ensemble(Wrapped):
    """Models that agree in kind, labels and what they score; `inner` is the first.

    Attributes:
        members: the models.
        mixed: whether they prepare images in different ways.
        provenance: with the terms of all; trained_on: the patients of all, None where one's are not on record.

    Raises:
        UserError: fewer than two, one twice, or they do not agree.
    """

    def __init__(self, members: Sequence):
        if len(members) < 2:
            raise UserError("an ensemble is of two models or more: name them all, with commas between.")
        super().__init__(members[0])
        self.members = tuple(members)
        self.looks = members[0].looks
        _agree(self.members)
        prepared = [Preprocessing.from_dict(member.preprocessing) for member in self.members]
        self.mixed = any(own != prepared[0] for own in prepared)
        self.provenance = functools.reduce(licences.joined, (member.provenance for member in self.members))
        records = [member.trained_on for member in self.members]
        self.trained_on = None if None in records else provenance.trained_on((), *records)
        self.calibration = [entry for member in self.members for entry in member.calibration]

    def __repr__(self) -> str:
        return f"<Ensemble {', '.join(map(repr, self.members))}>"

    def fingerprint(self) -> str:
        """16 hex digits of the members' weights, in whatever order."""
        return _digest(self.members)

    def read_images(self, files: Sequence[str | Path]):
        """Files as the members want their images: one array [N, H, W], or where they differ one for each member."""
        if not self.mixed:
            return super().read_images(files)
        return tuple(member.read_images(files) for member in self.members)

    def found(self, images, score) -> Found:
        """The mean of the members' scores, their standard deviation (of the sample), and of windows the highest one's."""
        own = [found_by(member, part, score) for member, part in zip(self.members, self._parts(images), strict=True)]
        stacked = {label: np.stack([each.scores[label] for each in own]) for label in own[0].scores}
        best = {label: values.argmax(axis=0) for label, values in stacked.items()}
        windows = {} if self.mixed else own[0].window  # on different canvases they are no boxes of the same image
        return Found(
            {label: values.mean(axis=0) for label, values in stacked.items()},
            {label: values.std(axis=0, ddof=1) for label, values in stacked.items()},
            {
                label: np.stack([own[member].window[label][image] for image, member in enumerate(best[label])])
                for label in windows
            },
        )

    def classify(self, images, *, calibrated: bool | None = None) -> Float[np.ndarray, "N labels"]:
        """Mean probabilities of the members; see `heads.Classifier.classify`."""
        parts = zip(self.members, self._parts(images), strict=True)
        return self._meant(np.mean([m.classify(part, calibrated=False) for m, part in parts], axis=0), calibrated)

    def classify_views(self, images, there, *, calibrated: bool | None = None) -> Float[np.ndarray, "N labels"]:
        """The same of breasts or exams; see `heads.Classifier.classify_views`."""
        parts = zip(self.members, self._parts(images), strict=True)
        scores = np.mean([m.classify_views(part, there, calibrated=False) for m, part in parts], axis=0)
        return self._meant(scores, calibrated, self.config.task.unit)

    def embed_image(self, images) -> Float[np.ndarray, "N D"]:
        """Unit vectors of all members behind each other: their products with texts' are the mean of the cosines."""
        return self._joined([m.embed_image(x) for m, x in zip(self.members, self._parts(images), strict=True)])

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Unit vectors of all members, as `embed_image`."""
        return self._joined([member.embed_text(texts) for member in self.members])

    def text_directions(self, texts: Sequence[str], method: str = "grad_cam", stage: str | None = None):
        """See `DualEncoder.text_directions`: of all members behind each other."""
        return self._joined([member.text_directions(texts, method, stage) for member in self.members])

    def detect(self, images, **options) -> Detections:
        """The members' boxes; the score of each is the mean over the members (`wrapped.merged`).

        Raises:
            UserError: the members' images differ, and so would the boxes' pixels.
        """
        if self.mixed:
            raise UserError("detectors that prepare images in different ways find boxes on different canvases.")
        parts = [member.detect(images, **options) for member in self.members]
        return merged(parts, len(self.labels), mean=True, **options)

    def saliency(
        self, images, towards, *, method: str = "grad_cam", stage: str | None = None, raw: bool = False, **options
    ) -> Float[np.ndarray, "N H W"]:
        """The mean of the members' maps; of those alone that see the first one's canvas. See `ImageModel.saliency`."""
        heats, start, vectors = [], 0, None
        if self.kind == "dual_encoder":
            words = len(towards) and isinstance(towards[0], str)
            vectors = self.text_directions(towards, method, stage) if words else np.asarray(towards)
            sizes = [member.text_directions([""], method, stage).shape[1] for member in self.members]
        for place, (member, part) in enumerate(zip(self.members, self._parts(images), strict=True)):
            asked = towards
            if vectors is not None:
                asked, start = vectors[:, start : start + sizes[place]], start + sizes[place]
            if dict(member.preprocessing) == dict(self.preprocessing):
                heats.append(member.saliency(part, asked, method=method, stage=stage, raw=raw, **options))
        return rescaled(np.mean(heats, axis=0), raw)

    def _joined(self, vectors: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(vectors, axis=1) / np.float32(np.sqrt(len(vectors)))

    def _parts(self, images) -> list:
        """The images of each member."""
        if not self.mixed:
            return [images] * len(self.members)
        if not isinstance(images, (tuple, list)) or len(images) != len(self.members):
            raise UserError(
                f"the {len(self.members)} models of this ensemble prepare images in different ways, so that each needs "
                "an array of its own: model.read_images(files) gives them, and a data set, which is prepared in one way, "
                "cannot."
            )
        return list(images)


def _digest(members) -> str:
    return hashlib.sha256(" ".join(sorted(member.fingerprint() for member in members)).encode()).hexdigest()[:16]


def _agree(members: Sequence) -> None:
    """Raises UserError where models score different things, or one is there twice."""
    first = members[0]
    for other in members[1:]:
        for what, of in (
            ("kind", lambda model: model.kind),
            ("labels", lambda model: tuple(model.labels)),
            ("unit of what is scored", lambda model: model.config.task.unit),
            ("activation of labels", lambda model: model.config.model.activation),
            ("looks", lambda model: model.looks),
        ):
            if of(other) != of(first):
                raise UserError(
                    f"models of an ensemble must agree, and the {what} of {first!r} is {of(first)!r}, of {other!r} "
                    f"{of(other)!r}."
                )
    known = [member.fingerprint() for member in members]
    if len(set(known)) < len(known):
        raise UserError("the same weights are named twice for an ensemble: name each model once.")
