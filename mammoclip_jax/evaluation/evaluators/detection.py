"""How well a detector finds the boxes of findings, and how often it marks what is none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import iou as overlap
from mammoclip_jax.data.batches.units import breasts
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import boxes_of, chunks, known_where, read, select
from mammoclip_jax.evaluation.metrics import average_precision, froc
from mammoclip_jax.evaluation.metrics.average_precision import Case, Found, matches
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference import overlay
from mammoclip_jax.inference.loading import load
from mammoclip_jax.inference.text_classifier import renamed
from mammoclip_jax.names import check_name

# Name -> what of `Detector.detect` it fixes. "published": as Mammo-CLIP was scored (Detectors/experiments.py).
PROTOCOLS = {"default": {}, "published": {"class_aware": False, "candidates": None}}
THRESHOLD = 0.05
_CARRIED = ("image", "patient", "laterality", "view", "real")
_SHOWN = 5  # detections drawn in a picture, at most
_SIDE = 480  # pixels of a picture's longer side


class Images(NamedTuple):
    """What was looked at: rows of the index, and what was found in each, by falling score."""

    rows: pd.DataFrame
    boxes: list[np.ndarray]  # [d, 4] canvas pixels
    scores: list[np.ndarray]  # [d]
    classes: list[np.ndarray]  # [d], places in the model's labels
    read: Callable[[int], np.ndarray]  # place in these lists -> canvas
    pixels: int  # of a canvas


def detection(
    model,
    dataset,
    *,
    split: str = "test",
    labels: Sequence[str] | None = None,
    patients: int | None = None,
    iou: Sequence[float] = (0.25, 0.5),
    protocol: str = "default",
    sizes: tuple[float, float] = (0.003, 0.01),
    threshold: float = THRESHOLD,
    texts: str = "",
    concepts: str | Mapping[str, Sequence[str]] = "mammo",
    gallery: int = 6,
    sanity: bool = False,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """Average precision and FROC of a detector's boxes, for each label.

    Args:
        labels: of the model; None: all.
        iou: from which a detection finds a box; the published protocol has 0.5 alone.
        protocol: "default": all images of the split of which it is known whether they show the label. "published": only
            images with a box of one of the labels, and average precision alone, with class-agnostic suppression.
        sizes: shares of the canvas at which a box is no longer small, and is large.
        threshold: only detections with a score above it count.
        texts: of a detector whose classes are texts: the dual encoder's weights, which read the prompts of `labels`, any
            labels, in `concepts`; "": it is asked for the labels that it was trained on.
        concepts: a lexicon, or {label: prompts}; see `prompts.texts_of`.
        gallery: pictures of each label, drawn by `seed`, half of them of images without it.
        sanity: whether average precision is measured with random weights too, drawn by `seed`: "mass/ap@0.5_randomised".

    Metrics, of each label and IoU: "mass/ap@0.5" (VOC, all points), "mass/ap_coco@0.5", "mass/ap_coco@0.5:0.95", their
    means over labels "map@0.5", ...; and "mass@0.5/GROUP/sensitivity@RATE_fp" at `froc.RATES` false positives per image
    and their mean "mass@0.5/GROUP/mean_sensitivity", for the groups of `froc.groups`.

    Raises:
        UserError: the model finds no boxes or lacks a label, no such protocol, or thresholds out of order.
    """
    check_name(protocol, PROTOCOLS, "protocol of the evaluator detection")
    if texts:
        model = renamed(model, load(texts), concepts, tuple(labels or model.labels))
    labels = _labels(model, labels)
    iou = (0.5,) if protocol == "published" else tuple(sorted(map(float, iou)))
    if not iou or not 0 < iou[0] <= iou[-1] <= 1 or not 0 < sizes[0] < sizes[1]:
        raise UserError(
            f"the evaluator detection got iou={iou} and sizes={tuple(sizes)}: IoU must be above 0 and up "
            "to 1, and the two sizes rising."
        )
    positions = select(dataset.index, split, patients, seed)
    if protocol == "published":
        with_box = [any(len(boxes_of(dataset.index.iloc[p], label)) for label in labels) for p in positions]
        positions = positions[np.array(with_box, bool)]
    looking = {"threshold": threshold, **PROTOCOLS[protocol]}
    images = look(model, dataset, positions, **looking)
    everyone = np.unique(images.rows["patient"].astype(str)) if len(images.rows) else np.array(["nobody"])
    known = {
        label: np.arange(len(positions)) if protocol == "published" else np.flatnonzero(known_where(images.rows, label))
        for label in labels
    }
    cases = _cases(images, known, model.labels)
    options = {"resamples": resamples, "seed": seed}
    metrics = average_precision.entries(cases, iou, everyone, **options)
    if sanity:
        with model.using(model.randomise(seed)):
            guesses = _cases(look(model, dataset, positions, **looking), known, model.labels)
        entries = average_precision.entries(guesses, iou, everyone, **options)
        metrics |= {f"{name}_randomised": entry for name, entry in entries.items()}
    tables = {"detections": table_of(images.rows, known, cases, iou[-1]), "images": _counts(images, cases)}
    figures: dict[str, bytes] = {}
    if protocol == "default":
        breast = breasts(images.rows) if len(images.rows) else np.zeros(0, int)
        for label in labels:
            entries, curves = froc_entries(
                cases[label], breast[known[label]], images.pixels, iou, sizes, everyone, options
            )
            metrics |= {f"{label}{name}": entry for name, entry in entries.items()}
            if curves:
                figures[f"froc_{label}"] = froc.plot(curves, label)
    shown = []
    for label in labels:
        for number, i in enumerate(chosen(cases[label], gallery, seed)):
            name, place = f"{label}_{number:03d}", int(known[label][i])
            truth, (boxes, scores) = cases[label][i].truth, cases[label][i].found
            figures[name] = overlay.detections(images.read(place), truth, boxes[:_SHOWN], scores[:_SHOWN], _SIDE)
            shown.append(
                {"figure": name, "label": label}
                | images.rows.iloc[place][list(_CARRIED)].to_dict()
                | {"boxes": len(truth), "found": len(boxes)}
            )
    tables["pictures"] = pd.DataFrame(shown)
    return Result("detection", _protocol(split, protocol, iou, sizes, threshold, sanity), metrics, tables, figures)


def look(model, dataset, positions: Sequence[int], **options) -> Images:
    """The model's detections in the images at `positions`; `options` are those of `Detector.detect`."""
    boxes, scores, classes = [], [], []
    for chunk in chunks(positions):
        detections = model.detect(read(dataset, chunk), **options)
        for box, score, kind, valid in zip(*map(np.asarray, detections)):
            boxes.append(box[valid].astype(np.float64))
            scores.append(score[valid].astype(np.float64))
            classes.append(kind[valid])
    rows = dataset.index.iloc[list(map(int, positions))].reset_index(drop=True)
    pixels = model.preprocessing["height"] * model.preprocessing["width"]
    return Images(rows, boxes, scores, classes, lambda i: dataset.read(int(positions[i])), pixels)


