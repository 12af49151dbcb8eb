"""Where the breast lies in an image: its crop and the side of the chest wall."""

import cv2
import numpy as np

Crop = tuple[int, int, int, int]            # y0, x0, y1, x1; y1 and x1 exclusive

_SIDE = 512             # the robust search works on an image of at most this many pixels a side
_RIM = 1.15             # a fainter threshold may add this much to the breast
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
    return image[middle - reach:middle + reach]


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


def breast_mask(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The breast in a small copy of the image: mask [h', w'] bool, and the factor from it to the image.

    The largest component above the background, once thin film edges and markers are opened away. `image` is [h, w] of
    any real dtype, dark background.
    """
    factor = max(1.0, max(image.shape) / _SIDE)
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    small = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = float(small.min()), float(np.percentile(small, 99.5))
    grey = np.clip((small - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    grey = cv2.medianBlur(grey, 5)
    faint, safe = _thresholds(grey)
    breast = _largest_part(grey > safe)
    # A faint nipple or skin line lies below the safe threshold. The lower one is taken where it adds no more than such
    # a rim; on a film with a grey ground it adds the whole film.
    wide = _largest_part(grey > faint)
    if breast.sum() <= wide.sum() <= _RIM * breast.sum():
        breast = wide
    return (breast if breast.any() else np.ones(grey.shape, bool)), factor


def _thresholds(grey: np.ndarray) -> tuple[float, float]:
    """Grey levels just above the background's noise, and safely above the ground of a film.

    Otsu's threshold parts dense tissue from the rest in a fatty breast, so it only bounds the background, whose
    commonest level and spread then give lower ones.
    """
    otsu, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    below = grey[grey <= otsu]
    level = int(np.argmax(np.bincount(below, minlength=256)))
    spread = float(np.sqrt(np.mean((below[below <= level].astype(np.float64) - level) ** 2)))
    faint = level + max(4.0, 4 * spread)
    return min(otsu, faint), min(otsu, max(faint, level + 0.15 * (otsu - level)))


def _largest_part(bright: np.ndarray) -> np.ndarray:
    """The largest component of a mask [h, w] bool, after an opening by about 2 % of the side; none of an empty mask.

    The opening cuts markers and film edges off the breast. The world outside is dark, or a thin bright line along the
    border would survive and tie a marker to the breast.
    """
    bright = bright.astype(np.uint8)
    for line in (bright, bright.T):
        _clear_film_edge(line)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
    padded = cv2.copyMakeBorder(bright, 11, 11, 11, 11, cv2.BORDER_CONSTANT, value=0)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened[11:-11, 11:-11])
    if count < 2:
        return np.zeros(bright.shape, bool)
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _clear_film_edge(bright: np.ndarray) -> None:
    """Clears, in place, bright outer rows (within 3 % of the edge) that are bright over nearly the whole width."""
    reach = max(1, int(0.03 * bright.shape[0]))
    for row in list(range(reach)) + list(range(bright.shape[0] - reach, bright.shape[0])):
        if bright[row].mean() > 0.95:
            bright[row] = 0


def robust_crop(image: np.ndarray, margin: float = 0.01) -> Crop:
    """The box of the largest bright component of an image [h, w], widened by `margin` of the image's longer side.

    Film edges, borders and burned-in markers do not widen it. An image without a breast is kept whole.
    """
    mask, factor = breast_mask(image)
    height, width = image.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extra = margin * max(height, width)
    return (
        max(0, int(rows[0] * factor - extra)),
        max(0, int(columns[0] * factor - extra)),
        min(height, int(np.ceil((rows[-1] + 1) * factor + extra))),
        min(width, int(np.ceil((columns[-1] + 1) * factor + extra))),
    )


def chest_wall_side(image: np.ndarray) -> str:
    """"left" or "right": the side of the image [h, w] where the breast is widest, or "" when they are alike."""
    mask, _ = breast_mask(image)
    half = mask.shape[1] // 2
    left, right = int(mask[:, :half].sum()), int(mask[:, -half:].sum()) if half else 0
    if abs(left - right) < 0.1 * (left + right):
        return ""
    return "left" if left > right else "right"
