"""Overlap of found and true masks, and the cheapest masks that a model must beat: by brightness, and by place."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped

from mammoclip_jax.evaluation import statistics

LEVELS = 64  # of grey values and of shares that thresholds are tried at
BLURS = (0.0, 1 / 128, 1 / 64)  # standard deviations of the blurs that are tried, in shorter sides


class Counts(NamedTuple):
    """Pixels of N images' masks: in both, found, true."""

    both: Shaped[np.ndarray, " N"]
    found: Shaped[np.ndarray, " N"]
    true: Shaped[np.ndarray, " N"]

    @property
    def dice(self) -> Float[np.ndarray, " N"]:
        """2 |A and B| / (|A| + |B|); NaN where both are empty."""
        return _share(2 * self.both, self.found + self.true)

    @property
    def iou(self) -> Float[np.ndarray, " N"]:
        """|A and B| / |A or B|; NaN where both are empty."""
        return _share(self.both, self.found + self.true - self.both)


def _share(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def counts(found: Bool[np.ndarray, "N H W"], true: Bool[np.ndarray, "N H W"]) -> Counts:
    """Of masks of the same images."""
    return Counts(*((x).sum(axis=(1, 2)) for x in (found & true, found, true)))


def entries(own: Counts, patients: Sequence[str], **options) -> dict[str, dict]:
    """dice and iou, means over the images that show it; dice_pooled, of the pixels of all images together; and clean, the
    share of the images without it in which nothing is found. `options` are those of `statistics`."""
    patients = np.asarray(patients)
    shows = own.true > 0
    values = {
        "dice": statistics.mean(own.dice[shows], patients[shows], **options),
        "iou": statistics.mean(own.iou[shows], patients[shows], **options),
    }
    if shows.all():
        return values
    return values | {
        "dice_pooled": statistics.ratio(2 * own.both, own.found + own.true, patients, **options),
        "clean": statistics.mean(own.found[~shows] == 0, patients[~shows], **options),
    }


def gained(own: Counts, other: Counts, patients: Sequence[str], **options) -> dict:
    """Mean of the differences in Dice, image by image, over the images that show it."""
    shows = own.true > 0
    return statistics.mean((own.dice - other.dice)[shows], np.asarray(patients)[shows], **options)


def lightness(images: Shaped[np.ndarray, "N H W"], blur: float) -> Float[np.ndarray, "N H W"]:
    """Grey values from 0, the darkest of an image, to 1; blurred by `blur` of the shorter side."""
    images = images.astype(np.float32)
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    grey = (images - low) / np.maximum(high - low, 1e-6)
    if not blur:
        return grey
    sigma = blur * min(images.shape[1:])
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in grey])


class Brightness(NamedTuple):
    """What is brighter than a threshold, after a blur."""

    blur: float
    level: float

    def __call__(self, images: Shaped[np.ndarray, "N H W"]) -> Bool[np.ndarray, "N H W"]:
        return lightness(images, self.blur) >= self.level


class Place(NamedTuple):
    """The same pixels in every image: where a share of at least `level` of the training images have it."""

    share: Float[np.ndarray, "H W"]
    level: float

    def __call__(self, images: Shaped[np.ndarray, "N H W"]) -> Bool[np.ndarray, "N H W"]:
        return np.broadcast_to(self.share >= self.level, images.shape)


def fit_brightness(images: Shaped[np.ndarray, "N H W"], true: Bool[np.ndarray, "N H W"]) -> Brightness:
    """The blur and threshold of the highest mean Dice over the images that show it, at least one."""
    shows = true.any(axis=(1, 2))
    best = {blur: _best((lightness(image[None], blur)[0] for image in images[shows]), true[shows]) for blur in BLURS}
    blur = max(best, key=lambda blur: best[blur][0])  # the least of equals
    return Brightness(blur, best[blur][1])


def fit_place(true: Bool[np.ndarray, "N H W"]) -> Place:
    """The pixels of the highest mean Dice over the images that show it, at least one."""
    shown = true[true.any(axis=(1, 2))]
    share = shown.mean(axis=0)
    scaled = share / max(share.max(), 1e-6)
    return Place(scaled, _best(itertools.repeat(scaled), shown)[1])


def _best(values: Iterable[Float[np.ndarray, "H W"]], true: Bool[np.ndarray, "N H W"]) -> tuple[float, float]:
    """(mean Dice, threshold) of the best of `LEVELS` thresholds on values in [0, 1], image by image."""
    total = np.zeros(LEVELS)
    for value, mask in zip(values, true):
        step = np.clip((value * LEVELS).astype(int), 0, LEVELS - 1)
        # How many pixels are at a level or above: histograms, summed from the top.
        found, both = (
            np.cumsum(np.bincount(part.ravel(), minlength=LEVELS)[::-1])[::-1] for part in (step, step[mask])
        )
        total += 2 * both / (found + mask.sum())
    return float(total.max() / len(true)), float(total.argmax() / LEVELS)
