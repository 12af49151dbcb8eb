"""What is in a region? From the true boxes of findings and places of normal tissue: by texts, by a linear probe, and by
the region's size and brightness alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import softmax

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets, statistics
from mammoclip_jax.evaluation.evaluators.zero_shot import scale_of
from mammoclip_jax.evaluation.features import Features, select
from mammoclip_jax.evaluation.metrics import logistic
from mammoclip_jax.evaluation.metrics.logistic import Items, Options
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics.confusion import BALANCED_ACCURACY
from mammoclip_jax.evaluation.statistics.discrimination import AUROC, MACRO_AUROC
from mammoclip_jax.evaluation.statistics.paired import mean_of_draws
from mammoclip_jax.inference.prompts import NORMAL, class_bank, texts_of

LABELS = ("mass", "calcification")
BASELINE = "size_and_brightness"
# What the baselines know of a region: columns of `region_sets.appearance`.
SEEN = {
    BASELINE: ["log_width", "log_height", "mean", "max"],
    "size": ["log_width", "log_height"],
    "brightness": ["mean", "max"],
}


class Part(NamedTuple):
    """Regions of a split."""

    rows: pd.DataFrame  # as `region_sets` has them
    target: np.ndarray  # int [n], the place of the class
    patients: np.ndarray  # str [n]
    several: int  # boxes that are of more than one label, and left out


def region_classification(
    model,
    dataset,
    *,
    split: str = "test",
    train_split: str = "train",
    val_split: str = "val",
    labels: Sequence[str] = LABELS,
    concepts: str | Mapping[str, Sequence[str]] = "mammo",
    vectors: str | None = None,
    representations: Sequence[str] = ("stages",),
    boxes: Sequence[int] = (16,),
    draws: int = 5,
    cs: Sequence[float] = logistic.CS,
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Each region is of one of `labels` or of normal tissue; regions of several labels are left out.

    Args:
        train_split: whose regions the probes learn from; "": only the texts are asked.
        val_split: whose regions choose a probe's strength; where there are none of two classes, folds of the others do.
        labels: of boxes.
        concepts: a lexicon, or {label or "normal_tissue": prompts}; see `prompts.texts_of`.
        vectors: of `region_sets.IN_TEXT_SPACE`; None: those of the model's head of regions, without one of places.
        representations: keys of `region_sets.KINDS` that a probe is fitted on each.
        boxes: numbers of training regions of each class that it is fitted on besides, `draws` times.
        cs: strengths to choose from (scikit-learn's C).

    Metrics: "zero_shot/macro_auroc", "zero_shot/balanced_accuracy" and "zero_shot/mass/auroc" of each class, one against
    the rest; the same of "stages", "stages_16_boxes" (the mean over the draws) and so on, and of the baselines
    "size_and_brightness", "size", "brightness", "size_and_brightness_16_boxes". Of all but the baselines
    "zero_shot/macro_auroc_minus_size_and_brightness", paired, of few boxes with the baseline of as many. "chance/macro_auroc",
    "chance/balanced_accuracy".

    Raises:
        UserError: an unknown kind of vectors, no prompts for a label, no region to test or to learn from.
    """
    classes = (*labels, NORMAL)
    kind = region_sets.kind_of(model, vectors)
    if train_split == split or split == "all":
        raise UserError(
            f"region_classification learns from split {train_split!r}: test on another than split={split!r}, or set "
            "train_split='' for the texts alone."
        )
    features = features or Features(model, dataset)
    test = _part(dataset, split, labels, patients, seed)
    if not len(test.rows):
        raise UserError(
            f"split {split!r} of {dataset.path} has no box of {', '.join(labels)}: there is nothing to score."
        )
    of_kind = region_sets.vectors(model, dataset, test.rows, kind)
    texts = class_bank(features.texts, {"region": texts_of(concepts, (*labels, NORMAL))})["region"][1]
    answers = {"zero_shot": [softmax(scale_of(model, None) * of_kind @ texts.T, axis=1)]}
    counts = [_counts(split, test, classes)]
    if train_split:
        train = _part(dataset, train_split, labels, None, seed)
        val = (
            _part(dataset, val_split, labels, None, seed) if val_split in _others(dataset, split, train_split) else None
        )
        counts += [_counts(name, part, classes) for name, part in ((train_split, train), (val_split, val)) if part]
        if len(set(train.target)) < 2:
            raise UserError(f"split {train_split!r} has regions of fewer than two classes: there is nothing to learn.")
        seen = [region_sets.appearance(dataset, part.rows) if part else None for part in (train, val, test)]
        for name, columns in SEEN.items():
            inputs = [None if table is None else table[columns].to_numpy() for table in seen]
            answers |= _probes(name, inputs, (train, val, test), boxes if name == BASELINE else (), draws, cs, classes)
        for name in representations:
            inputs = [region_sets.vectors(model, dataset, part.rows, name) if part else None for part in (train, val)]
            inputs.append(of_kind if name == kind else region_sets.vectors(model, dataset, test.rows, name))
            answers |= _probes(name, inputs, (train, val, test), boxes, draws, cs, classes)
    metrics = _summary(answers, test, classes, {"resamples": resamples, "seed": seed})
    tables = {"counts": pd.DataFrame(counts), "regions": _answers(test, answers, classes)}
    return Result(
        "region_classification", _protocol(split, train_split, kind, concepts, draws, test, boxes), metrics, tables
    )


