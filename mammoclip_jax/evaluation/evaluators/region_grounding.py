"""Phrase grounding with regions: of many regions of an image, is the one that a report's own sentence lies nearest to over
the finding that the sentence names? Beside it the brightest region, the one nearest to the breast's centre, and chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.data.text.label_values import PRESENT
from mammoclip_jax.evaluation import region_sets, statistics
from mammoclip_jax.evaluation.evaluators.grounding import BASELINE, OVERLAPS, asked, summary, without
from mammoclip_jax.evaluation.evaluators.saliency import CARRIED, LABELS, inside
from mammoclip_jax.evaluation.features import Features, chunks, read, select
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference import overlay
from mammoclip_jax.names import check_name

ASKED = "regions"
MEASURES = {"pointing_game": ("hit", "image")} | {
    f"best_region_iou_{least:g}": (f"over_{least:g}", "image") for least in OVERLAPS
}
_SIDE = 480  # pixels of a picture's longer side


def region_grounding(
    model,
    dataset,
    *,
    split: str = "test",
    labels: Sequence[str] = LABELS,
    regions: str = region_sets.SLIDING,
    vectors: str | None = None,
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    features: Features | None = None,
) -> Result:
    """The regions of each image with boxes of a label and a sentence of its own texts that affirms it (as the evaluator
    grounding has them), by their cosine to that sentence.

    Args:
        labels: findings of `label_values.PRESENT`.
        regions: "sliding", or a side table of the data set (`python -m mammoclip_jax.regions`).
        vectors: of `region_sets.IN_TEXT_SPACE`; None: those of the model's head of regions, without one of places.
        gallery: pictures of each label, drawn by `seed`, with their sentence.

    Metrics: "mass/regions/pointing_game", the centre of the best region lies in a box of the label, and
    "mass/regions/best_region_iou_0.25" and the other OVERLAPS, it overlaps one by so much; both with "..._minus_brightness",
    paired. The same of "mass/brightness/", "mass/centre/", and "mass/chance/", the mean over an image's regions;
    "mass/without_sentence", images with boxes that are left out, and "mass/without_region".

    Raises:
        UserError: an unknown label, kind of vectors or table.
    """
    for label in labels:
        check_name(label, PRESENT, "label of the evaluator region_grounding")
    kind = region_sets.kind_of(model, vectors)
    features = features or Features(model, dataset)
    positions = select(dataset.index, split, patients, seed)
    of_label = {label: asked(dataset.index, positions, label) for label in labels}
    wanted = sorted({position for _, sentences in of_label.values() for position in sentences})
    found = region_sets.candidates(dataset, wanted, regions, seed)
    embedded = region_sets.vectors(model, dataset, found, kind)
    beside = {BASELINE: region_sets.appearance(dataset, found)["mean"].to_numpy(), "centre": _nearness(dataset, found)}
    by_position = region_sets.by_position(found)
    metrics, rows, left_out, figures, shown = {}, [], [], {}, []
    for label, (boxes, sentences) in of_label.items():
        there = [position for position in sorted(sentences) if position in by_position]
        directions = dict(zip(there, features.texts.embed_text([sentences[p].text for p in there]))) if there else {}
        chosen = [int(p) for p in np.random.default_rng(seed).permutation(there)[:gallery]]
        scores: dict[str, list[dict]] = {name: [] for name in (ASKED, *beside, "chance")}
        for position in there:
            own, places = by_position[position]
            row = {"label": label} | dataset.index.loc[dataset.index.index[position], list(CARRIED)].to_dict()
            row["sentence"] = sentences[position].text
            right = _right(own, boxes[position])
            values = {ASKED: embedded[places] @ directions[position]}
            values |= {name: all_values[places] for name, all_values in beside.items()}
            for name, value in values.items():
                best = int(value.argmax())
                scores[name].append(row | {"by": name} | {column: float(each[best]) for column, each in right.items()})
            scores["chance"].append(row | {"by": "chance"} | {column: each.mean() for column, each in right.items()})
            if position in chosen:
                figure = f"{label}_{len(shown):03d}"
                best = np.argsort(-values[ASKED], kind="stable")[:1]
                figures[figure] = overlay.detections(
                    dataset.read(position), boxes[position], own[best], values[ASKED][best], _SIDE
                )
                shown.append({"figure": figure} | scores[ASKED][-1])
        entries = summary(scores, MEASURES, (BASELINE, "centre", "chance"), resamples=resamples, seed=seed)
        entries["without_sentence"] = statistics.entry(len(boxes) - len(sentences), n=len(boxes))
        entries["without_region"] = statistics.entry(len(sentences) - len(there), n=len(sentences))
        metrics |= {f"{label}/{name}": entry for name, entry in entries.items()}
        rows += [row for table in scores.values() for row in table]
        left_out += without(dataset.index, label, boxes, sentences)
    tables = {"images": pd.DataFrame(rows), "gallery": pd.DataFrame(shown), "without_sentence": pd.DataFrame(left_out)}
    protocol = _protocol(split, labels, regions, kind, metrics, len(found) / max(len(wanted), 1))
    return Result("region_grounding", protocol, metrics, tables, figures)


def _right(regions: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """{column: float [n]} of each region [n, 4]: whether its centre is in one of the boxes `truth` [k, 4], and by which
    IoU it lies over one."""
    overlap = iou(regions[:, None], truth).max(axis=1)
    hit = inside((regions[:, :2] + regions[:, 2:]) / 2, truth)
    return {"hit": hit.astype(float)} | {f"over_{least:g}": (overlap >= least).astype(float) for least in OVERLAPS}


def _nearness(dataset, regions: pd.DataFrame) -> np.ndarray:
    """float64 [n]: the less, the farther a region's centre lies from the centroid of the breast."""
    boxes = regions[region_sets.BOX].to_numpy(float)
    centres, out = (boxes[:, :2] + boxes[:, 2:]) / 2, np.zeros(len(boxes))
    by_position = region_sets.by_position(regions)
    for chunk in chunks(sorted(by_position)):
        for position, image in zip(chunk, read(dataset, chunk)):
            middle = np.argwhere(breast_mask(image))[:, ::-1].mean(axis=0) + 0.5
            places = by_position[position][1]
            out[places] = -np.linalg.norm(centres[places] - middle, axis=1)
    return out


def _protocol(split, labels, regions, kind, metrics: Mapping[str, dict[str, Any]], many: float) -> str:
    where = (
        "sliding boxes on the breast" if regions == region_sets.SLIDING else f"the regions {regions} of the data set"
    )
    counts = ", ".join(
        f"{metrics[f'{label}/without_sentence']['value']:.0f} of {metrics[f'{label}/without_sentence']['n']} with boxes of "
        f"{label}"
        for label in labels
    )
    what = region_sets.IN_TEXT_SPACE[kind]
    return (
        f"Split {split}, images with boxes of the label, each with the first sentence of its own texts that affirms the label "
        f"for its side and view; images without such a sentence are left out: {counts}. Regions: {where}, {many:.0f} an "
        f"image. regions: the region whose vector, that of {what}, has the largest cosine to the sentence; brightness: that "
        "of the highest mean grey value; centre: the nearest to the breast's centroid; chance: any of them. pointing_game: "
        "the region's centre lies in a box of the label; best_region_iou: it overlaps one by that IoU. minus_brightness: the "
        f"difference on the same images and resamples. Intervals: {statistics.INTERVAL}."
    )
