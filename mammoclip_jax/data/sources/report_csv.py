"""A general table, with one row an image. Column names are options; identifiers are private and get hashed.

It is a CSV, whose separator and encoding are found out, or an Excel workbook (any_table.py).

Columns (option = default name): image (path below the root), patient, study, laterality, view, report; optional
findings and impression (instead of report), split, date (of the study), image_id, and any label columns named by
`labels=a,b,c`. An option set to "-" says that the table has no such column: laterality and view then come from the
DICOM header, the studies of a patient are the dates (where the table has none, all is one study), and images have no report.

`boxes=TABLE` is another table, with one row a box: the columns `image` (as in the first table), `label`, and x0, y0, x1, y1,
in pixels of the original image; `box_columns` names them otherwise, in this order. `masks=DIR`, below the root or absolute, is a
folder of true masks (mask_folders.py), such as DIR/mass/p1/L_CC.png of the image p1/L_CC.dcm.

Of dates only the days since the patient's first study are kept. Whether 3/4/2019 is in March or April is read off the
column's other dates, for all of them alike; where these do not tell, or contradict each other, say
`date_order=day` or `month`: what comes first. Columns named by `names=patient_name,referrer` hold
names and numbers that are taken out of the texts as well (data/private.py).
"""

from pathlib import Path

import pandas as pd

from mammoclip_jax.data.leave_out import NO_MAMMOGRAM
from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import fields
from mammoclip_jax.data.sources import any_table, mask_folders, tables
from mammoclip_jax.data.text.sections import Told, told
from mammoclip_jax.errors import UserError

SECTIONS = ("findings", "impression")
ABSENT = "-"
DEFAULTS = {"split": "split", "date": "date", "image_id": "image_id"}
BOX_COLUMNS = ("image", "label", "x0", "y0", "x1", "y1")
LONGEST = 20_000  # characters of a report; longer ones are several, run together by an open quote


def read(
    root: str | Path,
    table: str = "reports.csv",
    image: str = "image",
    patient: str = "patient",
    study: str = "study",
    laterality: str = "laterality",
    view: str = "view",
    report: str = "report",
    findings: str = "findings",
    impression: str = "impression",
    split: str = "split",
    date: str = "date",
    image_id: str = "image_id",
    date_order: str = "",
    labels: str = "",
    boxes: str = "",
    box_columns: str = ",".join(BOX_COLUMNS),
    masks: str = "",
    names: str = "",
    name: str = "report_csv",
    licence: str = "private",
    citation: str = "",
    val: float = 0.1,
    test: float = 0.2,
) -> SourceTable:
    """The rows of `table` (below `root`, or an absolute path). `val` and `test` matter where it has no split column.

    Raises:
        UserError: the table is missing, empty or no CSV, or lacks a column, no file of `masks` is one of an image, or
            the order of its dates is not known; the message names the option.
    """
    path = Path(root) / table
    if not path.is_file():
        raise UserError(f"{path} is no file. Give the CSV with --option=table=NAME, below --root or absolute.")
    data = any_table.read(path)
    columns = {"image": image, "patient": patient, "study": study, "laterality": laterality, "view": view}
    for option, column in columns.items():
        optional = option in ("study", "laterality", "view")
        if not (optional and column == ABSENT):
            _require(path, data, option, column, f" or --option={option}={ABSENT} if there is none" if optional else "")
    wanted = {"report": report, "findings": findings, "impression": impression}
    texts = {option: column for option, column in wanted.items() if column in data and column != ABSENT}
    if not texts and report != ABSENT:
        _require(
            path,
            data,
            "report",
            report,
            f", or columns for findings or impression, or --option=report={ABSENT} for none",
        )
    label_columns, name_columns = _listed(labels), _listed(names)
    for option, listed in (("labels", label_columns), ("names", name_columns)):
        for column in listed:
            _require(path, data, option, column)
    for option, column in {"split": split, "date": date, "image_id": image_id}.items():
        if column in data:
            columns[option] = column
        elif column not in (DEFAULTS[option], ABSENT):
            _require(path, data, option, column)
    columns = {option: column for option, column in (columns | texts).items() if column != ABSENT}

    days = _days(data, path, patient, columns.get("date", ""), date_order)
    boxes_of, problems = read_boxes(Path(root), boxes, _listed(box_columns), set(data[image]))
    rows, remarks = [], []
    for line, day in zip(data.to_dict("records"), days):
        cells = {option: line[column] for option, column in columns.items()}
        written = {option: cells[option] for option in texts}
        long = any(len(text) > LONGEST for text in written.values())
        cells["told"] = Told({}, {}, {}) if long else texts_of(written)
        fault = (
            _fault(cells, bool(texts))
            if not long
            else ("report too long", "a quote in the table may be open; correct it")
        )
        if fault:
            shown = cells.get("image_id") or cells["image"]
            problems.append(Problem(cells["image"], "source", *fault, shown, line[tables.ROW]))
            continue
        values = {"study_day": day} | {column: tables.value(line[column]) for column in label_columns}
        values = {key: value for key, value in values.items() if value is not None}
        row = _row(name, cells, values, val, test) | {
            "row": line[tables.ROW],
            "boxes": boxes_of.get(cells["image"], []),
            "identities": [line[column] for column in name_columns],
        }
        if cells.get("view") and not row["view"]:
            remedy = "use CC, MLO, ML, ..."
            remarks.append(Problem(row["file"], "source", "unknown view", remedy, row["image"], row["row"]))
        if cells.get("date") and day is None:
            remedy = "write it as 2019-01-31; see also --option=date_order"
            remarks.append(Problem(row["file"], "source", "unreadable date", remedy, row["image"], row["row"]))
        rows.append(row)
    return SourceTable(
        frame(rows),
        problems,
        licence,
        citation,
        public_ids=False,
        table_rows=len(data),
        remarks=remarks,
        leave_out=NO_MAMMOGRAM,
        masks=mask_folders.below(Path(root, masks), {row["file"]: row["image"] for row in rows}) if masks else None,
    )


