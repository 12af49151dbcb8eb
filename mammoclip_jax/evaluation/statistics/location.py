"""Means, medians and ratios of values."""

from typing import Any

import numpy as np

from mammoclip_jax.evaluation.statistics.bootstrap import RESAMPLES, bootstrap, entry, given
from mammoclip_jax.evaluation.statistics.few import binomial, effective, too_few


def mean(values, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean of `values` [n]; with 0/1 values a rate, such as Recall@k or a hit rate.

    A rate of few patients, or where all are 0 or all are 1, has the exact binomial interval (see `few`).
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return entry(None, n=0, reason="nothing to score")
    if resamples and np.isin(values, (0, 1)).all():
        reason = "no interval: all are alike" if (values == values[0]).all() else too_few(patients)
        if reason:
            return given(values.mean(), binomial(values.mean(), effective(patients)), reason, n=len(values))

    def of(weights):
        return weights @ values / weights.sum(1)

    return bootstrap(values.mean(), of, patients, resamples=resamples, seed=seed)


def median(values, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Median of `values` [n]; in the resamples the weighted lower median."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return entry(None, n=0, reason="nothing to score")
    order = np.argsort(values, kind="stable")

    def of(weights):
        running = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
        return values[order][np.argmax(running >= running[:, -1:] / 2, axis=1)]

    return bootstrap(np.median(values), of, patients, resamples=resamples, seed=seed)


def ratio(above, below, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """mean(above) / mean(below) over the same items, resampled together."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    n = len(above)
    if n == 0:
        return entry(None, n=0, reason="nothing to score")
    if below.sum() == 0:
        return entry(None, n=n, reason="the baseline is 0, so there is no ratio")

    def of(weights):
        bottom = weights @ below
        return np.divide(weights @ above, bottom, out=np.full(len(bottom), np.inf), where=bottom > 0)

    return bootstrap(above.sum() / below.sum(), of, patients, resamples=resamples, seed=seed)
