"""Owners' tables that are Excel workbooks, read like the CSVs of tables.py."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mammoclip_jax.data.sources import tables
from mammoclip_jax.errors import UserError

PACKAGES = {".xlsx": "openpyxl==3.1.5", ".xls": "xlrd==2.0.2"}


def read(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    """The first sheet of a workbook (.xlsx, .xls) as `tables.read` returns it; whole numbers may end in ".0".

    Raises:
        UserError: the package for it is not installed, it is no workbook, has no rows, or lacks a column.
    """
    try:
        data = pd.read_excel(path, dtype=str)
    except ImportError:
        raise UserError(
            f"{path} needs a package: pip install {PACKAGES[path.suffix]}. Or save it as "
            f"{path.with_suffix('.csv').name}."
        ) from None
    except Exception as error:  # a damaged workbook can raise anything
        raise UserError(f"{path} is no Excel table ({type(error).__name__}). Copy it again.") from None
    return tables.checked(data, path, needed)
