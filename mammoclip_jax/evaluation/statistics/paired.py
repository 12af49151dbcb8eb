"""Are two models different, on the same images? Paired tests and intervals that keep a patient's images together.

- DeLong's test of two correlated AUROCs, by default its extension to clustered data (Obuchowski 1997, "Nonparametric
  analysis of clustered ROC curve data"), since images of one patient are not independent; the plain test
  (DeLong, DeLong and Clarke-Pearson 1988) where every image is a patient of its own. Midranks make it
  O(n log n) (Sun and Xu 2014).
- A permutation test of any metric: under the null hypothesis the models can be exchanged, patient by patient.
- The bootstrap interval of the difference, with the same resamples of patients for both.

With fewer than FEW patients of a class, DeLong's test and the interval would see differences where none are, so there
are none; the permutation test keeps its level there, but can hardly find anything.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, norm, rankdata

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.choices import PERMUTATIONS as PERMUTATIONS  # handed on
from mammoclip_jax.evaluation.statistics.bootstrap import (
    LEVEL,
    RESAMPLES,
    Metric,
    bootstrap,
    entry,
    estimate,
    not_finite,
)
from mammoclip_jax.evaluation.statistics.discrimination import AUROC, MACRO_AUROC
from mammoclip_jax.evaluation.statistics.few import FEW, count


class DeLong(NamedTuple):
    """Two AUROCs, a minus b, its standard error, 95 % interval and two-sided test; NaN where it cannot be told."""

    auroc_a: float
    auroc_b: float
    difference: float
    error: float
    low: float
    high: float
    z: float
    p: float


def placements(truth, scores) -> tuple[np.ndarray, np.ndarray]:
    """Structural components of an AUROC: [m] of the positives, [n] of the negatives, in their order.

    Of a positive the share of negatives below it, of a negative the share of positives above it, ties half; the mean
    of either is the AUROC.
    """
    truth = np.asarray(truth).astype(bool)
    positive, negative = np.asarray(scores)[truth], np.asarray(scores)[~truth]
    ranks = rankdata(scores)
    return (
        (ranks[truth] - rankdata(positive)) / len(negative),
        1 - (ranks[~truth] - rankdata(negative)) / len(positive),
    )


def auroc_covariance(truth, scores, patients=None) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs [k] of the models' scores [k, n] for one truth [n], and their covariance [k, k].

    patients [n]: who is independent of whom (Obuchowski 1997, section 3); None: every item is. NaN where fewer than
    two patients have positives, or negatives.
    """
    truth, scores = np.asarray(truth).astype(bool), np.asarray(scores, dtype=np.float64)
    patients = np.arange(len(truth)) if patients is None else np.asarray(patients, dtype=str)
    _, who = np.unique(patients, return_inverse=True)
    count, sizes = int(who.max()) + 1, (int(truth.sum()), int((~truth).sum()))
    pairs = [placements(truth, score) for score in scores]
    auroc = np.array([of_positive.mean() for of_positive, _ in pairs])
    # Each patient's sum of deviations, over its positives and over its negatives: two of [k, patients].
    sums = [
        np.stack([np.bincount(who[side], pair[i] - area, minlength=count) for pair, area in zip(pairs, auroc)])
        for i, side in enumerate((truth, ~truth))
    ]
    patients_of = [len(np.unique(who[side])) for side in (truth, ~truth)]
    if min(patients_of) < 2:
        return auroc, np.full((len(scores), len(scores)), np.nan)
    covariance = sum(n / (n - 1) * part @ part.T / size**2 for n, part, size in zip(patients_of, sums, sizes))
    between = count / (count - 1) * sums[0] @ sums[1].T / (sizes[0] * sizes[1])
    return auroc, covariance + between + between.T


def delong(truth, a, b, patients=None) -> DeLong:
    """DeLong's test of the AUROCs of scores `a` and `b` [n] for truth [n]; clustered where `patients` [n] are given.

    No test, NaN, where fewer than FEW patients have positives, or negatives: it finds a difference between equals in
    20, 12 and 9 % with 2, 3 and 5.

    Raises:
        UserError: one class only.
    """
    truth = np.asarray(truth).astype(bool)
    if truth.all() or not truth.any():
        raise UserError(f"DeLong's test needs positive and negative cases; of {len(truth)} {truth.sum()} are positive.")
    (first, second), covariance = auroc_covariance(truth, [a, b], patients)
    difference = first - second
    error = np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0))
    patients = np.arange(len(truth)) if patients is None else np.asarray(patients)
    if min(count(patients[truth]), count(patients[~truth])) < FEW:
        error = np.nan
    if error < 1e-12:  # the same order of scores, or two that never vary: rounding must not decide
        z = 0.0 if abs(difference) < 1e-12 else np.nan
    else:
        z = difference / error
    width = norm.ppf((1 + LEVEL) / 2) * error
    return DeLong(
        *map(float, (first, second, difference, error, difference - width, difference + width, z, 2 * norm.sf(abs(z))))
    )


