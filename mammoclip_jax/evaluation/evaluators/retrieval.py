"""Image↔text retrieval between breasts, or images, and their reports, with reports that say the same as one."""

import json
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches.units import breasts
from mammoclip_jax.data.text import duplicates, label_values
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import Features, aggregate, first_rows, label_texts, select
from mammoclip_jax.evaluation.metrics import ranking
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference.prompts import unit
from mammoclip_jax.names import check_name

_WAYS = ("image_to_text", "text_to_image")
_UNITS = ("breast", "image")
FINDINGS = "findings"  # the label of `label_classes` that is the set of all findings


def retrieval(
    model,
    dataset,
    *,
    split: str = "test",
    ks: tuple[int, ...] = (1, 5, 10),
    units: str = "breast",
    near: float = 1.0,
    labels: tuple[str, ...] = (FINDINGS,),
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """Recall@k and ranks both ways, and how often the first k items agree with the query in a label.

    Args:
        units: "breast" (the mean over its views) or "image".
        near: TF-IDF cosine from which on two texts count as the same (`data.text.duplicates.near`); 1: only texts that
            are alike but for case, white space and punctuation at the end of words.
        labels: of Precision@k; "findings" is the set of all findings that are there. () leaves it out.

    Metrics: "image_to_text/recall@1", "…/median_rank", "…/mean_rank", "text_to_image/…", beside "…/chance@1",
    "…/chance_rank", "image_to_text/commonest@1"; "text_to_image/findings/precision@1", "image_to_text/…",
    "image_to_image/…", beside "…/precision_chance".

    Raises:
        UserError: unknown `units`, `near` out of (0, 1], or a k below 1.
    """
    check_name(units, _UNITS, "unit of retrieval")
    if not 0 < near <= 1 or min(ks) < 1:
        raise UserError(f"retrieval takes near in (0, 1] and ks from 1 on, not near={near}, ks={tuple(ks)}.")
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    has_text = rows["texts"].map(len).to_numpy() > 0
    positions, rows = positions[has_text], rows[has_text].reset_index(drop=True)
    protocol = _protocol(split, units, near, labels)
    if len(rows) == 0:
        nothing = statistics.entry(None, n=0, reason="no image has a text")
        return Result("retrieval", protocol, {f"{way}/recall@{k}": nothing for way in _WAYS for k in ks})
    features = features or Features(model, dataset)
    group = breasts(rows) if units == "breast" else np.arange(len(rows))
    first = first_rows(group)
    images = unit(aggregate(features.images(positions), group, "mean"))
    texts, text_of = merge([str(t[0]) for t in rows["texts"].iloc[first]])
    embedded = features.texts.embed_text(texts)
    said = duplicates.near(texts, near) if near < 1 else np.arange(len(texts))
    patient = rows["patient"].to_numpy()[first]
    # A text that several breasts have asks once, for the patient where it first occurs.
    sides = {
        "image_to_text": (images, embedded, said[text_of], said, patient),
        "text_to_image": (embedded, images, said, said[text_of], patient[first_rows(text_of)]),
    }
    options = {"resamples": resamples, "seed": seed}
    metrics, table = {}, []
    for way, side in sides.items():
        entries = directed(*side, ks, **options)
        if way == "image_to_text":
            entries |= _commonest(said[text_of], patient, ks, options)
        metrics |= {f"{way}/{name}": entry for name, entry in entries.items()}
        table.append(
            {"direction": way, "queries": len(side[0]), "gallery": len(side[1]), "different_texts": len(set(said))}
            | {name: entry["value"] for name, entry in entries.items()}
        )
    metrics |= _precision(images, embedded[text_of], rows, group, patient, labels, ks, options)
    return Result("retrieval", protocol, metrics, {"directions": pd.DataFrame(table)})


def merge(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts (case, white space, stops aside) in order of appearance; for each text which of them it is."""
    of = duplicates.exact(texts)
    return [texts[i] for i in first_rows(of)], of


def directed(queries, gallery, query_group, gallery_group, patients, ks, **options) -> dict[str, dict[str, Any]]:
    """Metrics of one direction.

    queries [Q, D], gallery [G, D] unit norm; an item is right where its group (int [G]) is the query's (int [Q]), and
    each query has one; patients [Q], to be resampled.
    """
    stands = ranking.standing(queries, gallery, query_group, gallery_group)
    return ranks(stands, len(gallery), patients, ks, **options)


def ranks(stands, items: int, patients, ks, **options) -> dict[str, dict[str, Any]]:
    """Metrics of Q queries over so many items; `stands` as of `ranking.standing`, patients [Q]."""
    above, tied_wrong, tied_right, right = stands
    metrics = {}
    for k in ks:
        metrics[f"recall@{k}"] = statistics.mean(ranking.hit(k, above, tied_wrong, tied_right), patients, **options)
        chance = ranking.hit(k, np.zeros_like(right), items - right, right)
        metrics[f"chance@{k}"] = statistics.entry(chance.mean(), n=len(right))
    rank = ranking.first_rank(above, tied_wrong, tied_right)
    metrics["median_rank"] = statistics.median(rank, patients, **options)
    metrics["mean_rank"] = statistics.mean(rank, patients, **options)
    metrics["chance_rank"] = statistics.entry(((items + 1) / (right + 1)).mean(), n=len(right))
    return metrics


def _commonest(said: np.ndarray, patients: np.ndarray, ks, options) -> dict[str, dict]:
    """Recall of answering every image with the k commonest texts: what knowing the reports alone is worth."""
    order = np.argsort(-np.bincount(said), kind="stable")
    return {f"commonest@{k}": statistics.mean(np.isin(said, order[:k]), patients, **options) for k in ks}


def _precision(images, texts, rows, group, patient, labels, ks, options) -> dict[str, dict]:
    """Precision@k of each label: images [N, D], their texts [N, D], patient [N]; rows belong to them by `group`."""
    owner, metrics = pd.factorize(patient)[0], {}
    ways = {"image_to_text": (images, texts), "text_to_image": (texts, images), "image_to_image": (images, images)}
    for label in labels:
        names = label_classes(rows, group, label)
        known = names != ""
        classes, of = pd.factorize(names[known])[0], owner[known]
        for way, (queries, gallery) in ways.items():
            precision, chance = ranking.agreement(queries[known], gallery[known], classes, classes, of, of, tuple(ks))
            some = ~np.isnan(chance)
            if some.any():
                entries = {
                    f"precision@{k}": statistics.mean(precision[some, i], patient[known][some], **options)
                    for i, k in enumerate(ks)
                }
                entries["precision_chance"] = statistics.entry(chance[some].mean(), n=int(some.sum()))
            else:
                reason = "one patient alone has this label" if known.any() else "nothing has this label and a text"
                entries = {f"precision@{k}": statistics.entry(None, n=0, reason=reason) for k in ks}
            metrics |= {f"{way}/{label}/{name}": entry for name, entry in entries.items()}
    return metrics


def label_classes(rows: pd.DataFrame, group: np.ndarray, label: str) -> np.ndarray:
    """str [G]: the value of a label for each group of rows (int [n] in 0..G-1), "" where it is unknown.

    "findings" are those of any of the rows, "none" where some are known and none is there. Of another label, rows that
    differ make a yes/no label "1" and any other one unknown.
    """
    classes: list[set[str]] = [set() for _ in range(int(group.max()) + 1)]
    if label == FINDINGS:
        for number, labels, boxes in zip(group, rows["labels"], rows["boxes"]):
            flags = label_values.flags(json.loads(labels), json.loads(boxes))
            if any(flags[key] is not None for key in label_values.PRESENT):
                classes[number] |= {"", *(key for key in label_values.PRESENT if flags[key])}
        return np.array([(", ".join(sorted(keys - {""})) or "none") if keys else "" for keys in classes], dtype=object)
    for number, value in zip(group, label_texts(rows, label)):
        classes[number] |= {value} - {""}
    return np.array(
        ["1" if values == {"0", "1"} else values.pop() if len(values) == 1 else "" for values in classes], dtype=object
    )


def _protocol(split: str, units: str, near: float, labels) -> str:
    what = (
        "A breast's image embedding is the normalised mean over its views"
        if units == "breast"
        else "Each image stands for itself, with its breast's text"
    )
    same = (
        ""
        if near == 1
        else (
            f" Texts joined by steps of TF-IDF cosine >= {near:g} count as the same too, though "
            "each stays in the gallery."
        )
    )
    agree = (
        ""
        if not labels
        else (
            " precision@k: share of the k nearest items, none of the query's own patient, that agree with the query in the "
            "label (findings: the set of findings that are there); precision_chance: share of all such items."
        )
    )
    return (
        f"Split {split}. {what}, its text the most specific one of its report. Identical texts (case, white space "
        f"and stops aside) are merged: any {units} or text that carries the same words is a hit.{same} Text to "
        "image asks each distinct text once. Ties are broken at random, in expectation. chance: random order; "
        f"commonest: always answering with the commonest texts.{agree} Intervals: {statistics.INTERVAL} of the "
        "queries, with the gallery as it is."
    )


retrieval.choices = {"units": _UNITS}  # see options.py
