"""Stored values -> grey values from dark (background) to bright (dense tissue), by a named policy.

| policy       | does                                                                                                 |
|--------------|------------------------------------------------------------------------------------------------------|
| `voi`        | modality LUT, then VOI LUT or window (item `voi_item`), polarity, padding; min-max without one       |
| `raw_minmax` | stored values, polarity, padding, min-max                                                            |
| `published`  | Mammo-CLIP: stored values, a 5-pixel border cut off, MONOCHROME1 as max - x, min-max, cut to 8 bits  |

The order is fixed: modality, VOI, polarity once (polarity.py), then padding becomes the darkest value; padding takes no
part in min-max. All this is one function of the stored value, so it is worked out once over a table of all 65,536
values of 16 bits, and pixels are only looked up in it, as many as are asked for.

Flags: those of voi.py; `voi_flat` (a window far from the values: min-max instead); `polarity_contradictory`,
`photometric_unknown`; `background_bright` (after all that; the polarity may be wrong).
"""

from collections.abc import Callable

import cv2
import numpy as np
import pydicom

from mammoclip_jax.data.pixels import geometry, polarity, voi
from mammoclip_jax.data.pixels.dicom import Image, quiet
from mammoclip_jax.data.pixels.preprocessing import POLICIES as POLICIES  # handed on

PUBLISHED_BORDER = 5


class FlatImage(ValueError):
    """All pixels are alike."""


