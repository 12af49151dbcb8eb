"""Pictures of a result's predictions for the page: ROC, precision-recall, reliability, confusion, subgroups.

They are drawn from the tables `predictions*` alone, at the level of the breast, like the metrics without an ending.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics.calibration import reliability
from mammoclip_jax.evaluation.metrics.classification import Scored, scored
from mammoclip_jax.evaluation.page import curves
from mammoclip_jax.evaluation.page.plots import Plot
from mammoclip_jax.evaluation.predictions import Predicted, labels
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.subgroups import subgroups

_THRESHOLD = 0.5  # of the confusion matrix of a yes/no label: none was chosen on other data


def predicted(result: Result) -> list[Predicted]:
    """Every label of a result's tables of predictions."""
    return [label for table in _tables(result) for label in labels(table, result.name)]


def of_label(label: Predicted, probabilities: bool, resamples: int = statistics.RESAMPLES) -> Iterator[Plot]:
    """What can be drawn of a label; nothing where the truth is of one class.

    probabilities: whether a yes/no label's scores are, which reliability and confusion need.
    """
    units = scored(label.rows, label.truth, label.prediction)
    if len(set(units.truth)) < 2:
        return
    lines = _lines(label, units)
    yield _both("ROC", curves.roc, lines, resamples=resamples)
    yield _both("Precision and recall", curves.precision_recall, lines, resamples=resamples)
    if probabilities or label.classes:
        yield _both(
            "Reliability", curves.reliability_diagram, {label.label: reliability(units.truth, units.prediction)}
        )
        yield _both(
            "Confusion" if label.classes else f"Confusion at {_THRESHOLD}",
            curves.confusion_matrix,
            _confusion(label, units),
            label.classes or ("no", "yes"),
        )


def has_probabilities(result: Result, label: Predicted) -> bool:
    """Whether scores are from 0 to 1, and not zero-shot's, which are differences of cosines."""
    known = label.prediction[~np.isnan(label.prediction)]
    return "prompts" not in result.tables and bool(((known >= 0) & (known <= 1)).all())


def by_subgroup(result: Result, index: pd.DataFrame, resamples: int = statistics.RESAMPLES) -> pd.DataFrame:
    """The table of `subgroups` of all labels: AUROC, of classes accuracy; empty where no subgroup has a value."""
    parts = []
    for table in _tables(result):
        for label in labels(table, result.name):
            metric = "accuracy" if label.classes else "auroc"
            rows = table[table["label"] == label.label]
            parts.append(subgroups(rows, index, metric=metric, resamples=resamples).tables["subgroups"])
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"label": [], "by": [], "value": []})
    several = whole[(whole["by"] != "all") & whole["value"].notna()]["label"].unique()
    return whole[whole["label"].isin(several)].reset_index(drop=True)


def forest(label: str, table: pd.DataFrame) -> Plot | None:
    """The forest plot of a label's rows of `by_subgroup`; None without any."""
    rows = table[table["label"] == label]
    return _both("Subgroups", curves.forest, rows) if len(rows) else None


def _tables(result: Result) -> list[pd.DataFrame]:
    return [table for name, table in result.tables.items() if name.split("_")[0] == "predictions" and len(table)]


def _lines(label: Predicted, units: Scored) -> dict[str, curves.Scores]:
    """One line of a yes/no label; of classes one against the rest, for each that occurs."""
    if not label.classes:
        return {label.label: curves.Scores(units.truth, units.prediction, units.patients)}
    return {
        name: curves.Scores((units.truth == k).astype(int), units.prediction[:, k], units.patients)
        for k, name in enumerate(label.classes)
        if (units.truth == k).any()
    }


def _confusion(label: Predicted, units: Scored) -> np.ndarray:
    said = units.prediction.argmax(1) if label.classes else (units.prediction >= _THRESHOLD).astype(int)
    matrix = np.zeros((len(label.classes) or 2,) * 2, int)
    np.add.at(matrix, (units.truth, said), 1)
    return matrix


def _both(title: str, draw: Callable[..., bytes], *arguments, **options) -> Plot:
    return Plot(title, *(draw(*arguments, form="svg", shade=shade, **options) for shade in ("light", "dark")))
