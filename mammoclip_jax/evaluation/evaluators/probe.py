"""Linear probe: what the frozen image encoder's features say of a label.

The encoder runs in evaluation mode, once over each image; a logistic regression learns from the features kept
(logistic.py). Mammo-CLIP's published probe is another thing: its encoder's batch statistics move while the head is
trained. Here a result depends on no batch size.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data import subsets
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import LEVELS, Features, label_texts, select
from mammoclip_jax.evaluation.metrics import classification, logistic
from mammoclip_jax.evaluation.metrics.logistic import Items, Options
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.names import suggestion
from mammoclip_jax.progress import Bar

MOST_CLASSES = 20
# Classes in an order that does not follow from their names: mini-MIAS's fatty, fatty-glandular, dense-glandular.
_ORDERS = (("F", "G", "D"),)
_IMAGES = tuple(level for level in LEVELS if level.unit == "image")
# Of parts of the training patients, and in the table of draws, by whether the label has classes.
_SHOWN = {
    False: ("auroc", "auroc_image", "auroc_exam", "auprc"),
    True: ("macro_auroc", "macro_auroc_image", "macro_auroc_exam", "accuracy", "balanced_accuracy"),
}


class Task(NamedTuple):
    """A label of the images where it is known."""

    label: str
    classes: tuple[str, ...]  # K names, in order; () for a yes/no label, whose K is 2
    rows: pd.DataFrame  # of the index
    items: Items
    part: np.ndarray  # str [n]: "train", "val", "test"; "" where folds divide the images

    @property
    def count(self) -> int:
        return len(self.classes) or 2


class Setting(NamedTuple):
    """How much of the training part is learnt from."""

    name: str  # "100 %", "10 %", "4 shots"
    draw: Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # (patients, classes, seed) -> bool [n]
    whole: bool = False


class Draw(NamedTuple):
    """What one seed gave: probabilities [n, K], NaN where an image is not tested, and a row for each fit."""

    seed: int
    probabilities: np.ndarray
    fits: list[dict[str, Any]]


def linear_probe(
    model,
    dataset,
    *,
    label: str | Sequence[str] = "",
    split: str = "test",
    train_split: str = "train",
    val_split: str = "val",
    folds: int = 0,
    fractions: Sequence[float] = (1.0,),
    shots: Sequence[int] = (),
    seeds: Sequence[int] = (0, 1, 2),
    representation: str = "pooled",
    cs: Sequence[float] = logistic.CS,
    choose_by: str = "auroc",
    class_weight: str | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Logistic regression on frozen features, for each label by itself.

    Metrics are those of `classification`: "cancer/auroc", "density/macro_auroc", ...; of a part of the training
    patients "cancer at 10 %/auroc" and "cancer at 4 shots/auroc", the mean over `seeds`. Tables: "draws" (every seed),
    "fractions" (mean and sd over seeds), "fits" (every regression, its C, its value on its own test images),
    "predictions".

    Args:
        model: of any kind in `inference.loading.KINDS`.
        label: a name or several, of the data set's labels. One that holds 0 and 1 is a yes/no label, any other has its
            values as classes. Images where it is unknown are left out.
        split: of the images that are tested; with `folds`, of all images that are used.
        val_split: chooses C; where it has none of two classes, folds of the training part do.
        folds: above 0, the images are divided into so many parts by patient, stratified; each is tested once with a fit
            on the others, and C is chosen within those. `seeds` then are as many divisions, and an image's probability
            is the mean of theirs.
        fractions: of the training patients, stratified, beside all of them.
        shots: numbers of training patients of each class.
        representation: a key of `features.KINDS`.
        cs: strengths to choose from (scikit-learn's C).
        choose_by: "auroc" (of classes the mean, one against the rest) or "log_loss".
        class_weight: None or "balanced".

    Raises:
        UserError: no such label, split, fraction or representation; values that are no classes; nothing to learn from.
    """
    labels = (label,) if isinstance(label, str) else tuple(label)
    options = Options(tuple(sorted(cs)), choose_by, class_weight)
    _check(dataset, label, folds, seeds)
    logistic.check(options)
    features = features or Features(model, dataset)
    positions, part = _parts(dataset.index, split, train_split, val_split, folds)
    metrics, tables = {}, {"draws": [], "fractions": [], "fits": []}
    predicted = {}
    for name in labels:
        task = _task(dataset, name, positions, part, features, representation)
        for setting in _settings(fractions, shots):
            used = seeds if folds or not setting.whole else seeds[:1]
            with Bar(len(used), "fit", f"linear probe of {name}, {setting.name}") as bar:
                draws = []
                for one in used:
                    draws.append(_draw(task, setting, folds, one, options))
                    bar.update()
            measures = [_measure(task, draw.probabilities) for draw in draws]
            for draw, values in zip(draws, measures):
                tables["draws"].append(_line(task, setting, draw, values))
                tables["fits"] += draw.fits
            tables["fractions"] += _spread(task, setting, measures)
            if setting.whole:
                probabilities = np.mean([draw.probabilities for draw in draws], axis=0)
                values = _measure(task, probabilities, resamples=resamples, seed=seed)
                metrics |= {f"{name}/{metric}": entry for metric, entry in values.items()}
                predicted[name] = (bool(task.classes), _predictions(task, probabilities))
            else:
                metrics |= {
                    f"{name} at {setting.name}/{metric}": _mean(metric, measures)
                    for metric in _SHOWN[bool(task.classes)]
                }
    tables = {name: pd.DataFrame(lines) for name, lines in tables.items()} | _joined(predicted)
    protocol = _protocol(split, folds, seeds, representation, options)
    if any(classes for classes, _ in predicted.values()):
        protocol += f" {classification.OVER_CLASSES}"
    return Result("linear_probe", protocol, metrics, tables)


