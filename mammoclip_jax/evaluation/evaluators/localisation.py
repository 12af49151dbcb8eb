"""Boxes from a map alone: how many findings the regions of its hottest part find, as Mammo-FActOR is scored.

Beside it on the same images HiResCAM, brightness, and the breast's centre, by the same rule.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import area
from mammoclip_jax.boxes import iou as overlap
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.evaluators.detection import table_of
from mammoclip_jax.evaluation.evaluators.grounding import nearness
from mammoclip_jax.evaluation.evaluators.saliency import CARRIED, towards_of
from mammoclip_jax.evaluation.features import boxes_of, chunks, known_where, read, select
from mammoclip_jax.evaluation.metrics.average_precision import Case, Found, voc
from mammoclip_jax.evaluation.metrics.froc import SIZES
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.explain import METHODS
from mammoclip_jax.inference import overlay
from mammoclip_jax.inference.loading import load
from mammoclip_jax.inference.prompt_files import prompts_name

BASELINE, CENTRE, GRADIENT = "brightness", "centre", "hires_cam"
_SHOWN = 5  # regions drawn in a picture, at most
_SIDE = 480  # pixels of a picture's longer side


class Look(NamedTuple):
    """One kind of map, and what it is asked about."""

    name: str
    model: Any
    method: str
    stage: str
    options: Mapping[str, Any]
    towards: Mapping[str, np.ndarray]  # {label: direction}

    def heats(self, images: np.ndarray, label: str) -> np.ndarray:
        """The signed maps [n H W]: scaled to 1 each, regions of several images could not be ranked."""
        directions = np.stack([self.towards[label]] * len(images))
        return np.asarray(
            self.model.saliency(
                images, directions, method=self.method, stage=self.stage or None, raw=True, **self.options
            )
        )


def localisation(
    model,
    dataset,
    *,
    split: str = "test",
    labels: Sequence[str] | None = None,
    method: str = "",
    stage: str | None = None,
    options: Mapping[str, Any] = {},
    dual_encoder: str = "",
    prompts: str | Mapping[str, Any] = "mammo_clip",
    explain: str = "score",
    quantile: float = of_maps.QUANTILE,
    iou: Sequence[float] = (0.25, 0.5),
    sizes: tuple[float, float] = (0.003, 0.01),
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """Average precision, recall and number of the regions of a map, for each label and by each rule.

    Args:
        labels: of the model, or of the prompt file; None: all of a model with labels, else those of `saliency.LABELS`.
        method: one of `explain.METHODS`; "": factor of a model of attributes, else hires_cam.
        stage: of the image encoder; None leaves the choice to the method.
        options: of the method.
        dual_encoder: weights whose HiResCAM of the prompts stands beside; "": that of the model itself. Of a model of
            attributes it is that of the first stage that these see.
        prompts, explain: what a dual encoder is asked; see the evaluator saliency.
        quantile: of the map, of all pixels ("published") or of the breast's ("breast"), above which regions are.
        iou: from which a region finds a box.
        sizes: shares of the canvas at which a box is no longer small, and is large.
        gallery: pictures of each label, drawn by `seed`: half of images with a box that is found, half of such without.

    Metrics, of each map (the method, hires_cam, brightness, centre) and rule (`of_maps.RULES`), of images with a box:
    "mass/factor/published/ap@0.25" (VOC, all points), "mass/factor/published/recall@0.25", the same of the boxes of each
    size that there is, "..._small", with no more regions in an image than brightness has there, "..._as_many", and less
    that of brightness on the same images, "..._minus_brightness"; "mass/factor/published/regions" an image. With the images
    that are known to lack the label besides: "ap@0.25_with_normals", "regions_with_normals".

    Raises:
        UserError: a label, method or stage that there is not or that does not fit, thresholds out of order, or a dual encoder
            of other images.
    """
    iou = tuple(sorted(map(float, iou)))
    if not iou or not 0 < iou[0] <= iou[-1] <= 1 or not 0 < sizes[0] < sizes[1] or not 0 < quantile < 1:
        raise UserError(
            f"the evaluator localisation got iou={iou}, sizes={tuple(sizes)} and quantile={quantile}: IoU must be above 0 "
            "and up to 1, the two sizes rising, the quantile between 0 and 1."
        )
    asked = {"prompts": prompts, "explain": explain}
    main = method or ("factor" if model.attribute_stages else GRADIENT)
    looks = _looks(model, main, stage, options, tuple(labels or model.labels), dual_encoder, asked)
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    everyone = np.unique(rows["patient"].astype(str))
    bootstrap = {"resamples": resamples, "seed": seed}
    metrics, tables, shown, figures = {}, [], [], {}
    known = {label: np.flatnonzero(known_where(rows, label)) for label in looks[0].towards}
    truth = {label: [boxes_of(rows.iloc[place], label) for place in places] for label, places in known.items()}
    for label in [label for label in known if not sum(map(len, truth[label]))]:
        nothing = statistics.entry(None, n=0, reason="no image has a box of this label")
        names = [f"{measure}@{least:g}" for measure in ("ap", "recall") for least in iou]
        metrics |= {f"{label}/{looks[0].name}/published/{name}": nothing for name in (*names, "regions")}
        del known[label]
    found, pixels = _found(looks, dataset, positions, known, quantile)
    firsts = {}
    for label, places in known.items():
        carried = rows[list(CARRIED)].iloc[places].to_dict(orient="records")
        owners, cases, images = rows["patient"].iloc[places].astype(str), {}, {}
        for way in found[label]:
            own = (found[label][way][place] for place in places)
            cases[way] = [Case(*case) for case in zip(owners, truth[label], own, strict=True)]
            about = {"label": label, "map": way[0], "rule": way[1]}
            images[way] = [
                about | where | _counts(case, iou, sizes, pixels)
                for where, case in zip(carried, cases[way], strict=True)
            ]
            entries = _entries(images[way], cases[way], iou, everyone, bootstrap)
            metrics |= {f"{label}/{'/'.join(way)}/{name}": entry for name, entry in entries.items()}
        for name, rule in ((look.name, rule) for look in looks if look.method != BASELINE for rule in of_maps.RULES):
            entries = _beside(images[name, rule], cases[name, rule], images[BASELINE, rule], iou, bootstrap)
            metrics |= {f"{label}/{name}/{rule}/{measure}": entry for measure, entry in entries.items()}
        tables += [row for own in images.values() for row in own]
        firsts[label] = cases[looks[0].name, "published"]
        for number, i in enumerate(_chosen(images[looks[0].name, "published"], iou[0], gallery, seed)):
            name, (boxes, scores) = f"{label}_{number:03d}", firsts[label][i].found
            image = dataset.read(int(positions[places[i]]))
            figures[name] = overlay.detections(image, truth[label][i], boxes[:_SHOWN], scores[:_SHOWN], _SIDE)
            hits = images[looks[0].name, "published"][i][f"found_{iou[0]:g}"]
            shown.append({"figure": name, "label": label} | carried[i] | {"boxes": len(truth[label][i]), "found": hits})
    frames = {
        "images": pd.DataFrame(tables),
        "regions": table_of(rows, known, firsts, iou[0]),
        "pictures": pd.DataFrame(shown),
    }
    protocol = _protocol(split, looks, dual_encoder, prompts, quantile, iou, sizes)
    return Result("localisation", protocol, metrics, frames, figures)


def _looks(model, method: str, stage: str | None, options, labels, dual_encoder: str, asked) -> list[Look]:
    """The method's maps, HiResCAM and brightness; none twice."""

    def look(name, of, method, labels, stage=None, options={}):
        stage = of.map_stage(method, stage)
        towards = towards_of("localisation", of, asked["prompts"], labels, asked["explain"], method, stage)
        return Look(name, of, method, stage, dict(options), towards)

    looks = [look(method, model, method, labels, stage, options)]
    if method != GRADIENT or dual_encoder:
        other = load(dual_encoder) if dual_encoder else model
        seen, wanted = (Preprocessing.from_dict(one.preprocessing) for one in (other, model))
        if dual_encoder and (other.kind != "dual_encoder" or seen != wanted):
            raise UserError(
                f"dual_encoder={dual_encoder} of the evaluator localisation is a {other.kind}: it must be a dual encoder "
                "whose images were prepared as the model's."
            )
        name = GRADIENT if method != GRADIENT else f"{GRADIENT}_of_dual_encoder"
        # Of an encoder's stages the finest that the attributes see: a late one could not outline what they can.
        same = min(model.attribute_stages, key=other.stages.index) if model.attribute_stages else None
        looks.append(look(name, other, GRADIENT, tuple(looks[0].towards), same))
    if method != BASELINE:
        looks.append(Look(BASELINE, model, BASELINE, model.map_stage(BASELINE), {}, looks[0].towards))
    return looks


