"""An image on a canvas larger than the model's, scored in overlapping windows of the model's size.

The windows of an axis lie evenly from one end of the canvas to the other, and overlap by half or more. Those with less
than LEAST of their pixels in the breast (`data.regions.of_maps.breast_mask`) are left out, unless all are.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import logsumexp

from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import inputs
from mammoclip_jax.inference.looks import POOLS, Found, Looks
from mammoclip_jax.inference.wrapped import Wrapped, detections, merged, rescaled
from mammoclip_jax.models.nms import Detections
from mammoclip_jax.names import lookup

OVERLAP = 0.5  # of neighbours, at least
LEAST = 0.05  # of a window's pixels that are breast
SHARPNESS = 10.0  # of log-sum-exp
AT_A_TIME = 8  # images whose windows are in memory together
POOLED = {
    "max": lambda p: p.max(axis=0),
    "mean": lambda p: p.mean(axis=0),
    "noisy_or": lambda p: 1 - (1 - p).prod(axis=0),
    "lse": lambda p: (logsumexp(SHARPNESS * p, axis=0) - math.log(len(p))) / SHARPNESS,
}


class Tiles(NamedTuple):
    """Windows of several images."""

    pixels: Shaped[np.ndarray, "M h w"]
    boxes: Int[np.ndarray, "M 4"]  # on the canvas of its image
    counts: list[int]  # of each image's, which lie behind each other


def places(size: tuple[int, int], canvas: tuple[int, int]) -> Int[np.ndarray, "W 4"]:
    """The boxes (left, top, right, bottom) of all windows of `size` (height, width) on a canvas, row by row."""
    starts = []
    for small, big in zip(size, canvas, strict=True):
        spare = big - small
        count = math.ceil(spare / (small * (1 - OVERLAP)) - 1e-9) + 1
        starts.append(np.rint(np.linspace(0, spare, count)).astype(int))
    return np.array([[x, y, x + size[1], y + size[0]] for y in starts[0] for x in starts[1]])


class Windows(Wrapped):
    """A classifier of images, a detector or a dual encoder that looks at windows; `preprocessing` is of the canvas.

    Raises:
        UserError: of a classifier of whole breasts or exams, or a pool that its scores cannot have.
    """

    def __init__(self, inner, factor: float, pool: str = "max"):
        super().__init__(inner)
        unit = inner.config.task.unit if inner.kind == "classifier" else "image"
        if unit != "image":
            raise UserError(f"windows are of images, and this model scores a whole {unit} at once: leave them out.")
        lookup(POOLS, pool, "pool of windows")
        if pool != "mean" and inner.kind == "classifier" and inner.config.model.activation == "softmax":
            raise UserError(f"classes sum to one, which pool={pool!r} would undo: take pool='mean'.")
        if pool == "noisy_or" and inner.kind == "dual_encoder":
            raise UserError("noisy_or needs probabilities, and cosines are none: take max, mean or lse.")
        if inner.kind == "detector" and pool != "max":
            raise UserError("a detector's boxes are merged over the windows by their highest scores: leave pool out.")
        self.looks = Looks(inner.looks.mirror, factor, pool)
        size = {side: round(inner.preprocessing[side] * factor) for side in ("height", "width")}
        self.preprocessing = {**inner.preprocessing, **size}
        self.size = (inner.preprocessing["height"], inner.preprocessing["width"])
        self.canvas = (size["height"], size["width"])

    def found(self, images, score) -> Found:
        """The pooled scores of images on the canvas, and the window with the highest score of each label.

        Args:
            score: (model, images) -> {label: [M]}, which is asked for the windows.
        """
        pooled: dict[str, list] = {}
        best: dict[str, list] = {}
        for tiles in self._tiles(images):
            for label, values in score(self.inner, tiles.pixels).items():
                ends = np.cumsum(tiles.counts)[:-1]
                for own, boxes in zip(np.split(values, ends), np.split(tiles.boxes, ends), strict=True):
                    pooled.setdefault(label, []).append(POOLED[self.looks.pool](own.astype(np.float64)))
                    best.setdefault(label, []).append(boxes[np.argmax(own)])
        scores = {label: np.array(values, np.float32) for label, values in pooled.items()}
        return Found(scores, window={label: np.array(boxes, np.float32) for label, boxes in best.items()})

    def classify(self, images, *, calibrated: bool | None = None) -> Float[np.ndarray, "N labels"]:
        """Pooled probabilities of images on the canvas; see `heads.Classifier.classify`."""
        pooled = self.found(images, _by_label).scores
        return self._meant(np.stack([pooled[label] for label in self.labels], axis=1), calibrated)

    def detect(self, images, **options) -> Detections:
        """The boxes of all windows on the canvas, where several show one the highest (`merged`)."""
        per_image, parts = len(places(self.size, self.canvas)), []
        for tiles in self._tiles(images):
            detected = self.inner.detect(tiles.pixels, **options)
            corner = tiles.boxes[:, None, [0, 1, 0, 1]] * detected.valid[..., None]
            detected = detected._replace(boxes=detected.boxes + corner.astype(np.float32))
            ends = np.cumsum(tiles.counts)[:-1]
            fields = zip(*(np.split(np.asarray(field), ends) for field in detected), strict=True)
            parts += [_padded(detections(own), per_image) for own in fields]
        together = detections(np.stack(field) for field in zip(*parts, strict=True))
        return merged([together], len(self.labels), mean=False, **options)

    def saliency(
        self, images, towards, *, method: str = "grad_cam", stage: str | None = None, raw: bool = False, **options
    ) -> Float[np.ndarray, "N H W"]:
        """The mean of the windows' signed maps at each pixel, 0 where no window looks; see `ImageModel.saliency`."""
        array = self._checked(images)
        towards, heats = inputs.pairs(len(array), towards, self.labels), []
        for first, tiles in zip(range(0, len(array), AT_A_TIME), self._tiles(array), strict=True):
            owners = np.repeat(np.arange(len(tiles.counts)), tiles.counts)
            asked = [towards[first + owner] for owner in owners]
            maps = self.inner.saliency(tiles.pixels, asked, method=method, stage=stage, raw=True, **options)
            for image in range(len(tiles.counts)):
                heat, looks = np.zeros(self.canvas, np.float32), np.zeros(self.canvas, np.float32)
                for (left, top, right, bottom), own in zip(tiles.boxes[owners == image], maps[owners == image]):
                    heat[top:bottom, left:right] += own
                    looks[top:bottom, left:right] += 1
                heats.append(heat / np.maximum(looks, 1))
        signed = np.stack(heats)
        return signed if raw else rescaled(np.maximum(signed, 0))

    def _checked(self, images) -> np.ndarray:
        return inputs.images(images, self.canvas)

    def _tiles(self, images) -> Iterator[Tiles]:
        """The windows of up to AT_A_TIME images at a time."""
        array, boxes = self._checked(images), places(self.size, self.canvas)
        for start in range(0, len(array), AT_A_TIME):
            pixels, kept, counts = [], [], []
            for image in array[start : start + AT_A_TIME]:
                inside = breast_mask(image) if image.min() < image.max() else np.zeros(self.canvas, bool)
                shares = np.array([inside[top:bottom, left:right].mean() for left, top, right, bottom in boxes])
                chosen = boxes[shares >= LEAST] if (shares >= LEAST).any() else boxes
                pixels += [image[top:bottom, left:right] for left, top, right, bottom in chosen]
                kept.append(chosen)
                counts.append(len(chosen))
            yield Tiles(np.stack(pixels), np.concatenate(kept), counts)


def _by_label(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(model.labels, model.classify(images, calibrated=False).T, strict=True))


def _padded(own: Detections, windows: int) -> Detections:
    """The boxes [w, K, 4] of an image's windows as [windows K, 4]: as many places whatever windows were left out."""
    missing = windows - len(own.scores)
    nothing = {"classes": -1}
    return detections(
        np.pad(field, [(0, missing)] + [(0, 0)] * (field.ndim - 1), constant_values=nothing.get(name, 0)).reshape(
            -1, *field.shape[2:]
        )
        for name, field in own._asdict().items()
    )
