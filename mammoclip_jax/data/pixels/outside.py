"""What lies outside the breast: burned-in text and markers, which the canvas need not show.

A mask of about 1024 pixels a side says which pixels stay: the breast, generously widened, without the bright compact
things in that rim which do not hang together with it. All else becomes the background's level.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from mammoclip_jax.data.pixels.breast import REDUCED, Crop, Found, components, halved

_SIDE = REDUCED  # the mask has at most this many pixels a side
_RIM = 0.02  # of the longer side is kept around the breast
_TEXT = 0.2  # of the longer side: a bright thing longer than this is no text (a skin line, the chest wall)
_CONTRAST = 0.12  # of the breast's brightness over the background: what is fainter is not worth a removal


class Kept(NamedTuple):
    """Which pixels of an image stay."""

    mask: np.ndarray  # uint8 [h', w'], 1 where pixels stay
    bright: np.ndarray  # bool [h', w']: clearly brighter than the background and not kept


def keep(preview: np.ndarray, seen: Found) -> Kept | None:
    """What stays of an image, given as uint8 [h, w] with the breast found in it; None where no air is seen."""
    if seen.mask.all():
        return None
    factor = max(1.0, max(preview.shape) / _SIDE)
    size = (max(1, round(preview.shape[1] / factor)), max(1, round(preview.shape[0] / factor)))
    reduced = halved(preview, _SIDE) if seen.reduced is None else seen.reduced
    small = cv2.resize(reduced, size, interpolation=cv2.INTER_AREA)
    breast = cv2.resize(seen.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    near, rim = _around(breast, _RIM * max(size)), _RIM * max(size)
    wide = np.zeros_like(breast)
    wide[near] = cv2.distanceTransform(1 - breast[near], cv2.DIST_L2, 3) <= rim
    thin = np.s_[::4, ::4]  # enough for statistics
    air = small[thin][(wide if not wide[thin].all() else breast)[thin] == 0]
    if not air.size:
        return None
    for side in _chest_walls(breast):  # a fold of the abdomen may come in again, above or below the breast
        reach = 2 * round(3 * _RIM * max(size)) + 1
        strip = np.ascontiguousarray(breast[:, side])
        wide[:, side] |= cv2.dilate(strip, np.ones((reach, 1), np.uint8))
    level = float(np.median(air))
    top = float(np.percentile(small[thin][breast[thin] > 0], 95))
    bright_air = top < level  # text in it is dark
    top = 2 * level - top if bright_air else top
    noise = float(np.median(np.abs(air - level)))
    clear = max(8.0, _CONTRAST * (top - level), 6 * noise)

    def beyond(step: float) -> np.ndarray:
        """Where the image is further than that from the air's level: compared as whole numbers, which is quicker."""
        return small < math.ceil(level - step) if bright_air else small > math.floor(level + step)

    clearly = beyond(clear)
    text = _text(beyond(max(4.0, 5 * noise)), clearly, breast)
    if seen.plates is not None:
        text |= cv2.resize(seen.plates.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    mask = wide & ~text & 1
    return Kept(mask, clearly & (mask == 0))


def _around(mask: np.ndarray, reach: float) -> tuple[slice, slice]:
    """Rows and columns of what is not 0, and of so many pixels around it."""
    extra, sides = math.ceil(reach) + 1, []
    for axis in (0, 1):
        live = np.flatnonzero(mask.any(axis=1 - axis))
        sides.append(slice(max(0, live[0] - extra), live[-1] + 1 + extra) if live.size else slice(0, 1))
    return sides[0], sides[1]


def _text(visible: np.ndarray, clear: np.ndarray, breast: np.ndarray) -> np.ndarray:
    """uint8: what is clear, compact and apart from the breast, filled and a little widened.

    `visible` is what is brighter than the noise: what hangs together by it with the breast is breast.
    """
    count, labels, stats = components(visible.astype(np.uint8))
    part = _around(breast, 1)
    core = cv2.distanceTransform(breast[part], cv2.DIST_L2, 3) > max(3, 0.012 * max(breast.shape))
    compact = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1) <= _TEXT * max(breast.shape)
    apart, bright = np.ones(count, bool), np.zeros(count, bool)
    apart[labels[part][core]] = False
    bright[labels[clear]] = True
    for side in _chest_walls(breast):
        apart[labels[[0, -1], 0 if side.start == 0 else -1]] = False  # a fold holds the corner, text does not
    chosen = compact & apart & bright
    chosen[0] = False
    if not chosen.any():
        return np.zeros(breast.shape, np.uint8)
    x0, y0, width, height = stats[chosen, : cv2.CC_STAT_HEIGHT + 1].T
    reach = 3  # what is looked at around them: more than they are widened by
    top, left = max(0, y0.min() - reach), max(0, x0.min() - reach)
    place = np.s_[top : (y0 + height).max() + reach, left : (x0 + width).max() + reach]
    letters = chosen[labels[place]].astype(np.uint8)
    outlines, _ = cv2.findContours(letters, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(letters, outlines, -1, 1, cv2.FILLED)
    apart[0] = True  # what is not visible at all
    tissue = (~apart)[labels[place]].astype(np.uint8)
    text = np.zeros(breast.shape, np.uint8)
    text[place] = cv2.dilate(letters, _disc(2)) & ~cv2.dilate(tissue, _disc(1)) & 1
    return text


def _chest_walls(breast: np.ndarray) -> list[slice]:
    """The outer columns, 6 % of the width, of each side that the breast touches."""
    width = breast.shape[1]
    strip = max(1, round(0.06 * width))
    sides = {0: slice(0, strip), -1: slice(width - strip, width)}
    return [side for edge, side in sides.items() if breast[:, edge].any()]


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def cover(part: np.ndarray, kept: Kept, shape: tuple[int, int], crop: Crop) -> bool:
    """Fills, in place, what is not kept of `part`: what `crop` cuts from an image of `shape`, at any size.

    The level is the median of what is filled, so that no hard edge comes up on a film's grey ground.

    Returns:
        whether something bright went.
    """
    y0, x0, y1, x1 = crop
    rows = _cells(y0, y1, part.shape[0], kept.mask.shape[0] / shape[0])
    columns = _cells(x0, x1, part.shape[1], kept.mask.shape[1] / shape[1])
    gone = kept.mask[:, columns][rows] == 0
    sample = part[::2, ::2][gone[::2, ::2]]
    if not sample.size:
        return False
    part[gone] = np.median(sample).astype(part.dtype)
    return bool(kept.bright[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].any())


def _cells(start: int, end: int, count: int, scale: float) -> np.ndarray:
    """The mask's rows (or columns) under the centres of `count` pixels that lie over [start, end) of the image."""
    return ((start + (np.arange(count) + 0.5) * (end - start) / count) * scale).astype(np.intp)