def _found(
    looks: Sequence[Look], dataset, positions: np.ndarray, known: Mapping[str, np.ndarray], quantile: float
) -> tuple[dict[str, dict[tuple[str, str], dict[int, Found]]], int]:
    """({label: {(map, rule): {place: Found}}} of each label's places in `positions`, pixels of an image)."""
    ways = [(name, rule) for name in (*(look.name for look in looks), CENTRE) for rule in of_maps.RULES]
    found: dict = {label: {way: {} for way in ways} for label in known}
    pixels = 1

    def note(labels, name, place, heat, tissue):
        for rule, part in of_maps.RULES.items() if labels else ():
            own = Found(*of_maps.located(heat, part(heat, tissue, quantile)))
            for label in labels:
                found[label][name, rule][place] = own

    for chunk in chunks(np.unique(np.concatenate([np.zeros(0, int), *known.values()]))):
        images = read(dataset, [int(positions[place]) for place in chunk])
        pixels, tissue = images[0].size, [of_maps.breast_mask(image) for image in images]
        of = [[label for label, places in known.items() if place in places] for place in chunk]
        for look in looks:
            for label in known:
                # Brightness is asked about nothing: its map is that of all labels.
                same = of if look.method == BASELINE else [[label] * (label in labels) for labels in of]
                own = [i for i, labels in enumerate(same) if labels]
                for i, heat in zip(own, look.heats(images[own], label) if own else (), strict=True):
                    note(same[i], look.name, chunk[i], heat, tissue[i])
                if look.method == BASELINE:
                    break
        for i, place in enumerate(chunk):
            note(of[i], CENTRE, place, nearness(tissue[i]), tissue[i])
    return found, pixels


