"""Which detections find a box, and the average precision of their ranking, with intervals over patients.

Every image has `truth` boxes [t, 4] and `Found` detections by falling score, all in the same pixels.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.boxes import iou
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics.bootstrap import bootstrap
from mammoclip_jax.evaluation.statistics.few import too_few

COCO_IOU = tuple(np.round(np.arange(0.5, 1, 0.05), 2))  # the mean over these is COCO's "AP"
MOST = 100  # detections of an image that count


class Found(NamedTuple):
    """The detections of one image, by falling score."""

    boxes: np.ndarray  # float64 [d, 4]
    scores: np.ndarray  # float64 [d]


class Case(NamedTuple):
    """One image."""

    patient: str
    truth: np.ndarray  # float64 [t, 4]
    found: Found


def matches(truth: np.ndarray, boxes: np.ndarray, least: float, rule: str) -> np.ndarray:
    """int [d]: the number of the truth box that each detection, taken by falling score, finds; -1 for none.

    Args:
        least: IoU from which a box is found.
        rule: "voc": a detection can only find the box that it overlaps most (the first of equals), and finds none where
            that is found already (PASCAL VOC's devkit, and Mammo-CLIP's evaluation). "coco": it finds the box that it
            overlaps most (the last of equals) among those not found yet (pycocotools).
    """
    out = np.full(len(boxes), -1)
    if not len(truth) or not len(boxes):
        return out
    overlap, taken = iou(boxes[:, None], truth), np.zeros(len(truth), bool)
    for d, row in enumerate(overlap):
        if rule == "coco":
            row = np.where(taken, -1.0, row)
            best = len(row) - 1 - int(row[::-1].argmax())
        else:
            best = int(row.argmax())
        if row[best] >= least and not taken[best]:
            out[d], taken[best] = best, True
    return out


class Ranking(NamedTuple):
    """All detections of a label by falling score, as far as average precision depends on them.

    A false positive counts for the true positives that are ranked below it, so only these places are kept. Equal scores
    are one threshold: their false positives come first, and e below then is the precision with all of them at each.
    """

    truth: np.ndarray  # [P]: boxes of each patient
    true: np.ndarray  # [P, T]: true positives of each up to and with the t-th true positive
    false: np.ndarray  # [P, T]: false positives of each up to there


def rank(cases: Sequence[Case], least: float, rule: str, patients: np.ndarray) -> Ranking:
    """The ranking of the detections of `cases`; it does not depend on the order of the images."""
    owner = owners(cases, patients)
    hits = [matches(case.truth, case.found.boxes[:MOST], least, rule) >= 0 for case in cases]
    hit = np.concatenate([np.zeros(0, bool), *hits])
    scores = np.concatenate([np.zeros(0), *(case.found.scores[:MOST] for case in cases)])
    order = np.lexsort((hit, -scores))
    hit, of = hit[order], np.repeat(owner, [len(h) for h in hits])[order]
    below = np.cumsum(hit) - hit  # number of the first true positive at or behind each detection
    truth = np.bincount(owner, [len(case.truth) for case in cases], minlength=len(patients))
    size = (len(patients), int(hit.sum()))
    return Ranking(truth, tally(of[hit], below[hit], size), tally(of[~hit], below[~hit], size))


def owners(cases: Sequence[Case], patients: np.ndarray) -> np.ndarray:
    """int [n]: the place of each image's patient in the sorted `patients`."""
    return np.searchsorted(patients, [case.patient for case in cases])


