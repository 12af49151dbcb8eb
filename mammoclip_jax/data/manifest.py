"""The one table that every data set adapter produces: one row an image, and what must hold of it.

| column     | is                                                                                    |
|------------|---------------------------------------------------------------------------------------|
| dataset    | name of the data set                                                                  |
| patient    | identifier; a patient is in one split only                                            |
| study      | identifier of the exam                                                                |
| image      | identifier, unique in the data set                                                    |
| file       | path relative to the root, "" if it was not found; in memory only                     |
| row        | where the row comes from, "table.csv:17", or ""; in memory only                       |
| size       | "height width" that the tables give the image, or ""; in memory only                  |
| laterality | "L", "R" or "" (unknown)                                                              |
| view       | "CC", "MLO", another view's name in capitals, or "" (unknown)                         |
| split      | "train", "val" or "test"                                                              |
| vendor     | maker of the device, or ""; "" is filled from the file where it says                  |
| real       | False for phantoms                                                                    |
| texts      | list of str: sections or captions of the breast's report, most specific first;        |
|            | may be empty, its items never blank                                                   |
| sections   | list of str, parallel to texts: "findings", "impression", "caption", ...              |
| identities | list of str: the names and numbers of people in this row of the tables, which         |
|            | private.py takes out of the texts; in memory only                                     |
| parts      | JSON object, what became of the sections of a report: {"kept": {name: text},          |
|            | "dropped": {name: text}}; {} where the tables have no whole report; in memory only,   |
|            | for the dry run                                                                       |
| labels     | JSON object, e.g. {"mass": 1, "density": "B"}; an absent key is unknown               |
| boxes      | JSON list of {"label": str, "box": [x0, y0, x1, y1]} in pixels of the original image: |
|            | x right, y down, origin top left, x1 and y1 exclusive; more keys are kept: "phrase",  |
|            | "birads", ...                                                                         |

Columns in memory only are never written into a data set. An adapter hands texts over as they are: no row goes on but
through `private.settled`, which takes identities out of all that a private source says in words. Keys
of `labels` with a common meaning:

| key                                                        | value                                              |
|------------------------------------------------------------|----------------------------------------------------|
| mass, calcification, suspicious_calcification, asymmetry,  | 1 there; 0 only where the data set says that it is |
| focal_asymmetry, global_asymmetry, architectural_distortion| not there                                          |
| skin_thickening, skin_retraction, nipple_retraction,       |                                                    |
| suspicious_lymph_node, abnormal                            |                                                    |
| cancer, biopsy, invasive, implant                          | 0 or 1                                             |
| birads, density                                            | 0 to 6 (of the breast); "A" to "D"                 |
| mass_shape, mass_margins, mass_density,                    | words of the BI-RADS lexicon                       |
| calcification_type, calcification_distribution             |                                                    |
| of a chest: CheXpert's 14 (data/sources/chest_labels.py),  | 0 or 1; NAME_uncertain is 1 where the data set says so |
| as cardiomegaly, pleural_effusion, no_finding              |                                                    |
| five_x                                                     | class of an image on the list 5x200, in words      |
| age, race, ethnicity, site, machine                        | of patient or device, for subgroups                |
| procedure, image_type                                      | of the exam and the image, in words                |
| study_day                                                  | days since the patient's first study in the set    |

A breast is (patient, study, laterality); where laterality is unknown each image is a breast of its own.
"""

import collections
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError

MEMORY_COLUMNS = ("file", "row", "size", "identities", "parts")
TEXT_COLUMNS = ("dataset", "patient", "study", "image", "file", "row", "size", "laterality", "view", "split", "vendor")
JSON_COLUMNS = {"labels": "{}", "boxes": "[]"}
LIST_COLUMNS = ("texts", "sections")
COLUMNS = TEXT_COLUMNS + ("real",) + LIST_COLUMNS + ("identities", "parts") + tuple(JSON_COLUMNS)
SPLITS = ("train", "val", "test")
_PART = 2**12  # rows
LATERALITIES = ("L", "R", "")