def _check(dataset, label: str | Sequence[str] = "", folds: int = 0, seeds: Sequence[int] = (0,), **others) -> None:
    known = sorted({key for text in dataset.index["labels"].unique() for key in json.loads(text)})
    for label in (label,) if isinstance(label, str) else label or ("",):
        if label not in known:
            raise UserError(
                f"linear_probe: the data set has no label {label!r}.{suggestion(label, known)} Set the "
                f"option label to one or several of: {', '.join(known)}."
            )
    if folds == 1 or folds < 0:
        raise UserError(f"linear_probe: folds={folds} divides nothing: 0 for the data set's splits, or from 2 on.")
    if not len(seeds):
        raise UserError("linear_probe: seeds is empty: give at least one number.")


def _parts(index, split, train_split, val_split, folds) -> tuple[np.ndarray, np.ndarray]:
    """(positions [n] in the index, part [n]) of the images that are used."""
    if folds:
        positions = select(index, split)
        return positions, np.full(len(positions), "")
    if split in (train_split, val_split) or split == "all":
        raise UserError(
            f"linear_probe learns from split {train_split!r} and chooses on {val_split!r}: test on another "
            f"than split={split!r}, or set folds=5 to divide the images."
        )
    wanted = {"train": train_split, "val": val_split, "test": split}
    if val_split not in set(index["split"]):
        del wanted["val"]
    parts = {part: select(index, name) for part, name in wanted.items()}
    return np.concatenate(list(parts.values())), np.repeat(list(parts), [len(p) for p in parts.values()])


