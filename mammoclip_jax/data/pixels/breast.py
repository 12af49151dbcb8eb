"""Where the breast lies in an image: its crop and the side of the chest wall."""

from typing import NamedTuple

import cv2
import numpy as np

Crop = tuple[int, int, int, int]  # y0, x0, y1, x1; y1 and x1 exclusive

_SIDE = 512  # the robust search works on an image of at most this many pixels a side
REDUCED = 1024  # what is outside (outside.py) is looked for on one of this many
_OPENING = 11  # of those pixels: what is thinner is no breast
_RIM = 1.15  # a fainter threshold may add this much to the breast
_HARMLESS = 1.03  # and this much, whatever its shape
_STEPS = 5  # thresholds from the safe to the faint one
_DARK = 12  # air this dark (of 255) is air; brighter air must be flat
_FLAT = 2  # steps between neighbours that count as flat
_WHITE = 235  # of 255: a plate is that bright
_PLATE_SIDE, _PLATE_AREA = 8, 0.15  # its least side, in those pixels, and its greatest part of the image
_SMOOTH = 1.1  # times that of its convex hull: the length of a breast's outline
_FITS = 6  # of a surface to the ground of a film
_SIDES_DIFFER = 0.25  # of the height, between the chest wall and the tip of a breast
_PUBLISHED_THRESHOLD = 40


def published_crop(image: np.ndarray) -> Crop:
    """Mammo-CLIP's crop of an 8-bit image [h, w] (their `preprocess_image_to_png_kaggle.py`, lines 117 to 158).

    Values up to 40 count as 0; the longest run of columns that vary within the central 80 % of the rows, then the same
    for rows. Of two runs of equal length the first is kept (the original keeps both, and no rectangle results).
    """
    binary = np.where(image <= _PUBLISHED_THRESHOLD, 0, image)
    x0, x1 = _longest_run(_varies(_central(binary)))
    y0, y1 = _longest_run(_varies(_central(binary[:, x0:x1].T)))
    return (y0, x0, y1, x1)


def _central(image: np.ndarray) -> np.ndarray:
    middle, reach = image.shape[0] // 2, int(image.shape[0] * 0.4)
    return image[middle - reach : middle + reach]


def _varies(image: np.ndarray) -> np.ndarray:
    """Which columns are not constant (the standard deviation is not 0)."""
    if not image.shape[0]:
        return np.zeros(image.shape[1], bool)
    return image.max(axis=0) != image.min(axis=0)


def _longest_run(live: np.ndarray) -> tuple[int, int]:
    """Start and end of the longest run of True, the first of several; everything when there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], live.astype(np.int8), [0]])))
    if not edges.size:
        return 0, live.size
    starts, ends = edges[::2], edges[1::2]
    longest = np.argmax(ends - starts)
    return int(starts[longest]), int(ends[longest])


class Found(NamedTuple):
    """The breast in a small copy of an image."""

    mask: np.ndarray  # bool [h', w']; all True where no air is seen: the breast fills the image, or there is none
    factor: float  # from pixels of `mask` to pixels of the image
    plates: np.ndarray | None = None  # bool as `mask`: white plates that touch it, or None
    reduced: np.ndarray | None = None  # `halved(image, REDUCED)`


def find(image: np.ndarray) -> Found:
    """The breast in an image [h, w] of any real dtype.

    The largest component brighter than the air, once thin film edges and markers are opened away. Where the air is the
    brightest part (an image for processing, or with the wrong polarity) the component darker than it.
    """
    factor, reduced = max(1.0, max(image.shape) / _SIDE), halved(image, REDUCED)
    grey = _small(image.shape, reduced, factor)
    if _inverted(grey):
        grey = 255 - grey
    mask, (plates, without) = _searched(grey), _plates(grey)
    if (mask & plates).any():
        grey = without
        mask = _searched(grey)
    if _likeness(mask) < (True, -_SMOOTH):  # the ground of a film may have been taken for it, or grown together with it
        mask = max(mask, _searched(_levelled(grey)), key=_likeness)
    return Found(mask & ~plates, factor, plates if plates.any() else None, reduced)


def _plates(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """White plates and strips beside a breast, bool of the shape of a uint8 image, and that with its ground over them.

    They are filled rectangles, sharply cut: tissue as bright as that has no straight outline.
    """
    plates, without = np.zeros(grey.shape, bool), grey.copy()
    outlines, _ = cv2.findContours((grey >= _WHITE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    for outline in outlines:
        if len(outline) < 3 * _PLATE_SIDE:
            continue
        filled = cv2.drawContours(np.zeros(grey.shape, np.uint8), [outline], -1, 1, cv2.FILLED)
        area = int(filled.sum())
        if not _PLATE_SIDE**2 <= area <= _PLATE_AREA * grey.size:
            continue
        (_, (width, height), _) = cv2.minAreaRect(outline)
        near, far = (cv2.dilate(filled, np.ones((side, side), np.uint8)) > 0 for side in (5, 9))
        ring = far & ~near
        rectangular = min(width, height) >= _PLATE_SIDE and area > 0.85 * (width + 1) * (height + 1)
        if rectangular and np.median(grey[ring]) < 0.6 * _WHITE:
            plates |= near
            without[near] = np.percentile(grey[ring], 25)
    return plates, without


def _searched(grey: np.ndarray) -> np.ndarray:
    """The breast in a uint8 image, bool of its shape; all True where no air is seen."""
    air = _air(grey)
    mask = np.zeros(grey.shape, bool) if air is None else _grown(grey, air)
    return mask if mask.any() else np.ones(grey.shape, bool)


def _likeness(mask: np.ndarray) -> tuple[bool, float]:
    """What a shape has of a breast's: height at one side, that of the chest wall, before smoothness."""
    return side_of(mask) != "", -_roughness(mask)