class Grey:
    """An image ready to be cropped and resized; pixels are mapped when they are asked for.

    `shape` is (h, w), `inside` is what of it counts as (y0, x0, y1, x1), `flags` say what was odd.
    """

    def __init__(
        self,
        stored: np.ndarray,
        tone: Callable,
        inside: tuple[int, int, int, int],
        flags: tuple[str, ...],
        plain: Callable | None = None,
        ends: tuple[int, int] | None = None,
    ):
        """`tone` maps stored values to grey; `plain`, by default the same, does so without VOI LUT or window.

        All values lie within `ends`, where these are given.
        """
        self.shape, self.inside, self.flags = stored.shape, inside, flags
        self._stored, self._tone, self._table = stored, tone, None
        self._plain = plain or tone
        if _has_table(stored):
            self._table, self._signed = tone(_all_values(stored.dtype)), stored.dtype.kind == "i"
            self._stored = stored.view(f"u{stored.dtype.itemsize}")
        self._line = _line(self._table, *ends) if ends and stored.dtype.kind == "u" else None

    def region(self, y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
        """That part [y1 - y0, x1 - x0] at full precision: float32 in [0, 1], or uint8 by the policy `published`."""
        part = self._stored[y0:y1, x0:x1]
        if self._table is None:
            return self._tone(part)
        if self._table.dtype == np.uint8 and part.size:
            return cv2.LUT(part, self._table)  # faster than NumPy for 8 bits, slower for 32
        return self._table[part]

    def resized(self, crop: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
        """`region` of the crop at another size [h, w] (`geometry.resize`).

        Where grey is a straight line of what is stored, as without a window, the means of the stored values are mapped
        instead: the same but for the rounding of float32, without a look-up of each pixel.
        """
        y0, x0, y1, x1 = crop
        if self._line is None or size[0] * size[1] >= (y1 - y0) * (x1 - x0):
            return geometry.resize(self.region(*crop), size)
        start, slope, first = self._line
        part = geometry.resize(self._stored[y0:y1, x0:x1].astype(np.float32), size)
        part -= np.float32(start)
        part *= np.float32(slope)
        part += np.float32(first)
        return part

    def preview(self) -> np.ndarray:
        """The whole image [h, w] as uint8, cut off (not rounded) from [0, 255]."""
        if self._table is None:
            return _eight(self._tone(self._stored))
        return cv2.LUT(self._stored, _eight(self._table))

    def search(self) -> np.ndarray:
        """The whole image [h, w] as uint8 without VOI LUT or window, which may cut a faint skin line to black."""
        if self._plain is self._tone:
            return self.preview()
        if self._table is None:
            return _eight(self._plain(self._stored))
        kind = np.dtype(f"{'i' if self._signed else 'u'}{self._stored.dtype.itemsize}")
        return cv2.LUT(self._stored, _eight(self._plain(_all_values(kind))))

    @property
    def array(self) -> np.ndarray:
        """The whole image [h, w] at full precision."""
        return self.region(0, 0, *self.shape)


def _line(table: np.ndarray | None, start: int, end: int) -> tuple[int, float, float] | None:
    """(start, slope, its value there) of float32 grey values that lie on a line from `start` to `end`; None else."""
    if table is None or table.dtype != np.float32 or not start < end:
        return None
    first, last = float(table[start]), float(table[end])
    slope = (last - first) / (end - start)
    off = table[start : end + 1] - (first + slope * np.arange(end + 1 - start))
    return (start, slope, first) if np.abs(off).max() < 2e-7 else None


def _eight(grey: np.ndarray) -> np.ndarray:
    return grey if grey.dtype == np.uint8 else (grey * 255).astype(np.uint8)


def grey(image: Image, policy: str, voi_item: int = 0) -> Grey:
    """`image` by a policy of POLICIES; `voi_item` chooses among several VOI LUTs and windows, counted in this order.

    Raises:
        FlatImage: all pixels that count are alike.
    """
    if policy == "published":
        return _published(image)
    with quiet():
        return _display(image, policy == "voi", voi_item)


def _published(image: Image) -> Grey:
    height, width = image.stored.shape
    border = PUBLISHED_BORDER
    inside = (border, border, height - border, width - border)
    inner = image.stored[border:-border, border:-border]
    low, high = (float(inner.min()), float(inner.max())) if inner.size else (0.0, 0.0)
    if low == high:
        raise FlatImage
    sign = -1 if image.header.get("PhotometricInterpretation") == "MONOCHROME1" else 1
    start = high if sign < 0 else low

    def tone(values: np.ndarray) -> np.ndarray:
        return np.clip((values.astype(np.float64) - start) * sign / (high - low) * 255, 0, 255).astype(np.uint8)

    return Grey(image.stored, tone, inside, _checked(image.stored, tone, image.fields.flags))


def _display(image: Image, use_voi: bool, voi_item: int) -> Grey:
    header, stored = image.header, image.stored
    padding = _padding(header, stored.dtype)
    present = _present(stored, padding)
    used = present[~_within(present, padding)]
    if not used.size:  # padding that covers all is a mistake
        padding, used = None, present
    if used.min() == used.max():
        raise FlatImage
    flags = list(image.fields.flags)
    thin = polarity.small(stored)
    shown, plain, problems = _shown(header, used, thin[~_within(thin, padding)], use_voi, voi_item)
    inverted, problem = polarity.inverted(header, shown(thin))
    flags += [*problems, *filter(None, [problem])]

    def toned(function: Callable) -> Callable:
        def tone(values: np.ndarray) -> np.ndarray:
            grey = function(values)
            if inverted:
                grey = np.float32(1) - grey
            grey[_within(values, padding)] = 0
            return grey

        return tone

    tone = toned(shown)
    searched = tone if plain is shown else toned(plain)
    ends = (int(used.min()), int(used.max())) if padding is None and _has_table(stored) else None
    return Grey(stored, tone, (0, 0, *stored.shape), _checked(stored, tone, flags), searched, ends)


def _shown(
    header: pydicom.Dataset, used: np.ndarray, sample: np.ndarray, use_voi: bool, voi_item: int
) -> tuple[Callable, Callable, tuple[str, ...]]:
    """The function stored value -> [0, 1] float32 before polarity; that without VOI; flags.

    `used` are the values that count, `sample` [n] some of the pixels.
    """
    rescale, flags = voi.modality(header if use_voi else pydicom.Dataset())
    values = rescale(used)
    if not values.max() > values.min():
        rescale, flags = voi.modality(pydicom.Dataset())[0], ("rescale_invalid",)
        values = rescale(used)
    low, high = float(values.min()), float(values.max())
    if use_voi:
        function, problems = voi.voi(header, voi_item, low)
        if function is not None and np.ptp(function(values)) < 1e-3:
            function, problems = None, ("voi_flat",)
        flags = tuple(dict.fromkeys(flags + problems))

    def linear(low: float, high: float) -> Callable:
        return lambda stored: np.clip((rescale(stored) - low) / (high - low), 0, 1).astype(np.float32)

    if not use_voi or function is None:
        return (plain := linear(low, high)), plain, flags
    # A few hot pixels, which a window leaves out, must not press the tissue into a few levels.
    ends = np.percentile(rescale(sample), (0.1, 99.9)) if sample.size else (low, high)
    plain = linear(*ends) if ends[1] > ends[0] else linear(low, high)
    return lambda stored: function(rescale(stored)).astype(np.float32), plain, flags


def _checked(stored: np.ndarray, tone: Callable, flags) -> tuple[str, ...]:
    """The flags, and `background_bright` where that is so."""
    grey = tone(polarity.small(stored)).astype(np.float32)
    bright = polarity.background(grey / 255 if tone(stored[:1, :1]).dtype == np.uint8 else grey) == "bright"
    return (*flags, "background_bright") if bright else tuple(flags)


def _has_table(stored: np.ndarray) -> bool:
    return stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2


def _all_values(dtype: np.dtype) -> np.ndarray:
    """Every value of an 8 or 16-bit integer type, in the order of its bits read as unsigned."""
    return np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)


def _present(stored: np.ndarray, padding: tuple[int, int] | None) -> np.ndarray:
    """Values that occur [n], the extremes of what is no padding among them: all of them where that takes a histogram,
    else a sample."""
    if padding is not None and _has_table(stored):
        values = _all_values(stored.dtype)
        unsigned = stored.view(f"u{stored.dtype.itemsize}")
        counts = cv2.calcHist([unsigned], [0], None, [len(values)], [0, len(values)])
        return values[counts.ravel() > 0]
    kept = stored if padding is None else stored[~_within(stored, padding)]
    ends = kept if kept.size else stored
    return np.unique(np.append(stored[::32, ::32], [ends.min(), ends.max()]).astype(stored.dtype))


def _padding(header: pydicom.Dataset, dtype: np.dtype) -> tuple[int, int] | None:
    """First and last padding value (PS3.3 C.7.5.1.1.2), of the sign that the pixels have, or None."""
    try:
        first = int(header.PixelPaddingValue)
        limit = header.get("PixelPaddingRangeLimit")
        last = first if limit is None or limit == "" else int(limit)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None
    if dtype.kind in "iu":  # some write a negative one as unsigned, or the other way
        kind, turn = np.iinfo(dtype), 2 ** (8 * dtype.itemsize)
        first, last = (v - turn if v > kind.max else v + turn if v < kind.min else v for v in (first, last))
    return min(first, last), max(first, last)


def _within(values: np.ndarray, bounds: tuple[int, int] | None) -> np.ndarray:
    """Which values lie in `bounds`, ends included: bool of the shape of `values`."""
    if bounds is None:
        return np.zeros(values.shape, bool)
    return (values >= bounds[0]) & (values <= bounds[1])
