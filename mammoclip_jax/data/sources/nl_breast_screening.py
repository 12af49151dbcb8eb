"""NL-Breast-Screening: full-field digital mammograms of the screening programme of Newfoundland and Labrador.

Files, as FRDR distributes them: NLBSP-metadata.csv, a line an image, and the DICOM files it names, in folders
CLASS\\CASE\\left|right\\CC|MLO\\FILE.dcm below the root or its folder `images`.

What this adapter rests on: 5,997 exams of a GE Senographe Essential, 2008 to 2010; columns File Path (with
backslashes), Image Laterality, View Position, Age, Cancer (biopsy-confirmed) and False Positive (recalled, no cancer).
The number of the case folder stands for the patient. There are no findings, so there are no texts.
"""

import re
from pathlib import Path

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import tables
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.errors import UserError

LICENCE = "as stated at https://www.frdr-dfdr.ca for NL-Breast-Screening; read it there before sharing anything"
CITATION = (
    "E Kendall, P Hajishafiezahramini, M Hamilton, G Doyle, N Wadden, O Meruvia-Pastor (2025): Full Field "
    "Digital Mammography Dataset from a Population Screening Program. Scientific Data 12, 1479."
)
TABLE = "NLBSP-metadata.csv"
NEEDED = ("File Path", "Image Laterality", "View Position", "Age", "Cancer", "False Positive")
_PATH = re.compile(r"(?:.*/)?(?P<case>[^/]+)/(?P<side>left|right)/(?P<view>[^/]+)/[^/]+", re.IGNORECASE)


def read(root: str | Path, table: str = "", val: float = 0.1, test: float = 0.2) -> SourceTable:
    """The images of the table; `val` and `test` are expected fractions of patients, as the owner gives no split.

    Args:
        table: the table, if it is not `root`/NLBSP-metadata.csv.

    Raises:
        UserError: the table is missing or lacks a column.
    """
    root = Path(root)
    path = Path(table) if table else root / TABLE
    if not path.is_file():
        raise UserError(
            f"{path} is missing. Give --root, the folder of NL-Breast-Screening with {TABLE}, or the table "
            "with --option=table=FILE."
        )
    lines = tables.read(path, NEEDED)
    inner = "images/" if (root / "images").is_dir() else ""
    rows, problems = [], []
    for line in lines.to_dict("records"):
        name = line["File Path"].replace("\\", "/").lstrip("/")
        match = _PATH.fullmatch(name)
        fault = _fault(line, name, match)
        if fault:
            problems.append(Problem("", "source", fault, "correct the table", "", line[ROW]))
            continue
        patient = match["case"]
        rows.append(
            {
                "dataset": "nl_breast_screening",
                "patient": patient,
                "study": patient,
                "image": re.sub(r"\.dcm$", "", name.removeprefix("images/"), flags=re.IGNORECASE),
                "file": inner + name.removeprefix("images/"),
                "row": line[ROW],
                "laterality": tables.SIDES[line["Image Laterality"].lower()],
                "view": line["View Position"].upper(),
                "split": split_of(patient, val, test),
                "vendor": "GE",
                "labels": _labels(line),
            }
        )
    return SourceTable(frame(rows), problems, LICENCE, CITATION, public_ids=True, partial=True, table_rows=len(lines))


def _fault(line: dict, name: str, match: re.Match | None) -> str:
    """What is wrong with a line, also by the folders it names, or ""."""
    side = tables.SIDES.get(line["Image Laterality"].lower())
    if not match or ".." in name.split("/"):
        return "unknown path: it is not CASE/left|right/VIEW/FILE"
    if not side:
        return "unknown laterality"
    if match["side"][:1].upper() != side:
        return f"laterality contradicts: the table has {side}, the folder {match['side'].lower()}"
    if match["view"].upper() != line["View Position"].upper():
        return "view contradicts: the table and the folder differ"
    flags = [tables.number(line[name]) for name in ("Cancer", "False Positive") if line[name]]
    if any(flag not in (0, 1) for flag in flags):
        return "unknown label: Cancer and False Positive are 0 or 1"
    if flags == [1, 1]:
        return "label contradicts: cancer and false positive"
    return ""


def _labels(line: dict) -> dict:
    names = {"Cancer": "cancer", "False Positive": "false_positive", "Age": "age"}
    values = {label: tables.number(line[name]) for name, label in names.items()}
    return {label: int(value) for label, value in values.items() if value is not None}
