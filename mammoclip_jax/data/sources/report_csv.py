"""A general table: a CSV with one row an image. Column names are options; identifiers are private and get hashed.

Columns (option = default name): image (path below the root), patient, study, laterality, view, report; optional
findings and impression (instead of report), split, image_id, and any label columns named by `labels=a,b,c`.
An option set to "-" says that the table has no such column: laterality and view then come from the DICOM header, and
the study is the patient.
"""

import math
from pathlib import Path

import pandas as pd

from mammoclip_jax.data import reports
from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame, split_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

SECTIONS = ("findings", "impression")
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R", "": ""}
SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}
ABSENT = "-"


def read(
    root: str | Path, table: str = "reports.csv", image: str = "image", patient: str = "patient", study: str = "study",
    laterality: str = "laterality", view: str = "view", report: str = "report", findings: str = "findings",
    impression: str = "impression", split: str = "split", image_id: str = "image_id", labels: str = "",
    name: str = "report_csv", licence: str = "private", citation: str = "", val: float = 0.1, test: float = 0.2,
) -> SourceTable:
    """The rows of `table` (below `root`, or an absolute path). `val` and `test` matter where it has no split column.

    Raises:
        UserError: the table is missing, empty or no CSV, or lacks a column; the message names the option.
    """
    root = Path(root)
    path = root / table
    data = _load(path)
    columns = {"image": image, "patient": patient, "study": study, "laterality": laterality, "view": view}
    for option, column in columns.items():
        optional = option in ("study", "laterality", "view")
        if not (optional and column == ABSENT):
            _require(path, data, option, column, optional)
    wanted = {"report": report, "findings": findings, "impression": impression}
    texts = {option: column for option, column in wanted.items() if column in data}
    if not texts:
        _require(path, data, "report", report, False, " (or columns for findings or impression)")
    for column in filter(None, labels.split(",")):
        _require(path, data, "labels", column.strip(), False)
    columns |= texts | {option: column for option, column in (("split", split), ("image_id", image_id))
                        if column in data}

    rows, problems = [], []
    for number, line in enumerate(data.to_dict("records"), start=2):    # line 1 holds the names
        cells = {option: line[column].strip() for option, column in columns.items() if column != ABSENT}
        fault = _fault(cells, root)
        if fault:
            where = f"{path.name}:{number}"
            problems.append(Problem(cells["image"] or where, "source", *fault, cells.get("image_id") or cells["image"]))
            continue
        found = {column.strip(): _value(line[column.strip()]) for column in labels.split(",") if column}
        rows.append(_row(name, cells, found, val, test))
    return SourceTable(frame(rows), problems, licence, citation, public_ids=False)


def _load(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is no file. Give the CSV with --option=table=NAME, below --root or absolute.")
    try:
        data = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV in UTF-8 ({type(error).__name__}: {error}). Save it as one.") from None
    if data.empty:
        raise UserError(f"{path} has no rows.")
    return data.fillna("")


def _require(path: Path, data: pd.DataFrame, option: str, column: str, optional: bool, also: str = "") -> None:
    if column in data:
        return
    without = f" or --option={option}={ABSENT} if there is none" if optional else ""
    raise UserError(f"{path} has no column {column!r}{also}.{suggestion(column, data)} It has: {', '.join(data)}. "
                    f"Name the column with --option={option}=NAME{without}.")


def _fault(cells: dict[str, str], root: Path) -> tuple[str, str] | None:
    """Reason and remedy of a row that cannot become an image."""
    if not cells["image"]:
        return "report without image", "fill in the image column, or remove the row"
    if not cells["patient"] or not cells.get("study", "study"):
        return "empty identifier", "fill in the patient and study columns"
    if not (root / cells["image"]).is_file():
        return "file missing", "check the image column and --root"
    if cells.get("laterality", "").lower() not in SIDES:
        return "unknown laterality", "use L, R, left, right or an empty value"
    split = cells.get("split", "").lower()
    if split and SPLIT_NAMES.get(split, split) not in SPLITS:
        return "unknown split", "use train, val or test"
    if not any(_sections(cells).values()):
        return "empty report", "fill in the report, or remove the row"
    return None


def _sections(cells: dict[str, str]) -> dict[str, str]:
    """Section name -> text. Own columns go before the sections of a whole report."""
    own = {name: cells[name] for name in SECTIONS if cells.get(name)}
    if own or not cells.get("report"):
        return own
    found = {name: text for name, text in reports.sections(cells["report"]).items() if text.strip()}
    return {name: found[name] for name in SECTIONS if name in found} or found


def _row(name: str, cells: dict[str, str], labels: dict, val: float, test: float) -> dict:
    texts = _sections(cells)
    split = cells.get("split", "").lower()
    return {
        "dataset": name, "patient": cells["patient"], "study": cells.get("study") or cells["patient"],
        "image": cells.get("image_id") or cells["image"], "file": cells["image"],
        "laterality": SIDES[cells.get("laterality", "").lower()], "view": cells.get("view", "").upper(),
        "split": SPLIT_NAMES.get(split, split) or split_of(cells["patient"], val, test),
        "texts": list(texts.values()), "sections": list(texts),
        "labels": {key: value for key, value in labels.items() if value is not None},
    }


def _value(cell: str) -> int | float | str | None:
    """A label as a number where it is one; None for an empty cell."""
    cell = cell.strip()
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number
