"""Boxes of several sizes all over the breast: regions where nobody has drawn any, and no model was asked.

Their order is by contrast: how much brighter a box is than what of the breast lies around it, as lesions are. It only
says which of many boxes are looked at first; it is no finding.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from mammoclip_jax.data.pixels import breast
from mammoclip_jax.data.regions.found import Found, Method, suppressed

SCALES = (0.025, 0.05, 0.1, 0.2)  # root of the area, as parts of the canvas' longer side
ASPECTS = (0.5, 1.0, 2.0)  # width over height
_STEP = 0.25  # of a box's side, between neighbours
_AROUND = 2.0  # times the sides: the surroundings that a box is compared with
_SPECK = 0.012  # of the canvas' longer side: what is smaller and bright is a speck
_INSIDE = 0.5  # least part of a box that is breast
_CANDIDATES = 2000  # of one scale: only so many of the highest contrast are looked at


def sliding(
    dataset,
    *,
    places: int = 64,
    limit: int = 300,
    overlap: float = 0.5,
    scales: Sequence[float] = SCALES,
    aspects: Sequence[float] = ASPECTS,
    drawn: float = 0.25,
    seed: int = 0,
) -> Method:
    """See `propose`; what is drawn depends on the seed and the image's record."""
    options = dict(places=places, limit=limit, overlap=overlap, scales=list(scales), aspects=list(aspects), drawn=drawn)

    def find(rows, images):
        return [propose(image, **options, seed=(seed, row)) for row, image in zip(rows, images, strict=True)]

    return Method(find, {"method": "sliding", "options": options | {"seed": seed}})


def propose(
    image: np.ndarray,
    *,
    places: int = 64,
    limit: int = 300,
    overlap: float = 0.5,
    scales: Sequence[float] = SCALES,
    aspects: Sequence[float] = ASPECTS,
    drawn: float = 0.25,
    seed: int | tuple[int, ...] = 0,
) -> Found:
    """Boxes on the breast of a canvas [H, W] uint8 or uint16, by falling contrast; none is labelled.

    Args:
        places: boxes kept; a share of them is `drawn` at random from those left by the suppression, the others are
            those of the highest contrast, as many of each scale as there are.
        limit: boxes that non-maximum suppression keeps, as many of each scale.
        overlap: IoU above which it strikes out the box of lower contrast.
        scales: root of a box's area, as parts of the canvas' longer side.
        aspects: width over height.
    """
    tissue, _ = breast.breast_mask(image)
    covered = _summed(tissue)
    light = [
        _summed(cv2.resize(part, tissue.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float64) * tissue)
        for part in (image, _specks(image))
    ]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for scale in scales:
        boxes = np.concatenate([_grid(tissue.shape, scale * max(tissue.shape), aspect) for aspect in aspects])
        boxes, contrast = _contrasts(boxes, covered, light)
        best = suppressed(boxes, contrast, overlap, -(-limit // len(scales)))
        kept.append((boxes[best], contrast[best]))
    sure = [len(contrast) for _, contrast in kept]
    best = _shares(sure, min(places - round(places * drawn), sum(sure)))
    top = [np.arange(len(contrast)) < share for (_, contrast), share in zip(kept, best, strict=True)]
    boxes, contrast, chosen = (np.concatenate(parts) for parts in ([k[0] for k in kept], [k[1] for k in kept], top))
    rest = np.flatnonzero(~chosen)
    generator = np.random.default_rng(seed)
    chosen[generator.permutation(rest)[: max(places - int(chosen.sum()), 0)]] = True
    order = np.flatnonzero(chosen)
    order = order[np.argsort(-contrast[order], kind="stable")]
    boxes = (boxes[order] * (np.array(image.shape[::-1] * 2) / np.array(tissue.shape[::-1] * 2))).astype(np.float32)
    return Found(
        boxes,
        (1 - 2.0 ** -contrast[order].clip(0)).astype(np.float32),
        [""] * len(order),
        dropped={"not sampled": int(len(chosen) - len(order))},
    )


def _summed(values: np.ndarray) -> np.ndarray:
    """float64 [h + 1, w + 1]: sums over all that lies above and left."""
    return np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _within(sums: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Sums of what lies in integer boxes [n, 4]."""
    left, top, right, bottom = boxes.T
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]


def _grid(shape: tuple[int, int], side: float, aspect: float) -> np.ndarray:
    """int [n, 4]: boxes of one size over an image of that shape."""
    width, height = (max(2, round(side * factor)) for factor in (aspect**0.5, aspect**-0.5))
    starts = [
        np.arange(0, max(size - length, 0) + 1, max(1, int(length * _STEP)))
        for size, length in zip(shape, (height, width), strict=True)
    ]
    top, left = (grid.ravel() for grid in np.meshgrid(*starts, indexing="ij"))
    boxes = np.stack([left, top, left + width, top + height], axis=1)
    return boxes[(boxes[:, 2] <= shape[1]) & (boxes[:, 3] <= shape[0])]


def _specks(image: np.ndarray) -> np.ndarray:
    """What is bright and smaller than calcifications are far apart: the image less its opening."""
    side = max(3, round(_SPECK * max(image.shape)) | 1)
    return cv2.morphologyEx(image, cv2.MORPH_TOPHAT, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def _contrasts(boxes: np.ndarray, covered: np.ndarray, light: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that lie on the breast, float [n, 4], and their contrast [n] by falling value.

    The contrast is the greater of those in brightness and in specks, each over its spread among all the boxes.
    """
    inside = _within(covered, boxes)
    boxes = boxes[inside >= _INSIDE * (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * _AROUND / 2
    height, width = (size - 1 for size in covered.shape)
    wide = np.rint(np.concatenate([centre - half, centre + half], axis=1)).astype(int).clip(0, [width, height] * 2)
    inside = _within(covered, boxes)
    around = _within(covered, wide) - inside
    contrast = np.full(len(boxes), -np.inf)
    for sums in light:
        bright = _within(sums, boxes)
        beside = np.where(around > 0, (_within(sums, wide) - bright) / np.maximum(around, 1), 0)
        difference = bright / inside - beside
        contrast = np.maximum(contrast, difference / max(float(difference.std()), 1e-9) if len(boxes) else 0)
    best = np.argsort(-contrast, kind="stable")[:_CANDIDATES]
    return boxes[best].astype(np.float64), contrast[best]


def _shares(there: Sequence[int], wanted: int) -> list[int]:
    """How many of each kind make `wanted` together, as equal as what is there allows."""
    shares = [0] * len(there)
    while sum(shares) < wanted:
        least = min((share, kind) for kind, share in enumerate(shares) if share < there[kind])[1]
        shares[least] += 1
    return shares
