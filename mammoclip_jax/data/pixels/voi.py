"""What a header says about values: modality LUT or rescale, then VOI LUT or window, as functions of arrays.

PS3.3 C.11.1 (modality), C.11.2 (VOI). A window or a VOI LUT always speaks of values after the modality step. Headers in
the field are often wrong; each leniency stands where it is granted.
"""

from collections.abc import Callable

import numpy as np
import pydicom

Function = Callable[[np.ndarray], np.ndarray]
RESCALE, WINDOW = ("RescaleSlope", "RescaleIntercept"), ("WindowCenter", "WindowWidth")


def modality(header: pydicom.Dataset) -> tuple[Function, tuple[str, ...]]:
    """Stored values -> values after modality LUT or rescale (float64), and flags.

    "rescale_invalid": the header's cannot be used, and values stay. "decimal_comma": it was read as a point.
    """
    try:
        items = header.get("ModalityLUTSequence")
        if items:
            table, first, _ = _table(header, items[0], header.get("PixelRepresentation") == 1)
            return lambda values: _look_up(table, first, values), ()
        slope, intercept = _number(header.get("RescaleSlope"), 1.0), _number(header.get("RescaleIntercept"), 0.0)
        if slope == 0 or not np.isfinite([slope, intercept]).all():
            raise ValueError("rescale")
    except Exception:  # a malformed sequence raises anything
        return _same, ("rescale_invalid",)
    return lambda values: np.asarray(values, np.float64) * slope + intercept, _commas(header, *RESCALE)


def _same(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)


def voi(header: pydicom.Dataset, item: int, lowest: float) -> tuple[Function | None, tuple[str, ...]]:
    """Values after the modality step -> [0, 1], by the header's VOI LUT or window number `item`; and flags.

    VOI LUTs are counted first, then windows. An image with fewer uses its first, with the flag "voi_item_missing"; one
    with none gives None. "voi_invalid": the one chosen is malformed. "voi_bits_wrong": the LUT's entries use more or
    fewer bits than it declares. "decimal_comma": it was read as a point. `lowest` is the least value that occurs: a
    LUT's first value is signed where values are (PS3.3 C.11.2.1.1).
    """
    try:
        luts = list(header.get("VOILUTSequence") or ())
        windows = list(zip(_numbers(header.get("WindowCenter")), _numbers(header.get("WindowWidth"))))
        count = len(luts) + len(windows)
        if not count:
            return None, ()
        flags = () if item < count else ("voi_item_missing",)
        item = item if item < count else 0
        if item < len(luts):
            function, wrong = _voi_lut(header, luts[item], lowest < 0)
            return function, flags + wrong
        function = str(header.get("VOILUTFunction") or "LINEAR").strip().upper()
        return window(*windows[item - len(luts)], function), flags + _commas(header, *WINDOW)
    except Exception:  # a malformed sequence raises anything
        return None, ("voi_invalid",)


def _voi_lut(header: pydicom.Dataset, item: pydicom.Dataset, signed: bool) -> tuple[Function, tuple[str, ...]]:
    """Over the bits declared; where the entries use others (a container's 16 are declared), over what they span."""
    table, first, bits = _table(header, item, signed or header.get("PixelRepresentation") == 1)
    low, high, flags = 0.0, 2.0**bits - 1, ()
    if int(table.max()).bit_length() != bits:
        low, high, flags = table.min(), max(table.max(), table.min() + 1), ("voi_bits_wrong",)
    return lambda values: (_look_up(table, first, values) - low) / (high - low), flags


def _look_up(table: np.ndarray, first: int, values: np.ndarray) -> np.ndarray:
    """Values below the first entry get the first, above the last the last."""
    places = np.rint(np.clip(np.asarray(values, np.float64) - first, 0, len(table) - 1)).astype(np.int64)
    return table[places]


def _table(header: pydicom.Dataset, item: pydicom.Dataset, signed: bool) -> tuple[np.ndarray, int, int]:
    """Entries [n] float64, the value of the first and the bits declared, of a LUT item.

    Raises:
        Exception: of any kind, for a malformed one.
    """
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 2**16 or 2**16
    if signed and first > 32767:
        first -= 2**16  # read as US though the standard says SS
    little = getattr(header, "original_encoding", (None, True))[1] is not False
    entries = _entries(item.LUTData, count, bits, "<u2" if little else ">u2")
    if not entries.size or not 1 <= bits <= 16:
        raise ValueError("LUT")
    return entries, first, bits


def _entries(data, count: int, bits: int, words: str) -> np.ndarray:
    """LUT data, which are words, or bytes (OW), where entries of 8 bits may be packed two to a word."""
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16).astype(words).tobytes()
    packed = bits <= 8 and len(data) in (count, count + 1)
    entries = np.frombuffer(data[: len(data) - (0 if packed else len(data) % 2)], np.uint8 if packed else words)
    return entries[:count].astype(np.float64)


def window(centre: float, width: float, function: str) -> Function:
    """The window functions of PS3.3 C.11.2.1.2 and C.11.2.1.3 with output range [0, 1].

    Raises:
        ValueError: there is no such function, or the width is impossible.
    """
    if not np.isfinite([centre, width]).all():
        raise ValueError("window")
    if function == "SIGMOID" and width > 0:
        return lambda x: 1 / (1 + np.exp(np.clip(-4 * (np.asarray(x, np.float64) - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT" and width > 0:
        return lambda x: np.clip((np.asarray(x, np.float64) - centre) / width + 0.5, 0, 1)
    if function == "LINEAR" and width >= 1:
        if width == 1:
            return lambda x: (np.asarray(x) > centre - 0.5).astype(np.float64)
        return lambda x: np.clip((np.asarray(x, np.float64) - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    raise ValueError("window")


def _number(value, default: float) -> float:
    numbers = _numbers(value)
    return numbers[0] if numbers else default


def _numbers(value) -> list[float]:
    return [float(text.replace(",", ".")) for text in _texts(value)]


def _texts(value) -> list[str]:
    if value is None or value == "":
        return []
    return [str(one) for one in (value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value])]


def _commas(header: pydicom.Dataset, *names: str) -> tuple[str, ...]:
    """A flag where numbers have decimal commas, which the standard has not; a file's reader leaves them as texts."""
    return ("decimal_comma",) if any("," in text for name in names for text in _texts(header.get(name))) else ()
