"""Means, medians and ratios of values."""

from typing import Any

import numpy as np

from mammoclip_jax.evaluation.statistics.bootstrap import RESAMPLES, bootstrap, entry, exact


def mean(values, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean of `values` [n]; with 0/1 values a rate, such as Recall@k or a hit rate.

    Where all are 0 or all are 1 the exact binomial bound stands in, with the number of patients as trials.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return entry(None, n=0, reason="nothing to score")
    if resamples and values[0] in (0, 1) and (values == values[0]).all():
        return exact(values[0], len(np.unique(np.asarray(patients, dtype=str))), n=len(values))

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
