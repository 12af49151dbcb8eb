"""What depends on decisions: metrics of the confusion matrix, for two classes or more.

A prediction is [n, K]: probabilities, or one-hot decisions; the class with the greatest is taken, the first at a tie.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, recall_score

from mammoclip_jax.evaluation.statistics import few
from mammoclip_jax.evaluation.statistics.bootstrap import RESAMPLES, Metric, estimate
from mammoclip_jax.evaluation.statistics.discrimination import few_classes, one_class, share


def one_hot(classes, count: int | None = None) -> np.ndarray:
    """Float [n, K] of `classes` int [n]; K is `count`, or as many as there are."""
    classes = np.asarray(classes).astype(int)
    return np.eye(count or int(classes.max(initial=-1)) + 1)[classes]


def at_threshold(scores, threshold: float) -> np.ndarray:
    """Decisions [n, 2]: positive where a score [n] reaches the threshold."""
    return one_hot(np.asarray(scores) >= threshold, 2)


def matrices(truth, prediction) -> Callable[[np.ndarray], np.ndarray]:
    """`weights [r, n] -> confusion matrices [r, K, K]`, rows the truth int [n], columns the prediction's class."""
    count = prediction.shape[1]
    cells = one_hot(np.asarray(truth).astype(int) * count + prediction.argmax(1), count * count).astype(np.float32)
    return lambda weights: (weights @ cells).astype(np.float64).reshape(len(weights), count, count)


def _parts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, truths and predictions of each class: three of [r, K]."""
    return np.diagonal(matrix, axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)


def _accuracy(matrix: np.ndarray) -> np.ndarray:
    hits, truths, _ = _parts(matrix)
    return share(hits.sum(1), truths.sum(1))


def _occurring(truth, prediction) -> Callable[[np.ndarray], tuple]:
    """`weights [r, n] -> _parts` of the classes that occur among the truths alone."""
    whole, there = matrices(truth, prediction), np.unique(truth)
    return lambda weights: tuple(part[:, there] for part in _parts(whole(weights)))


def _balanced_accuracy(parts) -> np.ndarray:
    hits, truths, _ = parts
    return share(hits, truths).mean(1)


def _macro_f1(parts) -> np.ndarray:
    hits, truths, predictions = parts
    return np.where((truths > 0).all(1), share(2 * hits, truths + predictions).mean(1), np.nan)


def _kappa(power: int, matrix: np.ndarray) -> np.ndarray:
    """1 - observed / expected disagreement; it weighs |i - j| ** power, or 1 for power 0 (Cohen 1960, 1968)."""
    _, truths, predictions = _parts(matrix)
    grid = np.arange(matrix.shape[1])
    distance = np.abs(grid[:, None] - grid) ** power if power else (grid[:, None] != grid).astype(float)
    expected = (truths[:, :, None] * predictions[:, None, :] * distance).sum((1, 2)) / matrix.sum((1, 2))
    return 1 - share((matrix * distance).sum((1, 2)), expected)


def _rate(hit: tuple[int, int], other: tuple[int, int]) -> Metric:
    """A share of two cells of the 2 x 2 matrix: hit / (hit + other)."""

    def of(matrix):
        return share(matrix[:, *hit], matrix[:, *hit] + matrix[:, *other])

    def point(truth, prediction):
        return float(of(matrices(truth, prediction)(np.ones((1, len(truth)), dtype=np.float32)))[0])

    def lacks(truth, prediction):
        undefined = "nothing is predicted so" if hit[1] == other[1] else one_class(truth, prediction)
        return undefined if np.isnan(point(truth, prediction)) else ""

    def counting(truth, prediction, patients):
        """Patients of the items below the line."""
        said = np.stack([truth, prediction.argmax(1)], axis=1)
        return patients[(said == hit).all(1) | (said == other).all(1)]

    return Metric(
        matrices,
        of,
        point,
        lacks,
        few=lambda *scored: few.too_few(counting(*scored), "that count"),
        bound=lambda *scored: few.binomial(point(*scored[:2]), few.effective(counting(*scored))),
    )


def _none_lacks(truth, prediction) -> str:
    del truth, prediction
    return ""


def _constant(truth, prediction) -> str:
    if len({*truth.tolist(), *prediction.argmax(1).tolist()}) == 1:
        return "truth and prediction are one and the same class throughout"
    return ""


def _decided(score) -> Callable[[np.ndarray, np.ndarray], float]:
    """`score` of scikit-learn on truth and decisions."""
    return lambda truth, prediction: float(score(truth, prediction.argmax(1)))


def _averaged(score) -> Callable[[np.ndarray, np.ndarray], float]:
    """`score` of scikit-learn on truth and decisions, averaged over the classes that occur."""
    return lambda truth, prediction: float(
        score(truth, prediction.argmax(1), labels=np.unique(truth), average="macro", zero_division=0)
    )


def _kappa_metric(weighting: str | None, power: int) -> Metric:
    def point(truth, prediction):
        return float(
            cohen_kappa_score(truth, prediction.argmax(1), labels=range(prediction.shape[1]), weights=weighting)
        )

    return Metric(matrices, lambda matrix: _kappa(power, matrix), point, _constant, few=few.beside_commonest)


def _rates(truth, prediction) -> np.ndarray:
    """Share of each class's items that are recognised, [K] of those that occur."""
    return recall_score(truth, prediction.argmax(1), labels=np.unique(truth), average=None, zero_division=0)


