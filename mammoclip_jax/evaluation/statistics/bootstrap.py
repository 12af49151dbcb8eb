"""The bootstrap over patients that all intervals come from.

Each resample draws as many patients as there are, with replacement; a patient's images come or stay away together. A
resample is a row of weights, so a metric is a function of weights [r, n] that works on many resamples at once.

The intervals are bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals"), with the
normal quantiles widened as in Hesterberg 2015, "What teachers should know about the bootstrap", section 5.1: t instead
of normal, and n/(n-1), since the plain percentile interval is too narrow for few patients. The degrees of freedom
are Satterthwaite's, from the kurtosis of the patients' influences: ten patients with cancer among a thousand are
worth about ten. Acceleration and influences come from a jackknife over groups of patients.

With few patients none of this holds, and where all resamples agree it has no width: `few` says what stands in.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t

from mammoclip_jax.evaluation.choices import RESAMPLES
from mammoclip_jax.evaluation.statistics.few import LEVEL, Bound, binomial, count, rarest_class, too_few

INTERVAL = "95 %, BCa bootstrap over patients, or as the reason beside a value says"
_GROUPS = 200  # of patients, of the jackknife; its error in the acceleration is about 0.65 / groups
_FLAT = "no interval: all resamples agree"
_NO_WIDTH = "no interval: nearly all resamples agree"
_ALONE = "no interval: without one of the patients there is no value"
_CHUNK = 1_000_000  # elements of a block of weights: bounds memory, not the result


class Metric(NamedTuple):
    """A metric of `truth` [n] and `prediction` [n] or [n, K], as a function of the items' weights.

    Metrics that share the function `summary` share its work.
    """

    summary: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], Any]]  # (truth, prediction) -> (weights -> s)
    of: Callable[[Any], np.ndarray]  # s -> [r], NaN where undefined
    point: Callable[[np.ndarray, np.ndarray], float]  # the value where all weights are 1
    lacks: Callable[[np.ndarray, np.ndarray], str]  # why there is no value, or ""
    biased: bool = False  # clearly upward in small samples: see `biased_interval`
    # (truth, prediction, patients) -> why the bootstrap has too few patients, or "". A difference asks it as well.
    few: Callable[[np.ndarray, np.ndarray, np.ndarray], str] = rarest_class
    # Of the same: the interval where they are too few, or where all resamples agree. None: there is none.
    bound: Callable[[np.ndarray, np.ndarray, np.ndarray], Bound | None] | None = None


def entry(value, low=None, high=None, *, n: int, reason: str | None = None) -> dict[str, Any]:
    """A metric's entry; numbers become floats, and `reason` is left out when there is none."""
    out = {"value": _finite(value), "low": _finite(low), "high": _finite(high), "n": int(n)}
    return out | ({"reason": reason} if reason else {})


def _finite(number) -> float | None:
    return None if number is None or not np.isfinite(number) else float(number)


def patient_weights(patients, resamples: int = RESAMPLES, seed: int = 0):
    """Yields blocks `[r, n]` float32: how often each item counts in each resample of whole patients, with replacement.

    The draws depend on the number of patients, `resamples` and `seed` only: metrics over the same items are paired.
    """
    count, patient = _numbered(patients)
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, _CHUNK // max(len(patient), count)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, patient].astype(np.float32)