def tally(owner: np.ndarray, column: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 `size` [P, T]: how many items each owner has in the columns up to and with each; others are left out."""
    out, inside = np.zeros(size, np.float32), column < size[1]
    np.add.at(out, (owner[inside], column[inside]), 1)
    return out.cumsum(axis=1)


def average_precision(ranking: Ranking, weights: np.ndarray, rule: str) -> np.ndarray:
    """Average precision [r] with each patient counted `weights` [r, P] times; NaN where no box counts.

    With p(k) the precision at the k-th true positive and e(k) the highest p from there on, "voc" is the sum of e over
    the true positives divided by the number of boxes (all points: VOC 2010's development kit, section 3.4.1) and "coco"
    the mean of e at the recalls 0, .01, ..., 1, where it is 0 beyond the highest recall reached (pycocotools).
    """
    weights = weights.astype(np.float64)
    boxes = weights @ ranking.truth
    true, false = weights @ ranking.true, weights @ ranking.false
    precision = true / np.maximum(true + false, np.finfo(float).eps)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.maximum(boxes, 1)[:, None]
    if rule == "voc":
        value = (best * np.diff(recall, axis=1, prepend=0)).sum(1)
    else:
        points = np.linspace(0, 1, 101)
        best = np.pad(best, ((0, 0), (0, 1)))
        value = np.array([row[np.searchsorted(reached, points)].mean() for row, reached in zip(best, recall)])
    return np.where(boxes > 0, value, np.nan)


def mean_precision(rankings: Sequence[Ranking], rule: str, weights: np.ndarray) -> np.ndarray:
    """[r]: the mean of the average precisions over `rankings` of the same patients: of several thresholds or labels.

    One without a box in a resample is left out of its mean.
    """
    values = np.stack([average_precision(ranking, weights, rule) for ranking in rankings])
    there = ~np.isnan(values)
    return np.where(there.any(0), np.nansum(values, 0) / np.maximum(there.sum(0), 1), np.nan)


def entries(
    cases: Mapping[str, Sequence[Case]], ious: Sequence[float], patients: np.ndarray, *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """The metrics "LABEL/ap@IOU", "LABEL/ap_coco@IOU" and "LABEL/ap_coco@0.5:0.95" of the images of each label; and
    "map@IOU", ..., their means over the labels that have a box.

    Args:
        patients: str, sorted: of all images. The labels share their draws.
    """
    there = [label for label, images in cases.items() if any(len(case.truth) for case in images)]
    groups = {f"{label}/": [label] for label in cases} | {"m": there}
    metrics = {}
    for rule, suffix, thresholds in _kinds(ious):
        rankings = {label: [rank(cases[label], least, rule, patients) for least in thresholds] for label in there}
        for prefix, labels in groups.items():
            labels = [label for label in labels if label in there]
            chosen = [ranking for label in labels for ranking in rankings[label]]
            boxes = sum(len(case.truth) for label in labels for case in cases[label])
            metrics[prefix + suffix] = _entry(chosen, rule, boxes, patients, resamples, seed)
    return metrics


def voc(cases: Sequence[Case], least: float, patients: np.ndarray, *, resamples: int, seed: int) -> dict[str, Any]:
    """The metric "ap@IOU" of one label alone, as of `entries`."""
    boxes = sum(len(case.truth) for case in cases)
    return _entry([rank(cases, least, "voc", patients)] if boxes else [], "voc", boxes, patients, resamples, seed)


def _kinds(ious: Sequence[float]) -> Iterator[tuple[str, str, tuple[float, ...]]]:
    """(rule, name, thresholds that it is the mean over)"""
    yield from (("voc", f"ap@{least:g}", (least,)) for least in ious)
    yield from (("coco", f"ap_coco@{least:g}", (least,)) for least in ious)
    yield "coco", "ap_coco@0.5:0.95", COCO_IOU


def _entry(rankings, rule, boxes, patients, resamples, seed) -> dict[str, Any]:
    if not rankings:
        return statistics.entry(None, n=0, reason="no image has a box of this label")
    of = functools.partial(mean_precision, rankings, rule)
    value = of(np.ones((1, len(patients))))[0]
    fewest = min((np.flatnonzero(ranking.truth) for ranking in rankings), key=len)  # patients of the rarest label
    few = too_few(fewest, "with a box")
    return bootstrap(value, of, patients, few=few, resamples=resamples, seed=seed) | {"n": boxes}