def _rates_of_few(truth, prediction, patients) -> few.Bound:
    rates = zip(np.unique(truth), _rates(truth, prediction), strict=True)
    return few.mean_of([few.binomial(rate, few.effective(patients[truth == k])) for k, rate in rates])


def _few_or_sure(truth, prediction, patients) -> str:
    """`few.rarest_class`; also where a class is recognised whole or not at all: its part of the resamples is flat."""
    sure = np.isin(_rates(truth, prediction), (0, 1)).any()
    return few.rarest_class(truth, prediction, patients) or (
        "no interval: a class is recognised whole or not at all" if sure else ""
    )


ACCURACY = Metric(
    matrices,
    _accuracy,
    _decided(accuracy_score),
    _none_lacks,
    few=lambda truth, prediction, patients: few.too_few(patients),
    bound=lambda truth, prediction, patients: few.binomial(
        accuracy_score(truth, prediction.argmax(1)), few.effective(patients)
    ),
)
BALANCED_ACCURACY = Metric(
    _occurring, _balanced_accuracy, _averaged(recall_score), few_classes, few=_few_or_sure, bound=_rates_of_few
)
MACRO_F1 = Metric(_occurring, _macro_f1, _averaged(f1_score), few_classes)
KAPPA = {
    "unweighted": _kappa_metric(None, 0),
    "linear": _kappa_metric("linear", 1),
    "quadratic": _kappa_metric("quadratic", 2),
}
SENSITIVITY, SPECIFICITY = _rate((1, 1), (1, 0)), _rate((0, 0), (0, 1))
POSITIVE_PREDICTIVE_VALUE, NEGATIVE_PREDICTIVE_VALUE = _rate((1, 1), (0, 1)), _rate((0, 0), (1, 0))


def accuracy(
    truth, predicted, patients, *, classes: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Share of right decisions; truth and predicted int [n], `classes` how many there are (by default those seen)."""
    return _one(ACCURACY, truth, predicted, patients, classes, resamples, seed)


def balanced_accuracy(
    truth, predicted, patients, *, classes: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Mean over the classes that occur of the share of one's items that are recognised; not adjusted for chance."""
    return _one(BALANCED_ACCURACY, truth, predicted, patients, classes, resamples, seed)


def macro_f1(
    truth, predicted, patients, *, classes: int | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Mean over the classes that occur of F1; a class that is never predicted has 0."""
    return _one(MACRO_F1, truth, predicted, patients, classes, resamples, seed)


def cohen_kappa(
    truth,
    predicted,
    patients,
    *,
    weighting: str = "unweighted",
    classes: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement beyond chance; `weighting` "linear" or "quadratic" weighs how far apart ordered classes are."""
    return _one(KAPPA[weighting], truth, predicted, patients, classes, resamples, seed)


def _one(metric: Metric, truth, predicted, patients, classes, resamples, seed) -> dict[str, Any]:
    truth, predicted = np.asarray(truth).astype(int), np.asarray(predicted).astype(int)
    count = classes or int(max(truth.max(initial=0), predicted.max(initial=0))) + 1
    return estimate({"": metric}, truth, one_hot(predicted, count), patients, resamples=resamples, seed=seed)[""]
