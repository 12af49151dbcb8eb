"""Tables that fit a terminal."""

import re

import pytest

from mammoclip_jax import terminal

ROWS = [
    ("metric", "value", "interval"),
    ("phantom/zero_shot/mass/auroc_image", "0.8", "0.7 to 0.9"),
    ("phantom/x", "0.1", "no interval: 4 patients of the rarest class, 10 are needed"),
]


def test_a_table_is_as_wide_as_it_needs_where_nothing_limits_it():
    lines = terminal.table(ROWS)
    assert len(lines) == 4 and set(lines[1]) == {"-"} and len(lines[1]) == max(map(len, lines))
    assert all(
        line.index("value" if i == 0 else "0.") == lines[0].index("value") for i, line in enumerate(lines) if i != 1
    )


@pytest.mark.parametrize("columns", range(30, 110, 7))
def test_no_line_is_wider_and_no_word_is_cut(columns):
    lines = terminal.table(ROWS, columns)
    assert max(map(len, lines)) <= columns
    words = {word for row in ROWS for cell in row for word in re.findall(r"[\w.]+", cell.replace("_", " "))}
    assert {word for line in lines for word in re.findall(r"[\w.]+", line.replace("_", " "))} == words


def test_what_cannot_be_so_narrow_becomes_paragraphs():
    assert terminal.table([("one", "two"), ("123456789", "1234567"), ("", "4")], 12) == [
        "one:",
        "  123456789,",
        "  two:",
        "  1234567",
        "two: 4",
    ]


def test_a_pipe_has_no_width(capsys):
    assert terminal.width() is None
