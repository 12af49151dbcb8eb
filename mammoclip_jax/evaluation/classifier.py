"""What a trained classifier is worth: its probabilities of images, breasts or exams against their labels."""

import json

import numpy as np
import pandas as pd

from mammoclip_jax.data.labelled import UNITS, Target, group_keys, joined
from mammoclip_jax.evaluation import classification as scores_of
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import LEVELS, chunks, read, select
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
    groups = index.groupby(group_keys(index, unit), sort=False).indices.values()
    firsts, whole, found = [], [], []
    for members in groups:
        group = index.iloc[members]
        views = group.drop_duplicates(["laterality", "view"])["position"].to_numpy()[:UNITS[unit]]
        padded = np.resize(views, UNITS[unit])
        images = read(dataset, padded)
        there = np.arange(UNITS[unit]) < len(views)
        whole.append(model.classify_views(images[None], there[None])[0])
        firsts.append(members[0])
        found.append(joined(targets[members], classes=bool(wanted.values_of)))
    return index.iloc[firsts].reset_index(drop=True), np.stack(whole), np.stack(found)
