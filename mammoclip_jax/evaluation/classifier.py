"""What a trained classifier is worth: its probabilities of images, breasts or exams against their labels."""

import json

import numpy as np
import pandas as pd

from mammoclip_jax.data.labelled import UNITS, Target, joined
from mammoclip_jax.evaluation import classification as scores_of
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import CHUNK, LEVELS, chunks, first_rows, read, select
from mammoclip_jax.evaluation.features import UNITS as GROUPS
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.names import check_name



def classification(model, dataset, *, split: str = "test", label: str | None = None, unit: str | None = None,
                   patients: int | None = None, resamples: int = statistics.RESAMPLES, seed: int = 0) -> Result:
    """Metrics of every label of a classifier, or of its classes, and a table of all predictions.

    Args:
        label: whose values the model's labels are; "": each is a yes/no label. None: what the model was trained on.
        unit: that is scored at once, "image", "breast" or "exam". None: what the model was trained on. Scores of images
            are put together to breasts and exams as well.
        patients: limits the work to so many, drawn by `seed`.

    Raises:
        UserError: no such split or unit, or labels that are none of the model's.
    """
    task = model.config.task
    label, unit = (task.label if label is None else label), unit or task.unit
    check_name(unit, UNITS, "unit")
    wanted = Target(tuple(model.labels), label)
    rows, probabilities, truth = _predict(model, dataset, select(dataset.index, split, patients, seed), wanted, unit)
    # Of whole breasts there are no scores of images, of whole exams none of breasts.
    levels = tuple(level for level in LEVELS if UNITS[level.unit] >= UNITS[unit])
    options = {"resamples": resamples, "seed": seed, "levels": levels}
    if label:
        truth = np.array([None if np.isnan(t).any() else wanted.labels[t.argmax()] for t in truth], dtype=object)
        options["levels"] = tuple(level for level in levels if level.how == "mean")
        metrics = scores_of.multiclass(rows, truth, probabilities, wanted.labels, **options)
        metrics = {f"{label}/{name}": entry for name, entry in metrics.items()}
        table = rows[list(IDENTITY)].assign(label=label, truth=truth)
        tables = {"predictions": table.assign(**{f"p_{name}": p for name, p in zip(wanted.labels, probabilities.T)})}
    else:
        metrics, tables = {}, []
        for name, score, known in zip(wanted.labels, probabilities.T, truth.T):
            found = scores_of.binary(rows, known, score, **options)
            metrics |= {f"{name}/{key}": entry for key, entry in found.items()}
            tables.append(rows[list(IDENTITY)].assign(label=name, truth=known, score=score))
        tables = {"predictions": pd.concat(tables, ignore_index=True)}
    protocol = (f"Split {split}, {len(rows)} {unit}s. Probabilities of the classifier of step {model.step} for a whole "
                f"{unit} at a time. Intervals: {statistics.INTERVAL}.")
    return Result("classification", protocol, metrics, tables)


def _predict(model, dataset, positions: np.ndarray, wanted: Target, unit: str):
    """(rows [n], probabilities [n K], targets [n K]) of the images or groups of images at `positions`."""
    index = dataset.index.iloc[positions].assign(position=positions)
    targets = np.stack([wanted.of(json.loads(labels)) for labels in index["labels"]])
    if unit == "image":
        probabilities = [model.classify(read(dataset, chunk)) for chunk in chunks(positions)]
        return index.reset_index(drop=True), np.concatenate(probabilities), targets
    group, views = GROUPS[unit](index), UNITS[unit]
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    found = np.stack([joined(targets[rows], classes=bool(wanted.values_of)) for rows in members])
    shown = [index.iloc[rows].drop_duplicates(["laterality", "view"])["position"].to_numpy()[:views] for rows in members]
    there = np.stack([np.arange(views) < len(rows) for rows in shown])
    shown = np.stack([np.resize(rows, views) for rows in shown])       # a view that is not there repeats another, masked
    probabilities = []
    for start in range(0, len(shown), CHUNK // views):
        part = slice(start, start + CHUNK // views)
        images = read(dataset, shown[part].ravel())
        probabilities.append(model.classify_views(images.reshape(-1, views, *images.shape[1:]), there[part]))
    return index.iloc[first_rows(group)].reset_index(drop=True), np.concatenate(probabilities), found
