"""Two models' predictions of the same images, label by label: `statistics.paired` has the tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import LEVELS, Level
from mammoclip_jax.evaluation.metrics.classification import CLASSES, PROBABILITIES, RANKED, scored
from mammoclip_jax.evaluation.predictions import Predicted, labels
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics import Metric
from mammoclip_jax.evaluation.statistics.paired import (
    PERMUTATIONS,
    benjamini_hochberg,
    delong,
    difference,
    permutation_test,
)
from mammoclip_jax.names import check_name

METRICS = RANKED | PROBABILITIES | CLASSES
DEFAULT = ("auroc", "auprc", "macro_auroc", "accuracy", "kappa_quadratic")  # those that a label can have
LEVEL_NAMES = {
    "breast": LEVELS[0],
    "breast_max": LEVELS[1],
    "image": LEVELS[2],
    "exam": LEVELS[3],
    "exam_max": LEVELS[4],
}
_NAMED = 3  # images that an error names


def compare(
    a: pd.DataFrame,
    b: pd.DataFrame,
    *,
    metrics: tuple[str, ...] | None = None,
    level: str = "breast",
    names: tuple[str, str] = ("a", "b"),
    resamples: int = statistics.RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Result:
    """Two tables of predictions (see `predictions`) of the same images and labels, compared label by label.

    Args:
        metrics: names from METRICS; None: those of DEFAULT that a label can have.
        level: a key of LEVEL_NAMES, what is scored.
        names: of the two, for errors and the protocol.

    Returns:
        metrics "mass/auroc_difference"; the table "comparison" with a row a label and metric: a, b, difference, low,
        high, p_delong (AUROC), p_permutation, each with q after Benjamini and Hochberg over the labels of a metric, n,
        patients, positives, reason.

    Raises:
        UserError: an unknown metric or level, or tables of different images, labels or truths.
    """
    for metric in metrics or ():
        check_name(metric, METRICS, "metric to compare")
    check_name(level, LEVEL_NAMES, "level")
    options = {"resamples": resamples, "seed": seed}
    rows, entries = [], {}
    for first, second in aligned(a, b, names):
        for name, metric in metrics_of(first, metrics).items():
            row, entry = _row(name, metric, first, second, LEVEL_NAMES[level], permutations, options)
            entries[f"{first.label}/{name}_difference"] = entry
            rows.append(row)
    if not rows:
        raise UserError(
            f"none of the labels has the metrics {', '.join(metrics or ())}: yes/no labels have "
            f"{', '.join(RANKED | PROBABILITIES)}, labels with classes {', '.join(CLASSES)}."
        )
    table = pd.DataFrame(rows)
    for p in ("p_delong", "p_permutation"):
        table[p.replace("p_", "q_")] = table.groupby("metric")[p].transform(benjamini_hochberg)
    return Result("comparison", _protocol(names, level, permutations), entries, {"comparison": table})


def metrics_of(label: Predicted, wanted: tuple[str, ...] | None) -> Mapping[str, Metric]:
    """Those of the wanted metrics (None: of DEFAULT) that a label can have."""
    possible = CLASSES if label.classes else RANKED | PROBABILITIES
    return {name: possible[name] for name in wanted or DEFAULT if name in possible}


def _row(
    name: str, metric: Metric, first: Predicted, second: Predicted, level: Level, permutations: int, options: dict
) -> tuple[dict[str, Any], dict[str, Any]]:
    a, b = (scored(side.rows, side.truth, side.prediction, level) for side in (first, second))
    entry = difference(metric, a.truth, a.prediction, b.prediction, a.patients, **options)
    row = {
        "label": first.label,
        "metric": name,
        "a": None,
        "b": None,
        "difference": entry["value"],
        "low": entry["low"],
        "high": entry["high"],
        "p_delong": np.nan,
        "p_permutation": np.nan,
        "n": entry["n"],
        "patients": len(set(a.patients)),
        "positives": None if first.classes else int(a.truth.sum()),
        "reason": entry.get("reason", ""),
    }
    if entry["value"] is None:
        return row, entry
    row |= {"a": metric.point(a.truth, a.prediction), "b": metric.point(b.truth, b.prediction)}
    if name == "auroc":
        row["p_delong"] = delong(a.truth, a.prediction, b.prediction, a.patients).p
    if permutations:
        row["p_permutation"] = permutation_test(
            metric, a.truth, a.prediction, b.prediction, a.patients, permutations=permutations, seed=options["seed"]
        )
    if few := metric.few(a.truth, a.prediction, a.patients.astype(str)):
        row["reason"] = (row["reason"] or few) + ("; nor DeLong's test" if name == "auroc" else "")
        row["reason"] += "; p_permutation holds, but of so few it hardly finds anything" if permutations else ""
    return row, entry


def aligned(a: pd.DataFrame, b: pd.DataFrame, names: tuple[str, str]) -> list[tuple[Predicted, Predicted]]:
    """The labels of both tables, the images of the second in the order of the first.

    Raises:
        UserError: what differs: labels, images, patients, classes or truths.
    """
    sides = [{predicted.label: predicted for predicted in labels(table, name)} for table, name in zip((a, b), names)]
    _same(*sides, names, "labels", str)
    pairs = []
    for label, first in sides[0].items():
        second = sides[1][label]
        place = [
            {key: i for i, key in enumerate(zip(side.rows["dataset"], side.rows["image"]))} for side in (first, second)
        ]
        _same(*place, names, f"images of label {label!r}", "/".join)
        if set(first.classes) != set(second.classes):
            raise UserError(
                f"label {label!r}: {names[0]} has the classes {', '.join(first.classes) or '-'}, "
                f"{names[1]} {', '.join(second.classes) or '-'}; compare predictions of the same classes."
            )
        second = _reordered(second, [place[1][key] for key in place[0]], first.classes)
        for what, differs in (
            ("patient", (first.rows["patient"].astype(str) != second.rows["patient"].astype(str)).to_numpy()),
            ("truth", ~np.isclose(first.truth, second.truth, equal_nan=True)),
        ):
            if differs.any():
                image = first.rows["image"][differs.argmax()]
                raise UserError(
                    f"label {label!r}: the {what} of {differs.sum()} images differs between {names[0]} and "
                    f"{names[1]}, first {image!r}. Evaluate both on the same prepared data set."
                )
        pairs.append((first, second))
    return pairs


def _same(first, second, names, what: str, text: Callable) -> None:
    """Raises UserError unless the two have the same keys."""
    for mine, others, here, there in ((first, second, *names), (second, first, *names[::-1])):
        lacking = [text(key) for key in mine if key not in others]
        if lacking:
            shown = ", ".join(lacking[:_NAMED]) + (", …" if len(lacking) > _NAMED else "")
            raise UserError(
                f"{there} lacks {len(lacking)} {what} that {here} has: {shown}. A paired comparison needs "
                "the same images in both: evaluate both models on the same data set and split."
            )


def _reordered(side: Predicted, order: list[int], classes: tuple[str, ...]) -> Predicted:
    """`side` in another order of images, and of classes."""
    truth, prediction = side.truth[order], side.prediction[order]
    if classes != side.classes:
        column = np.array([side.classes.index(name) for name in classes])
        prediction = prediction[:, column]
        truth = np.array([np.nan if np.isnan(t) else classes.index(side.classes[int(t)]) for t in truth])
    return side._replace(
        rows=side.rows.iloc[order].reset_index(drop=True), truth=truth, prediction=prediction, classes=classes
    )


def _protocol(names, level: str, permutations: int) -> str:
    return (
        f"a: {names[0]}; b: {names[1]}. Level {level}. difference: a minus b; its interval: {statistics.INTERVAL}, "
        "the same resamples for both. p_delong: DeLong's test for clustered data (Obuchowski 1997), the patients "
        f"being the clusters. p_permutation: {permutations} exchanges of the models, patient by patient; of "
        "ranks for metrics of the order. Of few patients there is only the last, see reason. q: after Benjamini "
        "and Hochberg over the labels of a metric."
    )
