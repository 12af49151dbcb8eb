"""What is said of a classifier with known or found slices: its worst group, its slices at one threshold, and how well
found slices hit known ones.

A decision is right or wrong at one threshold, chosen on validation, for all images. The worst of several groups looks worse
than any of them is, most of all where groups are small, so groups below the least size are left out, and the worst group of
a bad day is no finding: its interval says how bad the day may have been.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.slices.repair import groups
from mammoclip_jax.evaluation.slices.retrieval import top
from mammoclip_jax.evaluation.statistics import few
from mammoclip_jax.evaluation.statistics.bootstrap import Metric
from mammoclip_jax.evaluation.statistics.discrimination import share

LEAST = 30  # images of a group
K = 10  # images of precision@k
GROUP_NAMES = ("class 0 without", "class 0 with", "class 1 without", "class 1 with")


def _rates(group, right):
    """`weights [r, n] -> accuracy [r, G]` of each group that occurs."""
    there, place = np.unique(group, return_inverse=True)
    member = (place[:, None] == np.arange(len(there))).astype(np.float32)
    hit = member * np.asarray(right, np.float32)[:, None]
    return lambda weights: share((weights @ hit).astype(np.float64), (weights @ member).astype(np.float64))


def _worst(rates: np.ndarray) -> np.ndarray:
    """NaN, without a warning, where a resample holds none of a group."""
    return np.where(np.isnan(rates).any(axis=1), np.nan, np.where(np.isnan(rates), 2.0, rates).min(axis=1))


def _point(group, right) -> float:
    return float(_worst(_rates(group, right)(np.ones((1, len(group)), np.float32)))[0])


def _none_lacks(group, right) -> str:
    del group, right
    return ""


# Of group int [n] as truth, and whether a decision is right, bool [n], as prediction: the least accuracy of a group.
WORST_GROUP = Metric(_rates, _worst, _point, _none_lacks, few=few.rarest_class)


def large_enough(group, least: int = LEAST) -> np.ndarray:
    """Bool [n]: known groups (>= 0) with at least `least` images."""
    group = np.asarray(group)
    sizes = np.bincount(group[group >= 0], minlength=1)
    return (group >= 0) & (sizes[np.maximum(group, 0)] >= least)


def worst_group(
    truth, decision, attribute, patients, *, least: int = LEAST, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The entry of the least accuracy over all four groups of class and attribute that have at least `least` images.

    Args:
        truth, decision: int [n]; attribute: 1, 0 or NaN [n]; patients: str [n].
    """
    group, right = groups(truth, attribute), np.asarray(truth) == np.asarray(decision)
    used = large_enough(group, least)
    if not used.any():
        return statistics.entry(None, n=0, reason=f"no group has {least} images")
    patients = np.asarray(patients, dtype=str)[used]
    return statistics.estimate({"": WORST_GROUP}, group[used], right[used], patients, resamples=resamples, seed=seed)[
        ""
    ]


def slice_rates(
    truth,
    decision,
    members: Mapping[str, np.ndarray],
    patients,
    *,
    least: int = LEAST,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Sensitivity and specificity of each slice and of all images: slice, figure, value, low, high, n, reason, worst.

    `members`: {name: bool [n]}. `worst` marks the least of a figure over the slices with at least `least` images of
    the class.
    """
    truth, right = np.asarray(truth), np.asarray(truth) == np.asarray(decision)
    patients, rows = np.asarray(patients, dtype=str), []
    for name, member in {"all": np.ones(len(truth), bool), **members}.items():
        for figure, label in (("sensitivity", 1), ("specificity", 0)):
            chosen = np.asarray(member, bool) & (truth == label)
            entry = statistics.mean(right[chosen], patients[chosen], resamples=resamples, seed=seed)
            small = "too small" if chosen.sum() < least else ""
            reason = "; ".join(filter(None, (small, entry.pop("reason", ""))))
            rows.append({"slice": name, "figure": figure, **entry, "reason": reason})
    table = pd.DataFrame(rows)
    ranked = table[(table["slice"] != "all") & (table["n"] >= least)]
    worst = ranked.groupby("figure")["value"].idxmin() if len(ranked) else []
    return table.assign(worst=table.index.isin(list(worst)))


def precision_at_k(scores, known, k: int = K) -> dict[str, Any]:
    """{"value", "best": place of the found slice for each known one, "precision" [t, f]}.

    The share of the k images that rank highest in a found slice that belong to a known one; of each known slice the best,
    then the mean over known slices (Domino, Eyuboglu et al., arXiv:2203.14960; k is 10).

    Args:
        scores: float [n, f], a column a found slice, the higher the likelier a member; NaN last.
        known: bool [n, t], a column a known slice.
    """
    scores, known = np.asarray(scores, np.float64), np.asarray(known, bool)
    order = [top(np.where(np.isnan(column), -np.inf, column), k) for column in scores.T]
    precision = np.array([[member[places].mean() for places in order] for member in known.T])
    if not precision.size:
        return {"value": None, "best": [], "precision": precision}
    return {
        "value": float(precision.max(axis=1).mean()),
        "best": precision.argmax(axis=1).tolist(),
        "precision": precision,
    }
