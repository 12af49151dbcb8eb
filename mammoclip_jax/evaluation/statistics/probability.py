"""What depends on the probabilities themselves: calibration error, Brier score, probabilistic F1.

A prediction is the probability of the positive class [n], or of all K classes [n, K].
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from mammoclip_jax.evaluation.statistics.bootstrap import RESAMPLES, Metric, estimate
from mammoclip_jax.evaluation.statistics.discrimination import one_class, share
from mammoclip_jax.evaluation.statistics.few import beside_commonest

BINS = 15  # as Guo et al. 2017


def bin_edges(confidence: np.ndarray, bins: int = BINS, *, equal_mass: bool = False) -> np.ndarray:
    """[bins + 1] from 0 to 1: of equal width, or (nearly) as many items in each; a bin holds its lower edge."""
    if not equal_mass:
        return np.arange(bins + 1) / bins
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.r_[0.0, edges[(edges > 0) & (edges < 1)], 1.0]


def in_bins(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Number of each item's bin, int [n]; 1 itself belongs to the last."""
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, len(edges) - 2)


def confidence_and_hit(truth, prediction) -> tuple[np.ndarray, np.ndarray]:
    """What calibration compares, both [n]: of two classes the positive one's probability and whether it is the truth;
    of K classes the greatest probability and whether its class is the truth (top-label, Guo et al. 2017)."""
    if prediction.ndim == 1:
        return prediction, np.asarray(truth, dtype=np.float64)
    return prediction.max(1), (prediction.argmax(1) == truth).astype(np.float64)


def no_probability(truth, prediction) -> str:
    """Why there is no value, or ""."""
    del truth
    wrong = (prediction < -1e-6) | (prediction > 1 + 1e-6)
    return f"{wrong.sum()} scores are no probabilities between 0 and 1" if wrong.any() else ""


@cache
def expected_calibration_error(bins: int = BINS, equal_mass: bool = False) -> Metric:
    """The metric `calibration_error`."""

    def gaps(truth, prediction):
        confidence, hit = confidence_and_hit(truth, prediction)
        edges = bin_edges(confidence, bins, equal_mass=equal_mass)
        gap = np.zeros((len(hit), len(edges) - 1))
        gap[np.arange(len(hit)), in_bins(confidence, edges)] = confidence - hit
        return lambda weights: np.abs(weights @ gap).sum(1) / weights.sum(1)

    return Metric(gaps, lambda values: values, _with_ones(gaps), no_probability, biased=True, few=beside_commonest)


def _with_ones(summary) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda truth, prediction: float(summary(truth, prediction)(np.ones((1, len(truth)), dtype=np.float64))[0])


def _squares(truth, prediction):
    target = truth if prediction.ndim == 1 else np.eye(prediction.shape[1])[truth]
    squares = (prediction - target) ** 2
    squares = squares if prediction.ndim == 1 else squares.sum(1)
    return lambda weights: weights @ squares / weights.sum(1)


def _shares(truth, prediction):
    """`weights -> 2 Σ_positive p / (Σ p + positives)`, with p clipped to [0, 1]: F1 with p for the decision."""
    p, positive = np.clip(prediction, 0, 1), np.asarray(truth, dtype=np.float64)
    return lambda weights: share(
        2 * (weights @ (p * positive)),
        (weights @ p + weights @ positive) * ((weights @ positive > 0) & (weights @ (1 - positive) > 0)),
    )


BRIER = Metric(_squares, lambda values: values, _with_ones(_squares), no_probability, few=beside_commonest)
PROBABILISTIC_F1 = Metric(_shares, lambda values: values, _with_ones(_shares), one_class)


def calibration_error(
    truth,
    prediction,
    patients,
    *,
    bins: int = BINS,
    equal_mass: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Expected calibration error: Σ over the bins of n_bin / n · |mean probability - observed rate|.

    `bins` bins of equal width, or of equal mass, over the positive class's probability, or over the greatest one of K
    classes. The estimate is above 0 even for a perfectly calibrated model, the more so the more bins and the fewer
    items; the interval takes that bias into account (`bootstrap.biased_interval`).
    """
    return _one(expected_calibration_error(bins, equal_mass), truth, prediction, patients, resamples, seed)


def brier(truth, prediction, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean squared error of the probability, from 0; of K classes the sum over them, from 0 to 2 (Brier 1950)."""
    return _one(BRIER, truth, prediction, patients, resamples, seed)


def probabilistic_f1(truth, prediction, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """pF1 of the RSNA 2022 challenge (Kaggle, "probabilistic F score"; Mammo-CLIP's metrics.py, `pfbeta` with beta 1).

    F1 with probabilities, clipped to [0, 1], in place of decisions; it rewards confident scores, not only their order.
    """
    return _one(PROBABILISTIC_F1, truth, prediction, patients, resamples, seed)


def _one(metric: Metric, truth, prediction, patients, resamples, seed) -> dict[str, Any]:
    return estimate(
        {"": metric},
        np.asarray(truth).astype(int),
        np.asarray(prediction, dtype=np.float64),
        patients,
        resamples=resamples,
        seed=seed,
    )[""]