def _listed(option: str) -> list[str]:
    return [column.strip() for column in option.split(",") if column.strip()]


def _require(path: Path, data: pd.DataFrame, option: str, column: str, also: str = "") -> None:
    tables.require(data, path, [column], f"Name the column with --option={option}=NAME{also}.")


def _days(data: pd.DataFrame, path: Path, patient: str, date: str, order: str) -> list[int | None]:
    if order not in tables.ORDERS:
        raise UserError(f"--option=date_order={order} must be day or month")
    if not date:
        return [None] * len(data)
    remedy = "write them as 2019-01-31, or say --option=date_order=day or --option=date_order=month"
    return tables.study_days(data[patient], data[date], order, f"{path}, column {date!r},", remedy)


def read_boxes(
    root: Path, table: str, columns: list[str], images: set[str]
) -> tuple[dict[str, list[dict]], list[Problem]]:
    """({image: its boxes as in the manifest}, rows that are none) of a table below `root`, or absolute; "": no table.

    Raises:
        UserError: it is missing or no table, or lacks a column.
    """
    if not table:
        return {}, []
    if len(columns) != len(BOX_COLUMNS):
        raise UserError(f"--option=box_columns={','.join(columns)} must name {', '.join(BOX_COLUMNS)}, in this order.")
    path = root / table
    data = any_table.read(path)
    tables.require(data, path, columns, "Name the columns with --option=box_columns=IMAGE,LABEL,X0,Y0,X1,Y1.")
    found: dict[str, list[dict]] = {}
    problems = []
    for line in data.to_dict("records"):
        image, label, *corners = (line[column] for column in columns)
        numbers = [tables.number(corner) for corner in corners]
        fault = ""
        if image not in images:
            fault = "box of an unknown image"
        elif not label:
            fault = "box without a label"
        elif not (None not in numbers and numbers[0] < numbers[2] and numbers[1] < numbers[3]):
            fault = "malformed box: x0 < x1 and y0 < y1 in pixels are needed"
        if fault:
            problems.append(Problem(image, "boxes", fault, "correct the table of boxes", image, line[tables.ROW]))
        else:
            found.setdefault(image, []).append({"label": label, "box": numbers})
    return found, problems


def _fault(cells: dict, with_texts: bool) -> tuple[str, str] | None:
    """Reason and remedy of a row that cannot become an image."""
    if not cells["image"]:
        return "report without image", "fill in the image column, or remove the row"
    if not cells["patient"] or not cells.get("study", "study"):
        return "empty identifier", "fill in the patient and study columns"
    if cells.get("laterality", "").lower() not in tables.SIDES:
        return "unknown laterality", "use L, R, left, right or an empty value"
    if cells.get("split") and _split(cells) not in SPLITS:
        return "unknown split", "use train, val or test"
    if with_texts and not cells["told"].texts:
        return "empty report", "fill in the report, or remove the row"
    return None


def _split(cells: dict) -> str:
    split = cells.get("split", "").lower()
    return tables.SPLITS.get(split, split)


def texts_of(written: dict[str, str]) -> Told:
    """The cells "findings" and "impression"; what is empty of these comes from the cell "report"."""
    report = told(written.get("report", ""))
    cells = {name: written[name].strip() for name in SECTIONS if written.get(name, "").strip()}
    if not cells:
        return report
    texts = {name: cells.get(name) or report.texts[name] for name in SECTIONS if name in cells or name in report.texts}
    return Told(texts, report.kept | cells, report.dropped)


def study_of(patient: str, study: str) -> str:
    """An identifier that no other patient's study has: tables may number the studies of each patient from 1."""
    return f"{patient}/{study}" if study and study != patient else patient


def _dated(labels: dict) -> str:
    """What a study is called where the table has no column for it: its date, as days since the patient's first."""
    return f"day {labels['study_day']}" if "study_day" in labels else ""


def _row(name: str, cells: dict, labels: dict, val: float, test: float) -> dict:
    return {
        "dataset": name,
        "patient": cells["patient"],
        "study": study_of(cells["patient"], cells.get("study", _dated(labels))),
        "image": cells.get("image_id") or cells["image"],
        "file": cells["image"],
        "laterality": tables.SIDES[cells.get("laterality", "").lower()],
        "view": fields.view_of(cells.get("view", "")),
        "split": _split(cells) or split_of(cells["patient"], val, test),
        "texts": list(cells["told"].texts.values()),
        "sections": list(cells["told"].texts),
        "parts": cells["told"].parts,
        "labels": labels,
    }