def left_out_weights(patients):
    """Yields blocks `[g, n]` float32 of the jackknife: 0 for a group of patients, 1 for the others; each group once.

    Up to _GROUPS patients are a group each; more are dealt out at random, the same way every time. A single patient
    stays: leaving it out leaves nothing.
    """
    count, patient = _numbered(patients)
    if count == 1:
        yield np.ones((1, len(patient)), dtype=np.float32)
        return
    groups = min(count, _GROUPS)
    group = (np.random.default_rng(0).permutation(count) % groups)[patient]
    block = max(1, _CHUNK // len(patient))
    for start in range(0, groups, block):
        yield (np.arange(start, min(start + block, groups))[:, None] != group).astype(np.float32)


def _numbered(patients) -> tuple[int, np.ndarray]:
    """How many patients, and the number of each item's patient."""
    _, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    return int(patient.max()) + 1, patient


def estimate(
    metrics: Mapping[str, Metric], truth, prediction, patients, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{name: entry} of several metrics of the same `truth` [n] and `prediction` [n] or [n, K]; patients [n].

    Resamples where a metric is undefined, such as those that hold one class only, are left out of its interval.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    n, entries, measured = len(truth), {}, {}
    for name, metric in metrics.items():
        reason = "nothing to score" if n == 0 else not_finite(prediction) or metric.lacks(truth, prediction)
        if reason:
            entries[name] = entry(None, n=n, reason=reason)
        else:
            measured[name] = metric.point(truth, prediction)
    if resamples:
        patients = np.asarray(patients, dtype=str)
        short = {name: metrics[name].few(truth, prediction, patients) for name in measured}
        for name in filter(short.get, short):
            entries[name] = _bounded(metrics[name], measured.pop(name), (truth, prediction, patients), short[name])
    if measured and resamples:
        functions = {name: metrics[name].of for name in measured}
        summaries = {name: metrics[name].summary for name in measured}
        made = {make: make(truth, prediction) for make in set(summaries.values())}
        of = _shared(functions, summaries, made)
        drawn = _stacked(of, patient_weights(patients, resamples, seed))
        left_out = _stacked(of, left_out_weights(patients))
        trials = _patients_of_rarest(truth, patients)
        for name, value in measured.items():
            if metrics[name].biased:
                entries[name] = biased_interval(value, drawn[name], n=n)
            elif metrics[name].bound and flat(drawn[name]):
                entries[name] = _bounded(metrics[name], value, (truth, prediction, patients), _FLAT)
            else:
                entries[name] = interval(value, drawn[name], left_out[name], n=n, trials=trials)
    elif measured:
        entries |= {name: entry(value, n=n) for name, value in measured.items()}
    return {name: entries[name] for name in metrics}


def _bounded(metric: Metric, value: float, scored, reason: str) -> dict[str, Any]:
    """The entry of a value that has no bootstrap for `reason`: with the metric's own interval, or with none."""
    bound = metric.bound(*scored) if metric.bound else None
    return given(value, bound, reason, n=len(scored[0])) if bound else entry(value, n=len(scored[0]), reason=reason)


def given(value: float, bound: Bound, reason: str, *, n: int) -> dict[str, Any]:
    """The entry of a value with an interval that does not come from resamples; `reason`: why they have none."""
    return entry(value, bound.low, bound.high, n=n, reason=f"{bound.how}; by bootstrap {reason}")


def bootstrap(
    value: float,
    of: Callable[[np.ndarray], np.ndarray],
    patients,
    *,
    few: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The entry of one `value` whose resamples are `of(weights [r, n])` [r].

    few: why it has too few patients, where that is not seen from how many there are.
    """
    n = len(np.asarray(patients))
    if not resamples:
        return entry(value, n=n)
    if reason := few or too_few(patients):
        return entry(value, n=n, reason=reason)
    drawn = np.concatenate([of(w) for w in patient_weights(patients, resamples, seed)])
    return interval(value, drawn, np.concatenate([of(w) for w in left_out_weights(patients)]), n=n)


def not_finite(prediction: np.ndarray) -> str:
    """Why predictions cannot be scored, or ""."""
    bad = ~np.isfinite(np.asarray(prediction, dtype=np.float64))
    return f"{bad.sum()} scores are not finite" if bad.any() else ""


def _shared(functions, summaries, made) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def of(weights):
        summary = {make: function(weights) for make, function in made.items()}
        return {name: function(summary[summaries[name]]) for name, function in functions.items()}

    return of


def _stacked(of, blocks) -> dict[str, np.ndarray]:
    parts = [of(weights) for weights in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _patients_of_rarest(truth: np.ndarray, patients) -> int:
    """How many patients have an item of the class that fewest have."""
    return min(count(np.asarray(patients)[truth == k]) for k in np.unique(truth))


def flat(drawn: np.ndarray) -> bool:
    """Whether all resamples that have a value agree."""
    drawn = drawn[~np.isnan(drawn)]
    return len(drawn) > 0 and bool(np.isclose(drawn.min(), drawn.max(), rtol=1e-9, atol=1e-12))


def interval(value: float, drawn: np.ndarray, left_out: np.ndarray, *, n: int, trials: int = 0) -> dict[str, Any]:
    """The entry of `value`, from its resamples `drawn` [R] and its jackknife `left_out` [G]; NaN: undefined, left out.

    The bounds are order statistics of `drawn`, without interpolation, so an infinite draw cannot turn into NaN. A
    value of 0 or 1 that no resample changes gets the bound of a rate, with `trials` patients, unless that is 0; another
    has no interval, and none has a value that is undefined without one of the patients, or whose bounds are one number.
    """
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return entry(value, n=n, reason="no interval: no resample of the patients holds both classes")
    if flat(drawn):
        if trials and (np.isclose(value, 0) or np.isclose(value, 1)):
            return given(value, binomial(round(value), trials), _FLAT, n=n)
        return entry(value, n=n, reason=_FLAT)
    if not np.isfinite(left_out).all():
        return entry(value, n=n, reason=_ALONE)
    low, high = levels(value, drawn, left_out)
    low, high = np.quantile(drawn, low, method="lower"), np.quantile(drawn, high, method="higher")
    if np.isclose(low, high, rtol=1e-9, atol=1e-12):  # as the median of whole numbers: it is not known that well
        return entry(value, n=n, reason=_NO_WIDTH)
    return entry(value, low, high, n=n)


def biased_interval(value: float, drawn: np.ndarray, *, n: int) -> dict[str, Any]:
    """The entry of a `value` >= 0 that noise raises, as it does a sum of absolute gaps; so do the resamples again.

    The lower bound is the basic bootstrap's, 2 value - q, which takes that bias off; the upper one only shifts the
    resamples to the value: BCa cannot mend a bias that is as large as the spread. On the safe side where the bias is
    small.
    """
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if low == high:
        return entry(value, n=n, reason=_FLAT if flat(drawn) else _NO_WIDTH)
    return entry(value, max(0.0, 2 * value - high), value + drawn.mean() - low, n=n)


def levels(value: float, drawn: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    """The quantiles of `drawn` that bound the interval: 0.025 and 0.975, corrected for bias, skewness and few patients.

    z0: how far the resamples lie to one side of `value` (those equal to it count half); a: acceleration, Efron 1987
    (6.6), from the influences U of the jackknife, ΣU³ / 6 (ΣU²)^1.5.
    """
    same = np.isclose(drawn, value, rtol=1e-9, atol=1e-12)
    share = ((drawn < value) & ~same).mean() + same.mean() / 2
    z0 = norm.ppf(np.clip(share, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    influence = left_out.mean() - left_out if len(left_out) else np.zeros(0)
    squares = (influence**2).sum()
    a = (influence**3).sum() / (6 * squares**1.5) if squares > 0 else 0.0
    freedom = _degrees_of_freedom(influence, squares)
    width = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt((freedom + 1) / freedom)
    return tuple(float(norm.cdf(z0 + (z0 + z) / max(1 - a * (z0 + z), 1e-9))) for z in (-width, width))


def _degrees_of_freedom(influence: np.ndarray, squares: float) -> float:
    """Of the variance ΣU²: 2 / its squared coefficient of variation, between 1 and the number of groups less 1."""
    count = max(len(influence), 2)
    spread = (influence**4).sum() - squares**2 / count
    return float(np.clip(2 * squares**2 / spread if spread > 0 else count - 1, 1, count - 1))
