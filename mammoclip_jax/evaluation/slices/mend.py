"""The repair of a classifier by the slices that were found, beside what others do, on images that chose nothing.

Every model has one threshold, chosen on validation as the classifier's own is, and one score for each image of the test
part. `erm on validation` learns from the same images as the repair but without its groups: only what the repair gains beyond
it comes from the slices.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import figures, repair
from mammoclip_jax.evaluation.slices.hypotheses import texts_of
from mammoclip_jax.evaluation.slices.repair import Ensemble, Head, Held
from mammoclip_jax.evaluation.slices.run import Findings, Options, Part, decided
from mammoclip_jax.evaluation.slices.together import Figure, measured
from mammoclip_jax.evaluation.statistics import confusion, discrimination

CLASSIFIER, REPAIRED, MEAN_HEAD = "classifier", "repaired", "repaired, mean head"
DFR, DRO = "dfr, true groups", "group dro, true groups"


class Repaired(NamedTuple):
    """What `mend` made.

    Attributes:
        heads: {model: Head} of the models that are one linear layer; MEAN_HEAD is the one to export: the mean of the
            ensemble's heads, and the repair itself where there is one slice.
        ensemble: REPAIRED: the heads of the slices `names`, mixed for each image.
        names: slices that are mended.
        validation, scores: {model: float [n]} of all images of the validation and the test part.
        thresholds: {model: float}.
        figures: model, attribute (a slice, `true_name` of the known one, "" of figures of all images), figure, value, low,
            high, n, reason, and gain, gain_low, gain_high: what it is above the classifier, on the same resamples of
            patients.
        groups: model, attribute, group, n, accuracy, low, high, reason.
        notes: what was left out, and why.
    """

    heads: dict[str, Head]
    ensemble: Ensemble
    names: tuple[str, ...]
    validation: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    thresholds: dict[str, float]
    figures: pd.DataFrame
    groups: pd.DataFrame
    notes: tuple[str, ...]


def mend(
    train: Part | None, validation: Part, test: Part, findings: Findings, options: Options = Options()
) -> Repaired:
    """Last layers by the slices that were found, and their baselines, measured on `test`.

    Args:
        train: of the classifier's own images, for the baselines that learn from them; None: these are left out.

    Raises:
        UserError: no slice was found, or none has images of all four pseudo-groups.
    """
    heads, names, notes = _own(validation, findings, options)
    pseudo = findings.attributes(validation, names)
    held = Held(validation.features, validation.truth, repair.groups(validation.truth, pseudo[:, 0]))
    learn = findings.discover
    others = {
        "erm on validation": repair.on_all(repair.erm, *held, learn, cs=options.cs),
        "group dro, pseudo-groups": repair.on_all(repair.group_dro, *held, learn, cs=options.cs),
    }
    if train is not None:
        others["erm"] = repair.erm(train.features, train.truth, held, cs=options.cs)
        others["class-balanced"] = repair.class_balanced(train.features, train.truth, held, cs=options.cs)
        others["jtt"] = repair.jtt(train.features, train.truth, held, cs=options.cs)
    if options.known:
        true = held._replace(group=repair.groups(validation.truth, known(validation, options.known)))
        others[DRO] = repair.on_all(repair.group_dro, *true, learn, cs=options.cs)
        others[DFR] = repair.balanced(*true, learn, cs=options.cs, draws=options.draws, seed=options.seed)
    ensemble = Ensemble.of(heads, _gating(findings, validation, names), options.temperature)
    linear = {MEAN_HEAD: repair.mean_head(heads), **others}

    def scored(part: Part) -> dict[str, np.ndarray]:
        mixed = expit(ensemble.logits(part.features, _gating(findings, part, names)))
        return {CLASSIFIER: part.score, REPAIRED: mixed} | {
            name: head.probabilities(part.features) for name, head in linear.items()
        }

    on_validation, scores = scored(validation), scored(test)
    thresholds = {
        name: findings.threshold
        if name == CLASSIFIER
        else decided(validation._replace(score=own), options.threshold)[1]
        for name, own in on_validation.items()
    }
    attributes = dict(zip(names, findings.attributes(test, names).T))
    if options.known:
        attributes[true_name(options.known)] = known(test, options.known)
    measured, groups = measure(test, scores, thresholds, attributes, options)
    return Repaired(linear, ensemble, names, on_validation, scores, thresholds, measured, groups, tuple(notes))


def _own(validation: Part, findings: Findings, options: Options) -> tuple[list[Head], tuple[str, ...], list[str]]:
    """Heads of the surest slices, their names, and why others have none."""
    if not findings.slices:
        raise UserError("no slice was confirmed, so there is nothing to mend: see the table of tests.")
    heads, names, notes = [], [], []
    for name in findings.slices:
        if len(heads) == options.heads:
            notes.append(f"slice {name!r} is not mended: the {options.heads} surest are")
            continue
        score, attribute = (found(validation, [name])[:, 0] for found in (findings.scores, findings.attributes))
        group = repair.groups(validation.truth, attribute)
        extremes = (score, options.extremes) if options.extremes else None
        try:
            head = repair.balanced(
                validation.features,
                validation.truth,
                group,
                findings.discover,
                cs=options.cs,
                draws=options.draws,
                extremes=extremes,
                seed=options.seed,
            )
        except UserError as error:
            notes.append(f"slice {name!r} is not mended: {error}")
            continue
        heads.append(head)
        names.append(name)
    if not heads:
        raise UserError(" ".join(notes))
    return heads, tuple(names), notes


def _gating(findings: Findings, part: Part, names) -> np.ndarray:
    """Scores [n, m] that mix the heads: of columns unknown, so that pixels alone decide."""
    scores = findings.scores(part, names)
    columns = [bool(findings.frozen[place].hypothesis.column) for place in findings.places(names)]
    return np.where(columns, np.nan, scores)


def true_name(known: str) -> str:
    """What the tables call the known attribute, which a slice may be named after."""
    return f"{known} (true)"


def known(part: Part, name: str) -> np.ndarray:
    """Float64 [n]: the column `name` of 1 and 0, NaN where unknown.

    Raises:
        UserError: there is no such column, or it holds something else.
    """
    if part.columns is None or name not in part.columns:
        there = ", ".join(() if part.columns is None else part.columns) or "there is none"
        raise UserError(f"known={name!r} is no column of the metadata: {there}.")
    texts = texts_of(part.columns[name])
    if not set(texts) <= {"0", "1", ""}:
        raise UserError(f"known={name!r} should hold 1 and 0; it holds {', '.join(sorted(set(texts))[:5])}.")
    return np.array([np.nan if text == "" else float(text) for text in texts])


def measure(test: Part, scores, thresholds, attributes, options: Options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(figures, groups) of every model, see `Repaired`.

    Args:
        scores: {model: float [n]}, CLASSIFIER among them; thresholds: {model: float}.
        attributes: {name: float [n], 1, 0 or NaN}.
    """
    truth, everything = np.asarray(test.truth).astype(int), np.ones(len(test.truth), bool)
    wanted: dict[tuple[str, str, str], Figure] = {}
    for model, own in scores.items():
        decision = (own >= thresholds[model]).astype(int)
        one_hot, right = confusion.one_hot(decision, 2), decision == truth
        above = lambda *key, model=model: None if model == CLASSIFIER else (CLASSIFIER, *key)
        for figure, (metric, prediction) in {
            "accuracy": (confusion.ACCURACY, one_hot),
            "balanced accuracy": (confusion.BALANCED_ACCURACY, one_hot),
            "auroc": (discrimination.AUROC, own),
        }.items():
            wanted[model, "", figure] = Figure(metric, truth, prediction, everything, above("", figure))
        for name, attribute in attributes.items():
            group = repair.groups(truth, attribute)
            used = figures.large_enough(group, options.least)
            key = (name, "worst group")
            wanted[model, *key] = Figure(figures.WORST_GROUP, group, right, used, above(*key))
            for k, said in enumerate(figures.GROUP_NAMES):
                wanted[model, name, said] = Figure(confusion.ACCURACY, truth, one_hot, group == k)
    found = measured(wanted, test.patients, resamples=options.resamples, seed=options.seed)
    rows = [_row(*key, entry, gain) for key, (entry, gain) in found.items() if key[2] not in figures.GROUP_NAMES]
    groups = [
        {"model": model, "attribute": name, "group": figure, "reason": "", **entry}
        for (model, name, figure), (entry, _) in found.items()
        if figure in figures.GROUP_NAMES
    ]
    return pd.DataFrame(rows), pd.DataFrame(groups).rename(columns={"value": "accuracy"})


def _row(model: str, attribute: str, figure: str, entry: dict[str, Any], gain: dict[str, Any] | None) -> dict[str, Any]:
    gain = gain or dict.fromkeys(("value", "low", "high"))
    return {
        "model": model,
        "attribute": attribute,
        "figure": figure,
        **{name: entry[name] for name in ("value", "low", "high", "n")},
        "gain": gain["value"],
        "gain_low": gain["low"],
        "gain_high": gain["high"],
        "reason": entry.get("reason", ""),
    }
