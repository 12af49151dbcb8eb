"""Zero-shot classification with prompts: how much nearer is an image to "mass" than to "no mass"?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import four_views, statistics
from mammoclip_jax.evaluation.features import LEVELS, Features, label_texts, label_values, select
from mammoclip_jax.evaluation.metrics import classification
from mammoclip_jax.evaluation.predictions import IDENTITY, class_numbers
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics.discrimination import MEAN_AUROC
from mammoclip_jax.inference.prompt_files import Prompts, load, prompts_name
from mammoclip_jax.inference.prompts import class_bank, score, text_bank
from mammoclip_jax.names import check_name, suggestion

# "published": Mammo-CLIP's evaluation (breastclip/evaluator.py, lines 146 to 194).
PROTOCOLS = {
    "default": LEVELS,
    "published": tuple(level for level in LEVELS if level.unit == "image"),
    "four_views": tuple(level for level in LEVELS if level.unit == "exam"),
}


def zero_shot(
    model,
    dataset,
    *,
    split: str = "test",
    prompts: str | Mapping[str, Any] = "mammo_clip",
    labels: tuple[str, ...] | None = None,
    protocol: str = "default",
    temperature: str | float | None = None,
    macro: str = "",
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Each label of the prompt file: AUROC of those with a pair of sides, accuracy and AUROCs of those with classes.

    Args:
        labels: of the prompt file; None: all of them.
        protocol: "default"; "published": single images, softmax of raw cosines; "four_views": exams by their screening
            views, where one that lacks any of the four has no prediction.
        temperature: that cosines are divided by before the softmax over classes: a number, "none" (1), "learned" (the
            model's own), or None: learned where the model has one, else none. AUROCs of pairs and accuracies are the
            same for any.
        macro: what the mean of the AUROCs of all pairs is called, such as "five"; "": none. It is over the labels of which
            both classes occur, and its interval resamples the patients of all of them together.
        patients: limits the work to so many, drawn by `seed`.

    Metrics of pairs: "mass/auroc" (breast, mean over views), "mass/auroc_max" (breast, maximum), "mass/auroc_image",
    "mass/auroc_exam" (mean of breasts), "mass/auroc_exam_max"; of classes: "density/accuracy", "…/majority",
    "…/balanced_accuracy", "…/balanced_chance" (of always saying one class), "…/macro_auroc" at the same levels; of
    `macro`, as "five/macro_auroc", the mean over the pairs. The
    first level has all of `classification` besides. A breast or exam is positive when any of its images is; images
    whose label is unknown are left out. With "four_views" these are of the exams that have all views, beside
    "birads/no_prediction_exam" and, of classes, "birads/answered_right_exam" of all exams, and the table exams.

    Raises:
        UserError: bad prompts, a label that they do not have, or one whose values are of another kind; an unknown
            protocol or temperature.
    """
    check_name(protocol, PROTOCOLS, "protocol of zero_shot")
    asked = _only(load(prompts), labels)
    scale = scale_of(model, "none" if protocol == "published" and temperature is None else temperature)
    if protocol == "published" and scale != 1:
        raise UserError(f"temperature={temperature!r} does not go with protocol='published', which takes raw cosines.")
    positions = select(dataset.index, split, patients, seed)
    levels, rows = PROTOCOLS[protocol], dataset.index.iloc[positions].reset_index(drop=True)
    rows["missing"] = ""
    if protocol == "four_views":
        kept, rows["missing"] = four_views.views(rows)
        positions, rows = positions[kept], rows[kept].reset_index(drop=True)
    whole = (rows["missing"] == "").to_numpy()
    features = features or Features(model, dataset)
    images = features.images(positions)
    options = {"resamples": resamples, "seed": seed}
    metrics, counts, predictions, tables, answers = {}, [], [], {}, {}
    scores = score(images, text_bank(features.texts, asked.pairs))
    for label, values in scores.items():
        truth = label_values(rows, label)
        entries, row = _pair(rows, np.where(whole, truth, np.nan), values, scale, levels, options)
        metrics |= {f"{label}/{name}": entry for name, entry in entries.items()}
        answers[label] = truth, values, ()
        counts.append({"label": label} | row)
        predictions.append(rows[list(IDENTITY)].assign(label=label, truth=truth, score=values))
    if macro:
        metrics |= {
            f"{macro}/{name}": entry for name, entry in _macro(rows, scores, answers, whole, levels, options).items()
        }
    for label, (names, directions) in class_bank(features.texts, asked.classes).items():
        value = label_texts(rows, label)
        truth, other = np.where(np.isin(value, names), value, ""), sorted(set(value) - {*names, ""})
        cosines = images @ directions.T
        entries, row, confusion = _classes(
            rows, np.where(whole, truth, ""), other, cosines, names, scale, levels, options
        )
        metrics |= {f"{label}/{name}": entry for name, entry in entries.items()}
        answers[label] = class_numbers(truth, names), cosines, tuple(names)
        counts.append({"label": label} | row)
        tables[f"confusion_{label}"] = confusion
        chances = dict(zip([f"p_{name}" for name in names], softmax(scale * cosines, axis=1).T))
        tables[f"predictions_{label}"] = rows[list(IDENTITY)].assign(label=label, truth=truth, **chances)
    tables = {"labels": pd.DataFrame(counts), "prompts": _texts(asked), **tables}
    if protocol == "four_views":
        entries, tables["exams"] = four_views.outcomes(rows, answers, levels, **options)
        metrics |= entries
    if scores:
        tables |= {
            "predictions": pd.concat(predictions, ignore_index=True),
            "scores": rows[["image", "patient", "laterality", "view"]].assign(**scores),
        }
    return Result("zero_shot", _protocol(split, prompts, protocol, scale, asked), metrics, tables)


