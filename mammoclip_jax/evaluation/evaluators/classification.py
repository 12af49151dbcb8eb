"""What a trained classifier is worth: its probabilities of images, breasts or exams against their labels."""

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.batches.labelled import Target, joined
from mammoclip_jax.data.batches.units import GROUPS, UNITS
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import CHUNK, LEVELS, chunks, first_rows, read, select
from mammoclip_jax.evaluation.metrics import calibration
from mammoclip_jax.evaluation.metrics import classification as scores_of
from mammoclip_jax.evaluation.metrics.classification import scored
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.names import check_name

# What is scored, of models whose scores are no probabilities: their metrics are those of the order alone.
RANKED = {"attributes": "Scores, (1 + cosine) / 2 of an image's highest channel, of the attributes"}
NO_YES = ("0", "1")  # classes that are scored as the yes/no label that they are


def classification(
    model,
    dataset,
    *,
    split: str = "test",
    label: str | None = None,
    unit: str | None = None,
    choose_on: str = "",
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """Metrics of every label of a classifier or of attributes, or of its classes, and a table of all predictions.

    The two classes "0" and "1" are scored as one yes/no label, by the probability of "1".

    Args:
        label: whose values the model's labels are; "": each is a yes/no label. None: what the model was trained on.
        unit: that is scored at once, "image", "breast" or "exam". None: what the model was trained on. Scores of images
            are put together to breasts and exams as well.
        choose_on: a split, such as "val", on which a threshold is chosen and probabilities are recalibrated: adds the
            metrics of `calibration.on_validation`. They have a reason and no value where the data set lacks that
            split, or where it is among what is scored.
        patients: limits the work to so many, drawn by `seed`.

    Raises:
        UserError: no such split or unit, or labels that are none of the model's.
    """
    task = model.config.task
    label, unit = (task.label if label is None else label), unit or task.unit
    check_name(unit, UNITS, "unit")
    if model.kind in RANKED and unit != "image":
        raise UserError(
            f"the scores of {model.kind} are those of images: leave unit={unit!r} out, breasts come as well."
        )
    wanted = Target(tuple(model.labels), label)
    classes = bool(label) and wanted.labels != NO_YES
    # Of whole breasts there are no scores of images, of whole exams none of breasts.
    levels = tuple(level for level in LEVELS if UNITS[level.unit] >= UNITS[unit])
    means = tuple(level for level in levels if level.how == "mean")
    options = {"resamples": resamples, "seed": seed}
    rows, known = predicted(model, dataset, select(dataset.index, split, patients, seed), wanted, unit)
    missing = _why_not(dataset, choose_on, split)
    chosen = (
        predicted(model, dataset, select(dataset.index, choose_on), wanted, unit) if choose_on and not missing else None
    )
    metrics, tables = {}, []
    for name, (truth, prediction) in known.items():
        if classes:
            entries = scores_of.multiclass(rows, truth, prediction, wanted.labels, levels=means, **options)
            names = np.array([None if np.isnan(k) else wanted.labels[int(k)] for k in truth], dtype=object)
            columns = {"truth": names} | {f"p_{name}": p for name, p in zip(wanted.labels, prediction.T)}
        else:
            entries = scores_of.binary(
                rows, truth, prediction, probabilities=model.kind not in RANKED, levels=levels, **options
            )
            columns = {"truth": truth, "score": prediction}
        for level in means if choose_on else ():
            here = scored(rows, truth, prediction, level)
            if missing:
                more = calibration.not_chosen(here, missing)
            else:
                more = calibration.on_validation(scored(chosen[0], *chosen[1][name], level), here, **options)
            entries |= {key + level.suffix: entry for key, entry in more.items()}
        metrics |= {f"{name}/{key}": entry for key, entry in entries.items()}
        tables.append(rows[list(IDENTITY)].assign(label=name, **columns))
    protocol = [
        f"Split {split}, {len(rows)} {unit}s. {RANKED.get(model.kind, 'Probabilities of the classifier')} of step "
        f"{model.step} for a whole {unit} at a time."
    ]
    if classes:
        protocol += [scores_of.OVER_CLASSES]
    if missing:
        protocol += [f"No threshold and no recalibration: {missing}"]
    elif choose_on:
        protocol += [
            f"Chosen on split {choose_on}: threshold (Youden) of the decisions, and the scaling (Platt; of classes "
            "by temperature) behind what is recalibrated."
        ]
    protocol += [f"Intervals: {statistics.INTERVAL}."]
    return Result("classification", " ".join(protocol), metrics, {"predictions": pd.concat(tables, ignore_index=True)})


def _why_not(dataset, choose_on: str, split: str) -> str:
    """Why nothing can be chosen on that split, or ""."""
    if choose_on and (choose_on == split or "all" in (choose_on, split)):
        return (
            f"what is chosen on the images that are scored flatters, and split {choose_on!r}, to choose on, is among "
            f"those of split {split!r}."
        )
    if choose_on and choose_on not in set(dataset.index["split"]):
        return f"the data set has no split {choose_on!r} to choose on."
    return ""


def predicted(model, dataset, positions: np.ndarray, wanted: Target, unit: str):
    """(rows [n] of the images or groups of images at `positions`, {label: (truth [n], prediction [n] or [n K])}).

    The truth of a label with classes is the class's number; NaN is unknown.
    """
    index = dataset.index.iloc[positions]
    targets = wanted.of_rows(index["labels"].tolist())
    if unit == "image":
        probabilities = [model.classify(read(dataset, chunk)) for chunk in chunks(positions)]
        return index.reset_index(drop=True), _by_label(wanted, targets, np.concatenate(probabilities))
    group, views, known = GROUPS[unit](index), UNITS[unit], units.views(index)
    members, truth = list(units.members(group)), joined(targets, group, classes=bool(wanted.values_of))
    chosen = [units.standing([known[row] for row in rows], views) for rows in members]
    shown = np.stack([positions[np.array(rows)[places]] for rows, (places, _) in zip(members, chosen)])
    there = np.stack([taken for _, taken in chosen])
    probabilities = []
    for start in range(0, len(shown), CHUNK // views):
        part = slice(start, start + CHUNK // views)
        images = read(dataset, shown[part].ravel())
        probabilities.append(model.classify_views(images.reshape(-1, views, *images.shape[1:]), there[part]))
    return index.iloc[first_rows(group)].reset_index(drop=True), _by_label(wanted, truth, np.concatenate(probabilities))


def _by_label(wanted: Target, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, tuple]:
    if wanted.values_of:
        number = np.where(np.isnan(targets).any(axis=1), np.nan, targets.argmax(axis=1))
        return {wanted.values_of: (number, probabilities[:, 1] if wanted.labels == NO_YES else probabilities)}
    return dict(zip(wanted.labels, zip(targets.T, probabilities.T)))


classification.choices = {"unit": UNITS}  # see options.py
