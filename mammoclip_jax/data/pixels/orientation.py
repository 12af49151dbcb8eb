"""Which way round an image is stored: PatientOrientation (PS3.3 C.7.6.1.1.1) against how mammograms are displayed.

Displayed, a left breast has its chest wall at the left: rows run to the anterior (A); in a right one to the posterior
(P). Columns run to the feet (F) in oblique and lateral views, in craniocaudal ones from the lateral to the medial side.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import pydicom

_CHEST_WALLS = {"A": "left", "P": "right"}
_OPPOSITE = {"L": "R", "R": "L"}
_CRANIOCAUDAL = ("CC", "XCC", "XCCL", "XCCM")


class Stored(NamedTuple):
    """What the header says of the stored pixels."""

    chest_wall: str  # the side at which it lies: "left", "right", or "" unknown
    upside_down: bool


def stored(header: pydicom.Dataset, laterality: str, view: str) -> Stored:
    """The way round of an image of this laterality and view ("" unknown). A damaged or odd value says nothing."""
    row, column = _ways(header)
    if view in _CRANIOCAUDAL:
        upside_down = bool(laterality) and column[:1] == laterality
    else:
        upside_down = "H" in column
    return Stored(_CHEST_WALLS.get(row[:1], ""), upside_down)


def side(header: pydicom.Dataset) -> str:
    """The breast's side, "L" or "R", where nothing but PatientOrientation says it; "" where that does not tell.

    In oblique views the way to the medial side does, with which end is up. In craniocaudal ones, which have no such end,
    the image must lie as it is displayed: rows and columns have to agree.
    """
    row, column = _ways(header)
    medial = set(column) & set("LR")
    if len(medial) != 1:
        return ""
    (way,) = medial
    ends = set(column) & set("HF")
    if ends:
        return _OPPOSITE[way] if ends == {"F"} else way if ends == {"H"} else ""
    return _OPPOSITE[way] if {"A": "L", "P": "R"}.get(row[:1]) == _OPPOSITE[way] else ""


def _ways(header: pydicom.Dataset) -> tuple[str, str]:
    """Where rows and columns run, in letters of which the first counts most ("A", "FR"); "" unknown."""
    value = header.get("PatientOrientation") or ""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    ways = [str(way).strip().upper() for way in value] if several else []
    known = len(ways) == 2 and all(re.fullmatch("[ALPRHF]{1,3}", way) for way in ways)
    return (ways[0], ways[1]) if known else ("", "")
