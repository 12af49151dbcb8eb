"""Finding the lines of a table that cannot be used, a column at a time."""

from collections.abc import Iterable

import pandas as pd


def first(index: pd.Index, checks: Iterable[tuple[pd.Series, str]]) -> pd.Series:
    """The first fault of each line, str, "" where it has none.

    Args:
        index: of the table.
        checks: (bool series that is True at the bad lines, reason), the gravest first.
    """
    faults = pd.Series("", index=index, dtype=object)
    for bad, reason in checks:
        faults[bad & (faults == "")] = reason
    return faults


def disagree(keys: pd.Series, values: pd.Series) -> pd.Series:
    """True at every line of a key (patient, breast, ...) that has several different values; "" is no value."""
    return values.where(values != "").groupby(keys).transform("nunique") > 1
