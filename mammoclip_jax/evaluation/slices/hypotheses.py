"""Hypotheses: attributes that may go with a classifier's errors, each with a score for every image.

By prompts the score is ⟨projected, p⟩ - ⟨projected, n⟩, with the unit mean vectors p of the texts that say the attribute is
there and n of those that say it is not: what all prompts have in common drops out. By a column it is whether the column
has a value, or the number that it holds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.projection import Projector
from mammoclip_jax.inference.prompts import unit

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> their vectors [n, D]
# What a prompt makes of a phrase.
POSITIVE = ("There is {}.", "Findings include {}.", "Mammogram with {}.", "Evidence of {}.", "{} is seen.")
NEGATIVE = ("There is no {}.", "No {}.", "Mammogram without {}.", "No evidence of {}.", "{} is not seen.")


class Hypothesis(NamedTuple):
    """An attribute by prompts, or by a column of metadata.

    A column with a `value` has the attribute where it holds that value; without one it holds numbers, and the attribute
    is to be large. An empty text or NaN is unknown.
    """

    name: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()  # may be empty: then the score is that of the positive ones alone
    column: str = ""
    value: str = ""
    source: str = ""  # who made it: "lexicon", "n-gram", "column", ...

    @property
    def of_numbers(self) -> bool:
        """Whether there is a threshold to choose."""
        return not self.value


def of_phrase(name: str, source: str, against: Sequence[str] = ()) -> Hypothesis:
    """The hypothesis that a phrase of this name is there, in the sentences POSITIVE and NEGATIVE.

    against: phrases that stand where it does not, in place of its denial.
    """

    def said(templates: Sequence[str], phrases: Sequence[str]) -> tuple[str, ...]:
        texts = [template.format(phrase) for phrase in phrases for template in templates]
        return tuple(text[:1].upper() + text[1:] for text in texts)

    negative = said(POSITIVE, against) if against else said(NEGATIVE, [name])
    return Hypothesis(name, said(POSITIVE, [name]), negative, source=source)


def check(hypotheses: Sequence[Hypothesis]) -> None:
    """Raises UserError for two of a name, and for one with neither prompts nor column, or with both."""
    names = [one.name for one in hypotheses]
    for one in hypotheses:
        if not one.name or names.count(one.name) > 1:
            raise UserError(f"{names.count(one.name)} hypotheses are called {one.name!r}: give each a name of its own.")
        if bool(one.positive) == bool(one.column):
            raise UserError(f"hypothesis {one.name!r} needs prompts that say it is there, or a column; one of the two.")


def directions(hypotheses: Sequence[Hypothesis], embed: Embed) -> np.ndarray:
    """Float64 [m, D]: what a projected vector is multiplied with; 0 for hypotheses by a column. Asks `embed` once."""
    texts = list(dict.fromkeys(text for one in hypotheses for text in (*one.positive, *one.negative)))
    if not texts:
        return np.zeros((len(hypotheses), 0))
    vector = dict(zip(texts, np.asarray(embed(texts), np.float64), strict=True))

    def side(prompts: tuple[str, ...]) -> np.ndarray:
        if not prompts:
            return np.zeros_like(vector[texts[0]])
        return mean_direction(np.stack([vector[text] for text in prompts]))

    return np.stack([side(one.positive) - side(one.negative) for one in hypotheses])


def mean_direction(prompts) -> np.ndarray:
    """Float64 [..., D]: unit mean of the vectors `prompts` [..., p, D], which need not be of unit length."""
    return unit(np.asarray(prompts, np.float64).mean(axis=-2))


def distinct(hypotheses: Sequence[Hypothesis], toward: np.ndarray, alike: float = 0.95) -> list[int]:
    """Places of the hypotheses that are left when, of each name and of each direction (cosine above `alike`), only the
    first is taken. Of `toward` [m, D], `directions` of theirs; columns go by their names alone."""
    kept: list[int] = []
    names: set[str] = set()
    lines = unit(toward)
    for place, one in enumerate(hypotheses):
        others = [other for other in kept if hypotheses[other].positive]
        again = one.positive and others and (lines[others] @ lines[place]).max() > alike
        if one.name.lower() not in names and not again:
            kept.append(place)
            names.add(one.name.lower())
    return kept


def scores(
    hypotheses: Sequence[Hypothesis],
    toward: np.ndarray,
    projector: Projector | None,
    features,
    columns: pd.DataFrame | None = None,
) -> np.ndarray:
    """Float64 [n, m]: one score of every image for every hypothesis; NaN where a column does not know.

    Args:
        toward: `directions` of the hypotheses.
        projector: may be None where all are by columns.
        features: the classifier's [n, c].
        columns: metadata [n rows].

    Raises:
        UserError: a column is not there, or holds no numbers where numbers are needed.
    """
    out = np.full((len(features), len(hypotheses)), np.nan)
    prompted = [place for place, one in enumerate(hypotheses) if one.positive]
    if prompted:
        if projector is None:
            raise UserError(f"hypothesis {hypotheses[prompted[0]].name!r} is by prompts, and there is no projection.")
        out[:, prompted] = projector.along(features, toward[prompted])
    for place, one in enumerate(hypotheses):
        if one.column:
            out[:, place] = _of_column(one, columns)
    return out


def _of_column(one: Hypothesis, columns: pd.DataFrame | None) -> np.ndarray:
    if columns is None or one.column not in columns:
        known = ", ".join(columns) if columns is not None else ""
        raise UserError(f"hypothesis {one.name!r} needs the column {one.column!r}; there are: {known or 'none'}.")
    values = columns[one.column]
    if one.of_numbers:
        try:
            return pd.to_numeric(values).to_numpy(np.float64, na_value=np.nan)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"column {one.column!r} of hypothesis {one.name!r} does not hold numbers: {error}"
            ) from error
    texts = texts_of(values)
    return np.where(texts == "", np.nan, (texts == one.value).astype(np.float64))


def texts_of(values: pd.Series) -> np.ndarray:
    """Object [n]: values as texts, "" where unknown; whole numbers without a point."""

    def text(value) -> str:
        if value is None or value is pd.NA or value != value or value == "unknown":
            return ""
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

    return np.array([text(value) for value in values], dtype=object)
