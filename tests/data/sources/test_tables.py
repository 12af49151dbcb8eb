"""Reading the owners' tables: strict columns, exact row numbers, cells as values."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from mammoclip_jax.data.sources import tables
from mammoclip_jax.errors import UserError


def table(root: Path, text: str) -> Path:
    path = root / "t.csv"
    path.write_text(text)
    return path


def test_cells_are_stripped_text_and_rows_are_named(tmp_path):
    data = tables.read(table(tmp_path, 'a , b\n 1.0,NA\n,"x, y"\n'), ["a", "b"])
    assert data.to_dict("list") == {"a": ["1.0", ""], "b": ["NA", "x, y"], "row": ["t.csv:2", "t.csv:3"]}


def test_gzip_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress("\ufeffa\n7\n".encode()))
    assert list(tables.read(path, ["a"])["a"]) == ["7"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="no CSV"):
        tables.read(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no CSV in UTF-8 .EmptyDataError"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n1,2,3\n", "line 3"),
        ("a,b\n1,2,3\n4,5,6\n", "more cells than columns"),
        ("a, a\n1,2\n", "more than one column 'a'"),
        ("a,c\n1,2\n", "no column 'b'.*It has: a, c"),
        ('a,"b\n1,2\n', "no CSV"),
    ],
)
def test_what_is_no_such_table_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        tables.read(table(tmp_path, text), ["a", "b"])


def test_an_error_quotes_no_cell(tmp_path):
    with pytest.raises(UserError) as caught:
        tables.read(table(tmp_path, "a,b\n1,2\nDoe,Jane,Mary\n"))
    assert "Jane" not in str(caught.value)


def test_binary_files_and_missing_ones(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="no CSV in UTF-8"):
        tables.read(tmp_path / "t.csv")
    with pytest.raises(UserError, match="is missing"):
        tables.read(tmp_path / "u.csv")


@pytest.mark.parametrize(
    "cell, number, value",
    [
        ("3", 3, 3),
        ("3.0", 3, 3),
        ("-2.5", -2.5, -2.5),
        ("", None, None),
        ("nan", None, None),
        ("inf", None, None),
        ("1e999", None, 1e999),
        ("1_0", None, "1_0"),
        ("C", None, "C"),
        ("0x10", None, "0x10"),
    ],
)
def test_numbers_and_values(cell, number, value):
    assert tables.number(cell) == number
    assert tables.value(cell) == (None if value == 1e999 else value) or cell == "1e999"


def test_lists():
    assert tables.literal("['CC', 'MLO']") == ["CC", "MLO"]
    for cell in ("", "CC", "{1}", "[1", "[" * 100_000, "__import__('os')", "[\0]"):
        with pytest.raises(ValueError, match="not a list"):
            tables.literal(cell)


def test_study_days_are_from_the_first_study_of_each_patient():
    patients = ["a", "b", "a", "a", "b", "b", "b"]
    dates = ["20200301", "2019-05-01", "2020-02-28", "1/1/2021", "", "not a date", "2019-05-03 23:59"]
    expected = [2, 0, 0, (pd.Timestamp(2021, 1, 1) - pd.Timestamp(2020, 2, 28)).days, None, None, 2]
    assert tables.study_days(patients, dates) == expected
    assert tables.study_days([], []) == []
    # Shifted dates of de-identified sets lie far ahead; a lone day, year or time is no date, and zones are no fault.
    assert tables.study_days(["a"] * 2, ["21800506", "21800516"]) == [0, 10]
    assert tables.study_days(["a"] * 4, ["5", "2019", "10:30", "May"]) == [None] * 4
    assert tables.study_days(["a"] * 2, ["2019-01-01T00:00:00Z", "2019-01-02T00:00:00+05:00"]) == [0, 0]


@pytest.mark.parametrize(
    "dates, order, days",
    [
        (["1/2/2019", "3/2/2019", "13/2/2019"], "", [0, 2, 12]),  # the third tells: the day comes first
        (["1/2/2019", "1/4/2019", "1/13/2019"], "", [0, 2, 11]),
        (["01.02.2019", "03.02.2019 10:30", "13. 2. 2019"], "", [0, 2, 12]),
        (["1-2-2019", "3-2-2019", "4-2-2019"], "day", [0, 2, 3]),
        (["1-2-2019", "1-4-2019", "1-5-2019"], "month", [0, 2, 3]),
        (["1/2/2019", "3/2/2019", "1/13/2019"], "day", [0, 2, None]),  # none with the day first
        (["2019/02/01", "2019-02-03", "3/3/2019"], "", [0, 2, 30]),  # nothing to decide
        (["2019/13/02", "13022019", "2019-02-03"], "", [None, None, 0]),
        (["3 Feb 2019", "Feb 4, 2019", "5/5/2019"], "", [0, 1, 91]),
    ],
)
def test_all_dates_of_a_column_are_read_in_one_order(dates, order, days):
    assert tables.study_days(["a"] * 3, dates, order) == days


@pytest.mark.parametrize(
    "dates, message",
    [
        (["1/2/2019", "13/2/2019", "2/13/2019"], "column 'x' holds .*line 3.* and .*line 4.*: Do this"),
        (["13/2/2019", "2/13/2019"], "line 2.*line 3"),
        (["2/2/2019", "1/2/2019"], "column 'x' does not tell .*line 3"),
    ],
)
def test_dates_in_no_known_order_are_an_error_that_quotes_none(dates, message):
    with pytest.raises(UserError, match=message) as caught:
        tables.study_days(["a"] * len(dates), dates, "", "column 'x'", "Do this")
    assert "2019" not in str(caught.value)
