"""Tables as people have them: CSVs with commas, semicolons, tabs or bars, in UTF-8, UTF-16 or Windows-1252; Excel workbooks."""

import csv
import gzip
import logging
from pathlib import Path

import pandas as pd

from mammoclip_jax.data.sources import excel, tables
from mammoclip_jax.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
_ENCODINGS = (("utf-16", (b"\xff\xfe", b"\xfe\xff")), ("utf-8-sig", (b"\xef\xbb\xbf",)))
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
log = logging.getLogger(__name__)


def read(path: Path) -> pd.DataFrame:
    """A table as `tables.read` returns it; says which separator and encoding it found where they are not the usual ones.

    The separator is the one that the first line has most of outside quotes. What is no UTF-8 is taken for Windows-1252.

    Raises:
        UserError: it is no table, has no rows, or rows with other cells than columns; the message names what was found.
    """
    if path.suffix.lower() in excel.PACKAGES:
        return excel.read(path, ())
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}). Copy it again.") from None
    encoding = encoding_of(content)
    separator = separator_of(content, encoding)
    found = f"separator {_NAMES[separator]}, encoding {encoding.removesuffix('-sig')}"
    if (separator, encoding) != (",", "utf-8-sig"):
        log.info("%s: %s", path.name, found)
    try:
        return tables.read(path, sep=separator, encoding=encoding)
    except UserError as error:
        raise UserError(f"{error} Found: {found}.") from None


def encoding_of(content: bytes) -> str:
    """Of a table's bytes: by their first ones, else UTF-8 if they are that, else Windows-1252."""
    for encoding, marks in _ENCODINGS:
        if content.startswith(marks):
            return encoding
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def separator_of(content: bytes, encoding: str) -> str:
    """The one of SEPARATORS that divides the first line into most cells; a comma where none does."""
    lines = content.decode(encoding, errors="replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    cells = {separator: len(next(csv.reader([first], delimiter=separator))) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda separator: cells[separator])
