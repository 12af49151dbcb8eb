"""Scores of a data set's images: those that `evaluate` stored, and how wrong each is."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import predictions
from mammoclip_jax.evaluation.predictions import Predicted

WRONG = (
    "share of the images of the other class that the score puts on the wrong side of this one: 0 right, 1 as wrong as can be; "
    "an exam has that of its worst image"
)


class Scored(NamedTuple):
    """One label's scores."""

    label: str
    score: np.ndarray  # float [n] of the images of the index, NaN unknown; the higher, the likelier
    truth: np.ndarray  # float [n]: 1, 0 or NaN unknown
    source: str  # where they come from, in words

    @property
    def wrong(self) -> np.ndarray:
        """Float [n]: see `WRONG`; NaN where truth or score is unknown, or all are of one class.

        The mean over both classes is one minus the area under the ROC curve; ties count half.
        """
        wrong = np.full(len(self.score), np.nan)
        known = ~np.isnan(self.score) & ~np.isnan(self.truth)
        sides = [np.sort(self.score[known & (self.truth == side)]) for side in (0, 1)]
        if min(map(len, sides)) == 0:
            return wrong
        for side, others in ((1, sides[0]), (0, sides[1])):
            own = known & (self.truth == side)
            below = (np.searchsorted(others, self.score[own]) + np.searchsorted(others, self.score[own], "right")) / 2
            wrong[own] = 1 - below / len(others) if side else below / len(others)
        return wrong


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Float [n] from 0 to 1: how far apart two scores [n] put each image among those that both have; NaN for the others.

    Ranks are compared, so scores of any two kinds may be.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    ranks = [rankdata(values[both]) for values in (first, second)]
    found = np.full(len(first), np.nan)
    found[both] = np.abs(ranks[0] - ranks[1]) / max(int(both.sum()) - 1, 1)
    return found


def stored(path: str | Path, index: pd.DataFrame, name: str) -> list[Scored]:
    """The predictions in a file or folder that are of this data set's images; each class of a label by itself.

    Args:
        index: of the data set; name: what it is called, for the message.

    Raises:
        UserError: there are no predictions, or none is of these images.
    """
    tables = predictions.read_all(path)
    place = pd.Series(np.arange(len(index)), pd.MultiIndex.from_frame(index[["dataset", "image"]].astype(str)))
    found = []
    for source, table in tables.items():
        for one in predictions.labels(table, source):
            places = place.reindex(pd.MultiIndex.from_frame(one.rows[["dataset", "image"]])).to_numpy()
            if not np.isnan(places).all():
                found += list(_scored(one, places, len(index), source))
    if not found:
        raise UserError(
            f"{path} holds predictions, and none is of an image of {name}: name the data set that was evaluated, or "
            "evaluate on this one."
        )
    return _told_apart(found)


def _scored(one: Predicted, places: np.ndarray, count: int, source: str):
    here = ~np.isnan(places)
    rows = places[here].astype(int)
    for number, label in enumerate(f"{one.label} {name}" for name in one.classes) if one.classes else ((0, one.label),):
        truth, score = np.full(count, np.nan), np.full(count, np.nan)
        said = one.truth[here]
        truth[rows] = np.where(np.isnan(said), np.nan, said == number) if one.classes else said
        score[rows] = one.prediction[here, number] if one.classes else one.prediction[here]
        yield Scored(label, score, truth, source)


def _told_apart(found: list[Scored]) -> list[Scored]:
    """Of a label that several evaluators scored the name has the evaluator's as well."""
    names = [one.label for one in found]
    return [
        one._replace(label=f"{one.label} ({one.source.split('/')[-2] if '/' in one.source else one.source})")
        if names.count(one.label) > 1
        else one
        for one in found
    ]


def has_predictions(path: str | Path) -> bool:
    """Whether a file or folder holds any."""
    path = Path(path)
    return any(path.rglob(predictions.FILES)) if path.is_dir() else path.suffix == ".csv"


def truth_of(values: np.ndarray) -> np.ndarray:
    """Float [n]: 1, 0 or NaN of a label's values as text."""
    return np.array([{"1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}.get(str(value), np.nan) for value in values])


def of_exam(scored: Scored, wrong: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """JSON of an exam: its highest score, its truth (1 where any image's is), the worst wrong; null unknown."""
    return {
        "score": _highest(scored.score[places]),
        "truth": _highest(scored.truth[places]),
        "wrong": _highest(wrong[places]),
    }


def _highest(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else None