def _only(asked: Prompts, labels: tuple[str, ...] | None) -> Prompts:
    if labels is None:
        return asked
    known = (*asked.pairs, *asked.classes)
    for label in labels:
        if label not in known:
            raise UserError(f"{asked.source}: no label {label!r}.{suggestion(label, known)} Known: {', '.join(known)}.")
    return asked._replace(
        pairs={label: asked.pairs[label] for label in labels if label in asked.pairs},
        classes={label: asked.classes[label] for label in labels if label in asked.classes},
    )


def scale_of(model, temperature: str | float | None) -> float:
    """The factor on cosines, 1 / temperature."""
    learned = getattr(model, "logit_scale", None)
    if temperature is None:
        temperature = "none" if learned is None else "learned"
    if temperature == "learned":
        if learned is None:
            raise UserError("temperature='learned', but this model has no logit_scale; give a number, or 'none'.")
        return float(learned)
    if temperature == "none":
        return 1.0
    if isinstance(temperature, str) or not temperature > 0:
        raise UserError(f"temperature={temperature!r} should be 'none', 'learned' or a number above 0.")
    return 1 / float(temperature)


def _pair(rows, truth, values, scale, levels, options) -> tuple[dict[str, dict], dict[str, Any]]:
    """Metrics of a label over the images where it is known, and its row of the table of labels.

    All of `classification.binary` at the first level, AUROC at the others.
    """
    if np.isnan(truth).all():
        nothing = statistics.entry(None, n=0, reason=_absent(levels))
        return {f"auroc{level.suffix}": nothing for level in levels}, {"images": 0}
    metrics = {}
    for level in levels:
        _, known, margins, patients = classification.scored(rows, truth, values, level)
        whole = level is levels[0]
        ranked = classification.RANKED if whole else {"auroc": classification.RANKED["auroc"]}
        entries = statistics.estimate(ranked, known, margins, patients, **options)
        if whole:
            entries |= statistics.estimate(
                classification.PROBABILITIES, known, expit(scale * margins), patients, **options
            )
        metrics |= {name + level.suffix: entry for name, entry in entries.items()}
    return metrics, _counts(rows, truth, lambda known: {"positive": int(known.sum())})


def _macro(rows, scores, answers, whole, levels, options) -> dict[str, dict]:
    """{"macro_auroc" + level: entry}: the mean over the labels of which both classes are there."""
    entries = {}
    for level in levels:
        truths, stacked, patients = [], [], []
        for number, label in enumerate(scores):
            truth = np.where(whole, answers[label][0], np.nan)
            _, known, margins, owners = classification.scored(rows, truth, scores[label], level)
            if len(set(known)) == 2:
                truths.append(known)
                stacked.append(np.stack([margins, np.full(len(known), float(number))], axis=1))
                patients.append(owners)
        name = f"macro_auroc{level.suffix}"
        if not truths:
            entries[name] = statistics.entry(None, n=0, reason="no label has both classes here")
            continue
        joined = (np.concatenate(part) for part in (truths, stacked, patients))
        entries |= statistics.estimate({name: MEAN_AUROC}, *joined, **options)
    return entries


