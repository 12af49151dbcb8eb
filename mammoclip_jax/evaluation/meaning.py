"""What a model's scores mean: fitted on one split, tested on another, and where scores lie among those of known sets.

The entry that comes out is stored with the model (`inference.calibration`), for `classify` and `predict`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches.labelled import Target
from mammoclip_jax.data.batches.units import UNITS
from mammoclip_jax.data.store.shards import read
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.comparison import LEVEL_NAMES
from mammoclip_jax.evaluation.evaluators.classification import NO_YES, predicted
from mammoclip_jax.evaluation.features import Level, boxes_of, chunks, label_values, select
from mammoclip_jax.evaluation.metrics import calibration
from mammoclip_jax.evaluation.metrics.classification import CLASSES, PROBABILITIES, RANKED, scored
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.evaluation.result import Result, plain
from mammoclip_jax.evaluation.suite import check_preprocessing, seen_before
from mammoclip_jax.inference.calibration import CLASSES as TOGETHER
from mammoclip_jax.inference.calibration import Reference, quantiles, to_json
from mammoclip_jax.inference.looks import found
from mammoclip_jax.inference.scorers import score_of
from mammoclip_jax.names import check_name

METHODS = ("platt", "temperature", "isotonic")
PROBABLE = ("classifier", "detector")  # kinds of models whose scores are between 0 and 1
REFERENCES = ("train", "val")


class Scores(NamedTuple):
    """The scores of a split."""

    rows: pd.DataFrame
    known: dict[str, tuple]  # {label: (truth [n], 1, 0, a class's number or NaN; scores [n] or [n, K])}


def measure(
    model,
    dataset,
    *,
    pairs: Mapping[str, Any] = {},
    fit_on: str = "val",
    test_on: str = "test",
    references: Sequence[str] = REFERENCES,
    method: str = "",
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Any], Result]:
    """(entry for `calibration_file.store`, figures on `test_on` as they are and calibrated, with all its predictions).

    Each level has a map of its own: the mean over a breast's views is another score than one view's.

    Args:
        model: a classifier, a detector, or a dual encoder with the prompts `pairs`, which looks as it will in use.
        references: splits whose scores are kept as quantiles; those that the data set lacks are left out.
        method: "platt", "temperature" or "isotonic"; "": platt, of classes temperature, which is all they can have.
        patients: of a reference split, drawn by `seed`, at most; None: all.

    Raises:
        UserError: the model was trained on patients of one of the first two splits, these are one, a split or a method is
            not there, images were prepared otherwise, or nothing could be fitted.
    """
    if model.kind not in (*PROBABLE, "dual_encoder"):
        raise UserError(
            f"scores of a {model.kind} are not calibrated; those of {', '.join(PROBABLE)}, dual_encoder are."
        )
    classes = model.kind == "classifier" and model.config.model.activation == "softmax"
    method = method or ("temperature" if classes else "platt")
    check_name(method, METHODS, "method of calibration")
    if classes and method != "temperature":
        raise UserError(f"classes sum to one, which {method} of each would undo: take method='temperature'.")
    if method == "temperature" and model.kind not in PROBABLE:
        raise UserError("a temperature needs probabilities, and cosines are none: take platt or isotonic.")
    if fit_on == test_on:
        raise UserError(f"what is fitted on split {fit_on!r} and tested there flatters: name two splits.")
    check_preprocessing(model, dataset.info["name"], dataset)
    said = [seen_before(model, dataset.info["name"], dataset, {"split": split}, False) for split in (fit_on, test_on)]
    scores = {split: _scores(model, dataset, select(dataset.index, split), pairs) for split in (fit_on, test_on)}
    for split in references:
        if split not in scores and split in set(dataset.index["split"]):
            scores[split] = _scores(model, dataset, select(dataset.index, split, patients, seed), pairs)
    unit = model.config.task.unit if model.kind == "classifier" else "image"
    levels = {name: level for name, level in LEVEL_NAMES.items() if UNITS[level.unit] >= UNITS[unit]}
    entry = model.key(pairs) | {
        "step": model.step,
        "unit": unit,
        "labels": list(model.labels or pairs),
        "classes": classes,
        "method": method,
        "dataset": dataset.info["name"],
        "dataset_fingerprint": dataset.info["fingerprint"],
        "fitted_on": _counts(fit_on, scores[fit_on].rows),
        "levels": _fitted(scores[fit_on], levels, _fit(method, model.kind in PROBABLE), classes),
        "reference": {
            split: _counts(split, scores[split].rows) | {"levels": _kept(scores[split], levels, classes, model.labels)}
            for split in references
            if split in scores
        },
    }
    metrics = _tested(scores[test_on], levels, Reference(entry), model.kind in PROBABLE, resamples, seed)
    entry["tested_on"] = _counts(test_on, scores[test_on].rows) | {"metrics": plain(metrics)}
    protocol = (
        f"Fitted on split {fit_on} ({method}, at each level), measured on split {test_on}: each metric as the scores are, and "
        f"calibrated. {said[1]} Intervals: {statistics.INTERVAL}."
    )
    return entry, Result("calibration", protocol, metrics, {"predictions": _table(scores[test_on], model.labels)})


def _scores(model, dataset, positions: np.ndarray, pairs) -> Scores:
    if model.kind == "classifier":
        wanted = Target(tuple(model.labels), model.config.task.label)
        rows, known = predicted(model, dataset, positions, wanted, model.config.task.unit)
        if wanted.values_of and wanted.labels == NO_YES:  # scored as yes/no elsewhere, and two classes here
            known = {name: (truth, np.stack([1 - p, p], axis=1)) for name, (truth, p) in known.items()}
        return Scores(rows, known)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    score, parts = score_of(model, pairs), []
    for chunk in chunks(positions):
        parts.append(found(model, read(dataset, chunk), score).scores)
    joined = {label: np.concatenate([part[label] for part in parts]) for label in parts[0]}
    return Scores(rows, {label: (_truth(model, rows, label), values) for label, values in joined.items()})


def _truth(model, rows: pd.DataFrame, label: str) -> np.ndarray:
    truth = label_values(rows, label)
    if model.kind != "detector":
        return truth
    shown = np.array([len(boxes_of(row, label)) > 0 for _, row in rows.iterrows()], bool)
    return np.where(shown, 1.0, truth)


def _fit(method: str, probable: bool) -> Callable:
    if method == "platt":
        return lambda truth, score: calibration.platt(truth, score, odds=probable)
    return getattr(calibration, method)


def _fitted(scores: Scores, levels: Mapping[str, Level], fit: Callable, classes: bool) -> dict[str, Any]:
    """{level: {label: {"map", "n", "positives"}}}; what cannot be fitted is logged, and left out."""
    out: dict[str, Any] = {}
    for name, level in levels.items():
        for label, (truth, values) in scores.known.items():
            here = scored(scores.rows, truth, values, level)
            try:
                made = fit(here.truth, here.prediction)
            except UserError as error:
                logging.warning("%s of a whole %s is not calibrated: %s", label, level.unit, error)
                continue
            counts = {"n": len(here.truth)} | ({} if classes else {"positives": int(here.truth.sum())})
            out.setdefault(name, {})[TOGETHER if classes else label] = {"map": to_json(made)} | counts
    if not out:
        raise UserError("nothing can be calibrated: the split has no label with positive and negative cases.")
    return out


def _kept(scores: Scores, levels: Mapping[str, Level], classes: bool, labels) -> dict[str, Any]:
    """{level: {"n", "patients", "quantiles": {label: [...]}}} of all images, whether their truth is known or not."""
    out = {}
    for name, level in levels.items():
        own = {}
        for label, (_, values) in scores.known.items():
            here = scored(scores.rows, np.zeros(len(scores.rows)), values, level)
            columns = dict(zip(labels, here.prediction.T, strict=True)) if classes else {label: here.prediction}
            own |= {column: quantiles(each) for column, each in columns.items()}
        out[name] = {"n": len(here.rows), "patients": len(set(here.patients)), "quantiles": own}
    return out


def _tested(scores: Scores, levels, reference: Reference, probable: bool, resamples: int, seed: int) -> dict[str, Any]:
    """{"LABEL/METRIC": entry}: the order of the scores, then what depends on their values, before and after."""
    out, options = {}, {"resamples": resamples, "seed": seed}
    for name, level in levels.items():
        if level.how == "max":
            continue
        for place, (label, (truth, values)) in enumerate(scores.known.items()):
            here = scored(scores.rows, truth, values, level)
            order = {"macro_auroc": CLASSES["macro_auroc"]} if reference.classes else {"auroc": RANKED["auroc"]}
            wanted = {metric: PROBABILITIES[metric] for metric in ("brier", "ece")}
            entries = statistics.estimate(order | (wanted if probable else {}), *here[1:], **options)
            try:
                after = reference.one(label, here.prediction, name)
            except UserError as error:
                entries |= {
                    f"{m}_calibrated": statistics.entry(None, n=len(here.truth), reason=str(error)) for m in wanted
                }
            else:
                made = statistics.estimate(wanted, here.truth, after, here.patients, **options)
                entries |= {f"{metric}_calibrated": entry for metric, entry in made.items()}
            out |= {f"{label}/{metric}{level.suffix}": entry for metric, entry in entries.items()}
    return out


def _table(scores: Scores, labels) -> pd.DataFrame:
    """The predictions as they are, for `compare`: the columns of `evaluation.predictions`."""
    tables = []
    for label, (truth, values) in scores.known.items():
        if values.ndim == 2:
            names = np.array([None if np.isnan(k) else labels[int(k)] for k in truth], dtype=object)
            columns = {"truth": names} | {f"p_{name}": p for name, p in zip(labels, values.T)}
        else:
            columns = {"truth": truth, "score": values}
        tables.append(scores.rows[list(IDENTITY)].assign(label=label, **columns))
    return pd.concat(tables, ignore_index=True)


def _counts(split: str, rows: pd.DataFrame) -> dict[str, Any]:
    return {"split": split, "images": len(rows), "patients": int(rows["patient"].nunique())}
