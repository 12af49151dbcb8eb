"""Metadata as hypotheses: what a data set's index and labels say of an image, of the patient and of the exam."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from mammoclip_jax.data.text.label_values import text_of
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis, texts_of
from mammoclip_jax.evaluation.subgroups import AGE_BANDS, attributes

# Beside those of `subgroups.attributes`: keys of the labels, where a data set has them.
LABELS = ("implant", "race", "ethnicity", "machine", "image_type", "procedure", "photometric_interpretation")
MOST_VALUES = 30  # of a column of words: more are identifiers or free text
LEAST = 30  # images on either side


def metadata(index: pd.DataFrame, age_bands: tuple[int, ...] = AGE_BANDS) -> pd.DataFrame:
    """A column for each thing that the rows of a data set's index say, a row an image; texts, "unknown" where not known.

    Age in bands, density, view, laterality, vendor, site; of the labels those of LABELS; `image_size`, "height x width"
    of the original; columns of which nothing is known are left out.
    """
    table = attributes(index, age_bands).drop(columns=["dataset", "image"])
    labels = [json.loads(text) for text in index["labels"]]
    for name in LABELS:
        table[name] = [_plain(one.get(name)) for one in labels]
    if "transform" in index:
        table["image_size"] = [_size(text) for text in index["transform"]]
    table = table.replace("", "unknown")
    return table[[name for name in table if (table[name] != "unknown").any()]].reset_index(drop=True)


def _plain(value) -> str:
    """A label as text; true and false as 1 and 0."""
    return text_of(int(value) if isinstance(value, bool) else value)


def _size(transform: str) -> str:
    original = json.loads(transform).get("original") if transform else None
    return f"{original[0]} x {original[1]}" if original else ""


def from_columns(columns: pd.DataFrame, *, least: int = LEAST, leave_out: Iterable[str] = ()) -> list[Hypothesis]:
    """A hypothesis for each value that at least `least` images have, and as many lack; one for a column of numbers.

    Of two values that are each other's complement the first in order is taken. `leave_out`: columns that say the class
    itself. The columns are those of the part on which thresholds are chosen.
    """
    made = []
    for name in columns:
        if name in set(leave_out):
            continue
        values = columns[name]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 2:
            made.append(Hypothesis(f"high {name}", column=name, source="column"))
            continue
        texts = texts_of(values)
        known, counts = np.unique(texts[texts != ""], return_counts=True)
        if len(known) > MOST_VALUES:
            continue
        total = counts.sum()
        usable = [value for value, count in zip(known, counts) if min(count, total - count) >= least]
        usable = usable[:1] if len(known) == 2 else usable
        made += [Hypothesis(f"{name}={value}", column=name, value=str(value), source="column") for value in usable]
    return made
