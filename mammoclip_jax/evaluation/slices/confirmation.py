"""Tests of hypotheses: frozen on one part of the patients, told on the other.

On the part `discover` each hypothesis gets its threshold, which divides the images of both classes into those with the
attribute and those without, and, for each class, the side on which decisions are worse. On the part `confirm`, whose
patients are others, that side is tested against the other one: Fisher's exact test, one-sided, which is the permutation
test of the gap in accuracy with both margins fixed; then Benjamini and Hochberg over all tests. Accuracy within the
positive class is sensitivity, within the negative class specificity.

Where patients have several images, their counts are divided by their design effect first: see `fisher`.

Scores of other attributes go with that of a shortcut, because a projection mixes them, and their slices are confirmed with
it. What is no worse within the sides of the surer slices of its class is like one of these, and is not called a slice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data import subsets
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.slices import fisher
from mammoclip_jax.evaluation.slices.hypotheses import Hypothesis
from mammoclip_jax.evaluation.statistics.bootstrap import interval, left_out_weights, patient_weights
from mammoclip_jax.evaluation.statistics.discrimination import share
from mammoclip_jax.evaluation.statistics.few import count, too_few
from mammoclip_jax.evaluation.statistics.paired import benjamini_hochberg

LEAST = 30  # images on either side of a test
LEVEL = 0.05  # of the false discovery rate
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the scores, of which one becomes the threshold
PRESENT, ABSENT = "present", "absent"
_NUMBERS = ("accuracy_slice", "accuracy_rest", "gap", "low", "high", "p", "p_fisher")
COLUMNS = (
    *("hypothesis", "source", "class", "worse", "threshold", "n_slice", "n_rest", "patients_slice", "patients_rest"),
    *(*_NUMBERS, "q", "verdict", "reason"),
)
SLICE, LIKE, TOO_SMALL, BY_CHANCE, COVERS_0, NO_INTERVAL = (
    "slice",
    "like a surer slice",
    "too small",
    "may be chance",
    "interval covers 0",
    "no interval",
)


class Frozen(NamedTuple):
    """What discovery says of one hypothesis, before confirmation."""

    hypothesis: Hypothesis
    threshold: float  # the attribute is there where a score reaches it
    worse: tuple[str, ...]  # of class 0 and class 1: PRESENT or ABSENT, the side with the lower accuracy; "" untold


def parts(patients, truth, seed: int = 0, share_discover: float = 0.5) -> np.ndarray:
    """Bool [n]: the images of the part `discover`; no patient is in both, classes are spread evenly."""
    return subsets.fraction(patients, truth, share_discover, seed)


def attribute(scores, thresholds) -> np.ndarray:
    """Float64 [n, m]: 1 with the attribute, 0 without, NaN unknown; of scores [n, m] and thresholds [m]."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.isnan(scores), np.nan, (scores >= thresholds).astype(np.float64))


def counts(present, right) -> np.ndarray:
    """Int64 [m, 4]: images without the attribute and right, without and wrong, with and right, with and wrong.

    Of present [n, m], 1, 0 or NaN, and right bool [n].
    """
    present, right = np.asarray(present, np.float64), np.asarray(right, bool)
    cells = [(present == side)[right == good].sum(axis=0) for side in (0, 1) for good in (True, False)]
    return np.stack(cells, axis=-1).astype(np.int64)


def freeze(
    hypotheses: Sequence[Hypothesis],
    scores,
    truth,
    right,
    *,
    quantiles: Sequence[float] = QUANTILES,
    least: int = LEAST,
) -> list[Frozen]:
    """Thresholds and worse sides, from the part `discover`.

    The threshold is the quantile of the scores of all images that divides right from wrong decisions best: the least
    product, over the classes, of Fisher's p of the worse side.

    Args:
        scores: float [n, m] of the hypotheses; truth: int [n]; right: bool [n], of the decisions.
        least: images that a side must have to count; discovery asks for as many as confirmation.
    """
    scores, truth, right = np.asarray(scores, np.float64), np.asarray(truth), np.asarray(right, bool)
    made = []
    for place, one in enumerate(hypotheses):
        own = scores[:, place]
        cuts = np.array([0.5]) if not one.of_numbers or np.isnan(own).all() else np.nanquantile(own, quantiles)
        present = attribute(own[:, None], cuts)
        evidence, worse = np.zeros(len(cuts)), []
        for label in (0, 1):
            cells = counts(present[truth == label], right[truth == label])
            without, having = cells[:, :2].sum(axis=1), cells[:, 2:].sum(axis=1)
            p_absent = fisher.worse(cells[:, 0], without, cells[:, 2], having)
            p_present = fisher.worse(cells[:, 2], having, cells[:, 0], without)
            told = np.minimum(without, having) >= least
            evidence += np.where(told, -np.log(np.maximum(np.minimum(p_absent, p_present), 1e-300)), 0.0)
            gap = share(cells[:, 2], having) - share(cells[:, 0], without)
            worse.append(np.where(np.isnan(gap), "", np.where(gap < 0, PRESENT, ABSENT)))
        best = int(evidence.argmax())
        made.append(Frozen(one, float(cuts[best]), tuple(str(side[best]) for side in worse)))
    return made