class Problem(NamedTuple):
    """A file or table row that did not become an image: a line of quarantine.csv.

    `reason` starts with a short class that the summary counts by; details follow after a colon. The stages are
    "source" (the tables), "absent" (in the tables, but not in this partial copy of a public data set: counted, never
    held against `max_quarantined`), "left out" (by its flags, the same), "file", "decode", "pixels", "boxes"; and
    "other", of `SourceTable.passed_over`.
    """

    file: str
    stage: str
    reason: str
    remedy: str
    image: str = ""
    row: str = ""  # "table.csv:17": names the entry without naming anybody

    @property
    def kind(self) -> str:
        return self.reason.split(":", 1)[0]


class MaskSource(NamedTuple):
    """Masks that a source has of its images: true ones, drawn by people or known of phantoms, never a method's.

    `read(root, what, (height, width))` gives {channel: bool [h w]} in pixels of the original image; a channel that is
    not among them is unknown of that image. It runs in other processes, so it is a function of a module, and may raise
    `dicom.Unreadable` and OSError.
    """

    channels: tuple[str, ...]  # such as breast, pectoral_muscle, mass, calcification, lungs
    of: Mapping[str, Any]  # image -> what `read` takes, JSON
    read: Callable[[Path, Any, tuple[int, int]], Mapping[str, np.ndarray]]


class SourceTable(NamedTuple):
    """What an adapter's `read(root, **options)` returns."""

    rows: pd.DataFrame  # manifest columns, see `frame`
    problems: list[Problem]
    licence: str
    citation: str
    public_ids: bool  # False: identifiers are private, get keyed hashes, and texts are de-identified
    root: Path | None = None  # where the files lie, if not below the root that was asked for
    partial: bool = False  # a file that is not there is stage "absent": people hold parts of public sets
    table_rows: int = 0  # lines of the owner's tables, all of which are in `rows` or `problems`
    remarks: list[Problem] = []  # mismatches that cost a label at most, not an image; the dry run lists them
    leave_out: tuple[str, ...] = ()  # flags of images that `prepare` leaves out unless told otherwise
    passed_over: list[Problem] = []  # stage "other": files that are no images of the set, counted by kind and named
    private_texts: bool = False  # texts are de-identified although the identifiers are public
    masks: MaskSource | None = None

    @property
    def public_texts(self) -> bool:
        return self.public_ids and not self.private_texts


def frame(rows: Iterable[Mapping]) -> pd.DataFrame:
    """The manifest table of `rows`, dicts with the columns above.

    `labels`, `boxes` and `parts` may be given as objects instead of JSON; `row`, `size`, `laterality`, `view`,
    `vendor`, `texts`, `sections`, `identities`, `parts`, `labels`, `boxes` may be left out, `real` is True unless said.

    Raises:
        KeyError: a row lacks a required column or has an unknown one (an adapter's mistake).
    """
    records = [_record(row) for row in rows]
    table = pd.DataFrame(records, columns=list(COLUMNS))
    for column in (*TEXT_COLUMNS, "parts", *JSON_COLUMNS):
        table[column] = table[column].astype("str")
    table["real"] = table["real"].astype(bool)
    return table


def tuples(rows: pd.DataFrame) -> Iterator[Any]:
    """`rows.itertuples(index=False)` ten times as fast, of a part of the rows at a time.

    pandas takes each string out of its Arrow array by itself.
    """
    kind = collections.namedtuple("Row", rows.columns)
    for start in range(0, len(rows), _PART):
        part = rows.iloc[start : start + _PART]
        yield from map(kind._make, zip(*(part[name].tolist() for name in rows.columns)))


def _record(row: Mapping) -> dict:
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise KeyError(f"unknown manifest columns {sorted(unknown)}")
    record = {"row": "", "size": "", "laterality": "", "view": "", "vendor": "", "real": True} | dict(row)
    texts = list(record.get("texts", []))
    record["texts"] = texts
    record["sections"] = list(record.get("sections", ["caption"] * len(texts)))
    record["identities"] = list(record.get("identities", []))
    for column, empty in (JSON_COLUMNS | {"parts": "{}"}).items():
        value = record.get(column, empty)
        record[column] = value if isinstance(value, str) else json.dumps(value)
    return {column: record[column] for column in COLUMNS}