def _levelled(grey: np.ndarray) -> np.ndarray:
    """A uint8 image over a flat ground: what black padding leaves of it, above a surface fitted to a film's ground.

    The surface is quadratic; tissue, which is brighter, is left out of the fit step by step.
    """
    inside = _film(grey)
    film = grey[inside].astype(np.float32)
    ys, xs = (np.linspace(-1, 1, size, dtype=np.float32) for size in film.shape)
    y, x = np.meshgrid(ys, xs, indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    otsu, _ = cv2.threshold(grey[inside], 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    ground = film <= otsu
    surface = np.zeros_like(film)
    for _ in range(_FITS):
        sample = np.flatnonzero(ground)[::7]
        factors, *_ = np.linalg.lstsq(terms.reshape(-1, 6)[sample], film.ravel()[sample], rcond=None)
        surface = terms @ factors
        above = film - surface
        ground = above <= 1 + 1.5 * float(np.median(np.maximum(-above[above <= np.median(above[ground])], 0)))
    level = np.full(grey.shape, _DARK, np.float32)
    level[inside] += film - surface
    return np.clip(np.rint(level), 0, 255).astype(np.uint8)


def _film(grey: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a uint8 image without black padding around them."""
    dark = grey <= int(grey.min()) + 2
    sides = []
    for axis in (0, 1):
        live = np.flatnonzero(dark.mean(axis=1 - axis) < 0.95)
        sides.append(slice(live[0], live[-1] + 1) if live.size else slice(None))
    return sides[0], sides[1]


def breast_mask(image: np.ndarray) -> tuple[np.ndarray, float]:
    """`find` as a plain tuple: mask [h', w'] bool, and the factor from it to the image [h, w]."""
    return tuple(find(image))[:2]


def halved(image: np.ndarray, side: int) -> np.ndarray:
    """The image [h, w] halved as long as its longer side stays above 2 * `side`: far faster than other reductions.

    The rest is left to one that rounds once, since faint air counts in single levels.
    """
    image = np.ascontiguousarray(image)
    while max(image.shape) >= 4 * side and min(image.shape) > 1:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return image


def _small(shape: tuple[int, int], reduced: np.ndarray, factor: float) -> np.ndarray:
    """uint8 [h', w']: an image of `shape`, halved to `reduced`, at 1 / factor, without specks, stretched to the whole range."""
    size = (max(1, round(shape[1] / factor)), max(1, round(shape[0] / factor)))
    small = cv2.resize(halved(reduced, _SIDE), size, interpolation=cv2.INTER_AREA).astype(np.float32)
    small = cv2.medianBlur(small, 5)
    low, high = float(small.min()), float(np.percentile(small, 99.5))
    # A bright marker beside a dim breast would press the tissue into a few levels.
    tissue = small[small > low + 0.02 * (high - low)]
    usual = float(np.percentile(tissue, 90)) if tissue.size else high
    if usual - low < 0.4 * (high - low):
        high = usual
    return np.clip((small - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)


def _inverted(grey: np.ndarray) -> bool:
    """Whether the air is bright: most of a frame inside the borders is flat and bright, and hardly any of it dark."""
    height, width = grey.shape
    outer, inner = int(0.02 * min(height, width)), int(0.06 * min(height, width)) + 1
    frame = np.zeros(grey.shape, bool)
    frame[outer : height - outer, outer : width - outer] = True
    frame[inner : height - inner, inner : width - inner] = False
    if not frame.any():
        return False
    flat = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) <= _FLAT
    return (flat & (grey >= 190))[frame].mean() > 0.5 and (grey < 40)[frame].mean() < 0.1


class _Air(NamedTuple):
    """Grey levels of the air around a breast."""

    faint: float  # just above its noise
    safe: float  # safely above the ground of a film


def _air(grey: np.ndarray) -> _Air | None:
    """The air's levels in a uint8 image; None when there is none: the breast fills the frame.

    Otsu's threshold parts dense tissue from the rest in a fatty breast, so it only bounds the air, whose commonest
    level and spread then give lower ones. Air is the darkest part, or flat; the darker half of a breast is neither.
    """
    otsu, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    below = grey[grey <= otsu]
    level = int(np.argmax(np.bincount(below, minlength=256)))
    near = np.abs(grey.astype(np.int16) - level) <= 4
    if level > _DARK:
        step = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        if np.percentile(step[near], 75) > _FLAT or near.mean() < 0.03:
            return None
    # The median: black strips beside a grey ground are no noise.
    spread = 1.5 * float(np.median(level - below[below <= level].astype(np.float64)))
    faint = level + max(4.0, 4 * spread)
    return _Air(min(otsu, faint), min(otsu, max(faint, level + 0.15 * (otsu - level))))


def _grown(grey: np.ndarray, air: _Air) -> np.ndarray:
    """The breast [h', w'] bool, from the safe threshold down to the faint one as long as no film ground comes in.

    A faint skin line, nipple or fatty breast lies below the safe threshold, the grey ground of a film as well. Tissue
    adds little at a time, or leaves a shape like a breast; the ground adds much, and fills a rectangle or is ragged.
    """
    breast, level, area = _largest_part(grey > air.safe), air.safe, 0
    for threshold in np.linspace(air.safe, air.faint, _STEPS)[1:]:
        wider = _largest_part(grey > threshold)
        area = area or breast.sum()
        if (wider & breast).sum() < 0.5 * area:  # a bright marker was the largest before
            area = 0
        elif wider.sum() > _HARMLESS * area:
            if _roughness(wider) >= _SMOOTH or (wider.sum() > _RIM * area and _rectangular(wider)):
                continue  # dense tissue in faint fat is ragged as well, and a breast again lower down
            area = 0
        breast, level = wider, threshold
    return _joined(breast, _without_film_edges(grey > level))


def _roughness(mask: np.ndarray) -> float:
    """How much longer the outline of a shape is than that of its convex hull."""
    outline = _outline(mask)
    return cv2.arcLength(outline, True) / max(1.0, cv2.arcLength(cv2.convexHull(outline), True))


def _rectangular(mask: np.ndarray) -> bool:
    outline = _outline(mask)
    _, _, width, height = cv2.boundingRect(outline)
    return cv2.contourArea(outline) > 0.88 * width * height


def _outline(mask: np.ndarray) -> np.ndarray:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return max(outlines, key=len)


def _joined(breast: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """`breast` with what belongs to it, its holes filled.

    The opening rounds off a nipple and the tips at the chest wall: bright pixels within its reach come back. So does a
    fold of the abdomen: a thick part in the image's corner, a little below the breast, at the side that it touches.
    """
    rest = bright & ~breast
    _, labels = cv2.connectedComponents(rest.astype(np.uint8))
    thick = np.unique(labels[(_opened(rest) > 0) & rest])
    reach = cv2.dilate(breast.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_OPENING, _OPENING))) > 0
    _, parts = cv2.connectedComponents((breast | (bright & reach)).astype(np.uint8), connectivity=4)
    whole = np.isin(parts, np.unique(parts[breast]))
    near = np.unique(labels[cv2.dilate(whole.astype(np.uint8), np.ones((4 * _OPENING + 1, 1), np.uint8)) > 0])
    for side in (0, -1):
        folds = np.intersect1d(near, labels[[0, -1], side])
        if breast[:, side].any():
            whole |= np.isin(labels, np.intersect1d(folds, thick[thick > 0]))
    outlines, _ = cv2.findContours(whole.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(whole.shape, np.uint8), outlines, -1, 1, cv2.FILLED) > 0


def _largest_part(bright: np.ndarray) -> np.ndarray:
    """The largest component of a mask [h, w] bool, after an opening by about 2 % of the side; none of an empty mask.

    The opening cuts markers and film edges off the breast. The world outside is dark, or a thin bright line along the
    border would survive and tie a marker to the breast.
    """
    count, labels, stats = components(_opened(_without_film_edges(bright)))
    if count < 2:
        return np.zeros(bright.shape, bool)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def components(mask: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number, labels [h, w] and statistics of the components of a uint8 mask, as OpenCV has them, and of the rest as number 0.

    Labels of 16 bits, in half of the time, where so many are enough: a component begins with a run in some row.
    """
    most = np.count_nonzero(mask[:, 1:] > mask[:, :-1]) + np.count_nonzero(mask[:, 0])
    kind = cv2.CV_16U if most < 2**16 - 1 else cv2.CV_32S
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, ltype=kind)
    return count, labels, stats


def _opened(bright: np.ndarray) -> np.ndarray:
    """uint8: a mask without what is thinner than _OPENING, in a dark world."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_OPENING, _OPENING))
    pad = _OPENING
    padded = cv2.copyMakeBorder(bright.astype(np.uint8), pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    return cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)[pad:-pad, pad:-pad]


def _without_film_edges(bright: np.ndarray) -> np.ndarray:
    """A copy of a mask, without outer rows and columns (within 3 % of the edge) that are bright nearly all along.

    Not where the image is bright behind them as well: that is a breast which fills its side.
    """
    bright = bright.copy()
    for lines in (bright, bright.T, bright[::-1], bright.T[::-1]):
        reach = _edge(lines.shape[0])
        if lines[reach : 2 * reach].mean() < 0.6:
            lines[:reach][lines[:reach].mean(axis=1) > 0.95] = False
    return bright


def _edge(side: int) -> int:
    """How far a film edge may reach into the image."""
    return max(1, int(0.03 * side))


def crop_of(seen: Found, shape: tuple[int, int], margin: float = 0.015) -> Crop:
    """The crop of an image of `shape` around what was found in it, widened by `margin` of the image's longer side.

    A side within the reach of a film edge goes on to the image's border: what was taken for an edge may be breast.
    """
    extra = margin * max(shape)
    sides = []
    for axis, size in enumerate(shape):
        live = np.flatnonzero(seen.mask.any(axis=1 - axis))
        edge = _edge(seen.mask.shape[axis]) + 1
        first, last = live[0], live[-1] + 1
        start = 0 if first <= edge else max(0, int(first * seen.factor - extra))
        end = size if last >= seen.mask.shape[axis] - edge else min(size, int(np.ceil(last * seen.factor + extra)))
        sides.append((start, end))
    (y0, y1), (x0, x1) = sides
    return (y0, x0, y1, x1)


def side_of(mask: np.ndarray) -> str:
    """The chest wall's side of a breast mask [h, w] bool, "" without a verdict.

    A breast is high at the chest wall and ends in a tip, so its outer tenths differ in height; a magnified view that
    fills the frame, or a part of one, is about as high at both sides.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tenth = max(1, part.shape[1] // 10)
    left, right = float(part[:, :tenth].mean()), float(part[:, -tenth:].mean())
    if abs(left - right) < _SIDES_DIFFER:
        return ""
    return "left" if left > right else "right"
