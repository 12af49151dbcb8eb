"""EMBED's regions of interest: ellipses a radiologist drew, kept as the rectangles around them, in one of two grids.

Cells look like ((ymin, xmin, ymax, xmax), ...) with any brackets (Emory-HITI/EMBED_Open_Data, README.md VII and
NUS_roi_reference.ipynb). Where the table has DCM_ROI_coords, those are pixels of the DICOM file. ROI_coords alone are
pixels of Emory's PNG, which DCM_to_PNG.ipynb turned by PatientOrientation so that every chest wall is at the left; the
owners' issues 5 and 9 are about boxes on the wrong side. So such boxes are turned back here, by the header of the file;
of a file that is not there nothing is turned: its row is never drawn.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pydicom

from mammoclip_jax.data.image_files import located
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.sources.tables import number

COLUMNS = ("ROI_coords", "DCM_ROI_coords", "match_level", "ROI_match_level")
LARGEST = 100_000  # pixels
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def size(line: Mapping[str, str]) -> str:
    """As "height width" by the columns Rows and Columns, "" where they are empty."""
    height, width = number(line["Rows"]), number(line["Columns"])
    return f"{int(height)} {int(width)}" if height and width else ""


def boxes(line: Mapping[str, str], root: Path, label: str) -> tuple[list[dict], str]:
    """The boxes of a line of the metadata in pixels of the DICOM file, and what is wrong with them, or "".

    Args:
        line: the columns COLUMNS, num_roi, laterality, view, file.
        root: where `file` lies; it need not exist.
        label: what the boxes show.

    Each box also has "match": 1 if the region was drawn on this image, 2 if on its 2D or C-view twin, as far as known.
    """
    cell, count = line["DCM_ROI_coords"] or line["ROI_coords"], number(line["num_roi"]) or 0
    if not cell.strip("()[] ,") and not count:
        return [], ""
    values = [max(float(digits), 0) for digits in _NUMBER.findall(cell)]
    if len(values) % 4 or max(values, default=0) > LARGEST:
        return [], f"malformed box: {len(values)} numbers in the ROI coordinates, or one beyond any image"
    corners = [values[start : start + 4] for start in range(0, len(values), 4)]
    levels = [int(level) for level in re.findall(r"\d+", line["ROI_match_level"] or line["match_level"])]
    (file,) = located(root, [line["file"]])
    turn = None if line["DCM_ROI_coords"] else _turned(root / file, line["laterality"], line["view"])
    regions, empty = [], 0
    for position, (y0, x0, y1, x1) in enumerate(corners):
        if not (x0 < x1 and y0 < y1):
            empty += 1
            continue
        if turn:
            height, width, flip_x, flip_y = turn
            x0, x1 = (max(width - x1, 0), width - x0) if flip_x else (x0, x1)
            y0, y1 = (max(height - y1, 0), height - y0) if flip_y else (y0, y1)
        match = {"match": levels[position]} if len(levels) == len(corners) else {}
        regions.append({"label": label, "box": [x0, y0, x1, y1]} | match)
    if empty:
        return regions, f"malformed box: {empty} of {len(corners)} are empty"
    if len(corners) != count and line["num_roi"]:
        return regions, f"box count contradicts: num_roi is {count}, {len(corners)} are given"
    return regions, ""


def _turned(path: Path, laterality: str, view: str) -> tuple[int, int, bool, bool] | None:
    """(height, width, mirrored, upside down) of the owner's PNG of this file; None where the file cannot be read."""
    try:
        with dicom.quiet():
            names = ["Rows", "Columns", "PatientOrientation"]
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=names)
            height, width = int(header.Rows), int(header.Columns)
            ways = [str(way) for way in header.get("PatientOrientation") or ()]
    except Exception:  # missing or damaged: the file itself becomes a problem when it is drawn
        return None
    if len(ways) != 2:
        return height, width, laterality == "R" and view in ("CC", "ML", "MLO"), False
    upside = {"CC": {"L": ("L",), "R": ("R",)}, "MLO": {"L": ("H", "HL"), "R": ("H", "HR")}}
    upside["ML"] = upside["MLO"]
    if view not in upside:
        return height, width, False, False
    return height, width, ways[0] == "P", ways[1] in upside[view].get(laterality, ())
