"""An MLO view upright: turned until the edge of the pectoral muscle is vertical, and cut there.

The muscle is the chest wall: CC shows a lesion's depth along its rows, MLO at right angles to the muscle. In an upright
view columns are depth in both.
"""

from typing import NamedTuple

import numpy as np

from mammoclip_jax.data.pixels import geometry, pectoral
from mammoclip_jax.data.pixels.breast import Crop, Found

_MUSCLE = 0.01  # of the image's longer side: so much muscle is kept, its edge is never quite straight
_MARGIN = 0.015  # of the image's longer side, around the breast, as in `breast.crop_of`


class Turn(NamedTuple):
    """A rotation of the original as in `geometry.Transform`, and the crop of what is rotated."""

    rotation: float
    crop: Crop


def find(searched: np.ndarray, inside: Crop, seen: Found, cut: Crop, side: str, upside_down: bool) -> Turn | None:
    """The turn of an MLO view; None where no line is found, or the chest wall's side is not known.

    Args:
        searched: the original, uint8 [h, w]; `seen` was found in the part of it that is `inside`.
        cut: the crop of the original as it is; of the turned one it is what lies within it, in front of the muscle.
        side: of the chest wall, "left", "right" or "".
        upside_down: stored so.
    """
    if not side or seen.mask.all():
        return None
    y0, x0, y1, x1 = inside
    flips = np.s_[:: -1 if upside_down else 1, :: -1 if side == "right" else 1]
    line = pectoral.find(searched[y0:y1, x0:x1][flips], seen.mask[flips])
    if line is None:
        return None
    size, angle = searched.shape, np.radians(line.angle)
    rotation = line.angle if (side == "right") != upside_down else -line.angle
    x, y = line.distance * np.cos(angle), line.distance * np.sin(angle)
    on_edge = [x1 - x if side == "right" else x0 + x, y1 - y if upside_down else y0 + y]
    edge = float(geometry.rotated(np.array([on_edge]), rotation, size)[0, 0])
    points = geometry.rotated(_within(seen, inside, cut), rotation, size)
    keep, margin = _MUSCLE * max(size), _MARGIN * max(size)
    front = points[:, 0] < edge if side == "right" else points[:, 0] > edge
    if not front.any():
        return None
    (left, top), (right, bottom) = points[front].min(axis=0) - margin, points[front].max(axis=0) + margin
    left, right = (left, edge + keep) if side == "right" else (edge - keep, right)
    frame = geometry.frame(size, rotation)
    start = [max(int(np.floor(value)), first) for value, first in zip((top, left), frame[:2])]
    end = [min(int(np.ceil(value)), last) for value, last in zip((bottom, right), frame[2:])]
    return Turn(rotation, (*start, *end))


def _within(seen: Found, inside: Crop, cut: Crop) -> np.ndarray:
    """The breast's pixels within the crop, float [N, 2] as (x, y) of the original."""
    y, x = np.nonzero(seen.mask)
    points = (np.stack([x, y], axis=1) + 0.5) * seen.factor + [inside[1], inside[0]]
    return points[((points > [cut[1], cut[0]]) & (points < [cut[3], cut[2]])).all(axis=1)]