def _counts(case: Case, iou: Sequence[float], sizes: tuple[float, float], pixels: int) -> dict[str, int]:
    """Of one image: regions, boxes, and boxes found at each IoU, all and those of each size."""
    best = _best(case.truth, case.found.boxes)
    size = np.searchsorted(sizes, area(case.truth) / pixels, side="right")
    row = {"regions": len(case.found.boxes), "boxes": len(case.truth)}
    row |= {f"boxes_{name}": int((size == k).sum()) for k, name in enumerate(SIZES)}
    for least in iou:
        row[f"found_{least:g}"] = int((best >= least).sum())
        row |= {f"found_{least:g}_{name}": int(((size == k) & (best >= least)).sum()) for k, name in enumerate(SIZES)}
    return row


def _entries(images: Sequence[dict], cases: Sequence[Case], iou, everyone, bootstrap) -> dict[str, dict[str, Any]]:
    """The metrics of one map by one rule, without the differences to brightness."""
    positive = [case for case in cases if len(case.truth)]
    with_box = [row for row in images if row["boxes"]]
    entries = {}
    for least in iou:
        entries[f"ap@{least:g}"] = voc(positive, least, everyone, **bootstrap)
        entries[f"ap@{least:g}_with_normals"] = voc(cases, least, everyone, **bootstrap)
        for end in ("", *(f"_{size}" for size in SIZES if any(row[f"boxes_{size}"] for row in with_box))):
            own = [row for row in with_box if row["boxes" + end]]
            hits, boxes = [row[f"found_{least:g}" + end] for row in own], [row["boxes" + end] for row in own]
            entries[f"recall@{least:g}{end}"] = statistics.ratio(hits, boxes, _patients(own), **bootstrap)
    for end, own in (("", with_box), ("_with_normals", images)):
        entries[f"regions{end}"] = statistics.mean([row["regions"] for row in own], _patients(own), **bootstrap)
    return entries


