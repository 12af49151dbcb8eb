"""Probabilities that mean what they say, and thresholds for a wanted operating point; both are learnt on other data.

Fit on validation predictions, report on test predictions: what is chosen on the labels that it is scored on flatters.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax
from sklearn.isotonic import IsotonicRegression

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics.classification import DECISIONS, Scored
from mammoclip_jax.evaluation.statistics import confusion, discrimination
from mammoclip_jax.evaluation.statistics.probability import BINS, bin_edges, confidence_and_hit, in_bins
from mammoclip_jax.inference.calibration import LEAST, Isotonic, Platt, Temperature, coordinate


def platt(truth, score, odds: bool = False) -> Platt:
    """Logistic regression of truth [n] on any score [n], with the smoothed targets of Platt 1999.

    (N+ + 1) / (N+ + 2) and 1 / (N- + 2) stand for 1 and 0, so that separable data give finite parameters.

    Args:
        odds: on the logarithm of the odds of scores that are probabilities: then what is calibrated stays as it is.

    Raises:
        UserError: one class only.
    """
    truth, score = np.asarray(truth).astype(bool), coordinate(score, odds)
    _need_both(truth, "Platt scaling")
    target = np.where(truth, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2))
    middle, spread = score.mean(), score.std() or 1.0
    x = (score - middle) / spread

    def loss(parameters):
        z = parameters[0] * x + parameters[1]
        error = expit(z) - target
        return (np.logaddexp(0, z) - target * z).mean(), np.array([(error * x).mean(), error.mean()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return Platt(float(slope / spread), float(intercept - slope * middle / spread), odds)


def isotonic(truth, score) -> Isotonic:
    """The rising function of the score [n] with the least squares to truth [n] (Zadrozny and Elkan 2002).

    Raises:
        UserError: one class only.
    """
    truth, score = np.asarray(truth).astype(bool), np.asarray(score, dtype=np.float64)
    _need_both(truth, "isotonic calibration")
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, truth)
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


def temperature(truth, probability) -> Temperature:
    """The temperature that minimises the log loss (Guo et al. 2017), between 0.01 and 100.

    truth: 0 or 1 with probability [n] of the positive class, or int [n] with probabilities [n, K].

    Raises:
        UserError: nothing to fit.
    """
    truth, p = np.asarray(truth).astype(int), np.asarray(probability, dtype=np.float64)
    if len(truth) == 0:
        raise UserError("temperature scaling has nothing to fit: give validation predictions with known truth.")
    p = np.clip(np.stack([1 - p, p], axis=1) if p.ndim == 1 else p, LEAST, 1 - LEAST)
    logits = np.log(p)

    def loss(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(truth)), truth].mean()

    return Temperature(float(np.exp(minimize_scalar(loss, bounds=np.log([0.01, 100]), method="bounded").x)))


def reliability(truth, prediction, *, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """The reliability table: low, high, n, probability (mean), rate (observed); a row a bin, NaN where it is empty.

    prediction: probability of the positive class [n], or of K classes [n, K], of which the greatest is looked at.
    """
    confidence, hit = confidence_and_hit(np.asarray(truth), np.asarray(prediction, dtype=np.float64))
    edges = bin_edges(confidence, bins, equal_mass=equal_mass) if len(hit) else bin_edges(confidence, bins)
    number = in_bins(confidence, edges)
    count = np.bincount(number, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(number, values, minlength=len(count)) / count for values in (confidence, hit)]
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": count, "probability": means[0], "rate": means[1]})


def choose_threshold(truth, score, *, sensitivity: float | None = None, specificity: float | None = None) -> float:
    """The threshold (positive: score >= threshold) for a wanted operating point, from scores [n] and truth [n].

    With `sensitivity` the highest that reaches it, with `specificity` the lowest that reaches it, with neither the one
    with the greatest sensitivity + specificity (Youden 1950), the highest at a tie. It lies half way to the next score,
    so that rounding decides nothing.

    Raises:
        UserError: one class only, or both wishes at once.
    """
    truth, score = np.asarray(truth).astype(bool), np.asarray(score, dtype=np.float64)
    _need_both(truth, "choosing a threshold")
    if sensitivity is not None and specificity is not None:
        raise UserError(
            f"a threshold reaches a sensitivity ({sensitivity}) or a specificity ({specificity}), "
            "not both: give one of them."
        )
    curve = discrimination.curve(truth, score)(np.ones((1, len(score))))
    hit = np.r_[0, curve.true_positive[0]] / truth.sum()
    alarm = np.r_[0, curve.false_positive[0]] / (~truth).sum()
    if sensitivity is not None:
        place = int(np.argmax(hit >= sensitivity - 1e-9))
    elif specificity is not None:
        place = int(np.flatnonzero(1 - alarm >= specificity - 1e-9)[-1])
    else:
        place = int(np.argmax(np.round(hit - alarm, 9)))
    steps = np.r_[np.inf, np.unique(score)[::-1], -np.inf]
    upper, lower = steps[place], steps[place + 1]  # scores of the last positive decision and the first negative one
    if np.isinf(upper):
        return float(np.nextafter(lower, np.inf))
    if np.isinf(lower):
        return float(upper)
    middle = lower + (upper - lower) / 2
    return float(middle if middle > lower else upper)


def operating_point(
    validation: tuple,
    test: tuple,
    *,
    sensitivity: float | None = None,
    specificity: float | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{metric: entry} on the test data at the threshold chosen on the validation data, and the "threshold" itself.

    Args:
        validation: (truth [n], score [n]).
        test: (truth [n], score [n], patients [n]).

    The intervals are those of the test data: the threshold counts as given.
    """
    cut = choose_threshold(*validation, sensitivity=sensitivity, specificity=specificity)
    truth, score, patients = test
    entries = statistics.estimate(
        DECISIONS,
        np.asarray(truth).astype(int),
        confusion.at_threshold(score, cut),
        patients,
        resamples=resamples,
        seed=seed,
    )
    return {"threshold": statistics.entry(cut, n=len(validation[0]))} | entries


