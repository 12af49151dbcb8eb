"""The edge of the pectoral muscle in an MLO view: the straight line by which the view can be turned upright.

From the upper chest-wall corner the muscle's edge runs down to the chest wall: bright, even muscle behind it, darker
breast in front of it. Every plausible line gets a vote, the drop of grey across it, a Hough transform of signed edges
(Karssemeijer, Physics in Medicine and Biology 43, 1998, finds the muscle by such a vote). Edges of glandular tissue have
votes as well, so the evenness of what lies behind the likeliest lines decides among them. Both together are the line's
confidence: without a muscle no line has both.
"""

from typing import NamedTuple

import cv2
import numpy as np

CONFIDENT = 0.25  # a line of less confidence is none; docs/data.md has what that finds and misses

_ANGLES = np.arange(6.0, 51.0)  # degrees to the vertical
_SIDE = 256  # pixels of the longer side of the image that is searched
_STRIP = 6  # of these pixels: how wide the strips behind and before an edge are
_RIM = 6  # so far inside the breast's outline an edge is that of the skin
_DROP = 0.12  # of the breast's range of grey: a steeper drop counts no more
_LENGTH = 0.2  # of the breast's height: the least length of an edge within the breast
_TOP = (0.12, 0.92)  # of the breast's width: where the edge meets its upper end
_FOOT = (0.25, 1.0)  # of the breast's height: where the edge meets the chest wall
_APART = 8  # of these pixels: two lines of one angle
_LIKELY = 40  # lines by their vote that are looked at closer
_UNEVEN = 2.0  # weight of the unevenness, as the breast's range of grey, against the vote, at most 1


class Line(NamedTuple):
    """x cos(angle) + y sin(angle) = distance: x from the image's chest-wall side, y downwards, in its pixels."""

    angle: float  # degrees to the vertical
    distance: float
    confidence: float


def find(image: np.ndarray, mask: np.ndarray) -> Line | None:
    """The muscle's edge in an image uint8 [h, w] with its breast mask bool [h', w'], chest wall left and axilla above.

    None where no line is likely enough, as in a view that does not show the muscle.
    """
    line = likeliest(image, mask)
    return line if line and line.confidence >= CONFIDENT else None


def likeliest(image: np.ndarray, mask: np.ndarray) -> Line | None:
    """As `find`, however unlikely the line; None where no breast is large enough for one."""
    factor = max(image.shape) / _SIDE
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    grey = cv2.GaussianBlur(cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1.5)
    breast = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    rows, columns = np.flatnonzero(breast.any(axis=1)), np.flatnonzero(breast.any(axis=0))
    top, left = (int(live[0]) if live.size else 0 for live in (rows, columns))
    grey, breast = (part[top : rows[-1] + 1, left : columns[-1] + 1] if rows.size else part for part in (grey, breast))
    inside = cv2.erode(breast, np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8)) > 0
    if inside.sum() < _SIDE:
        return None
    low, high = np.percentile(grey[inside], (5, 95))
    grey /= max(float(high - low), 1e-6)
    lines = _lines(grey, inside)
    if not lines:
        return None
    angle, distance, confidence = max(lines, key=lambda line: line[2])
    distance = _steepest(grey, inside, angle, distance)
    turn = np.radians(angle)
    return Line(angle, float(factor * (distance + left * np.cos(turn) + top * np.sin(turn))), confidence)


def _lines(grey: np.ndarray, inside: np.ndarray) -> list[tuple[float, float, float]]:
    """(angle, distance, confidence) of the lines with the highest votes."""
    voted = []
    for angle in _ANGLES:
        votes = _votes(grey, inside, angle)
        for _ in range(2):
            column = int(votes.argmax())
            if votes[column] <= 0:
                break
            voted.append((float(angle), float(column), float(votes[column])))
            votes[max(0, column - _APART) : column + _APART + 1] = 0
    likely = sorted(voted, key=lambda line: -line[2])[:_LIKELY]
    return [
        (angle, distance, vote - _UNEVEN * _unevenness(grey, inside, angle, distance))
        for angle, distance, vote in likely
    ]


def _drops(grey: np.ndarray, inside: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The drop of grey across every line of an angle.

    Returns:
        distances int [n] of the lines from the upper left corner, drops [m, n] along them, and bool [m, n], where both
        strips beside a line lie within the breast. The image is turned until the lines are columns.
    """
    height, width = grey.shape
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[c, s, 0], [-s, c, width * s]])
    turn[:, 2] += turn[:, :2] @ [0.5, 0.5] - 0.5
    size = (int(np.ceil(width * c + height * s)), int(np.ceil(width * s + height * c)))
    turned = cv2.warpAffine(grey, turn, size)
    within = cv2.warpAffine(inside.astype(np.float32), turn, size) > 0.5
    sums = np.cumsum(np.pad(turned * within, ((0, 0), (1, 0))), axis=1)
    counts = np.cumsum(np.pad(within, ((0, 0), (1, 0))), axis=1)
    at = np.arange(_STRIP, size[0] - _STRIP)
    whole = counts[:, at + _STRIP] - counts[:, at - _STRIP] == 2 * _STRIP
    return at, (2 * sums[:, at] - sums[:, at - _STRIP] - sums[:, at + _STRIP]) / _STRIP, whole


def _votes(grey: np.ndarray, inside: np.ndarray, angle: float) -> np.ndarray:
    """The votes for the lines of an angle, float [n] by their distance from the upper left corner; 0 of implausible ones.

    A vote is the mean drop across the line, from -1 to 1, times the root of the line's length within the breast, as a
    part of the breast's height.
    """
    height, width = grey.shape
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    at, drops, whole = _drops(grey, inside, angle)
    length = whole.sum(axis=0)
    vote = (np.clip(drops / _DROP, -1, 1) * whole).sum(axis=0) / np.maximum(length, 1) * np.sqrt(length / height)
    plausible = (
        (length >= _LENGTH * height)
        & (at / c >= _TOP[0] * width)
        & (at / c <= _TOP[1] * width)
        & (at / s >= _FOOT[0] * height)
        & (at / s <= _FOOT[1] * height)
    )
    return np.concatenate([np.zeros(_STRIP), np.where(plausible, vote, 0), np.zeros(_STRIP)])


def _steepest(grey: np.ndarray, inside: np.ndarray, angle: float, distance: float) -> float:
    """The distance near a line's at which the drop is steepest: votes are the same over the width of a strong edge."""
    at, drops, whole = _drops(grey, inside, angle)
    mean = (drops * whole).sum(axis=0) / np.maximum(whole.sum(axis=0), 1)
    return float(at[np.where(np.abs(at - distance) <= _APART, mean, -np.inf).argmax()])


def _unevenness(grey: np.ndarray, inside: np.ndarray, angle: float, distance: float) -> float:
    """Standard deviation of the grey behind a line from a plane: muscle is even, but thicker towards the corner."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    y, x = np.nonzero(inside[::2, ::2])  # enough for a plane
    behind = 2 * (x * c + y * s) < distance - _STRIP / 2
    y, x = y[behind], x[behind]
    if y.size < _SIDE / 8:
        return 1.0
    values, terms = grey[2 * y, 2 * x], np.stack([np.ones(y.size), x, y], axis=1)
    factors = np.linalg.pinv(terms.T @ terms) @ (terms.T @ values)
    return float((values - terms @ factors).std())