def permutation_test(
    metric: Metric, truth, a, b, patients, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Two-sided p of the difference of a metric between predictions `a` and `b`, [n] or [n, K], of the same items.

    Each patient's predictions are exchanged with probability one half. For metrics of the order the scores become
    ranks within their model first, as the models' scales need not agree (Bandos, Rockette and Gur 2005). Permutations
    without a value are left out. p = (1 + as extreme) / (1 + permutations), so never 0.
    """
    truth, a, b = (np.asarray(x) for x in (truth, a, b))
    if metric.summary in (AUROC.summary, MACRO_AUROC.summary):
        a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    _, who = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    ones = np.ones((1, len(truth)), dtype=np.float32)

    def difference(exchanged):
        exchanged = exchanged if a.ndim == 1 else exchanged[:, None]
        sides = np.where(exchanged, b, a), np.where(exchanged, a, b)
        first, second = (metric.of(metric.summary(truth, side)(ones))[0] for side in sides)
        return first - second

    observed = difference(np.zeros(len(truth), dtype=bool))
    rng = np.random.default_rng(seed)
    drawn = np.array([difference(rng.integers(0, 2, who.max() + 1).astype(bool)[who]) for _ in range(permutations)])
    drawn = drawn[~np.isnan(drawn)]
    return float((1 + (np.abs(drawn) >= abs(observed) - 1e-12).sum()) / (1 + len(drawn)))


def mean_of_draws(
    metric: Metric, truth, draws, patients, *, base=None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The entry of a metric's mean over several predictions of the same items, each [n] or [n, K], all on the same
    resamples of patients; or of what it is above the mean over the predictions `base`. "sd" is over the draws.

    One prediction without a base has the interval that `estimate` gives.
    """
    truth, draws, others = np.asarray(truth), [np.asarray(x) for x in draws], [np.asarray(x) for x in base or ()]
    if len(draws) == 1 and not others:
        return estimate({"": metric}, truth, draws[0], patients, resamples=resamples, seed=seed)[""]
    reason = lacking(metric, truth, *draws, *others)
    if reason:
        return entry(None, n=len(truth), reason=reason)
    patients = np.asarray(patients, dtype=str)
    summaries, bases = ([metric.summary(truth, side) for side in sides] for sides in (draws, others))
    values, below = ([metric.point(truth, side) for side in sides] for sides in (draws, others))

    def of(weights):
        above = np.mean([metric.of(summary(weights)) for summary in summaries], axis=0)
        return above - np.mean([metric.of(summary(weights)) for summary in bases], axis=0) if bases else above

    few = next(filter(None, (metric.few(truth, side, patients) for side in (*draws, *others))), "")
    value = np.mean(values) - (np.mean(below) if below else 0)
    found = bootstrap(value, of, patients, few=few, resamples=resamples, seed=seed) | {"n": len(truth)}
    return found | {"sd": float(np.std(values, ddof=1))} if len(values) > 1 else found


def difference(metric: Metric, truth, a, b, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The entry of metric(a) - metric(b), both on the same resamples of patients; without interval of few."""
    return mean_of_draws(metric, truth, [a], patients, base=[b], resamples=resamples, seed=seed)


def lacking(metric: Metric, truth, *predictions) -> str:
    """Why a metric has no value for one of several predictions, or ""."""
    if len(truth) == 0:
        return "nothing to score"
    reasons = [not_finite(p) or metric.lacks(truth, p) for p in predictions]
    return next(filter(None, reasons), "")


def benjamini_hochberg(p) -> np.ndarray:
    """Adjusted p values [k] that bound the false discovery rate (Benjamini and Hochberg 1995); NaN stays NaN."""
    p = np.array(p, dtype=np.float64)
    known = ~np.isnan(p)
    if known.any():
        p[known] = false_discovery_control(p[known], method="bh")
    return p
