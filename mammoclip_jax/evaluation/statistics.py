"""Metrics with their intervals. Patients, not images, are resampled, since a patient's images are not independent.

Every function returns an entry {"value", "low", "high", "n"} and, where there is no value or no useful interval,
"reason". The interval is the percentile bootstrap over patients (Efron and Tibshirani 1993, chapter 13);
`resamples=0` leaves it out.
"""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 4_000_000      # elements of a block of weights: bounds memory, not the result


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
    _, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = int(patient.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, _CHUNK // max(len(patient), count)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times[:, patient].astype(np.float32)


def auroc(labels, scores, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Area under the ROC curve of `scores` [n] for binary `labels` [n], with the interval over `patients` [n].

    Resamples that hold one class only are left out, as they have no AUROC.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    n = len(labels)
    if n == 0:
        return entry(None, n=0, reason="nothing to score")
    if labels.all() or not labels.any():
        which = "positive" if labels[0] else "negative"
        return entry(None, n=n, reason=f"all {n} are {which}: AUROC needs both classes")
    if not np.isfinite(scores).all():
        return entry(None, n=n, reason=f"{(~np.isfinite(scores)).sum()} scores are not finite")
    value = roc_auc_score(labels, scores)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])    # one group for each distinct score
    blocks = [_weighted_auroc(w[:, order], labels[order], starts) for w in patient_weights(patients, resamples, seed)]
    return _interval(value, blocks, n=n)


def _weighted_auroc(weights, labels, starts) -> np.ndarray:
    """AUROC of each row of `weights` [r, n]; items sorted by score, `starts` = first item of each distinct score."""
    positive = np.add.reduceat(weights * labels, starts, axis=1, dtype=np.float64)
    negative = np.add.reduceat(weights * ~labels, starts, axis=1, dtype=np.float64)
    below = np.cumsum(negative, axis=1) - negative
    pairs = positive.sum(1) * negative.sum(1)
    won = (positive * (below + 0.5 * negative)).sum(1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def mean(values, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean of `values` [n]; with 0/1 values a rate, such as Recall@k or a hit rate.

    Where all are 0 or all are 1 the bootstrap has no width; the exact binomial bound (Clopper and Pearson 1934) stands
    in, with the number of patients as the number of trials.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return entry(None, n=0, reason="nothing to score")
    if resamples and values[0] in (0, 1) and (values == values[0]).all():
        trials = len(np.unique(np.asarray(patients, dtype=str)))
        bound = ((1 - LEVEL) / 2) ** (1 / trials)
        low, high = (bound, 1) if values[0] else (0, 1 - bound)
        reason = f"all alike: exact binomial interval, {trials} patients"
        return entry(values[0], low, high, n=len(values), reason=reason)
    blocks = [w @ values / w.sum(1) for w in patient_weights(patients, resamples, seed)]
    return _interval(values.mean(), blocks, n=len(values))


def median(values, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Median of `values` [n]; in the resamples the weighted lower median."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return entry(None, n=0, reason="nothing to score")
    order = np.argsort(values, kind="stable")
    drawn = []
    for weights in patient_weights(patients, resamples, seed):
        running = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
        drawn.append(values[order][np.argmax(running >= running[:, -1:] / 2, axis=1)])
    return _interval(np.median(values), drawn, n=len(values))


def ratio(above, below, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """mean(above) / mean(below) over the same items, resampled together."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    n = len(above)
    if n == 0:
        return entry(None, n=0, reason="nothing to score")
    if below.sum() == 0:
        return entry(None, n=n, reason="the baseline is 0, so there is no ratio")
    drawn = []
    for weights in patient_weights(patients, resamples, seed):
        bottom = weights @ below
        drawn.append(np.divide(weights @ above, bottom, out=np.full(len(bottom), np.inf), where=bottom > 0))
    return _interval(above.sum() / below.sum(), drawn, n=n)


def _interval(value: float, blocks: list[np.ndarray], *, n: int) -> dict[str, Any]:
    """The entry of `value` with the percentile interval of the bootstrap values in `blocks` (NaN: left out)."""
    if not blocks:
        return entry(value, n=n)
    drawn = np.concatenate(blocks)
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return entry(value, n=n, reason="no interval: no resample of the patients holds both classes")
    # The order statistics just outside: no interpolation, so an infinite draw cannot turn into NaN.
    low = np.quantile(drawn, (1 - LEVEL) / 2, method="lower")
    high = np.quantile(drawn, (1 + LEVEL) / 2, method="higher")
    flat = drawn.min() == drawn.max()
    reason = "all resamples agree: no measure of uncertainty" if flat else None
    return entry(value, low, high, n=n, reason=reason)