def _labels(model, labels: Sequence[str] | None) -> tuple[str, ...]:
    if model.kind != "detector":
        raise UserError(
            f"the evaluator detection needs a detector, this model is a {model.kind}: its maps are scored "
            "by the evaluator saliency."
        )
    for label in labels or ():
        check_name(label, model.labels, "label of the detector")
    return tuple(labels or model.labels)


def _cases(images: Images, known: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, list[Case]]:
    return {label: [_case(images, i, label, labels.index(label)) for i in places] for label, places in known.items()}


def _case(images: Images, i: int, label: str, number: int) -> Case:
    own = images.classes[i] == number
    row = images.rows.iloc[i]
    return Case(str(row["patient"]), boxes_of(row, label), Found(images.boxes[i][own], images.scores[i][own]))


def froc_entries(cases, breast, pixels, iou, sizes, patients, options) -> tuple[dict[str, Any], dict[str, list]]:
    """({"@0.5/lesion/sensitivity@1_fp": entry, ...}, {name of a curve: its entries})."""
    entries, curves = {}, {}
    for least in iou:
        marks = froc.marks(cases, breast, pixels, least, patients)
        for name, group in froc.groups(marks, sizes).items():
            *each, mean = froc.entries(marks, group, froc.RATES, **options)
            entries |= {f"@{least:g}/{name}/sensitivity@{rate:g}_fp": entry for rate, entry in zip(froc.RATES, each)}
            entries[f"@{least:g}/{name}/mean_sensitivity"] = mean
            if name == "lesion" and len(group.owner):
                curves[f"IoU {least:g}"] = froc.entries(marks, group, froc.CURVE, **options)[:-1]
    return entries, curves


