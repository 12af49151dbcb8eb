"""RSNA Screening Mammography Breast Cancer Detection (Kaggle 2022/23): 54,706 images of 11,913 patients, two sites.

Files, as Kaggle distributes them: `train.csv`, a line an image, and train_images/{patient_id}/{image_id}.dcm; or
Mammo-CLIP's `train_folds.csv`, which adds the column `fold` (0 to 3, by patient), and its PNG copies
{folder}/{patient_id}/{image_id}.png. The labels of Kaggle's test set were never given out.

- There is no study id: a patient is one study.
- Labels are those of the image's own line. `cancer` is the breast's and equal in its views. BIRADS (0, 1, 2 only) is
  given for about half of the images, and so is density. `invasive` is 0 for every breast without cancer.
- Views are CC and MLO, a few AT, LM, ML, LMO. Some breasts have several images of a view.

A line with a cell that cannot be read, or a patient in two folds or at two sites, is a problem, never a guess. Where
the lines of a breast disagree on cancer it is unknown.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import faults, tables
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

LICENCE = "RSNA Screening Mammography Breast Cancer Detection competition rules: non-commercial and academic use"
CITATION = (
    "Carr, C., Kitamura, F., Partridge, G., Kalpathy-Cramer, J., Mongan, J., Andriole, K., Vazirabad, M., "
    "Riopel, M., Ball, R., & Dane, S. (2022). RSNA Screening Mammography Breast Cancer Detection. Kaggle. "
    "https://kaggle.com/competitions/rsna-breast-cancer-detection"
)
TABLES = ("train.csv", "train_folds.csv")
SPLITS = ("hash", "folds", "site")
NEEDED = (
    "site_id",
    "patient_id",
    "image_id",
    "laterality",
    "view",
    "age",
    "cancer",
    "biopsy",
    "invasive",
    "BIRADS",
    "implant",
    "density",
    "machine_id",
    "difficult_negative_case",
)
FLAGS = {
    "cancer": "cancer",
    "biopsy": "biopsy",
    "invasive": "invasive",
    "implant": "implant",
    "difficult_negative_case": "difficult_negative",
}
VALUES = {"BIRADS": "birads", "density": "density", "age": "age", "site_id": "site", "machine_id": "machine"}
FLAG_VALUES = {"0": 0, "0.0": 0, "False": 0, "1": 1, "1.0": 1, "True": 1}
TEXT_LABELS = ("birads", "density", "implant")
REMEDY = "compare the line with the table as distributed"


def read(
    root: str | Path,
    table: str = "",
    split: str = "hash",
    val: float = 0.1,
    test: float = 0.2,
    test_fold: int = 0,
    val_fold: int | None = None,
    site: int = 2,
    images: str = "train_images",
    png: str = "",
) -> SourceTable:
    """The 54,706 images of the table.

    Args:
        table: name of the CSV below root; by default train_folds.csv for split "folds", else train.csv.
        split: "hash": `val` and `test` of the patients, by a hash of the id. "folds": `test_fold` is the test set,
            `val_fold` the validation set, the rest the training set; without `val_fold`, `val` of the rest's patients
            validate. (Mammo-CLIP: test_fold 0; it trained on folds 1 and 2 only, and chose its epoch on the test
            fold.) "site": `site` is trained on, `val` of its patients validate, and the other site is the test set.
        images: folder of {patient_id}/{image_id}.dcm below root.
        png: folder of {patient_id}/{image_id}.png below root, instead.

    Raises:
        UserError: the table is missing or lacks a column; unknown `split`; no line has that fold or site.
    """
    root = Path(root)
    if split not in SPLITS:
        near = suggestion(str(split), SPLITS)
        raise UserError(f"there is no --option=split={split}.{near} Known: {', '.join(SPLITS)}.")
    path = root / (table or _table(root, split == "folds"))
    data = tables.read(path, NEEDED + (("fold",) if split == "folds" else ()))
    data["split"] = _splits(data, path, split, val, test, test_fold, val_fold, site)
    fault = _faults(data)
    problems = [
        Problem("", "source", reason, REMEDY, line.image_id, line.row)
        for line, reason in zip(data.itertuples(), fault)
        if reason
    ]
    folder, suffix = (png, ".png") if png else (images, ".dcm")
    data = data[fault == ""]
    cancer = data["cancer"].map(FLAG_VALUES).astype(str)
    differs = faults.disagree(data["patient_id"] + "/" + data["laterality"], cancer)
    remarks = [
        Problem("", "source", "contradiction: cancer of a breast", REMEDY, line.image_id, line.row)
        for line in data[differs].itertuples()
    ]
    rows = [_row(line, folder, suffix, unsure) for line, unsure in zip(data.itertuples(), differs)]
    return SourceTable(
        frame(rows),
        problems,
        LICENCE,
        CITATION,
        public_ids=True,
        partial=True,
        table_rows=len(problems) + len(data),
        remarks=remarks,
    )


def _table(root: Path, folds: bool) -> str:
    """The table to read: the preferred one where it is, else the other; both have the columns but for `fold`."""
    names = TABLES[::-1] if folds else TABLES
    return next((name for name in names if (root / name).is_file()), names[0])


def _splits(
    data: pd.DataFrame, path: Path, split: str, val: float, test: float, test_fold: int, val_fold: int | None, site: int
) -> pd.Series:
    """The split of each line; "" where the fold or site cannot be read."""
    patients = data["patient_id"]
    if split == "hash":
        return patients.map({patient: split_of(patient, val, test) for patient in patients.unique()})
    column = "fold" if split == "folds" else "site_id"
    group = data[column].map(tables.number)
    options = {"test_fold": test_fold, "val_fold": val_fold} if split == "folds" else {"site": site}
    for option, wanted in options.items():
        if wanted is not None and not (group == wanted).any():
            raise UserError(
                f"{path} has no line of --option={option}={wanted}: column {column!r} holds "
                f"{', '.join(sorted(data[column].unique())[:10])}."
            )
    fraction = val if split == "site" or val_fold is None else 0
    trained = patients.map({patient: split_of(patient, fraction, 0) for patient in patients.unique()})
    if split == "site":
        splits = trained.where(group == site, "test")
    else:
        splits = trained.mask(group == test_fold, "test").mask(group == val_fold, "val")
    return splits.where(group.notna(), "")


def _faults(data: pd.DataFrame) -> pd.Series:
    birads, age = (pd.to_numeric(data[name], errors="coerce") for name in ("BIRADS", "age"))
    return faults.first(
        data.index,
        [
            (data["split"] == "", "unreadable cell: fold or site_id"),
            *((~data[name].isin(FLAG_VALUES), f"unreadable cell: {name}") for name in FLAGS),
            ((data["BIRADS"] != "") & ~birads.isin(range(7)), "unreadable cell: BIRADS"),
            ((data["age"] != "") & ~((age >= 0) & (age < 120)), "unreadable cell: age"),
            (~data["density"].isin(list("ABCD") + [""]), "unreadable cell: density"),
            (faults.disagree(data["patient_id"], data["split"]), "contradiction: folds or sites of a patient"),
        ],
    )


def _row(line: Any, folder: str, suffix: str, unsure: bool) -> dict:
    labels = {label: FLAG_VALUES[getattr(line, column)] for column, label in FLAGS.items()}
    if unsure:  # the breast's lines disagree on it
        del labels["cancer"]
    known = {label: tables.value(getattr(line, column)) for column, label in VALUES.items()}
    labels |= {label: value for label, value in known.items() if value is not None}
    side, view = tables.SIDES.get(line.laterality.lower(), line.laterality), line.view.upper()
    texts = captions.findings({name: labels[name] for name in TEXT_LABELS if name in labels}, (), side, view)
    return {
        "dataset": "rsna",
        "patient": line.patient_id,
        "study": line.patient_id,
        "image": line.image_id,
        "file": f"{folder}/{line.patient_id}/{line.image_id}{suffix}",
        "row": line.row,
        "laterality": side,
        "view": view,
        "split": line.split,
        "texts": texts,
        "sections": ["findings", "impression"][: len(texts)],
        "labels": labels,
    }
