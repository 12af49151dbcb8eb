"""The test parts of all folds together: every image is scored once, by the model of the fold that tests it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import predictions, statistics
from mammoclip_jax.evaluation.metrics import classification
from mammoclip_jax.evaluation.result import Result


def pooled(folders: Sequence[Path | str], *, resamples: int = statistics.RESAMPLES, seed: int = 0) -> list[Result]:
    """Metrics over the predictions of all folds, for each result that their folders hold.

    Args:
        folders: of results, one a fold, as `result.save` writes them.

    Returns:
        A `Result` for each "data set/evaluator": the metrics of `classification`, and tables "predictions" (of all
        folds) and "folds" (the metrics of each by itself, without intervals).

    Raises:
        UserError: a folder without predictions, folds of different results, or an image in two folds.
    """
    folds = [predictions.read_all(folder) for folder in folders]
    for folder, tables in zip(folders, folds):
        if set(tables) != set(folds[0]):
            raise UserError(
                f"{folder} holds {', '.join(sorted(tables))}, and {folders[0]} "
                f"{', '.join(sorted(folds[0]))}: these are no folds of one experiment."
            )
    return [_pooled(name, [tables[name] for tables in folds], resamples, seed) for name in folds[0]]


def _pooled(name: str, tables: list[pd.DataFrame], resamples: int, seed: int) -> Result:
    whole = pd.concat(tables, ignore_index=True)
    twice = whole.duplicated(["dataset", "image", "label"])
    if twice.any():
        raise UserError(f"{name}: image {whole[twice].iloc[0]['image']!r} is tested in two folds.")
    metrics = _metrics(whole, name, resamples, seed)
    each = [
        {"fold": fold, "metric": metric, "value": entry["value"], "n": entry["n"]}
        for fold, table in enumerate(tables)
        for metric, entry in _metrics(table, name, 0, seed).items()
    ]
    protocol = (
        f"{len(tables)} folds by patient; every image scored once, by the model that was not trained on its patient; "
        "whether what it started from was, the folds' own protocols say. "
        f"Metrics over all of them together. Intervals: {statistics.INTERVAL}, with the models as they are."
    )
    if any(classes for *_, classes in predictions.labels(whole, name)):
        protocol += f" {classification.OVER_CLASSES}"
    return Result(
        name.rpartition("/")[0] or name, protocol, metrics, {"predictions": whole, "folds": pd.DataFrame(each)}
    )


def _metrics(table: pd.DataFrame, source: str, resamples: int, seed: int) -> dict:
    options, metrics = {"resamples": resamples, "seed": seed}, {}
    for label, rows, truth, prediction, classes in predictions.labels(table, source):
        if classes:
            entries = classification.multiclass(rows, truth, prediction, classes, **options)
        else:
            entries = classification.binary(rows, truth, prediction, **options)
        metrics |= {f"{label}/{metric}": entry for metric, entry in entries.items()}
    return metrics