def _others(dataset, *splits: str) -> set[str]:
    return set(dataset.index["split"]) - set(splits)


def _part(dataset, split: str, labels: Sequence[str], patients: int | None, seed: int) -> Part:
    positions = select(dataset.index, split, patients, seed)
    found, several = region_sets.boxed(dataset.index, positions, labels)
    sizes = found[region_sets.BOX[2:]].to_numpy(float) - found[region_sets.BOX[:2]].to_numpy(float)
    rows = pd.concat([found, region_sets.normal(dataset, positions, labels, sizes, seed)], ignore_index=True)
    number = {name: k for k, name in enumerate((*labels, NORMAL))}
    owners = (rows["dataset"].astype(str) + "/" + rows["patient"].astype(str)).to_numpy(dtype=str)
    return Part(rows, np.array([number[label] for label in rows["label"]], int), owners, several)


def _probes(name, inputs, parts, boxes: Sequence[int], draws: int, cs, classes) -> dict[str, list[np.ndarray]]:
    """{name: probabilities [n, K] of the tested regions of each draw} of all training regions, and of few."""
    train, val, test = (part and Items(x, part.target, part.patients) for x, part in zip(inputs, parts))
    options = Options(tuple(sorted(cs)), class_weight="balanced")
    out = {name: [_fitted(train, val, test, options, classes)]}
    for count in boxes:
        chosen = [few(train.target, count, draw) for draw in range(draws)]
        out[f"{name}_{count}_boxes"] = [_fitted(train.take(each), val, test, options, classes) for each in chosen]
    return out


def _fitted(learnt: Items, val: Items | None, test: Items, options: Options, classes) -> np.ndarray:
    c = logistic.choose(learnt, len(classes), options, val).c
    return logistic.fit(learnt, len(classes), (c,), options.class_weight)[0].probabilities(test.features)


def few(target: np.ndarray, count: int, seed: int) -> np.ndarray:
    """int: places of `count` items of each class of `target` [n], or of all that a class has; of more those of fewer."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(target == k))[:count] for k in np.unique(target)]))


def _summary(answers: Mapping[str, list[np.ndarray]], test: Part, classes, options) -> dict[str, dict[str, Any]]:
    metrics = {}
    for name, given in answers.items():
        scored = test.target, given, test.patients
        metrics[f"{name}/macro_auroc"] = mean_of_draws(MACRO_AUROC, *scored, **options)
        beside = BASELINE + name[name.rfind("_", 0, -len("_boxes")) :] if name.endswith("_boxes") else BASELINE
        if name not in SEEN and beside in answers and name != beside:
            metrics[f"{name}/macro_auroc_minus_{BASELINE}"] = mean_of_draws(
                MACRO_AUROC, *scored, base=answers[beside], **options
            )
        metrics[f"{name}/balanced_accuracy"] = mean_of_draws(BALANCED_ACCURACY, *scored, **options)
        for k, label in enumerate(classes):
            one = (test.target == k).astype(int), [each[:, k] for each in given], test.patients
            metrics[f"{name}/{label}/auroc"] = mean_of_draws(AUROC, *one, **options)
    n, there = len(test.target), len(set(test.target))
    chance = {"macro_auroc": 0.5, "balanced_accuracy": 1 / there}
    return metrics | {f"chance/{name}": statistics.entry(value, n=n) for name, value in chance.items()}


def _counts(split: str, part: Part, classes) -> dict[str, Any]:
    own = {name: int((part.target == k).sum()) for k, name in enumerate(classes)}
    return {"split": split, **own, "patients": len(set(part.patients)), "of_several_labels": part.several}


def _answers(test: Part, answers: Mapping[str, list[np.ndarray]], classes) -> pd.DataFrame:
    """A row a region: its class, and the probability of each class, the mean over the draws."""
    probabilities = {
        f"{name}_p_{label}": np.mean(given, axis=0)[:, k]
        for name, given in answers.items()
        for k, label in enumerate(classes)
    }
    return test.rows.drop(columns="position").assign(**probabilities)


def _protocol(split, train_split, kind, concepts, draws, test: Part, boxes) -> str:
    lexicon = f"the lexicon {concepts}" if isinstance(concepts, str) else "the given prompts"
    what = region_sets.IN_TEXT_SPACE[kind]
    said = [
        f"Split {split}: every true box of one of the labels alone ({test.several} of several are left out), and in each "
        "image of which all is known a region of normal tissue: of the size of one of these boxes, on the breast, over no "
        f"box. zero_shot: softmax of the cosines of the vectors of {what} to the normalised mean of each class's "
        f"prompts in {lexicon}. macro_auroc: mean of one class against the rest over the classes that occur."
    ]
    if train_split:
        of_few = (
            f" {', '.join(map(str, boxes))}_boxes: of so many training regions a class, mean of {draws} draws."
            if boxes
            else ""
        )
        said.append(
            f"All others: logistic regression (scikit-learn, L2, balanced), learnt from the same regions of split {train_split}. "
            "stages: RoIAlign's mean of the encoder's stage maps over the box; head, places, crops: vectors as zero_shot has. "
            f"size_and_brightness: width, height, mean and largest grey value of the box alone.{of_few}"
        )
    return " ".join([*said, f"Intervals: {statistics.INTERVAL}, with the fits as they are."])
