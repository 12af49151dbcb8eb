"""Which way round the greys are: what the header says, and where the background lies in the pixels."""

import numpy as np
import pydicom

_SIDE = 256  # the pixels are looked at in a copy of about this many a side
_STRIPS = 3  # at each side, of a sixteenth of the width: a white plate may cover the first
_EVEN = 0.05  # between the 10th and 90th percentile of air, which film grain may have; tissue has more
_AIR = 0.15  # of the image; a plate or a film edge covers up to an eighth
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def inverted(header: pydicom.Dataset, grey: np.ndarray) -> tuple[bool, str]:
    """Whether small stored values are bright, and a flag.

    MONOCHROME1 and PresentationLUTShape INVERSE say the same thing (PS3.3 C.8.11.3.1.2), so they invert once. A header
    where they contradict each other ("polarity_contradictory"), or that has neither word of the standard
    ("photometric_unknown"), is decided by the pixels `grey` [h, w] (small copy before polarity, [0, 1]): the background
    is dark in a mammogram. Where the pixels do not tell, either of the two inverts.
    """
    if not len(header) or header.get("SamplesPerPixel") == 3:
        return False, ""  # a picture, or grey in three equal colours
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
    """One of "dark", "bright", or "" where it cannot be told: the background of a small image [h, w] in [0, 1].

    The air beside a breast is the evenest of some strips at the two sides; it covers more than a plate or a film edge
    does, and nearly all else lies on one side of its grey level. A frame of 2 % is left out: edges and collimators are
    there. A field full of tissue has no air.
    """
    height, width = grey.shape
    if min(height, width) < 32:
        return ""
    grey = grey[height // 50 : height - height // 50, width // 50 : width - width // 50].astype(np.float32)
    band = max(2, width // 16)
    strips = [side[:, band * k : band * (k + 1)] for side in (grey, grey[:, ::-1]) for k in range(_STRIPS)]
    levels = sorted((np.percentile(strip, (10, 50, 90)) for strip in strips), key=lambda level: level[2] - level[0])
    seen = [(_side_of(grey, *level), level[2] - level[0]) for level in levels if level[2] - level[0] < _EVEN]
    seen = [(verdict, spread) for verdict, spread in seen if verdict]
    if not seen or any(verdict != seen[0][0] for verdict, spread in seen if spread < 0.02):
        return ""  # none, or quite even parts of both kinds
    return seen[0][0]


def _side_of(grey: np.ndarray, low: float, level: float, high: float) -> str:
    """One of "dark", "bright" or "": what air of these levels (10th, 50th and 90th percentile) would be in an image."""
    reach = max(0.04, high - low)
    darker, brighter = float((grey < level - reach).mean()), float((grey > level + reach).mean())
    if 1 - darker - brighter < _AIR:
        return ""
    if brighter > max(0.02, 4 * darker):
        return "dark"
    return "bright" if darker > max(0.02, 4 * brighter) else ""
