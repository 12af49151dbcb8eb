"""From predictions to metrics, the same for zero-shot, linear probe and fine-tuning.

Each metric is measured at several levels (`features.LEVELS`), which the end of its name says: "auroc" a breast by the
mean over its views, "auroc_max" by their maximum, "auroc_image" single images, "auroc_exam" the mean of the breasts,
"auroc_exam_max" the maximum over the exam. A breast or exam is positive when any of its images is; of classes it has
the last, in their order, that its images have; averages over classes are over those that occur. Patients, (data set,
patient), are what is resampled.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches.units import GROUPS
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import LEVELS, Level, first_rows, pooled
from mammoclip_jax.evaluation.predictions import class_numbers
from mammoclip_jax.evaluation.statistics import confusion, discrimination, probability

# Names of metrics of yes/no labels: by the scores' order, by the probabilities, by decisions at a threshold.
RANKED = {
    "auroc": discrimination.AUROC,
    "auprc": discrimination.AVERAGE_PRECISION,
    "best_f1": discrimination.BEST_F1,
    "sensitivity_at_specificity_90": discrimination.at_specificity(0.9),
    "specificity_at_sensitivity_90": discrimination.at_sensitivity(0.9),
}
PROBABILITIES = {
    "pf1": probability.PROBABILISTIC_F1,
    "brier": probability.BRIER,
    "ece": probability.expected_calibration_error(),
}
DECISIONS = {
    "sensitivity": confusion.SENSITIVITY,
    "specificity": confusion.SPECIFICITY,
    "ppv": confusion.POSITIVE_PREDICTIVE_VALUE,
    "npv": confusion.NEGATIVE_PREDICTIVE_VALUE,
    "accuracy": confusion.ACCURACY,
    "balanced_accuracy": confusion.BALANCED_ACCURACY,
    "macro_f1": confusion.MACRO_F1,
    "kappa": confusion.KAPPA["unweighted"],
}
# Names of metrics of K classes; kappa_linear and kappa_quadratic are for ordered ones, as density and BI-RADS.
CLASSES = {
    "accuracy": confusion.ACCURACY,
    "balanced_accuracy": confusion.BALANCED_ACCURACY,
    "macro_f1": confusion.MACRO_F1,
    "kappa": confusion.KAPPA["unweighted"],
    "kappa_linear": confusion.KAPPA["linear"],
    "kappa_quadratic": confusion.KAPPA["quadratic"],
    "macro_auroc": discrimination.MACRO_AUROC,
    "brier": probability.BRIER,
    "ece": probability.expected_calibration_error(),
}

OVER_CLASSES = "Averages over classes are over those that occur."  # for the protocols of what calls `multiclass`


class Scored(NamedTuple):
    """What is scored at one level, where the truth is known."""

    rows: pd.DataFrame  # the first image of each unit
    truth: np.ndarray  # int [n]
    prediction: np.ndarray  # float [n] or [n, K]
    patients: np.ndarray  # str [n]


def scored(rows: pd.DataFrame, truth, prediction, level: Level = LEVELS[0]) -> Scored:
    """Images [n] pooled to the units of a level; images of unknown truth (NaN) are left out first.

    rows: with the columns dataset, patient, study, image, laterality; truth float [n]; prediction [n] or [n, K].
    """
    truth, prediction = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    known = ~np.isnan(truth)
    rows, truth, prediction = rows[known].reset_index(drop=True), truth[known], prediction[known]
    patients = (rows["dataset"].astype(str) + "/" + rows["patient"].astype(str)).to_numpy(dtype=object)
    if len(rows) and level.unit != "image":
        first = first_rows(GROUPS[level.unit](rows))
        truth, prediction = pooled(truth, rows, level.unit, "max"), pooled(prediction, rows, level.unit, level.how)
        rows, patients = rows.iloc[first].reset_index(drop=True), patients[first]
    return Scored(rows, truth.astype(int), prediction, patients)


def binary(
    rows: pd.DataFrame,
    truth,
    score,
    *,
    threshold: float | Mapping[str, float] | None = None,
    probabilities: bool = True,
    levels: tuple[Level, ...] = LEVELS,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{metric + level: entry} of a yes/no label.

    Args:
        rows: of the images [n], with the columns dataset, patient, study, image, laterality.
        truth: 1, 0 or NaN (unknown: left out) [n].
        score: the higher, the likelier [n].
        threshold: adds the metrics DECISIONS, positive being a score that reaches it; a number, or one for each
            level's suffix. `calibration.choose_threshold` finds one, on other data.
        probabilities: whether scores are probabilities, which PROBABILITIES need.
    """
    metrics, options = {}, {"resamples": resamples, "seed": seed}
    for level in levels:
        _, known, scores, patients = scored(rows, truth, score, level)
        asked = RANKED | (PROBABILITIES if probabilities else {})
        entries = statistics.estimate(asked, known, scores, patients, **options)
        cut = threshold.get(level.suffix) if isinstance(threshold, Mapping) else threshold
        if cut is not None:
            decided = confusion.at_threshold(scores, cut)
            entries |= statistics.estimate(DECISIONS, known, decided, patients, **options)
        metrics |= {name + level.suffix: entry for name, entry in entries.items()}
    return metrics


def multiclass(
    rows: pd.DataFrame,
    truth,
    probabilities,
    classes,
    *,
    levels: tuple[Level, ...] = tuple(level for level in LEVELS if level.how == "mean"),
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{metric + level: entry} of a label with K `classes`, in order.

    truth: names of classes, or their numbers from 0, [n]; None, NaN or another name: unknown, left out.
    probabilities: [n, K]; the class with the greatest is the decision, of several views by their mean.
    """
    truth = np.asarray(truth)
    numbers = truth if np.issubdtype(truth.dtype, np.number) else class_numbers(truth, classes)
    metrics = {}
    for level in levels:
        _, known, scores, patients = scored(rows, numbers, probabilities, level)
        entries = statistics.estimate(CLASSES, known, scores, patients, resamples=resamples, seed=seed)
        metrics |= {name + level.suffix: entry for name, entry in entries.items()}
    return metrics
