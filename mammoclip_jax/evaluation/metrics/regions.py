"""How the hottest part of a map lies over the boxes, without a box having been learnt from."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions.of_maps import hottest

OVERLAPS = (0.25, 0.5)  # IoU from which a box counts as found, as for Mammo-FActOR (arXiv:2405.12255, table 4)


class Overlap(NamedTuple):
    """How the hottest part of one map lies over one image's boxes."""

    iou: float  # of the part and the union of the boxes, in pixels
    dice: float
    boxes: int
    found: tuple[int, ...]  # boxes that the bounding box of a connected region overlaps by each of the `overlaps`
    regions: int  # connected regions


def boxes_mask(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: pixels whose centre lies in any of `boxes` [k, 4] (x0, y0, x1, y1)."""
    rows, columns = (np.arange(size) + 0.5 for size in shape)
    within_rows = (rows >= boxes[:, 1:2]) & (rows < boxes[:, 3:4])
    within_columns = (columns >= boxes[:, 0:1]) & (columns < boxes[:, 2:3])
    return (within_rows[:, :, None] & within_columns[:, None, :]).any(axis=0)


def overlap(part: np.ndarray, boxes: np.ndarray, overlaps: Sequence[float] = OVERLAPS) -> Overlap:
    """Of `part` bool [H, W] with `boxes` [k, 4] in its pixels. Regions are connected over corners too."""
    wanted = boxes_mask(boxes, part.shape)
    both, either = (part & wanted).sum(), (part | wanted).sum()
    _, _, stats, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8), connectivity=8)
    left, top, width, height = stats[1:, :4].T  # the first is the background
    around = np.stack([left, top, left + width, top + height], axis=1).astype(boxes.dtype)
    best = iou(boxes[:, None], around).max(axis=1, initial=0)
    return Overlap(
        iou=float(both / max(either, 1)),
        dice=float(2 * both / max(part.sum() + wanted.sum(), 1)),
        boxes=len(boxes),
        found=tuple(int((best >= least).sum()) for least in overlaps),
        regions=len(stats) - 1,
    )


def columns(
    heat: np.ndarray,
    tissue: np.ndarray,
    boxes: np.ndarray,
    quantiles: Sequence[float],
    overlaps: Sequence[float] = OVERLAPS,
) -> dict[str, float]:
    """Columns of an image's row: those of `Overlap` at each quantile, as "iou_0.95" and "found_0.95_0.25"."""
    row = {}
    for quantile in quantiles:
        measures = overlap(hottest(heat, tissue, quantile), boxes, overlaps)
        row |= {f"{name}_{quantile:g}": getattr(measures, name) for name in ("iou", "dice", "regions")}
        row |= {f"found_{quantile:g}_{least:g}": count for least, count in zip(overlaps, measures.found, strict=True)}
    return row | {"boxes": len(boxes)}
