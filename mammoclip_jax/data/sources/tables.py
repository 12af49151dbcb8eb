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

from mammoclip_jax.data.pixels import fields
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

ROW = "row"  # added to every table: "table.csv:17"; 1 are the names, and a cell's line breaks do not count
SIDES = {"": ""} | {word.lower(): side for word, side in fields.SIDES.items()}
SPLITS = {"training": "train", "validation": "val", "validate": "val", "valid": "val", "testing": "test"}
ORDERS = ("", "day", "month")
_YEAR_FIRST = re.compile(r"^(\d{4})(?:(\d\d)(\d\d)(?!\d)|\s*[/.-]\s*(\d{1,2})\s*[/.-]\s*(\d{1,2})(?!\d))")
_YEAR_LAST = re.compile(r"(?<![\d:])(\d{1,2})\s*([/.\s-])\s*(\d{1,2})\s*\2\s*(\d{4})(?!\d)")
_DATE = re.compile(r"(?<!\d)(?:\d{8}(?!\d)|\d{4}\D+\d|\d{1,2}\D+\d{4}(?!\d))")


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
        line = re.search(r"line \d+", str(error))  # all else in the message may be somebody's data
        where = f", {line[0]}" if line else ""
        raise UserError(f"{path} is no CSV in UTF-8 ({type(error).__name__}{where}). Save or copy it again.") from None
    if not isinstance(data.index, pd.RangeIndex):  # pandas takes the cells too many for names of the rows
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
    data: pd.DataFrame, path: Path, columns: Iterable[str], remedy: str = "Give the table as distributed."
) -> None:
    """Raises UserError for the first of `columns` that the table lacks, with the nearest that it has."""
    for column in columns:
        if column not in data:
            near = suggestion(column, data)
            names = ", ".join(name for name in data if name != ROW)
            raise UserError(f"{path} has no column {column!r}.{near} It has: {names}. {remedy}")


def number(cell: str) -> int | float | None:
    """A cell as a finite number, int where it is whole; None where it is none."""
    if "_" in cell:  # Python would read 1_0 as 10
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
    quantity = number(cell)
    return quantity if quantity is not None or cell.lower() in ("", "nan", "inf", "-inf") else cell


def literal(cell: str) -> list:
    """A cell that holds a Python list, "['CC', 'MLO']".

    Raises:
        ValueError: it holds something else.
    """
    try:
        content: Any = ast.literal_eval(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"not a list: {cell[:80]!r}") from error
    if not isinstance(content, list):
        raise ValueError(f"not a list: {cell[:80]!r}")
    return content


def study_days(
    patients: Sequence[str],
    dates: Sequence[str],
    order: str = "",
    column: str = "a column of dates",
    remedy: str = "write the dates as 2019-01-31",
) -> list[int | None]:
    """Days from each patient's first study; None where the date ("20190131", "2019-01-31", "1/31/2019") is none.

    All dates of the column are read in one order of day and month. Dates stay behind: of a data set only the distances
    are known.

    Args:
        order: what stands first in dates like 3/4/2019, "day" or "month"; a date that is none then ("1/31/2019" with
            "day") gives None. With "" the dates tell that can be read in one way only.
        column: what an error calls the column.
        remedy: what it says to do.

    Raises:
        UserError: no order was given, and the dates show both, or none although it matters.
    """
    order = order or _order(dates, column, remedy)
    # A date without day and year ("5", "May") would be completed from today's.
    texts = [_iso(date.strip(), order) if _DATE.search(date) else "" for date in dates]
    with warnings.catch_warnings():  # they quote the dates
        warnings.simplefilter("ignore")
        times = pd.to_datetime(pd.Series(texts, dtype=str), errors="coerce", format="mixed", utc=True)
    times = times.dt.normalize()  # what has a time of day too is of that day
    first = times.groupby(pd.Series(list(patients), dtype=str)).transform("min")
    return [None if pd.isna(days) else int(days) for days in (times - first).dt.days]


def _order(dates: Sequence[str], column: str, remedy: str) -> str:
    """What stands first in all the dates of a column, "day" or "month"; "" where it does not matter."""
    pairs = [(int(match[1]), int(match[3])) if (match := _YEAR_LAST.search(date)) else (0, 0) for date in dates]
    lines = {
        "day": [line for line, (a, b) in enumerate(pairs, 2) if a > 12 >= b],
        "month": [line for line, (a, b) in enumerate(pairs, 2) if b > 12 >= a],
        "either": [line for line, (a, b) in enumerate(pairs, 2) if max(a, b) <= 12 and a != b],
    }
    if lines["day"] and lines["month"]:
        raise UserError(
            f"{column} holds dates with the day first (as in line {lines['day'][0]}) and with the month "
            f"first (as in line {lines['month'][0]}): {remedy}."
        )
    if lines["either"] and not lines["day"] and not lines["month"]:
        raise UserError(
            f"{column} does not tell whether the day or the month comes first (as in line "
            f"{lines['either'][0]}, where either could): {remedy}."
        )
    return "day" if lines["day"] else "month" if lines["month"] else ""


def _iso(date: str, order: str) -> str:
    """The date with year, month and day in this order, so that nothing is left to guess."""
    date = _YEAR_FIRST.sub(lambda m: f"{m[1]}-{int(m[2] or m[4]):02}-{int(m[3] or m[5]):02}", date, count=1)
    day, month = (1, 3) if order == "day" else (3, 1)
    return _YEAR_LAST.sub(lambda m: f"{m[4]}-{int(m[month]):02}-{int(m[day]):02}", date, count=1)