def _classes(rows, truth, other, cosines, names, scale, levels, options):
    """(metrics, row of the table of labels, confusion counts) of a label with classes.

    All of `classification.multiclass` at the first level. truth: str [n], "" unknown; other: values that are no class;
    cosines [n, C].
    """
    number = class_numbers(truth, names)
    if np.isnan(number).all():
        reason = (
            f"no image has one of the classes {', '.join(names)}, but {', '.join(other[:3])}"
            if other
            else _absent(levels)
        )
        return (
            {f"accuracy{level.suffix}": statistics.entry(None, n=0, reason=reason) for level in levels},
            {"images": 0},
            pd.DataFrame(),
        )
    metrics, confusion = {}, np.zeros((len(names), len(names)), dtype=int)
    for level in levels:
        _, right, pooled, patients = classification.scored(rows, number, cosines, level)
        chances = softmax(scale * pooled, axis=1)
        asked = classification.CLASSES
        if level is levels[0]:
            np.add.at(confusion, (right, chances.argmax(1)), 1)
        else:
            asked = {name: asked[name] for name in ("accuracy", "balanced_accuracy", "macro_auroc")}
        entries = statistics.estimate(asked, right, chances, patients, **options)
        entries["majority"] = statistics.entry(np.bincount(right).max() / len(right), n=len(right))
        entries["balanced_chance"] = statistics.entry(1 / len(set(right)), n=len(right))
        metrics |= {name + level.suffix: entry for name, entry in entries.items()}
    table = pd.DataFrame(confusion, columns=[f"said_{name}" for name in names])
    table.insert(0, "truth", names)
    counts = _counts(rows, number, lambda known: {name: int((known == i).sum()) for i, name in enumerate(names)})
    return metrics, counts | {"left_out_values": ", ".join(other)}, table


def _absent(levels) -> str:
    """Why a label cannot be scored that nothing has."""
    return f"no {'exam of four views' if levels is PROTOCOLS['four_views'] else 'image'} has this label"


def _counts(rows: pd.DataFrame, truth: np.ndarray, kinds) -> dict[str, Any]:
    """How many images, breasts, exams and patients have a known truth, and how many of each unit are of which kind."""
    counts = {"patients": len(set(classification.scored(rows, truth, truth, LEVELS[0]).patients))}
    for level in LEVELS:
        if level.how == "mean":
            known = classification.scored(rows, truth, truth, level).truth
            counts |= {f"{level.unit}s": len(known)} | {f"{kind}_{level.unit}s": n for kind, n in kinds(known).items()}
    return counts


def _texts(asked: Prompts) -> pd.DataFrame:
    """Every text that was asked: label, side (or class), text."""
    sides = {label: pair._asdict() for label, pair in asked.pairs.items()} | asked.classes
    return pd.DataFrame(
        [(label, side, text) for label, named in sides.items() for side, texts in named.items() for text in texts],
        columns=["label", "side", "text"],
    )


def _protocol(split: str, prompts, protocol: str, scale: float, asked: Prompts) -> str:
    said = [f"Split {split}, {prompts_name(prompts)}."]
    if protocol == "published":
        said += [
            "Mammo-CLIP's published protocol on this data set's images: single images, softmax of raw cosines. It "
            "is not the published table: there VinDr has a row a finding and RSNA a fold whose file was not "
            "released, here every image of the split is one row."
        ]
    if asked.pairs:
        said += [
            "Score of a pair: cosine to the positive texts minus cosine to the negative texts, each side the "
            f"normalised mean of its text embeddings; the "
            f"probability is the sigmoid of {scale:.4g} times the score."
        ]
    if asked.classes:
        said += [
            f"Classes: softmax of {scale:.4g} times the cosines to the normalised mean of each class's texts; "
            "accuracy is of the highest, majority that of always answering the commonest class; macro_auroc (one "
            "against the rest) and balanced_accuracy are means over the classes that occur, balanced_chance is that of "
            "always answering one of these. A breast or exam has the last of its images' classes in the order of the "
            "prompt file."
        ]
    if asked.pairs:
        said += ["A breast or exam is positive when any of its images is."]
    if protocol == "published":
        said += ["_image: single images."]
    elif protocol == "four_views":
        said += [
            "Exams by their screening views (L CC, L MLO, R CC, R MLO). One that lacks any has no prediction: "
            "no_prediction is the share of these, answered_right the accuracy over all exams, where they count as "
            "wrong; all else is of the exams with four views. _exam: mean of the breasts; _exam_max: maximum over an "
            "exam's images; of scores, for classes of cosines."
        ]
    else:
        said += [
            "No ending: mean over the views of a breast; _max: maximum over them; _image: single images; _exam: "
            "mean of the breasts; _exam_max: maximum over an exam's images; of scores, for classes of cosines."
        ]
    return " ".join([*said, f"Intervals: {statistics.INTERVAL}."])


zero_shot.choices = {"protocol": PROTOCOLS}  # see options.py