def _beside(
    images: Sequence[dict], cases: Sequence[Case], base: Sequence[dict], iou, bootstrap
) -> dict[str, dict[str, Any]]:
    """Recall and regions of a map less those of brightness, of the images with a box, on the same resamples; and recall
    with no more regions in an image than brightness has there, which is noted in the rows of `images`."""
    entries = {}
    for row, case, other in zip(images, cases, base, strict=True):
        few = _best(case.truth, case.found.boxes[: other["regions"]])
        row |= {f"found_{least:g}_as_many": int((few >= least).sum()) for least in iou}
    pairs = [(row, other) for row, other in zip(images, base, strict=True) if row["boxes"]]
    owners, boxes = _patients([row for row, _ in pairs]), [row["boxes"] for row, _ in pairs]
    for least in iou:
        few = [row[f"found_{least:g}_as_many"] for row, _ in pairs]
        entries[f"recall@{least:g}_as_many"] = statistics.ratio(few, boxes, owners, **bootstrap)
        for end in ("", "_as_many"):
            more = [row[f"found_{least:g}{end}"] - other[f"found_{least:g}"] for row, other in pairs]
            entries[f"recall@{least:g}{end}_minus_{BASELINE}"] = statistics.ratio(more, boxes, owners, **bootstrap)
    more = [row["regions"] - other["regions"] for row, other in pairs]
    return entries | {f"regions_minus_{BASELINE}": statistics.mean(more, owners, **bootstrap)}


def _best(truth: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The highest IoU of each true box with any of `boxes`; 0 where there is none."""
    return overlap(truth[:, None], boxes).max(axis=1, initial=0)


def _patients(images: Sequence[dict]) -> list[str]:
    return [str(row["patient"]) for row in images]


def _chosen(images: Sequence[dict], least: float, count: int, seed: int) -> list[int]:
    """Images with a box for the pictures: half with one that is found, half with none, as far as there are."""
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(images)) if images[i]["boxes"]]
    hits = [i for i in order if images[i][f"found_{least:g}"]]
    misses = [i for i in order if not images[i][f"found_{least:g}"]]
    few = misses[: count // 2]
    hits = hits[: count - len(few)]
    return hits + misses[: count - len(hits)]


def _protocol(split, looks: Sequence[Look], dual_encoder, prompts, quantile, iou, sizes) -> str:
    described = "; ".join(
        f"{look.name}: {METHODS[look.method].title}"
        + (f" at stage {look.stage}" if look.stage else "")
        + "".join(f", {name}={value}" for name, value in look.options.items())
        + (f" of the dual encoder {dual_encoder}" if look.model is not looks[0].model else "")
        + ("" if look.model.labels or look.method == BASELINE else f" of the texts of {prompts_name(prompts)}")
        for look in looks
    )
    return (
        f"Split {split}: images with a box of the label; with_normals: and those known to lack it. Signed maps: {described}; "
        f"centre: a map of the nearness to the breast's centroid. Regions are connected parts, over corners too, of the "
        f"pixels above the {quantile:g} quantile of the whole map (published) or of the map over the breast (breast); each is "
        "the box around it, and scores the map's maximum inside. ap: area under the precision envelope at all points (VOC), "
        f"IoU {' and '.join(f'{least:g}' for least in iou)}, at most 100 regions an image. recall: share of the boxes that a "
        "region overlaps by that IoU. regions: an image. Sizes by a box's share of the canvas: small below "
        f"{100 * sizes[0]:g} %, large from {100 * sizes[1]:g} %. as_many: with the strongest regions of each image alone, no "
        "more than brightness has there. minus_brightness: the difference to brightness on the same images and resamples. "
        "What the published table of Mammo-FActOR counts at these IoUs is stated in no text that could be opened: recall and "
        "ap are both given, and mean nothing without the number of regions beside them. "
        f"Intervals: {statistics.INTERVAL}."
    )
