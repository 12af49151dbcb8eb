"""The Mammo-CLIP project's own tables: a lab that holds its PNG copies and CSVs starts from them.

Known by their columns, one of:

- `clip_pretrain_100.csv`: reports, a line a (patient, laterality); the format of the authors' private training set, so
  identifiers count as private. Lists are Python literals. The lines merge the exams of a patient, of any year: the
  study is the patient. `text` holds the findings, then the impressions; `text_augment` the back-translation of each,
  kept as texts of the section "augmented". Fold 0 validates, the others are trained on, as there; there is no test set.
- `clip_vindr_final.csv`: VinDr-Mammo, a line a (study, laterality), with the findings of each view as four lists:
  present right, present left, absent right, absent left. The released recipe lists all ten as absent, those that are
  there too, and nests lists in strings ("[['Mass']]"): what is present is never taken as absent here (the log counts
  such lines), and the strings are read. `split` holds the official split.
- `vindr_detection_v1_folds.csv`: VinDr-Mammo, a line a finding, like finding_annotations.csv; the one-hot columns only
  repeat `finding_categories`, `fold` is not used, and the boxes that some "No Finding" lines have mean nothing.

The set `train_folds.csv` is read by the source `rsna`, the owner's tables of VinDr-Mammo by the source `vindr`.
Files: {images}/{patient_id}/{name}.png below root.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import faults, tables, vindr
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

log = logging.getLogger(__name__)

CITATION = (
    "Ghosh, S., Poynton, C. B., Visweswaran, S., & Batmanghelich, K. (2024). Mammo-CLIP: A Vision Language "
    "Foundation Model to Enhance Data Efficiency and Robustness in Mammography. MICCAI 2024. "
    "https://arxiv.org/abs/2405.12255"
)
NAMES = ("clip_pretrain_100.csv", "clip_vindr_final.csv", vindr.FOLDS)
VIEWS = ("CC", "MLO")
LISTS = ("image", *VIEWS)
REPORTS = ("patient_id", "laterality", *LISTS, "text", "text_augment", "findings", "impressions", "fold")
ATTRIBUTES = ("patient_id", "laterality", "split", *LISTS, "CC_FINDING", "MLO_FINDING", "fold")
RESIZED = ("resized_xmin", "resized_ymin", "resized_xmax", "resized_ymax")
CANVAS = ("1520", "912")  # height and width of the authors' PNG files
REMEDY = "see the columns of this table at the top of data/sources/mammo_clip.py"


class _Unusable(Exception):
    """A line that cannot become images; the message is the reason."""


class _Read(NamedTuple):
    rows: list[dict]
    problems: list[Problem]
    remarks: list[Problem]


def read(
    root: str | Path, table: str = "", images: str = "", val: float = 0.1, fold: int = 0, boxes: str = "correct"
) -> SourceTable:
    """The images of one of the three tables.

    Args:
        table: its path below root; by default the one of NAMES that is there.
        images: folder of {patient_id}/{name}.png below root; "" for root itself.
        val: for VinDr, expected fraction of the training studies to validate on.
        fold: for reports, the fold that validates.
        boxes: for vindr_detection_v1_folds.csv: "correct" takes the boxes of the original images, whose files are then
            images/{patient_id}/{image_id}.dicom; "published" takes the authors' resized boxes, which hold for their PNG
            files of 912 x 1520 pixels (the swapped clamp has cut 61 of them, and turned 12 inside out).

    Raises:
        UserError: the table is missing, is none of these, or `fold` is not in it.
    """
    root = Path(root)
    vindr.check_boxes(boxes)
    path = root / (table or _found(root))
    data = tables.read(path, ("patient_id",))
    if "finding_categories" in data:
        reading, name = _detection(data, path, images, val, boxes), "vindr"
    elif "CC_FINDING" in data:
        reading, name = _attributes(data, path, images, val), "vindr"
    elif "text" in data:
        reading, name = _reports(data, path, images, fold), "mammo_clip"
    else:
        other = " Use --source=rsna." if "site_id" in data else ""
        raise UserError(f"{path} is none of {', '.join(NAMES)}: it has {', '.join(data)}.{other}")
    public = name == "vindr"
    licence, citation = (vindr.LICENCE, f"{vindr.CITATION} {CITATION}") if public else ("private", CITATION)
    rows = [row | {"dataset": name} for row in reading.rows]
    return SourceTable(
        frame(rows),
        reading.problems,
        licence,
        citation,
        public_ids=public,
        partial=public,
        table_rows=len(data),
        remarks=reading.remarks,
    )


def _found(root: Path) -> str:
    there = [name for name in NAMES if (root / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{root} holds {' and '.join(there)}: say which with --option=table=NAME.")
    return there[0] if there else NAMES[0]


# A line a breast: reports and attributes


def _reports(data: pd.DataFrame, path: Path, images: str, fold: int) -> _Read:
    tables.require(data, path, REPORTS)
    folds = data["fold"].map(tables.number)
    if not (folds == fold).any():
        raise UserError(
            f"{path} has no line of --option=fold={fold}: column 'fold' holds "
            f"{', '.join(sorted(data['fold'][folds.notna()].unique())[:10])}."
        )
    torn = faults.disagree(data["patient_id"], data["fold"].mask(folds.isna(), ""))
    fault = _line_faults(data, [(folds.isna(), "unreadable cell: fold"), (torn, "contradiction: folds of a patient")])

    def content(line: Any, view: str) -> dict:
        texts = _texts(line)
        return {
            "split": "val" if tables.number(line.fold) == fold else "train",
            "texts": list(texts),
            "sections": list(texts.values()),
        }

    return _each(data, fault, images, content)


def _texts(line: Any) -> dict[str, str]:
    """Text -> section: the originals, then their back-translations; empty ones and repetitions left out."""
    sections = {line.impressions: "impression", line.findings: "findings"}
    texts = {text: sections.get(text, "report") for text in _strings(line, "text") if text}
    for text in filter(None, _strings(line, "text_augment")):
        texts.setdefault(text, "augmented")
    return texts


def _attributes(data: pd.DataFrame, path: Path, images: str, val: float) -> _Read:
    tables.require(data, path, ATTRIBUTES)
    data = data.assign(split=data["split"].str.lower().replace(tables.SPLITS))
    tested = data["fold"].map(tables.number) == 0
    fault = _line_faults(
        data,
        [
            (~data["split"].isin(SPLITS), "unknown split"),
            (
                faults.disagree(data["patient_id"], data["split"].where(data["split"].isin(SPLITS), "")),
                "contradiction: splits of a study",
            ),
            (tested != (data["split"] == "test"), "contradiction: split and fold"),
        ],
    )
    doubled = set()  # lines that list a finding as present and as absent

    def content(line: Any, view: str) -> dict:
        if not view:
            raise _Unusable("contradiction: an image in neither CC nor MLO")
        present, absent = _present_absent(line, view)
        if present & absent:
            doubled.add(line.row)
        labels = {label: int(label in present) for label in vindr.FINDINGS.values() if label in present | absent}
        split = split_of(line.patient_id, val, 0) if line.split == "train" else line.split
        texts = captions.findings(labels, (), tables.SIDES.get(line.laterality.lower(), ""), view)
        return {"split": split, "labels": labels, "texts": texts, "sections": ["findings", "impression"][: len(texts)]}

    reading = _each(data, fault, images, content)
    if doubled:
        log.warning(
            "%s: %d of %d lines list a finding as present and absent; it is taken as present",
            path.name,
            len(doubled),
            len(data),
        )
    return reading


def _present_absent(line: Any, view: str) -> tuple[set[str], set[str]]:
    """The labels that are there and those said to be absent, which may share some."""
    column = f"{view}_FINDING"
    try:
        parts = [_flat(part) for part in tables.literal(getattr(line, column))]
    except ValueError:
        raise _Unusable(f"unreadable cell: {column}") from None
    if len(parts) != 4:
        raise _Unusable(f"unreadable cell: {column}")
    side = tables.SIDES.get(line.laterality.lower())
    if side not in ("L", "R"):
        raise _Unusable("unknown laterality")
    own, other = ((0, 2), (1, 3)) if side == "R" else ((1, 3), (0, 2))
    if parts[other[0]] or parts[other[1]]:
        raise _Unusable(f"contradiction: {column} speaks of the other breast")
    present, absent = parts[own[0]], parts[own[1]]
    told = _told(line, f"{view.lower()}_findings")
    if told is not None and told != present:
        raise _Unusable(f"contradiction: {column} and {view.lower()}_findings")
    unknown = (present | absent) - set(vindr.FINDINGS) - {vindr.NO_FINDING}
    if unknown or (vindr.NO_FINDING in present and len(present) > 1):
        raise _Unusable("unknown finding: not one of the ten, or not alone")
    everything = set(vindr.FINDINGS) if vindr.NO_FINDING in present else absent - {vindr.NO_FINDING}
    return (
        {vindr.FINDINGS[name] for name in present - {vindr.NO_FINDING}},
        {vindr.FINDINGS[name] for name in everything},
    )


def _told(line: Any, column: str) -> set[str] | None:
    """The findings in the column that the recipe makes the lists from; None where the table has none."""
    cell = getattr(line, column, "")
    try:
        return _flat(cell) if cell else None
    except ValueError:
        raise _Unusable(f"unreadable cell: {column}") from None


def _flat(value: Any) -> set[str]:
    """The names in lists, in lists of lists, and in strings that hold a list.

    Raises:
        ValueError: something else is in them.
    """
    if isinstance(value, str) and value.startswith("["):
        value = tables.literal(value)
    if isinstance(value, str):
        return {value}
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r}")
    return set().union(*map(_flat, value))


def _line_faults(data: pd.DataFrame, checks: list[tuple[pd.Series, str]]) -> pd.Series:
    again = data.duplicated(["patient_id", "laterality"])
    return faults.first(data.index, [*checks, (again, "contradiction: a second line of a breast")])


def _each(data: pd.DataFrame, fault: pd.Series, images: str, content: Callable[[Any, str], dict]) -> _Read:
    """The images of each line.

    Args:
        fault: reason why a line cannot be used, or "".
        content: (line, view) -> what an image of that view has besides its identifiers; may raise _Unusable.
    """
    rows, problems = [], []
    for line, reason in zip(data.itertuples(), fault):
        try:
            if reason:
                raise _Unusable(reason)
            rows += [_row(line, image, view, images) | content(line, view) for image, view in _images(line)]
        except _Unusable as error:
            problems.append(Problem("", "source", str(error), REMEDY, row=line.row))
    return _Read(rows, problems, [])


def _row(line: Any, image: str, view: str, images: str) -> dict:
    return {
        "patient": line.patient_id,
        "study": line.patient_id,
        "image": image.removesuffix(".png"),
        "row": line.row,
        "file": "/".join(filter(None, (images, line.patient_id, image))),
        "laterality": tables.SIDES.get(line.laterality.lower(), line.laterality),
        "view": view,
    }


def _images(line: Any) -> list[tuple[str, str]]:
    """File name and view of each image of a line; the view is "" where no list of a view has the image."""
    names, cc, mlo = (_strings(line, name) for name in LISTS)
    if not names + cc + mlo:
        raise _Unusable("line without image")
    if set(cc) & set(mlo):
        raise _Unusable("contradiction: an image in both CC and MLO")
    return [
        (image, "CC" if image in cc else "MLO" if image in mlo else "") for image in dict.fromkeys(cc + mlo + names)
    ]


def _strings(line: Any, column: str) -> list[str]:
    try:
        values = tables.literal(getattr(line, column))
    except ValueError:
        raise _Unusable(f"unreadable cell: {column}") from None
    if not all(isinstance(value, str) for value in values):
        raise _Unusable(f"unreadable cell: {column}")
    return [value.strip() for value in values]


# A line a finding


def _detection(data: pd.DataFrame, path: Path, images: str, val: float, boxes: str) -> _Read:
    published = boxes == "published"
    if published:
        tables.require(data, path, RESIZED, "Use --option=boxes=correct.")
        data = data.drop(columns=[name for name in vindr.CORNERS if name in data])
        data = data.rename(columns=dict(zip(RESIZED, vindr.CORNERS)))
        data = data.assign(height=CANVAS[0], width=CANVAS[1])
    data = vindr.findings(data, path)
    rows, problems, remarks = vindr.assemble(data.drop_duplicates("image_id"), data, val)
    for row in rows:
        folder = "/".join(filter(None, (images, row["study"])))
        row["file"] = f"{folder}/{row['image']}.png" if published else vindr.dicom_file(row["study"], row["image"])
    lines = {problem.row: problem for problem in reversed(problems)}  # a line's own fault goes before its image's
    return _Read(rows, list(lines.values()), remarks)
