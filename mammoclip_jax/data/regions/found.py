"""What a method says of an image's regions, and what methods share: boxes on the canvas, none twice."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.boxes import area, iou


class Found(NamedTuple):
    """Regions of one image, best first where a method has an order, and how many it left out or left without label."""

    boxes: np.ndarray  # float32 [n, 4] left, top, right, bottom in canvas pixels
    scores: np.ndarray  # float32 [n], 0 to 1
    labels: Sequence[str]  # n; "" where none is known; several names are parted by ", "
    cosines: Sequence[np.ndarray | None] | None = None  # of each float32 [C] with each concept, None where none may be
    dropped: Mapping[str, int] = {}  # {why: regions}
    unlabelled: Mapping[str, int] = {}  # {why: regions that are kept without a label}


class Method(NamedTuple):
    """A way to find regions."""

    find: Callable[[Sequence[int], np.ndarray | None], list[Found]]  # (records, their canvases [n, H, W])
    made_by: dict[str, Any]  # JSON, all that the regions depend on beside the data set: method, options, weights ...
    pixels: bool = True  # whether `find` wants the canvases; else it gets None
    about: dict[str, Any] = {}  # JSON that the table says too: provenance and terms


def on_canvas(found: Found, height: int, width: int) -> Found:
    """The regions cut to the canvas; those without an area there are dropped, and counted."""
    boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4).clip(0, np.array([width, height] * 2, np.float32))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if keep.all():
        return found._replace(boxes=boxes)
    return found._replace(
        boxes=boxes[keep],
        scores=np.asarray(found.scores)[keep],
        labels=list(itertools.compress(found.labels, keep)),
        cosines=None if found.cosines is None else list(itertools.compress(found.cosines, keep)),
        dropped={**found.dropped, "outside the canvas": int((~keep).sum())},
    )


def suppressed(boxes: np.ndarray, scores: np.ndarray, overlap: float, limit: int) -> np.ndarray:
    """Places of the boxes [n, 4] that greedy non-maximum suppression keeps, by falling score; at most `limit`.

    Of equal scores the first counts as the higher. A box is struck out by an IoU above `overlap`.
    """
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while left.size and len(kept) < limit:
        kept.append(int(left[0]))
        left = left[1:][iou(boxes[left[1:]], boxes[left[0]]) <= overlap]
    return np.array(kept, int)


def by_size(boxes: np.ndarray, least: float, most: float, shape: tuple[int, int]) -> np.ndarray:
    """bool [n]: boxes whose side, the root of the area, is `least` to `most` of the canvas' longer side."""
    side = np.sqrt(area(boxes)) / max(shape)
    return (side >= least) & (side <= most)
