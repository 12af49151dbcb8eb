"""Exams of four views: one that lacks a view has no prediction, and is counted all the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import units
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import Level
from mammoclip_jax.evaluation.metrics.classification import scored

NO_PREDICTION = "no prediction"


def views(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: bool [n], whether it stands for its exam; str [n], which views its exam lacks ("R CC, R MLO").

    As in `predict`, screening views stand for an exam, or all of its images where it has none; these lack all four.
    """
    kept, missing = np.zeros(len(rows), bool), np.full(len(rows), "", dtype=object)
    images, exam = units.views(rows), units.exams(rows)
    for number in range(exam.max(initial=-1) + 1):
        places = np.flatnonzero(exam == number)
        standing = [not reason for reason in units.not_screening([images[i] for i in places])]
        kept[places] = standing if any(standing) else True
        missing[places] = ", ".join(units.missing(images[i] for i in places[standing]))
    return kept, missing


def outcomes(
    rows: pd.DataFrame, answers: Mapping[str, tuple], levels: Sequence[Level], **options
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Metrics of all exams whose label is known, and a table of them, one row an exam and label.

    Args:
        rows: of the images [n], as `metrics.classification.scored` takes them, with the column missing of `views`.
        answers: {label: (truth: a number or NaN (unknown) [n], prediction: scores [n] and (), or scores [n, K] and the
            names of the K classes)}.
        levels: of exams.

    Returns:
        ({"LABEL/no_prediction_exam": the share that lacks a view; of classes also "LABEL/answered_right" at each level:
        the share whose prediction is right, none being wrong}, table: the prediction at the first level, or
        NO_PREDICTION).
    """
    metrics, tables = {}, []
    for label, (truth, prediction, classes) in answers.items():
        for level in levels:
            exams, right, scores, patients = scored(rows, truth, prediction, level)
            lacking = (exams["missing"] != "").to_numpy()
            if classes:
                hits = ~lacking & (scores.argmax(axis=1) == right)
                metrics[f"{label}/answered_right{level.suffix}"] = statistics.mean(hits, patients, **options)
            if level is levels[0]:
                metrics[f"{label}/no_prediction{level.suffix}"] = statistics.mean(lacking, patients, **options)
                names = np.array(classes, dtype=object)
                said = names[scores.argmax(axis=1)] if classes else scores.astype(object)
                tables.append(
                    exams[["dataset", "patient", "study", "missing"]].assign(
                        label=label,
                        truth=names[right] if classes else right,
                        prediction=np.where(lacking, NO_PREDICTION, said),
                    )
                )
    return metrics, pd.concat(tables, ignore_index=True)
