"""Each image as it is and mirrored, laterality exchanged: what both looks say, in the mean.

A mirrored left breast is a right one, so texts that name a side are asked of the mirrored image with the other side
(`data.text.reports.swap_laterality`), as in a training with `config.data.flip_horizontal`. Views of a breast or exam
need no other places: what combines them (`models.heads.COMBINATIONS`) does not know their order.

Means are of probabilities, not of logits: they stay those of a mixture of both looks, classes sum to one, and a look
that is all too sure does not outweigh the other.

With `chest_wall="left"` in the preprocessing every image lies the same way round, and the mirrored one is a look that a
model has learnt from only where its training flipped images.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mammoclip_jax.data.text.reports import swap_laterality
from mammoclip_jax.inference import inputs
from mammoclip_jax.inference.wrapped import Wrapped, merged, rescaled
from mammoclip_jax.models.nms import Detections


class Mirrored(Wrapped):
    """A classifier, detector or dual encoder that looks at each image twice.

    The vectors of a dual encoder are twice as long: both looks' behind each other, of length one together, so that their
    product with a text's vectors is the mean of the two cosines.
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.looks = inner.looks._replace(mirror=True)

    def classify(self, images, *, calibrated: bool | None = None) -> Float[np.ndarray, "N labels"]:
        """Mean probabilities of both looks; see `heads.Classifier.classify`."""
        return self._meant(_both(images, lambda x: self.inner.classify(x, calibrated=False)), calibrated)

    def classify_views(self, images, there, *, calibrated: bool | None = None) -> Float[np.ndarray, "N labels"]:
        """The same of breasts or exams; see `heads.Classifier.classify_views`."""
        scores = _both(images, lambda x: self.inner.classify_views(x, there, calibrated=False), views=True)
        return self._meant(scores, calibrated, self.config.task.unit)

    def embed_image(self, images) -> Float[np.ndarray, "N 2*D"]:
        """Unit vectors of both looks."""
        array = inputs.images(images, None)
        return _joined(self.inner.embed_image(array), self.inner.embed_image(array[..., ::-1]))

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "N 2*D"]:
        """Unit vectors of texts, for the image as it is and for the mirrored one."""
        return _of_texts(self.inner.embed_text, inputs.texts(texts))

    def text_directions(self, texts: Sequence[str], method: str = "grad_cam", stage: str | None = None):
        """See `DualEncoder.text_directions`: for both looks."""
        return _of_texts(lambda some: self.inner.text_directions(some, method, stage), inputs.texts(texts))

    def detect(self, images, **options) -> Detections:
        """The boxes of both looks, on the image as it is; the score of a box is the mean of both looks (`merged`)."""
        array = np.asarray(images)
        plain, mirrored = (self.inner.detect(x, **options) for x in (array, array[..., ::-1]))
        boxes = mirrored.boxes.copy()
        width = array.shape[-1] * mirrored.valid[..., None]  # what is no box stays all zeros
        boxes[..., [0, 2]] = width - boxes[..., [2, 0]]
        return merged([plain, mirrored._replace(boxes=boxes)], len(self.labels), mean=True, **options)

    def saliency(
        self, images, towards, *, method: str = "grad_cam", stage: str | None = None, raw: bool = False, **options
    ) -> Float[np.ndarray, "N H W"]:
        """The mean of both looks' maps, the mirrored one's mirrored back; see `ImageModel.saliency`."""
        array = inputs.images(images, None)
        towards = inputs.pairs(len(array), towards, self.labels)
        first = second = towards
        if self.kind == "dual_encoder":
            words = len(towards) and isinstance(towards[0], str)
            vectors = self.text_directions(towards, method, stage) if words else np.asarray(towards)
            first, second = np.split(vectors, 2, axis=1)
        same = {"method": method, "stage": stage, "raw": raw, **options}
        heats = self.inner.saliency(array, first, **same)
        heats = heats + self.inner.saliency(array[..., ::-1], second, **same)[..., ::-1]
        return rescaled(heats / 2, raw)


def _both(images, scores_of, views: bool = False) -> np.ndarray:
    array = inputs.images(images, None, views)
    return (scores_of(array) + scores_of(array[..., ::-1])) / 2


def _of_texts(vectors_of, texts: list[str]) -> np.ndarray:
    said = [*texts, *map(swap_laterality, texts)]
    known = list(dict.fromkeys(said))  # most name no side: they are computed once
    vectors = dict(zip(known, vectors_of(known), strict=True))
    return _joined(*np.split(np.stack([vectors[text] for text in said]), 2))


def _joined(*vectors: np.ndarray) -> np.ndarray:
    return np.concatenate(vectors, axis=1) / np.float32(np.sqrt(len(vectors)))