def table_of(rows: pd.DataFrame, known, cases, least: float) -> pd.DataFrame:
    """One row a detection in the images at the places `known` of `rows`: `matched` where it finds a box as average
    precision counts; `iou` with the nearest box."""
    lines = []
    for label, places in known.items():
        for i, case in zip(places, cases[label], strict=True):
            hit = matches(case.truth, case.found.boxes, least, "voc") >= 0
            nearest = overlap(case.found.boxes[:, None], case.truth).max(axis=1, initial=0.0)
            image = rows["image"].iloc[i]
            lines += [
                (image, label, score, *box, bool(matched), best)
                for box, score, matched, best in zip(case.found.boxes, case.found.scores, hit, nearest, strict=True)
            ]
    return pd.DataFrame(lines, columns=["image", "label", "score", "x0", "y0", "x1", "y1", "matched", "iou"])


def _counts(images: Images, cases) -> pd.DataFrame:
    """What each label's metrics rest on."""
    return pd.DataFrame(
        [
            {
                "label": label,
                "images": len(known),
                "without": sum(not len(case.truth) for case in known),
                "boxes": sum(len(case.truth) for case in known),
                "patients": len({case.patient for case in known}),
                "unknown": len(images.rows) - len(known),
            }
            for label, known in cases.items()
        ]
    )


def chosen(cases: Sequence[Case], count: int, seed: int) -> list[int]:
    """Images for the pictures: half with boxes and half without, as far as there are."""
    order = np.random.default_rng(seed).permutation(len(cases))
    with_box = [int(i) for i in order if len(cases[i].truth)]
    without = [int(i) for i in order if not len(cases[i].truth)]
    few = without[: count // 2]
    with_box = with_box[: count - len(few)]
    return with_box + without[: count - len(with_box)]


def _protocol(split, protocol, iou, sizes, threshold, sanity) -> str:
    thresholds = " and ".join(f"{least:g}" for least in iou)
    if protocol == "published":
        images = (
            "images that have a box of one of the labels, none without, as Mammo-CLIP was scored; suppression "
            "among all classes"
        )
    else:
        images = (
            "all images with a box of the label, or known to lack the label; those of which neither is known are "
            "left out (table images: unknown)"
        )
    text = (
        f"Split {split}: {images}. Detections with a score above {threshold:g}, at most 100 of an image. ap: area "
        f"under the precision envelope at all points (VOC), IoU {thresholds}; a detection that overlaps most a box "
        "found already is a false positive. ap_coco: 101 recall points, as pycocotools. Equal scores are one "
        "threshold. map: mean over the labels that have a box. "
    )
    if protocol == "default":
        text += (
            "sensitivity@R_fp: share of the boxes (breast: breasts with a box) that a detection hits at R false "
            "positives per image, images without the finding included; lesion_normals: R on images without the "
            "finding alone, per such image. A detection that hits no box is a false positive, one that hits a box "
            "again is none. mean_sensitivity: over "
            f"R = 1/8 to 4. Sizes by a box's share of the canvas: small below {100 * sizes[0]:g} %, large from "
            f"{100 * sizes[1]:g} %. "
        )
    if sanity:
        text += "randomised: the same with random weights. "
    return text + f"Intervals: {statistics.INTERVAL}."


detection.choices = {"protocol": PROTOCOLS}  # see options.py
