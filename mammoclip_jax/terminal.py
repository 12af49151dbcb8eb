"""Tables that fit a terminal: no word is cut at its edge."""

import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

_GAP = 2  # columns between two of a table
_INDENT = "  "  # of a name that goes on in the next line
_PIECE = re.compile(r"[^ /_]+[ /_]*|[ /_]+")  # what is not torn apart


def width() -> int | None:
    """Columns of the terminal that is printed to; None where there is none: lines of files and pipes may be long."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: Sequence[Sequence[str]], columns: int | None = None) -> list[str]:
    """The lines of a table: its head, which is the first row, a rule, and the others.

    Where they are wider than `columns` the widest cells go on in the next line, behind a space, / or _. A table that cannot be
    made so narrow becomes a paragraph for each row, "head: cell" after "head: cell".
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if columns is not None:
        least = [max(_longest(row[i]) + len(_INDENT) * (i == 0) for row in rows) for i in range(len(widths))]
        space = columns - _GAP * (len(widths) - 1)
        if sum(map(min, least, widths)) > space:
            return _paragraphs(rows, columns)
        while sum(widths) > space:
            widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
            widths[widest] -= 1
    lines = []
    for row in rows:
        cells = [_broken(cell, widths[i], _INDENT * (i == 0)) for i, cell in enumerate(row)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            lines.append((" " * _GAP).join(part.ljust(size) for part, size in zip(parts, widths)).rstrip())
        if len(row) and row is rows[0]:
            lines.append("")
    rule = "-" * max(map(len, lines))
    return [line or rule for line in lines]


def _longest(cell: str) -> int:
    return max((len(piece.rstrip()) for piece in _PIECE.findall(cell)), default=0)


def _broken(cell: str, size: int, indent: str) -> list[str]:
    """A cell in lines of at most `size`, those after the first indented."""
    if len(cell) <= size:
        return [cell]
    lines = [""]
    for piece in _PIECE.findall(cell):
        if lines[-1].strip() and len((lines[-1] + piece).rstrip()) > size:
            lines.append(indent)
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _paragraphs(rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    head, *others = rows
    lines: list[str] = []
    for row in others:
        said = ", ".join(f"{name}: {cell}" for name, cell in zip(head, row) if cell)
        lines += textwrap.wrap(said, columns, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
    return lines