def confirm(
    frozen: Sequence[Frozen],
    scores,
    truth,
    right,
    patients,
    *,
    least: int = LEAST,
    level: float = LEVEL,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each hypothesis and class, the surest first; from the part `confirm`.

    Columns: hypothesis, source, class, worse (the side that is the slice), threshold, n_slice, n_rest, patients_slice,
    patients_rest, accuracy_slice, accuracy_rest, gap (slice minus rest), low, high (patient bootstrap), p (with the
    design effect), p_fisher, q (of p, over all rows that are tested), verdict and reason. The verdict is SLICE only where
    q is below `level`, the interval of the gap lies below 0, and the side is also worse within the sides of the surer slices
    of its class (p of Mantel and Haenszel below `level`). `resamples=0`: no interval, and so no slice.

    Args:
        scores: float [n, m] of the frozen hypotheses; truth int [n], right bool [n], patients str [n].
        least: images on either side below which nothing is tested.
    """
    truth, right, patients = np.asarray(truth), np.asarray(right, bool), np.asarray(patients, dtype=str)
    present = attribute(scores, np.array([one.threshold for one in frozen]))
    rows = []
    for label in (0, 1):
        members = truth == label
        rows += _of_class(frozen, label, present[members], right[members], patients[members], least, resamples, seed)
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in ("q", "verdict")])
    table["q"] = benjamini_hochberg(table["p"].to_numpy(np.float64))
    table["verdict"] = [_verdict(row, level) for row in table.to_dict("records")]
    table = table.sort_values(["q", "p", "gap"], kind="stable")[list(COLUMNS)].reset_index(drop=True)
    for label in (0, 1):
        members = truth == label
        _set_alike_apart(table, label, frozen, present[members], right[members], patients[members], level)
    return table


def _set_alike_apart(table: pd.DataFrame, label: int, frozen, present, right, patients, level: float) -> None:
    """Changes the verdict on slices of a class that are no worse within the sides of the surer ones."""
    place_of = {one.hypothesis.name: place for place, one in enumerate(frozen)}
    sides: list[np.ndarray] = []
    names: list[str] = []
    for row in table.index[(table["class"] == label) & (table["verdict"] == SLICE)]:
        name = table.at[row, "hypothesis"]
        has = present[:, place_of[name]]
        if sides:
            strata = np.unique(np.nan_to_num(np.stack(sides), nan=-1), axis=1, return_inverse=True)[1].ravel()
            known = ~np.isnan(has)
            inside = has == (1.0 if table.at[row, "worse"] == PRESENT else 0.0)
            within = [known & (strata == k) for k in np.unique(strata)]
            p = fisher.worse_within(fisher.worth(right[k], inside[k], patients[k]) for k in within)
            if not p < level:
                table.at[row, "verdict"] = LIKE
                table.at[row, "reason"] = f"no worse within {', '.join(names)} and the rest (p {p:.2g})"
                continue
        sides.append(has)
        names.append(name)


def _of_class(frozen, label: int, present, right, patients, least: int, resamples: int, seed: int) -> list[dict]:
    rows, sides = [], []
    for place, one in enumerate(frozen):
        has, lacks = present[:, place] == 1, present[:, place] == 0
        inside, outside = (has, lacks) if one.worse[label] == PRESENT else (lacks, has)
        row = {
            "hypothesis": one.hypothesis.name,
            "source": one.hypothesis.source,
            "class": label,
            "worse": one.worse[label],
            "threshold": one.threshold,
            "n_slice": int(inside.sum()),
            "n_rest": int(outside.sum()),
            "patients_slice": count(patients[inside]),
            "patients_rest": count(patients[outside]),
            **dict.fromkeys(_NUMBERS, np.nan),
            "reason": "",
        }
        rows.append(row)
        if inside.any() and outside.any():
            row["accuracy_slice"], row["accuracy_rest"] = right[inside].mean(), right[outside].mean()
            row["gap"] = row["accuracy_slice"] - row["accuracy_rest"]
        if min(row["n_slice"], row["n_rest"]) < least:
            row["reason"] = f"{min(row['n_slice'], row['n_rest'])} images on one side, {least} are needed"
            continue
        known = inside | outside
        row["p"] = float(fisher.worse(*fisher.worth(right[known], inside[known], patients[known])))
        row["p_fisher"] = float(fisher.worse(*fisher.images(right[known], inside[known])))
        sides.append((row, inside, outside))
    if resamples and sides:
        _intervals(sides, right, patients, resamples, seed)
    return rows


def _intervals(sides, right, patients, resamples: int, seed: int) -> None:
    """Fills low, high and reason of rows, all on the same resamples: one product with the weights a block."""
    inside, outside = (np.stack([side[i] for side in sides], axis=1).astype(np.float32) for i in (1, 2))
    good = right[:, None].astype(np.float32)
    marks = np.concatenate([inside * good, inside, outside * good, outside], axis=1)

    def gaps(blocks) -> np.ndarray:
        sums = np.concatenate([weights @ marks for weights in blocks]).astype(np.float64)
        hit, n, hit_rest, n_rest = np.split(sums, 4, axis=1)
        return share(hit, n) - share(hit_rest, n_rest)

    drawn, left_out = gaps(patient_weights(patients, resamples, seed)), gaps(left_out_weights(patients))
    for place, (row, member, rest) in enumerate(sides):
        if reason := too_few(patients[member], "in the slice") or too_few(patients[rest], "beside the slice"):
            row["reason"] = reason
            continue
        entry = interval(row["gap"], drawn[:, place], left_out[:, place], n=int(member.sum()))
        row["low"], row["high"] = (np.nan if entry[end] is None else entry[end] for end in ("low", "high"))
        row["reason"] = entry.get("reason", "")


def _verdict(row: dict, level: float) -> str:
    if np.isnan(row["p"]):
        return TOO_SMALL
    if not row["q"] < level:
        return BY_CHANCE
    if np.isnan(row["high"]):
        return NO_INTERVAL
    return SLICE if row["high"] < 0 else COVERS_0
