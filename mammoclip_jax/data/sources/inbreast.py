"""INbreast: 410 full-field digital mammograms of 115 patients, with outlines of findings.

Files, as distributed ("INbreast Release 1.0"): INbreast.csv (separated by semicolons; or the same as INbreast.xls or
.xlsx), AllDICOMs/ID_PATIENT_MG_SIDE_VIEW_ANON.dcm and AllXML/ID.xml.

What this adapter rests on:
- The table says "removed" for patients; the hash in a file's name is the patient. Of images without their file the
  patient is unknown, and each stands alone.
- Oblique views are "ML" in file names and "MLO" in the table, and are MLO.
- BI-RADS may be 4a, 4b or 4c; the letter is kept as birads_detail. ACR 1 to 4 are density A to D.
- The XML files are property lists: Images[0].ROIs, each with a Name and Point_px, "(x, y)" in pixels of the image. An
  outline of three points or more becomes a box. Calcifications are often single points: these have no extent, so they
  are counted in calcification_points and make the label, not a box.
- An image of BI-RADS 1 without outlines has none of the findings; else what is not outlined is unknown.
- Malignancy is not biopsy-proven for all cases, so there is no cancer label.
"""

import math
import plistlib
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from mammoclip_jax.data import image_files
from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import excel, tables
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

LICENCE = (
    "research use by agreement with the authors (Breast Research Group, INESC Porto); no redistribution of the images"
)
CITATION = (
    "I C Moreira, I Amaral, I Domingues, A Cardoso, M J Cardoso, J S Cardoso (2012): INbreast: Toward a "
    "Full-field Digital Mammographic Database. Academic Radiology 19(2), 236-248."
)
NEEDED = ("Laterality", "View", "File Name", "ACR", "Bi-Rads")
VIEWS = {"CC": "CC", "FB": "FB", "ML": "MLO", "MLO": "MLO"}
DENSITY = {"1": "A", "2": "B", "3": "C", "4": "D"}
COLUMNS = {
    "Mass": "mass",
    "Micros": "calcification",
    "Distortion": "architectural_distortion",
    "Asymmetry": "asymmetry",
}  # only the Excel table has them, with an X
NAMES = (
    ("mass", "mass"),
    ("calc", "calcification"),
    ("cluster", "calcification"),
    ("spiculated", "spiculated_region"),
    ("dist", "architectural_distortion"),
    ("as", "asymmetry"),
)
FINDINGS = tuple(COLUMNS.values())
_FILE = re.compile(r"(?P<id>\d+)_(?P<patient>[^_]+)_MG_(?P<side>[LR])_(?P<view>[A-Z]+)_ANON(?:\.dcm)?", re.IGNORECASE)
_POINT = re.compile(r"\(\s*(-?[\d.]+(?:e[-+]?\d+)?)\s*,\s*(-?[\d.]+(?:e[-+]?\d+)?)\s*\)", re.IGNORECASE)


def read(root: str | Path, val: float = 0.1, test: float = 0.2) -> SourceTable:
    """The images of the table; `val` and `test` are expected fractions of patients, as the owner gives no split.

    Raises:
        UserError: `root` has no INbreast table, or it lacks a column; Excel tables need openpyxl or xlrd.
    """
    root = Path(root)
    lines = _table(root)
    names, problems, others = image_files.walk(root)
    files = {match["id"]: (name, match) for name in names if (match := _FILE.fullmatch(PurePosixPath(name).name))}
    outlines = {path.stem: root / path for path in map(PurePosixPath, names) if path.match("AllXML/*.xml")}
    others += [image_files.other(name, "no image by its name") for name in names if not _is_known(name)]
    rows = []
    for line in lines.to_dict("records"):
        image = line["File Name"].removesuffix(".0")
        file, match = files.pop(image, ("", None))
        fault = _fault(line, image, match)
        if fault:
            problems.append(Problem("", "source", fault, "correct the table", image, line[ROW]))
            continue
        boxes, labels, faults = _outlines(outlines[image]) if image in outlines else ([], {}, [])
        problems += [
            Problem(f"AllXML/{image}.xml", "boxes", reason, "look at the outline", image, line[ROW])
            for reason in faults
        ]
        labels = _labels(line, image in outlines) | labels
        patient = match["patient"].lower() if match else f"unknown-{image}"
        rows.append(_row(line, image, patient, file, labels, boxes) | {"split": split_of(patient, val, test)})
    for image, (name, _) in files.items():
        problems.append(Problem(name, "source", "no row in the table", "give the whole table", image))
    _add_days(rows)
    return SourceTable(
        frame(rows),
        problems,
        LICENCE,
        CITATION,
        public_ids=True,
        partial=True,
        table_rows=len(lines),
        passed_over=others,
    )


