"""How well scores separate the classes: what depends on their order alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from mammoclip_jax.evaluation.statistics import few
from mammoclip_jax.evaluation.statistics.bootstrap import RESAMPLES, Metric, estimate

_SLACK = 1e-9  # of a rate that should reach a wanted one; weights are whole numbers


class Curve(NamedTuple):
    """Weight of the positive and negative items at or above each distinct score, from the highest: both [r, T]."""

    true_positive: np.ndarray
    false_positive: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """[r, 1]"""
        return self.true_positive[:, -1:]

    @property
    def negative(self) -> np.ndarray:
        """[r, 1]"""
        return self.false_positive[:, -1:]


def curve(truth, score) -> Callable[[np.ndarray], Curve]:
    """`weights [r, n] -> Curve` for truth [n] of 0 and 1 and score [n], higher for 1."""
    score = np.asarray(score, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    positive = np.asarray(truth).astype(bool)[order]
    ends = np.flatnonzero(np.r_[np.diff(score[order]) < 0, True])  # the last item of each distinct score

    def of(weights: np.ndarray) -> Curve:
        weights = weights[:, order]
        return Curve(
            *(
                np.cumsum(np.where(side, weights, 0), axis=1, dtype=np.float64)[:, ends]
                for side in (positive, ~positive)
            )
        )

    return of


def one_class(truth, score) -> str:
    """Why a metric of two classes has no value, or ""."""
    del score
    truth = np.asarray(truth).astype(bool)
    if truth.all() or not truth.any():
        return f"all {len(truth)} are {'positive' if truth[0] else 'negative'}: both classes are needed"
    return ""


def share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def _area(counts: Curve) -> np.ndarray:
    """Area under the ROC curve by trapezoids, so that tied pairs count half."""
    tp, fp = counts
    won = (np.diff(fp, axis=1, prepend=0) * (tp - np.diff(tp, axis=1, prepend=0) / 2)).sum(1)
    return share(won, (counts.positive * counts.negative)[:, 0])


def _average_precision(counts: Curve) -> np.ndarray:
    """Sum of precision times the step in recall, as `sklearn.metrics.average_precision_score`; no interpolation."""
    tp, fp = counts
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)
    both = counts.negative[:, 0] > 0
    return np.where(both, share((np.diff(tp, axis=1, prepend=0) * precision).sum(1), counts.positive[:, 0]), np.nan)


def _sensitivity_at(specificity: float, counts: Curve) -> np.ndarray:
    allowed = counts.false_positive <= (1 - specificity + _SLACK) * counts.negative
    best = np.where(allowed, counts.true_positive, 0).max(1)
    return np.where(counts.negative[:, 0] > 0, share(best, counts.positive[:, 0]), np.nan)


def _specificity_at(sensitivity: float, counts: Curve) -> np.ndarray:
    enough = counts.true_positive >= (sensitivity - _SLACK) * counts.positive
    fewest = np.where(enough, counts.false_positive, np.inf).min(1)
    return np.where(counts.positive[:, 0] > 0, 1 - share(fewest, counts.negative[:, 0]), np.nan)


def _best_f1(counts: Curve) -> np.ndarray:
    tp, fp = counts
    best = (2 * tp / np.maximum(tp + fp + counts.positive, 1)).max(1)
    return np.where((counts.positive > 0)[:, 0] & (counts.negative > 0)[:, 0], best, np.nan)


def _point_sensitivity(specificity: float, truth, score) -> float:
    false_positive, sensitivity, _ = roc_curve(truth, score, drop_intermediate=False)
    return float(sensitivity[1 - false_positive >= specificity - _SLACK].max())


def _point_specificity(wanted: float, truth, score) -> float:
    false_positive, sensitivity, _ = roc_curve(truth, score, drop_intermediate=False)
    return float(1 - false_positive[sensitivity >= wanted - _SLACK].min())


def _point_best_f1(truth, score) -> float:
    precision, recall, _ = precision_recall_curve(truth, score)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def _metric(of, point, **of_few) -> Metric:
    return Metric(curve, of, point, one_class, **of_few)


def _area_of_few(truth, score, patients) -> few.Bound:
    return few.area(roc_auc_score(truth, score), truth, patients)


def _operating(of, point, rate: float, sets: int) -> Metric:
    """The metric of one class where the other, `sets`, chooses the threshold by a wanted `rate`.

    `sets` needs as many patients that three are beyond the threshold, 30 for a rate of 0.9: with fewer, the best
    threshold of those at hand is too far off. The class itself needs 20: of fewer often only one or two are missed.
    """
    needs = max(few.FEW, math.ceil(3 / max(1 - rate, 0.01) - 1e-9))
    whose = ("negative", "positive")

    def short_of(truth, patients) -> str:
        return few.too_few(patients[truth == sets], whose[sets], needs)

    def short(truth, score, patients) -> str:
        del score
        return short_of(truth, patients) or few.too_few(patients[truth != sets], whose[1 - sets], 2 * few.FEW)

    def bound(truth, score, patients) -> few.Bound | None:
        if short_of(truth, patients):
            return None
        return few.binomial(point(truth, score), few.effective(patients[truth != sets]))

    return _metric(of, point, few=short, bound=bound)


AUROC = _metric(_area, roc_auc_score, bound=_area_of_few)
AVERAGE_PRECISION = _metric(_average_precision, average_precision_score)
BEST_F1 = _metric(_best_f1, _point_best_f1)


def at_specificity(specificity: float) -> Metric:
    """The metric `sensitivity_at_specificity`."""
    return _operating(partial(_sensitivity_at, specificity), partial(_point_sensitivity, specificity), specificity, 0)


def at_sensitivity(sensitivity: float) -> Metric:
    """The metric `specificity_at_sensitivity`."""
    return _operating(partial(_specificity_at, sensitivity), partial(_point_specificity, sensitivity), sensitivity, 1)


def auroc(labels, scores, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Area under the ROC curve of `scores` [n] for binary `labels` [n], with the interval over `patients` [n]."""
    return _one(AUROC, labels, scores, patients, resamples, seed)


