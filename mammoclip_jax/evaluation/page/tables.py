"""Tables of numbers as text and as LaTeX."""

from typing import Any

import numpy as np
import pandas as pd


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of numbers as text: three decimals, p and q values below 0.001 as "<0.001", a dash for none."""
    text = {str(name): [_shown(value, str(name)) for value in table[name]] for name in table}
    return pd.DataFrame(text, dtype=object)  # an empty table has text too


def _shown(value: Any, column: str) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, (float, np.floating)):
        if column in ("n", "patients", "positives"):
            return f"{value:.0f}"
        return "<0.001" if column.startswith(("p_", "q_")) and value < 0.0005 else f"{value:.3f}"
    return str(value)


def latex_table(table: pd.DataFrame, caption: str = "", label: str = "") -> str:
    """A LaTeX table (package booktabs) of any table of metrics, numbers as `shown` gives them, text escaped.

    The columns low and high go into the one before them: "0.830 [0.780, 0.880]".
    """
    text = shown(table)
    for low, high in (("low", "high"), ("gap_low", "gap_high")):
        if low in text and high in text:
            value = text.columns[text.columns.get_loc(low) - 1]
            has = (text[low] != "–") & (text[high] != "–")
            text[value] = text[value] + np.where(has, " [" + text[low] + ", " + text[high] + "]", "")
            text = text.drop(columns=[low, high])
    return text.replace("–", "--").to_latex(
        index=False, escape=True, caption=caption or None, label=label or None, position="ht"
    )
