"""Reading the owners' tables: strict about columns, exact about where a row stands, one word for one thing."""

import ast
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

ROW = "row"             # added to every table: "table.csv:17"; 1 are the names, and a cell's line breaks do not count
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R", "": ""}
SPLITS = {"training": "train", "validation": "val", "validate": "val", "valid": "val", "testing": "test"}
_DATE = re.compile(r"(?<!\d)(?:\d{8}(?!\d)|\d{4}\D+\d|\d\D+\d{4}(?!\d))")


def read(path: Path, needed: Sequence[str] = (), **options) -> pd.DataFrame:
    """A CSV (also .csv.gz) as text: every cell a stripped str, "" where empty, and the column ROW.

    Args:
        needed: columns that must be there.
        options: of `pandas.read_csv`, e.g. sep=";".

    Raises:
        UserError: no such file, no CSV, no rows, a line longer than the first, or a needed column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing. Give --root, the folder with the tables as their owner distributes them.")
    try:
        data = pd.read_csv(path, dtype=str, keep_default_na=False, **{"encoding": "utf-8-sig"} | options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError, OSError, EOFError, zlib.error) as error:
        line = re.search(r"line \d+", str(error))      # all else in the message may be somebody's data
        where = f", {line[0]}" if line else ""
        raise UserError(f"{path} is no CSV in UTF-8 ({type(error).__name__}{where}). Save or copy it again.") from None
    if not isinstance(data.index, pd.RangeIndex):       # pandas takes the cells too many for names of the rows
        raise UserError(f"{path} has rows with more cells than columns. Put cells that hold a comma in quotes.")
    return checked(data, path, needed)


def checked(data: pd.DataFrame, path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """`data`, from `path` by whatever reader, as `read` returns it."""
    data = data.rename(columns=lambda name: str(name).strip()).fillna("").astype(str)
    if data.columns.has_duplicates:
        name = data.columns[data.columns.duplicated()][0]
        raise UserError(f"{path} has more than one column {name!r}. Rename or remove one.")
    data = data.apply(lambda column: column.str.strip())
    require(data, path, needed)
    if data.empty:
        raise UserError(f"{path} has no rows.")
    return data.assign(**{ROW: [f"{path.name}:{line}" for line in range(2, len(data) + 2)]})


def require(
    data: pd.DataFrame, path: Path, columns: Iterable[str], remedy: str = "Give the table as distributed.",
) -> None:
    """Raises UserError for the first of `columns` that the table lacks, with the nearest that it has."""
    for column in columns:
        if column not in data:
            near = suggestion(column, data)
            names = ", ".join(name for name in data if name != ROW)
            raise UserError(f"{path} has no column {column!r}.{near} It has: {names}. {remedy}")


def number(cell: str) -> int | float | None:
    """A cell as a finite number, int where it is whole; None where it is none."""
    if "_" in cell:             # Python would read 1_0 as 10
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def value(cell: str) -> int | float | str | None:
    """A cell as a label: a number where it is one, None where it is empty or NaN, else its text."""
    found = number(cell)
    return found if found is not None or cell.lower() in ("", "nan", "inf", "-inf") else cell


def literal(cell: str) -> list:
    """A cell that holds a Python list, "['CC', 'MLO']".

    Raises:
        ValueError: it holds something else.
    """
    try:
        found: Any = ast.literal_eval(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"not a list: {cell[:80]!r}") from error
    if not isinstance(found, list):
        raise ValueError(f"not a list: {cell[:80]!r}")
    return found


def study_days(patients: Sequence[str], dates: Sequence[str]) -> list[int | None]:
    """Days from each patient's first study; None where the date ("20190131", "2019-01-31", "1/31/2019") is none.

    Of days and months that could be either, the first is the month. Dates stay behind: of a data set only the
    distances are known.
    """
    # A date without day and year ("5", "May") would be completed from today's.
    texts = [date.strip() if _DATE.search(date) else "" for date in dates]
    with warnings.catch_warnings():         # they quote the dates
        warnings.simplefilter("ignore")
        found = pd.to_datetime(pd.Series(texts, dtype=str), errors="coerce", format="mixed", utc=True)
    first = found.groupby(pd.Series(list(patients), dtype=str)).transform("min")
    return [None if pd.isna(days) else int(days) for days in (found - first).dt.days]
