"""CMMD, the Chinese Mammography Database: a table with a line a breast, and DICOM files in folders by patient.

Files, as TCIA has them: CMMD_clinicaldata_revision.xlsx (or the same as .csv) and any folders of DICOM files. Neither
table nor file names say which file is which breast, so files are joined by their headers: PatientID, ImageLaterality
and the view's code. Without the files nothing can be said of images, and every line of the table is listed as absent.

What this adapter rests on: 1,775 patients D1-0001 ... D2-0749; the line of a breast gives the finding and the biopsy's
result. In the D2 part many patients have lines for one breast and files for two: the other breast's labels stay
unknown. Lines of the same breast are merged: a finding is there if any says so, cancer if any says malignant.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import excel, headers, tables
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

LICENCE = "CC BY 4.0"
CITATION = (
    "C Cui, L Li, H Cai, Z Fan, L Zhang, T Dan, J Li, J Wang (2021): The Chinese Mammography Database (CMMD). "
    "The Cancer Imaging Archive. https://doi.org/10.7937/tcia.eqde-4b16"
)
NEEDED = ("ID1", "LeftRight", "Age", "abnormality", "classification")
FINDINGS = {"mass": ("mass",), "calcification": ("calcification",), "both": ("mass", "calcification")}
CANCER = {"benign": 0, "malignant": 1}


def read(root: str | Path, table: str = "", val: float = 0.1, test: float = 0.2) -> SourceTable:
    """The DICOM files below `root`, with the labels of their breast.

    Args:
        table: the clinical table, if it is not below `root`.
        val, test: expected fractions of patients; the owner gives no split.

    Raises:
        UserError: there is no table, or it lacks a column; an .xlsx needs the package openpyxl.
    """
    root = Path(root)
    clinical, problems, lines = _breasts(_clinical(root, table))
    listing = headers.scan(root)
    files = listing.images
    stems = pd.Series([f"{fields.patient}/{PurePosixPath(name).stem}" for name, fields in files.items()], dtype=str)
    repeated = stems.duplicated(keep=False)
    patients = {patient for patient, _ in clinical}
    ages = {patient: breast["age"] for (patient, _), breast in clinical.items() if "age" in breast}
    rows, used = [], set()
    for (name, fields), stem, again in zip(files.items(), stems, repeated):
        image = name if again else stem
        if fields.patient not in patients:
            problems.append(Problem(name, "source", "no row in the table", "give the table that names it", image))
            continue
        if not fields.laterality:
            remedy = "the table is by breast and this file has none; export it with ImageLaterality"
            problems.append(Problem(name, "source", "no laterality in the header", remedy, image))
            continue
        breast = (fields.patient, fields.laterality)
        used.add(breast)
        line = clinical.get(breast, {})
        age = {"age": ages[fields.patient]} if fields.patient in ages else {}
        labels = age | {key: value for key, value in line.items() if key != ROW}
        texts = captions.findings(labels, [], fields.laterality, fields.view)
        rows.append(
            {
                "dataset": "cmmd",
                "patient": fields.patient,
                "study": fields.patient,
                "image": image,
                "file": name,
                "row": line.get(ROW, [""])[0],
                "laterality": fields.laterality,
                "view": fields.view,
                "split": split_of(fields.patient, val, test),
                "vendor": fields.vendor,
                "texts": texts,
                "sections": ["findings", "impression"][: len(texts)],
                "labels": labels,
            }
        )
    remedy = "download the images; files are found by PatientID and ImageLaterality in their header"
    problems += [
        Problem("", "absent", "no image: no file of this breast", remedy, "", row)
        for breast, line in clinical.items()
        if breast not in used
        for row in line[ROW]
    ]
    return SourceTable(
        frame(rows),
        problems + listing.problems,
        LICENCE,
        CITATION,
        public_ids=True,
        partial=True,
        table_rows=lines,
        passed_over=listing.others,
    )


def _clinical(root: Path, table: str) -> pd.DataFrame:
    paths = (
        [Path(table)]
        if table
        else sorted(path for ending in ("xlsx", "csv") for path in root.rglob(f"CMMD_clinicaldata*.{ending}"))
    )
    if not paths or not paths[0].is_file():
        raise UserError(
            f"{table or root} holds no CMMD_clinicaldata_revision.xlsx (or .csv). Give --root, the folder "
            "of CMMD with the table TCIA has beside it, or --option=table=FILE."
        )
    path = paths[0]
    if path.suffix != ".csv":
        return excel.read(path, NEEDED)
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        separator = ";" if ";" in lines.readline() else ","
    return tables.read(path, NEEDED, sep=separator)


def _breasts(clinical: pd.DataFrame) -> tuple[dict[tuple[str, str], dict], list[Problem], int]:
    """(patient, side) -> labels and ROW, the lines they come from; the lines that say nothing; the number of lines."""
    breasts: dict[tuple[str, str], dict] = {}
    problems = []
    for line in clinical.to_dict("records"):
        kind, result = line["abnormality"].lower(), line["classification"].lower()
        side = tables.SIDES.get(line["LeftRight"].lower())
        fault = (
            "empty identifier: ID1"
            if not line["ID1"]
            else "unknown laterality"
            if not side
            else "unknown abnormality"
            if kind not in FINDINGS
            else "unknown classification"
            if result not in CANCER
            else ""
        )
        if fault:
            problems.append(Problem("", "source", fault, "correct the table", "", line[ROW]))
            continue
        breast = breasts.setdefault((line["ID1"], side), {ROW: [], "cancer": 0, "biopsy": 1})
        breast[ROW].append(line[ROW])
        breast |= dict.fromkeys(FINDINGS[kind], 1)
        breast["cancer"] = max(breast["cancer"], CANCER[result])
        age = re.match(r"\d+", line["Age"])
        if age:
            breast["age"] = int(age[0])
        if line.get("subtype"):
            breast["subtype"] = line["subtype"]
    return breasts, problems, len(clinical)
