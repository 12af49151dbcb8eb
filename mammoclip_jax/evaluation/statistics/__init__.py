"""Metrics with their intervals. Patients, not images, are resampled, since a patient's images are not independent.

Every function returns an entry {"value", "low", "high", "n"} and, where there is no value or no useful interval,
"reason", which also names an interval that is not by bootstrap; `resamples=0` leaves the interval out. `bootstrap` says
how the intervals come about, `few` what stands in where patients are too few, `discrimination` holds what depends on
the order of the scores, `confusion` what depends on decisions, `probability` what depends on the probabilities
themselves, `location` means, medians and ratios.
"""

from mammoclip_jax.evaluation.statistics.bootstrap import (
    INTERVAL,
    LEVEL,
    RESAMPLES,
    Metric,
    entry,
    estimate,
    patient_weights,
)
from mammoclip_jax.evaluation.statistics.confusion import accuracy, balanced_accuracy, cohen_kappa, macro_f1
from mammoclip_jax.evaluation.statistics.discrimination import (
    auroc,
    average_precision,
    best_f1,
    macro_auroc,
    sensitivity_at_specificity,
    specificity_at_sensitivity,
)
from mammoclip_jax.evaluation.statistics.location import mean, median, ratio
from mammoclip_jax.evaluation.statistics.probability import brier, calibration_error, probabilistic_f1

__all__ = [
    "INTERVAL",
    "LEVEL",
    "RESAMPLES",
    "Metric",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "best_f1",
    "brier",
    "calibration_error",
    "cohen_kappa",
    "entry",
    "estimate",
    "macro_auroc",
    "macro_f1",
    "mean",
    "median",
    "patient_weights",
    "probabilistic_f1",
    "ratio",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
]