def _task(dataset, label, positions, part, features, representation) -> Task:
    rows = dataset.index.iloc[positions]
    names = label_texts(rows, label)
    known = names != ""
    classes = _classes(label, set(names[known]))
    if not ((part == "train") | (part == ""))[known].any():
        raise UserError(
            f"linear_probe: no image to learn from has the label {label!r}: choose another label or train_split."
        )
    number = {name: k for k, name in enumerate(classes or ("0", "1"))}
    vectors = features.of(representation, positions[known])
    finite = np.isfinite(vectors.min(axis=1)) & np.isfinite(vectors.max(axis=1))  # no array of their size
    if not finite.all():
        raise UserError(f"linear_probe: the features of {(~finite).sum()} images are not finite: look at the weights.")
    rows = rows[known].reset_index(drop=True)
    target = np.array([number[name] for name in names[known]])
    items = Items(logistic.Part(vectors, np.arange(len(vectors))), target, rows["patient"].to_numpy().astype(str))
    return Task(label, classes, rows, items, part[known])


def _classes(label: str, names: set[str]) -> tuple[str, ...]:
    """The classes of a label with these values, in order; () for a yes/no label."""
    if names <= {"0", "1"}:
        return ()
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"label {label!r} has {len(names)} different values, such as {', '.join(sorted(names)[:3])}: "
            f"they are no classes, of which there may be {MOST_CLASSES}."
        )
    for order in _ORDERS:
        if names <= set(order):
            return tuple(name for name in order if name in names)
    return tuple(sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name)))


def _settings(fractions: Sequence[float], shots: Sequence[int]) -> Iterator[Setting]:
    yield Setting("100 %", lambda patients, target, seed: np.ones(len(target), bool), whole=True)
    for share in sorted(set(fractions) - {1.0}, reverse=True):
        yield Setting(
            f"{100 * share:g} %",
            lambda patients, target, seed, share=share: subsets.fraction(patients, target, share, seed),
        )
    for count in sorted(set(shots), reverse=True):
        yield Setting(
            f"{count} shot{'s' * (count > 1)}",
            lambda patients, target, seed, count=count: subsets.shots(patients, target, count, seed),
        )


def _draw(task: Task, setting: Setting, folds: int, seed: int, options: Options) -> Draw:
    """Fits and tests with the training patients that `seed` draws, and with its division into folds."""
    items = task.items
    probabilities, fits = np.full((len(items.target), task.count), np.nan), []
    for fold, train, val, test in _divisions(task, folds, seed):
        places = np.flatnonzero(train)
        learnt = items.take(places[setting.draw(items.patients[places], items.target[places], seed)])
        chosen = logistic.choose(learnt, task.count, options, items.take(val) if val.any() else None, seed)
        fitted = logistic.fit(learnt, task.count, (chosen.c,), options.class_weight)[0]
        probabilities[test] = fitted.probabilities(items.features[test])
        value = _measure(task, np.where(test[:, None], probabilities, np.nan), levels=_IMAGES)
        name = "macro_auroc_image" if task.classes else "auroc_image"
        fits.append(
            {
                "label": task.label,
                "training": setting.name,
                "seed": seed,
                "fold": fold,
                "patients": len(np.unique(learnt.patients)),
                "images": len(learnt.target),
                "C": chosen.c,
                "chosen_on": chosen.on,
                "test_images": int(test.sum()),
                "metric": name,
                "value": value[name]["value"],
            }
        )
    return Draw(seed, probabilities, fits)