def average_precision(labels, scores, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Area under the precision-recall curve (AUPRC) as average precision; chance is the share of positives."""
    return _one(AVERAGE_PRECISION, labels, scores, patients, resamples, seed)


def best_f1(labels, scores, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The greatest F1 over all thresholds: the best-threshold form of the RSNA challenge's pF1.

    As `pfbeta_binarized` of Mammo-CLIP's metrics.py. The threshold is chosen on the labels it is scored on, in each
    resample anew, so the value is optimistic (by 0.03 with 30 positive patients), and its interval covers 93 to 95 %.
    """
    return _one(BEST_F1, labels, scores, patients, resamples, seed)


def sensitivity_at_specificity(
    labels, scores, patients, specificity: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The greatest sensitivity of a threshold whose specificity is at least `specificity`; no interpolation.

    In each resample the threshold is chosen anew; `calibration` has thresholds chosen on other data.
    """
    return _one(at_specificity(specificity), labels, scores, patients, resamples, seed)


def specificity_at_sensitivity(
    labels, scores, patients, sensitivity: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The greatest specificity of a threshold whose sensitivity is at least `sensitivity`; no interpolation."""
    return _one(at_sensitivity(sensitivity), labels, scores, patients, resamples, seed)


def _one(metric: Metric, labels, scores, patients, resamples, seed) -> dict[str, Any]:
    scores = np.asarray(scores, dtype=np.float64)
    return estimate({"": metric}, np.asarray(labels).astype(int), scores, patients, resamples=resamples, seed=seed)[""]


def _curves(truth, probabilities):
    """`weights -> [Curve of each class that occurs against the others]` for truth int [n], probabilities [n, K]."""
    curves = [curve(truth == k, probabilities[:, k]) for k in np.unique(truth)]
    return lambda weights: [of(weights) for of in curves]


def few_classes(truth, prediction) -> str:
    """Why a mean over the classes that occur has no value, or ""; truth int [n]."""
    del prediction
    return "all are of one class" if len(np.unique(truth)) < 2 else ""


def _areas_of_few(truth, p, patients) -> few.Bound:
    return few.mean_of([_area_of_few(truth == k, p[:, k], patients) for k in np.unique(truth)])


MACRO_AUROC = Metric(
    _curves,
    lambda curves: np.mean([_area(c) for c in curves], axis=0),
    lambda truth, p: float(np.mean([roc_auc_score(truth == k, p[:, k]) for k in np.unique(truth)])),
    few_classes,
    bound=_areas_of_few,
)


# Of several yes/no labels, one below the other: truth [n] of 0 and 1, prediction [n, 2] (score, number of the label).


def _of_each(truth, prediction):
    """(rows, truth, score) of each label."""
    rows = [np.flatnonzero(prediction[:, 1] == number) for number in np.unique(prediction[:, 1])]
    return [(own, truth[own], prediction[own, 0]) for own in rows]


def _curves_of_each(truth, prediction):
    curves = [(rows, curve(own, score)) for rows, own, score in _of_each(truth, prediction)]
    return lambda weights: [of(weights[:, rows]) for rows, of in curves]


def _few_of_each(truth, prediction, patients) -> str:
    short = (few.rarest_class(own, score, patients[rows]) for rows, own, score in _of_each(truth, prediction))
    return next(filter(None, short), "")


MEAN_AUROC = Metric(
    _curves_of_each,
    lambda curves: np.mean([_area(c) for c in curves], axis=0),
    lambda truth, p: float(np.mean([roc_auc_score(own, score) for _, own, score in _of_each(truth, p)])),
    lambda truth, p: next(filter(None, (one_class(own, score) for _, own, score in _of_each(truth, p))), ""),
    few=_few_of_each,
    bound=lambda truth, p, patients: few.mean_of(
        [_area_of_few(own, score, patients[rows]) for rows, own, score in _of_each(truth, p)]
    ),
)


def macro_auroc(truth, probabilities, patients, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean over the classes that occur of the AUROC of one against all others; truth int [n], probabilities [n, K]."""
    return estimate(
        {"": MACRO_AUROC},
        np.asarray(truth),
        np.asarray(probabilities, dtype=np.float64),
        patients,
        resamples=resamples,
        seed=seed,
    )[""]