def checked(table: SourceTable) -> SourceTable:
    """`table` with the rows that break an invariant moved to its problems.

    A second row of an image, an unknown laterality or split, a malformed box, one outside the image's size, or blank
    text costs the row.

    Raises:
        UserError: a patient is in more than one split: no row can be blamed, and training would see the test set.
    """
    repeated = table.rows["image"].duplicated()
    faults = ["duplicate image id" if again else _fault(row) for again, row in zip(repeated, tuples(table.rows))]
    bad = [
        Problem(row.file, "source", fault, REMEDIES[fault.split(":")[0]], row.image, row.row)
        for fault, row in zip(faults, tuples(table.rows[["file", "image", "row"]]))
        if fault
    ]
    good = table.rows[np.array([not fault for fault in faults], bool)].reset_index(drop=True)
    _check_patients(good, table.public_ids)
    return table._replace(rows=good, problems=list(table.problems) + bad)


REMEDIES = {
    "duplicate image id": "give each image an id of its own, or remove the second row",
    "unknown laterality": "use L, R or an empty value",
    "unknown split": "use train, val or test",
    "empty identifier": "fill in patient, study and image",
    "blank text": "leave blank texts out of the list",
    "malformed box": "give x0 < x1 and y0 < y1 in pixels of the original image",
    "box outside image": "table and file do not belong together; correct the box",
}


def _fault(row: NamedTuple) -> str:
    if row.laterality not in LATERALITIES:
        return f"unknown laterality: {row.laterality!r}"
    if row.split not in SPLITS:
        return f"unknown split: {row.split!r}"
    for column in ("patient", "study", "image"):
        if not getattr(row, column).strip():
            return f"empty identifier: {column}"
    if len(row.texts) != len(row.sections) or not all(text.strip() for text in row.texts):
        return "blank text"
    return box_fault(row.boxes, row.size)


def box_fault(boxes: str, size: str) -> str:
    """What is wrong with a row's boxes in an image of `size` ("height width" or ""); "" for nothing."""
    if boxes == "[]":
        return ""
    height, width = map(int, size.split()) if size else (math.inf, math.inf)
    for item in json.loads(boxes):
        x0, y0, x1, y1 = item["box"]
        if not (x0 < x1 and y0 < y1):  # NaN as well
            return f"malformed box: {item['box']}"
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            return f"box outside image: {item['box']} in {width} x {height}"
    return ""


def _check_patients(rows: pd.DataFrame, public: bool) -> None:
    counts = rows.groupby("patient")["split"].nunique()
    torn = list(counts.index[counts > 1])
    if not torn:
        return
    lines = rows.loc[rows["patient"] == torn[0], "row"].str.rpartition(":")[2]
    where = f"e.g. {', '.join(torn[:3])}" if public else f"the first in lines {', '.join(lines)} of the table"
    raise UserError(
        f"{len(torn)} patients are in more than one split, {where}: training would see the test set. Give "
        "all images of a patient the same split."
    )


def breast_keys(rows: pd.DataFrame) -> pd.Series:
    """The breast of each row, as a str: patient, study and laterality, or the image where laterality is unknown."""
    study = rows["patient"] + "/" + rows["study"]
    return study + "/" + rows["laterality"].where(rows["laterality"] != "", rows["image"])


def other_views(rows: pd.DataFrame) -> list[tuple[int, ...]]:
    """For each row the places of the other rows of its breast, but those of other views than CC and MLO."""
    places = pd.Series(range(len(rows)), rows.index)[rows["view"].isin(["CC", "MLO", ""])]
    breasts = breast_keys(rows)
    members = places.groupby(breasts[places.index]).apply(tuple).to_dict()
    return [tuple(place for place in members.get(key, ()) if place != own) for own, key in enumerate(breasts)]


def split_of(patient: str, val: float = 0.1, test: float = 0.2) -> str:
    """The split of a patient by a hash of the identifier.

    It depends on nothing else, so patients that are added later move no other one. `val` and `test` are the expected
    fractions.
    """
    digest = hashlib.sha256(patient.encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "val" if position < test + val else "train"