def _divisions(task: Task, folds: int, seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(fold, training, validation, test), the last three bool [n]."""
    if not folds:
        yield 0, task.part == "train", task.part == "val", task.part == "test"
        return
    fold = subsets.folds(task.items.patients, task.items.target, folds, seed)
    for k in range(folds):
        yield k, fold != k, np.zeros(len(fold), bool), fold == k


def _measure(task: Task, probabilities: np.ndarray, **options) -> dict[str, dict[str, Any]]:
    """Metrics over the images that were tested; `options` of `classification.binary`, resamples 0 unless said."""
    tested = ~np.isnan(probabilities).any(axis=1)
    rows, target, predicted = task.rows[tested].reset_index(drop=True), task.items.target[tested], probabilities[tested]
    options = {"resamples": 0} | options
    if task.classes:
        return classification.multiclass(rows, target, predicted, task.classes, **options)
    return classification.binary(rows, target, predicted[:, 1], **options)


def _mean(metric: str, measures: Sequence[Mapping[str, dict]]) -> dict[str, Any]:
    """The entry of the mean over seeds; "sd" is over them too."""
    values = [entries[metric]["value"] for entries in measures]
    n = measures[0][metric]["n"]
    if None in values:
        return statistics.entry(None, n=n, reason=measures[values.index(None)][metric].get("reason", "no value"))
    entry = statistics.entry(np.mean(values), n=n, reason=f"mean over {len(values)} draws of training patients")
    return entry | {"sd": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def _line(task: Task, setting: Setting, draw: Draw, values: Mapping[str, dict]) -> dict[str, Any]:
    """A row of the table of draws; with folds, patients and images are means over them."""
    fits = pd.DataFrame(draw.fits)
    shown = {metric: values[metric]["value"] for metric in _SHOWN[bool(task.classes)]}
    return {
        "label": task.label,
        "training": setting.name,
        "seed": draw.seed,
        "patients": fits["patients"].mean(),
        "images": fits["images"].mean(),
        "C": " ".join(f"{c:g}" for c in fits["C"]),
    } | shown


def _spread(task: Task, setting: Setting, measures: Sequence[Mapping[str, dict]]) -> list[dict[str, Any]]:
    lines = []
    for metric in _SHOWN[bool(task.classes)]:
        entry = _mean(metric, measures)
        lines.append(
            {
                "label": task.label,
                "training": setting.name,
                "metric": metric,
                "seeds": len(measures),
                "mean": entry["value"],
                "sd": entry.get("sd"),
            }
        )
    return lines


def _predictions(task: Task, probabilities: np.ndarray) -> pd.DataFrame:
    tested = ~np.isnan(probabilities).any(axis=1)
    table = task.rows.loc[tested, list(IDENTITY)].assign(label=task.label)
    target, predicted = task.items.target[tested], probabilities[tested]
    if not task.classes:
        return table.assign(truth=target, score=predicted[:, 1])
    columns = {f"p_{name}": predicted[:, k] for k, name in enumerate(task.classes)}
    return table.assign(truth=np.array(task.classes)[target], **columns)


def _joined(predicted: Mapping[str, tuple[bool, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """The tables of predictions: of all yes/no labels in one; classes in one of their own, as their columns differ."""
    flags = [table for classes, table in predicted.values() if not classes]
    tables = {"predictions": pd.concat(flags, ignore_index=True)} if flags else {}
    alone = len(predicted) == 1
    return tables | {
        "predictions" if alone else f"predictions_{label}": table
        for label, (classes, table) in predicted.items()
        if classes
    }


def _protocol(split: str, folds: int, seeds: Sequence[int], representation: str, options: Options) -> str:
    weights = f", class_weight {options.class_weight}" if options.class_weight else ""
    by = "log loss" if options.choose_by == "log_loss" else "AUROC"
    how = (
        f"{folds} folds by patient, stratified, of split {split}, divided {len(seeds)} times; an image's "
        "probability is the mean of the fits that did not see its patient; C by inner folds"
        if folds
        else f"Tested on split {split}; C by the validation split, or by inner folds where it has none of two classes"
    )
    return (
        f"Encoder frozen, in evaluation mode; features: {representation}, standardised on the training part; "
        f"logistic regression (scikit-learn, L2{weights}). {how}, by {by}, of "
        f"{', '.join(f'{c:g}' for c in options.cs)}. Parts of the training patients are drawn stratified, by "
        f"patient, and their values are means over seeds {', '.join(map(str, seeds))}; the validation split is "
        f"used whole. Intervals: {statistics.INTERVAL}, with the fits as they are."
    )


linear_probe.check_data = _check  # see options.py