def recalibrated(
    validation: tuple, test: tuple, method: Callable = platt, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{"ece", "brier", "ece_recalibrated", "brier_recalibrated": entry} on the test data; `method` fits on validation.

    Args:
        validation: (truth [n], prediction [n] or [n, K]).
        test: (truth, prediction, patients [n]).
        method: `platt` for any score of a yes/no label, `temperature` for probabilities.
    """
    mapped = method(*validation)
    truth, prediction, patients = test
    entries = {}
    for suffix, p in (("", np.asarray(prediction)), ("_recalibrated", mapped(prediction))):
        for name, measure in (("ece", statistics.calibration_error), ("brier", statistics.brier)):
            entries[name + suffix] = measure(truth, p, patients, resamples=resamples, seed=seed)
    return entries


def on_validation(
    validation: Scored, test: Scored, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{metric: entry} on the test data of what the validation data choose, both at the same level.

    Of a yes/no label the threshold of Youden and its decisions, and "ece_recalibrated", "brier_recalibrated" after Platt
    scaling; of classes these two after temperature scaling. What cannot be chosen has a reason.
    """
    options, classes = {"resamples": resamples, "seed": seed}, test.prediction.ndim == 2
    pairs = ((validation.truth, validation.prediction), (test.truth, test.prediction, test.patients))
    try:
        entries = recalibrated(*pairs, temperature if classes else platt, **options)
        entries = {name: entry for name, entry in entries.items() if name.endswith("_recalibrated")}
        return entries if classes else operating_point(*pairs, **options) | entries
    except UserError as error:
        return not_chosen(test, str(error))


def not_chosen(test: Scored, reason: str) -> dict[str, dict[str, Any]]:
    """The metrics of `on_validation`, each without a value, for that reason."""
    names = () if test.prediction.ndim == 2 else ("threshold", *DECISIONS)
    return dict.fromkeys(
        (*names, "ece_recalibrated", "brier_recalibrated"), statistics.entry(None, n=len(test.truth), reason=reason)
    )


def _need_both(truth: np.ndarray, what: str) -> None:
    if len(truth) == 0 or truth.all() or not truth.any():
        raise UserError(
            f"{what} needs positive and negative cases; of {len(truth)} validation cases "
            f"{int(truth.sum())} are positive. Take a larger validation split."
        )
