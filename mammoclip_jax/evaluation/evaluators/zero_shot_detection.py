"""Findings found among regions that nobody has named: each region's cosine to a finding's texts, less that to the texts
of normal tissue. Beside it on the same regions how bright they are, what their own method thought of them, and chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import area
from mammoclip_jax.boxes import iou as iou_of
from mammoclip_jax.data.batches.units import breasts
from mammoclip_jax.data.regions.found import suppressed
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import region_sets, statistics
from mammoclip_jax.evaluation.evaluators.detection import chosen, froc_entries, table_of
from mammoclip_jax.evaluation.features import Features, boxes_of, known_where, select
from mammoclip_jax.evaluation.metrics import average_precision, froc
from mammoclip_jax.evaluation.metrics.average_precision import Case, Found
from mammoclip_jax.evaluation.region_sets import NOTHING
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics.bootstrap import bootstrap
from mammoclip_jax.evaluation.statistics.few import too_few
from mammoclip_jax.inference import overlay
from mammoclip_jax.inference.prompts import NORMAL, class_bank, texts_of

LABELS = ("mass", "calcification")
ASKED, BRIGHT = "zero_shot", "brightness"
RATES = (0.25, 0.5, 1.0, 2.0)  # false regions an image
_CARRIED = ("image", "patient", "laterality", "view", "real")
_SHOWN = 3  # regions drawn in a picture, at most
_SIDE = 480  # pixels of a picture's longer side


def zero_shot_detection(
    model,
    dataset,
    *,
    split: str = "test",
    labels: Sequence[str] = LABELS,
    regions: str = region_sets.SLIDING,
    concepts: str | Mapping[str, Sequence[str]] = "mammo",
    vectors: str | None = None,
    iou: Sequence[float] = (0.25, 0.5),
    overlap: float = 0.3,
    limit: int = 20,
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """FROC and average precision of regions ranked by text, for each label, in the images that show it or lack it.

    Args:
        labels: of boxes; an image counts for one where it has a box of it, or is known to lack it.
        regions: "sliding", or a side table of the data set (`python -m mammoclip_jax.regions`).
        concepts: a lexicon, or {label or "normal_tissue": prompts}; see `prompts.texts_of`.
        vectors: of `region_sets.IN_TEXT_SPACE`; None: those of the model's head of regions, without one of places.
        iou: from which a region finds a box.
        overlap: IoU above which the region of the lower score is struck out.
        limit: regions of an image that are left after it.
        gallery: pictures of each label, drawn by `seed`, half of them of images without it.

    Metrics, of each of zero_shot, brightness, proposal and random: "zero_shot/mass/ap@0.25" and all others of the
    evaluator detection, with the terciles of the label's boxes as sizes; of zero_shot
    "zero_shot/mass@0.25/lesion/sensitivity@1_fp_minus_brightness", paired, at RATES. "mass/covered@0.25": the share of the
    boxes that any of the regions finds, which bounds all.

    Raises:
        UserError: an unknown kind of vectors or table, no prompts for a label, IoUs out of (0, 1].
    """
    kind = region_sets.kind_of(model, vectors)
    iou = tuple(sorted(map(float, iou)))
    if not iou or not 0 < iou[0] <= iou[-1] <= 1:
        raise UserError(f"zero_shot_detection got iou={iou}: IoUs must be above 0 and up to 1.")
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    known = {label: np.flatnonzero(known_where(rows, label)) for label in labels}
    everyone, breast = np.unique(rows["patient"].astype(str)), breasts(rows)
    pixels = model.preprocessing["height"] * model.preprocessing["width"]
    looked = np.unique(np.concatenate([np.zeros(0, int), *known.values()]))
    found = region_sets.candidates(dataset, positions[looked], regions, seed)
    texts = texts_of(concepts, (*labels, NORMAL))
    scores = _scores(model, dataset, found, kind, features or Features(model, dataset), texts, seed)
    boxes = region_sets.by_position(found)
    options = {"resamples": resamples, "seed": seed}
    metrics, figures, cases = {}, {}, {}
    for way, values in scores.items():
        cases[way] = own = {
            label: [
                _case(
                    rows.iloc[place], label, *boxes.get(int(positions[place]), NOTHING), values[label], overlap, limit
                )
                for place in known[label]
            ]
            for label in labels
        }
        entries = average_precision.entries(own, iou, everyone, **options)
        metrics |= {f"{way}/{name}": entry for name, entry in entries.items()}
        for label in labels:
            given = own[label], breast[known[label]], pixels, iou, _terciles(own[label], pixels), everyone
            entries, curves = froc_entries(*given, options)
            metrics |= {f"{way}/{label}{name}": entry for name, entry in entries.items()}
            if way == ASKED and curves:
                figures[f"froc_{label}"] = froc.plot(curves, label)
    for label in labels:
        pair = [cases[way][label] for way in (ASKED, BRIGHT)]
        metrics |= _beside(label, *pair, breast[known[label]], pixels, iou, everyone, options)
        every = [_case(rows.iloc[p], label, *boxes.get(int(positions[p]), NOTHING)) for p in known[label]]
        metrics |= {f"{label}/covered@{least:g}": _covered(every, least, options) for least in iou}
    pictures, shown = _pictures(dataset, positions, rows, known, cases[ASKED], iou[0], gallery, seed)
    tables = {
        "detections": table_of(rows, known, cases[ASKED], iou[0]),
        "pictures": shown,
        "prompts": pd.DataFrame([(k, text) for k, own in texts.items() for text in own], columns=["label", "text"]),
    }
    protocol = _protocol(split, regions, kind, concepts, iou, overlap, limit, len(found) / max(len(looked), 1))
    return Result("zero_shot_detection", protocol, metrics, tables, figures | pictures)


def _scores(model, dataset, found: pd.DataFrame, kind, features, texts, seed) -> dict[str, dict[str, np.ndarray]]:
    """{way: {label: float [n]}} of the regions `found`."""
    vectors = region_sets.vectors(model, dataset, found, kind)
    names, sides = class_bank(features.texts, {"region": texts})["region"]
    asked = {
        label: vectors @ (sides[k] - sides[names.index(NORMAL)]) for k, label in enumerate(names) if label != NORMAL
    }
    same = {
        BRIGHT: region_sets.appearance(dataset, found)["mean"].to_numpy(),
        "proposal": found["score"].to_numpy(float),
        "random": np.random.default_rng(seed).random(len(found)),
    }
    return {ASKED: asked} | {way: dict.fromkeys(asked, values) for way, values in same.items()}


def _case(row, label, boxes, places, values=None, overlap: float = 1.0, limit: int = 0) -> Case:
    """An image's true boxes of the label, and its regions by falling value without those struck out; all of them where
    no values are given."""
    own = np.zeros(len(places)) if values is None else values[places].astype(np.float64)
    kept = np.arange(len(places)) if values is None else suppressed(boxes, own, overlap, limit)
    return Case(str(row["patient"]), boxes_of(row, label), Found(boxes[kept], own[kept]))


def _terciles(cases: Sequence[Case], pixels: int) -> tuple[float, float]:
    """Shares of the image at which a box is of the second and of the third tercile of the boxes by size."""
    sizes = np.concatenate([np.zeros(0), *(area(case.truth) / pixels for case in cases)])
    low, high = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else (0.0, 1.0)
    return float(low), float(high)


def _beside(label, asked, bright, breast, pixels, iou, everyone, options) -> dict[str, dict[str, Any]]:
    """Sensitivity of the first less that of the second, on the same resamples of patients."""
    entries = {}
    for least in iou:
        of, n = [], 0
        for cases in (asked, bright):
            marks = froc.marks(cases, breast, pixels, least, everyone)
            group = froc.groups(marks, (0.0, 1.0))["lesion"]
            of.append(froc.sensitivities(marks, group, RATES))
            n, few = len(group.owner), too_few(group.owner, "with a finding")
        for k, rate in enumerate(RATES):
            name = f"{ASKED}/{label}@{least:g}/lesion/sensitivity@{rate:g}_fp_minus_{BRIGHT}"
            if not n:
                entries[name] = statistics.entry(None, n=0, reason="no finding of this kind")
                continue

            def difference(weights, k=k, of=of):
                return of[0](weights)[:, k] - of[1](weights)[:, k]

            value = difference(np.ones((1, len(everyone))))[0]
            entries[name] = bootstrap(value, difference, everyone, few=few, **options) | {"n": n}
    return entries


def _covered(cases: Sequence[Case], least: float, options) -> dict[str, Any]:
    """The share of the true boxes that some region finds."""
    owners = [case.patient for case in cases for _ in case.truth]
    best = [iou_of(case.truth[:, None], case.found.boxes).max(axis=1, initial=0.0) for case in cases]
    return statistics.mean(np.concatenate([np.zeros(0), *best]) >= least, owners, **options)


def _pictures(dataset, positions, rows, known, cases, least, gallery, seed) -> tuple[dict[str, bytes], pd.DataFrame]:
    """Images with their true boxes in white and the best regions in orange, and what stands below them."""
    figures, shown = {}, []
    for label, own in cases.items():
        for number, i in enumerate(chosen(own, gallery, seed)):
            name, place, (truth, (boxes, scores)) = f"{label}_{number:03d}", int(known[label][i]), own[i][1:]
            image = dataset.read(int(positions[place]))
            figures[name] = overlay.detections(image, truth, boxes[:_SHOWN], scores[:_SHOWN], _SIDE)
            hits = (iou_of(truth[:, None], boxes[:_SHOWN]) >= least).any(axis=1)
            carried = rows.iloc[place][list(_CARRIED)].to_dict()
            note = {"boxes": len(truth), "found": int(hits.sum()), "phrase": label.replace("_", " ")}
            shown.append({"figure": name, "label": label} | carried | note)
    return figures, pd.DataFrame(shown)


def _protocol(split, regions, kind, concepts, iou, overlap, limit, many) -> str:
    lexicon = f"the lexicon {concepts}" if isinstance(concepts, str) else "the given prompts"
    where = (
        "sliding boxes on the breast" if regions == region_sets.SLIDING else f"the regions {regions} of the data set"
    )
    what = region_sets.IN_TEXT_SPACE[kind]
    return (
        f"Split {split}: images with a box of the label, or known to lack it. Regions: {where}, {many:.0f} an image. zero_shot: "
        f"cosine of the vector of {what} to the normalised mean of the label's prompts in {lexicon}, less that to those of "
        "normal tissue. brightness: mean grey value inside; proposal: the score of the method that made the regions; random: "
        f"any order of them. A region is struck out that overlaps a better one by more than {overlap:g}; {limit} are left, at "
        f"most. ap: all points (VOC) and COCO's. sensitivity@R_fp: share of the boxes that a region finds, by IoU "
        f"{' and '.join(f'{least:g}' for least in iou)}, at R false regions an image, images without the finding included; "
        "small, medium, large: terciles of the label's boxes. covered: share of the boxes that any region finds. Intervals: "
        f"{statistics.INTERVAL}."
    )
