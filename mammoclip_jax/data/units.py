"""What a breast and an exam are, and which images stand for one: the same in training, evaluation and prediction."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

UNITS = {"image": 1, "breast": 2, "exam": 4}        # and the places for views that a model has of it
_STANDARD = [(side, view) for view in ("CC", "MLO") for side in "LR"]
_VIEWS = ("CC", "MLO", "")                          # before all others, which come by name


def breasts(rows: pd.DataFrame) -> np.ndarray:
    """Int [n]: number of the breast (data set, patient, study, laterality) of each row, in order of first appearance.

    An image of unknown laterality is a breast of its own: guessing could join the two sides.
    """
    side = np.where(rows["laterality"].isin(["L", "R"]), rows["laterality"], "?" + rows["image"].astype(str))
    keys = rows[["dataset", "patient", "study"]].astype(str).assign(side=side)
    return keys.groupby(list(keys.columns), sort=False).ngroup().to_numpy()


def exams(rows: pd.DataFrame) -> np.ndarray:
    """Int [n]: number of the exam (data set, patient, study) of each row, in order of first appearance."""
    return rows.groupby([rows[c].astype(str) for c in ("dataset", "patient", "study")], sort=False).ngroup().to_numpy()


GROUPS = {"image": lambda rows: np.arange(len(rows)), "breast": breasts, "exam": exams}


def standing(images: Sequence[tuple[str, str]], count: int,
             rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which of a unit's images, given as (laterality, view), take its `count` places.

    The four standard views come first, then other views, then further images of a view that has one already, from
    each side in turn. Of several images of a view the first is taken; with `rng` any, as training does.

    Returns:
        int [count] places in `images`, and bool [count], False where there is none: that place repeats another.
    """
    turns: Counter = Counter()
    by_side: dict[str, list] = {}
    for place in range(len(images)) if rng is None else map(int, rng.permutation(len(images))):
        side, view = images[place]
        known = _VIEWS.index(view) if view in _VIEWS else len(_VIEWS)
        by_side.setdefault(side, []).append((turns[side, view], known, view, place))
        turns[side, view] += 1
    ranked = []
    for side, own in by_side.items():
        for rank, (turn, _, view, place) in enumerate(sorted(own)):
            standard = turn == 0 and (side, view) in _STANDARD
            ranked.append((not standard, rank, side not in ("L", "R"), side, place))
    chosen = [place for *_, place in sorted(ranked)][:count]
    return np.resize(chosen, count), np.arange(count) < len(chosen)