def _is_known(name: str) -> bool:
    """Whether a file is one of the tables, an outline, or named as the images are."""
    return bool(_FILE.fullmatch(PurePosixPath(name).name)) or name.endswith((".xml", ".csv", ".xls", ".xlsx"))


def _table(root: Path) -> pd.DataFrame:
    path = next(
        (root / f"INbreast{ending}" for ending in (".csv", ".xlsx", ".xls") if (root / f"INbreast{ending}").is_file()),
        None,
    )
    if path is None:
        raise UserError(
            f"{root} has no INbreast.csv, INbreast.xlsx or INbreast.xls. Give --root, the folder "
            '"INbreast Release 1.0" as distributed.'
        )
    if path.suffix == ".csv":
        return tables.read(path, NEEDED, sep=";")
    return excel.read(path, NEEDED)


def _fault(line: dict, image: str, match: re.Match | None) -> str:
    """What is wrong with a line of the table, also by the name of its file, or ""."""
    side, view = tables.SIDES.get(line["Laterality"].lower()), VIEWS.get(line["View"].upper(), "")
    if not image.isdigit():
        return "empty identifier: File Name"
    if not side:
        return "unknown laterality"
    if not view:
        return "unknown view"
    if match and match["side"].upper() != side:
        return f"laterality contradicts: the table has {side}, the file's name {match['side'].upper()}"
    if match and VIEWS.get(match["view"].upper()) != view:
        return f"view contradicts: the table has {view}, the file's name {match['view'].upper()}"
    return ""


def _labels(line: dict, outlined: bool) -> dict:
    detail = line["Bi-Rads"].lower().removesuffix(".0")
    category = int(detail[0]) if re.fullmatch(r"[0-6][abc]?", detail) else None
    labels: dict = dict.fromkeys(FINDINGS, 0) if category == 1 and not outlined else {}
    labels |= {label: 1 for name, label in COLUMNS.items() if line.get(name, "").upper() == "X"}
    if category is not None:
        labels |= {"birads": category} | ({"birads_detail": detail} if len(detail) > 1 else {})
    density = DENSITY.get(line["ACR"].removesuffix(".0"))
    return labels | ({"density": density} if density else {})


def _outlines(path: Path) -> tuple[list[dict], dict, list[str]]:
    """The boxes and labels of an XML file, and what is wrong with it."""
    try:
        rois = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)["Images"][0]["ROIs"]
        outlines = [(str(roi.get("Name", "")).strip(), [str(point) for point in roi["Point_px"]]) for roi in rois]
    except Exception as error:  # any kind of damage; the class says enough
        return [], {}, [f"outlines cannot be read: {type(error).__name__}"]
    boxes, labels, faults = [], {}, []
    for name, points in outlines:
        label = next((label for start, label in NAMES if start in name.lower()), "")
        matches = [_POINT.fullmatch(point.strip()) for point in points]
        try:
            corners = [(float(match[1]), float(match[2])) for match in matches if match]
        except ValueError:
            corners = []
        if not label:
            faults.append(f"unknown finding: {name!r}" if name else "unnamed finding")
        if label in FINDINGS:
            labels[label] = 1
        if not corners or len(corners) != len(points):
            faults.append("malformed outline: its points are not (x, y)")
            continue
        if len(corners) < 3:
            if label == "calcification":
                labels["calcification_points"] = labels.get("calcification_points", 0) + 1
            continue
        xs, ys = zip(*corners)
        low = [max(math.floor(min(values)), 0) for values in (xs, ys)]
        high = [math.floor(max(values)) + 1 for values in (xs, ys)]
        boxes.append({"label": label or "finding", "box": low + high})
    return boxes, labels, faults


def _row(line: dict, image: str, patient: str, file: str, labels: dict, boxes: list[dict]) -> dict:
    side, view = tables.SIDES[line["Laterality"].lower()], VIEWS[line["View"].upper()]
    month = line.get("Acquisition date", "").removesuffix(".0")
    texts = captions.findings(labels, boxes, side, view)
    return {
        "dataset": "inbreast",
        "patient": patient,
        "study": f"{patient}-{month}",
        "image": image,
        "file": file,
        "row": line[ROW],
        "laterality": side,
        "view": view,
        "vendor": "Siemens",
        "texts": texts,
        "sections": ["findings", "impression"][: len(texts)],
        "labels": labels,
        "boxes": boxes,
    }


def _add_days(rows: list[dict]) -> None:
    """study_day, to the month that the table gives."""
    months = [row["study"].rsplit("-", 1)[1] for row in rows]
    dates = [f"{month[:4]}-{month[4:]}-01" if re.fullmatch(r"\d{6}", month) else "" for month in months]
    for row, day in zip(rows, tables.study_days([row["patient"] for row in rows], dates)):
        if day is not None:
            row["labels"]["study_day"] = day
