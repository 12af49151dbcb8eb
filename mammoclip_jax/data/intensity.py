"""Stored values -> grey values from dark (background) to bright (dense tissue), by a named policy.

| policy       | does                                                                                                 |
|--------------|------------------------------------------------------------------------------------------------------|
| `voi`        | modality LUT, then VOI LUT or window (the first of several), polarity, padding; min-max without one  |
| `raw_minmax` | stored values, polarity, padding, min-max                                                            |
| `published`  | Mammo-CLIP: stored values, a 5-pixel border cut off, MONOCHROME1 as max - x, min-max, cut to 8 bits  |

The window functions are those of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, with output range [0, 1].
"""

from typing import Callable, NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut

from mammoclip_jax.data.dicom import Image, quiet

POLICIES = ("voi", "published", "raw_minmax")
PUBLISHED_BORDER = 5


class Grey(NamedTuple):
    """An image ready to be cropped and resized."""

    array: np.ndarray                       # [h, w] float32 in [0, 1], or uint8 by the policy `published`
    inside: tuple[int, int, int, int]       # y0, x0, y1, x1: what of it counts
    flags: tuple[str, ...]


class FlatImage(ValueError):
    """All pixels are alike."""


def grey(image: Image, policy: str) -> Grey:
    """`image` by a policy of POLICIES.

    Raises:
        FlatImage: all pixels that count are alike.
    """
    if policy == "published":
        return _published(image)
    with quiet():
        return _display(image, policy == "voi")


def _published(image: Image) -> Grey:
    height, width = image.stored.shape
    border = PUBLISHED_BORDER
    inside = (border, border, height - border, width - border)
    inner = image.stored[border:-border, border:-border]
    low, high = _range(inner)
    sign = -1 if _inverted(image.header) else 1
    start = high if sign < 0 else low

    def tone(values: np.ndarray) -> np.ndarray:
        return np.clip((values.astype(np.float64) - start) * sign / (high - low) * 255, 0, 255).astype(np.uint8)

    return Grey(_mapped(image.stored, tone), inside, ())


def _display(image: Image, voi: bool) -> Grey:
    header, stored = image.header, image.stored
    padding = _padding(header, stored)
    bounds = _range(stored if padding is None else stored[~padding])
    flags = list(image.fields.flags)
    shown = None
    if voi:
        shown, problem = _voi(header, stored, bounds)
        flags += [problem] if problem else []
    if shown is None:
        shown = _min_max(header if voi else pydicom.Dataset(), bounds)
    if _inverted(header):
        array = _mapped(stored, lambda values: 1 - shown(values))
    else:
        array = _mapped(stored, shown)
    if padding is not None:
        array[padding] = 0
    return Grey(array, (0, 0, *stored.shape), tuple(flags))


def _inverted(header: pydicom.Dataset) -> bool:
    # PresentationLUTShape INVERSE only repeats MONOCHROME1 (PS3.3 C.8.11.3.1.2); obeying both would invert twice.
    return header.get("PhotometricInterpretation") == "MONOCHROME1"


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if low == high:
        raise FlatImage
    return low, high


def _mapped(stored: np.ndarray, tone: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`tone(stored)`, over a table of all values where they have 8 or 16 bits."""
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        return tone(stored)
    kind = np.dtype(f"u{stored.dtype.itemsize}")
    values = np.arange(2 ** (8 * kind.itemsize), dtype=kind).view(stored.dtype.newbyteorder("="))
    return tone(values)[stored.astype(stored.dtype.newbyteorder("="), copy=False).view(kind)]


def _padding(header: pydicom.Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Which pixels are padding [h, w] bool (PS3.3 C.7.5.1.1.2), or None; padding that covers all is a mistake."""
    try:
        first = int(header.PixelPaddingValue)
        last = int(header.get("PixelPaddingRangeLimit", first))
    except (AttributeError, TypeError, ValueError):
        return None
    mask = (stored >= min(first, last)) & (stored <= max(first, last))
    return mask if mask.any() and not mask.all() else None


def _rescaled(header: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Modality LUT or rescale of stored values; unchanged where the header has none or a broken one."""
    try:
        return apply_modality_lut(values, header)
    except Exception:               # pydicom raises anything for a malformed LUT sequence
        return values


def _min_max(header: pydicom.Dataset, bounds: tuple[float, float]) -> Callable:
    """Darkest stored value -> 0, brightest -> 1, after the modality LUT."""
    low, high = sorted(_rescaled(header, np.array(bounds).astype(np.int64 if _is_lut(header) else np.float64)))
    span = (high - low) or 1.0
    return lambda values: np.clip((_rescaled(header, values) - low) / span, 0, 1).astype(np.float32)


def _is_lut(header: pydicom.Dataset) -> bool:
    return bool(header.get("ModalityLUTSequence"))


def _voi(header: pydicom.Dataset, stored: np.ndarray, bounds: tuple[float, float]) -> tuple[Callable | None, str]:
    """The VOI function of stored values, or None without a usable one, and a flag that says what was wrong."""
    try:
        function = _voi_lut(header) or _window(header)
    except Exception:               # a malformed sequence raises anything
        return None, "voi_invalid"
    if function is None:
        return None, ""

    def shown(values: np.ndarray) -> np.ndarray:
        return function(_rescaled(header, values)).astype(np.float32)

    sample = shown(np.unique(stored[::16, ::16]).astype(stored.dtype.newbyteorder("=")))
    ends = shown(np.array(bounds, stored.dtype.newbyteorder("=")))
    values = np.concatenate([sample, ends])
    if values.max() - values.min() < 1e-3:
        return None, "voi_flat"     # a window far from the values shows nothing
    return shown, ""


def _voi_lut(header: pydicom.Dataset) -> Callable | None:
    """The first VOI LUT; output is scaled by the bits that its values need, since some declare 16 and use 12."""
    sequence = header.get("VOILUTSequence")
    if not sequence:
        return None
    item = sequence[0]
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 2**16
    if header.get("PixelRepresentation") == 1 and first > 32767:
        first -= 2**16              # the descriptor's second value is signed when the pixels are
    little = getattr(header, "original_encoding", (None, True))[1] is not False
    table = _lut_data(item.LUTData, count, bits, "<u2" if little else ">u2")
    top = 2 ** max(1, min(bits, int(np.ceil(np.log2(table.max() + 1))))) - 1
    return lambda values: table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)] / top


def _lut_data(data, count: int, bits: int, words: str) -> np.ndarray:
    if isinstance(data, bytes):
        narrow = bits <= 8 and len(data) <= count + 1
        return np.frombuffer(data, np.uint8 if narrow else words)[:count].astype(np.float64)
    table = np.asarray(data, np.float64).reshape(-1)[:count]
    return np.where(table < 0, table + 2**16, table)


def _window(header: pydicom.Dataset) -> Callable | None:
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if centre is None or width is None:
        return None
    function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function == "SIGMOID" and width > 0:
        return lambda x: 1 / (1 + np.exp(np.clip(-4 * (np.asarray(x, np.float64) - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT" and width > 0:
        return lambda x: np.clip((np.asarray(x, np.float64) - centre) / width + 0.5, 0, 1)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return lambda x: (np.asarray(x) > centre - 0.5).astype(np.float64)
        return lambda x: np.clip((np.asarray(x, np.float64) - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ValueError(f"window {centre} {width} {function}")


def _first(value) -> float | None:
    """The first of several windows."""
    if value is None or value == "":
        return None
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        value = value[0] if len(value) else None
    return None if value is None else float(value)
