"""Which way round the greys are: what the header says, and where the background lies in the pixels."""

import numpy as np
import pydicom

_SIDE = 256             # the pixels are looked at in a copy of about this many a side
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def inverted(header: pydicom.Dataset, grey: np.ndarray) -> tuple[bool, str]:
    """Whether small stored values are bright, and a flag.

    MONOCHROME1 and PresentationLUTShape INVERSE say the same thing (PS3.3 C.8.11.3.1.2), so they invert once. A header
    where they contradict each other ("polarity_contradictory"), or that has neither word of the standard
    ("photometric_unknown"), is decided by the pixels `grey` [h, w] (small copy before polarity, [0, 1]): the background
    is dark in a mammogram. Where the pixels do not tell, either of the two inverts.
    """
    if not len(header) or header.get("SamplesPerPixel") == 3:
        return False, ""            # a picture, or grey in three equal colours
    meaning = str(header.get("PhotometricInterpretation") or "").strip().upper()
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    told = meaning == "MONOCHROME1" or shape == "INVERSE"
    if meaning not in _SHAPES:
        flag = "photometric_unknown"
    elif shape in _SHAPES.values() and shape != _SHAPES[meaning]:
        flag = "polarity_contradictory"
    else:
        return told, ""
    seen = background(grey)
    return (seen == "bright" if seen else told), flag


def small(image: np.ndarray) -> np.ndarray:
    """Every k-th pixel of [h, w]: at most about 256 a side."""
    step = max(1, -(-max(image.shape) // _SIDE))
    return image[::step, ::step]


def background(grey: np.ndarray) -> str:
    """"dark", "bright", or "" where it cannot be told: the background of a small image [h, w] in [0, 1].

    The air beside a breast is the evener of the two side edges, and nearly all else lies on one side of its grey level.
    A frame of 2 % is left out: film edges and collimators are there.
    """
    height, width = grey.shape
    if min(height, width) < 32:
        return ""
    grey = grey[height // 50:height - height // 50, width // 50:width - width // 50].astype(np.float32)
    band = max(2, width // 16)
    levels = [np.percentile(side, (10, 50, 90)) for side in (grey[:, :band], grey[:, -band:])]
    spreads = [high - low for low, _, high in levels]
    if max(spreads) < 0.02 and abs(levels[0][1] - levels[1][1]) > 0.1:
        return ""                   # both sides are even, and differ
    low, level, high = levels[int(spreads[1] < spreads[0])]
    reach = max(0.04, high - low)
    darker, brighter = float((grey < level - reach).mean()), float((grey > level + reach).mean())
    if brighter > max(0.02, 4 * darker):
        return "dark"
    return "bright" if darker > max(0.02, 4 * brighter) else ""
