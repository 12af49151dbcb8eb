"""Phrase grounding: does the map of a report's own sentence lie over the finding that the sentence names?

The maps of several methods, and beside them on the same images brightness, the breast's centre, and chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import phrases
from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.data.text.label_values import PRESENT
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.evaluators.saliency import CARRIED, LABELS, pointing_game, shown_beside
from mammoclip_jax.evaluation.features import boxes_of, chunks, read, select
from mammoclip_jax.evaluation.metrics import regions
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.explain import METHODS
from mammoclip_jax.names import check_name

OVERLAPS = (0.1, 0.25, 0.5)  # IoU from which a box counts as found
BASELINE = "brightness"
RANDOMISED = "_randomised"  # end of a map's name with random weights


class Map(NamedTuple):
    """One kind of map, as the option `methods` names it; `name` is what its metrics are called."""

    name: str
    method: str
    stage: str
    options: Mapping[str, Any]


def grounding(
    model,
    dataset,
    *,
    split: str = "test",
    labels: tuple[str, ...] = LABELS,
    methods: Sequence[str | Mapping[str, Any]] = (),
    context: bool = True,
    tolerance: float = 0.0,
    quantiles: tuple[float, ...] = (0.95,),
    sanity: bool = False,
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """The map of the first sentence of an image's texts that affirms a label, on the images with boxes of it.

    Args:
        labels: findings of `label_values.PRESENT`.
        methods: names in `explain.METHODS`, or {"method", "stage", "options", "name"} of which all but the first may be
            left out; none: local_alignment where the model has a head of kind local, else hires_cam. brightness is always
            among them; given here, with a blur of one's own.
        context: whether a local head's sentence is read within its text, as in training, or by itself, as other methods
            are given it. One that text_length cuts is read by itself.
        tolerance: canvas pixels added to each side of a box in the pointing game.
        quantiles: of the map over the breast, from which on a pixel belongs to the prediction.
        sanity: whether the same is done with random weights, drawn by `seed`, as "local_alignment_randomised".
        gallery: pictures of each label under the first of the maps, drawn by `seed`, with their sentence.

    Metrics: "mass/local_alignment/pointing_game", "mass/local_alignment/localised_0.95_iou_0.25" and the other OVERLAPS,
    both with the paired difference "..._minus_brightness"; the first two of "mass/brightness/" and "mass/centre/",
    "mass/chance/pointing_game", and "mass/without_sentence", images with boxes that are left out.

    Raises:
        UserError: an unknown label, method or stage, or one that does not fit the model; two maps of one name.
    """
    for label in labels:
        check_name(label, PRESENT, "label of the evaluator grounding")
    maps = _maps_of(model, methods)
    random = model.randomise(seed) if sanity else None
    names = [m.name for m in maps] + [f"{m.name}{RANDOMISED}" for m in maps if sanity and m.method != BASELINE]
    positions = select(dataset.index, split, patients, seed)
    metrics, figures, rows, shown, left_out = {}, {}, [], [], []
    for label in labels:
        boxes, sentences = asked(dataset.index, positions, label)
        chosen = [int(p) for p in np.random.default_rng(seed).permutation(sorted(sentences))[:gallery]]
        scores: dict[str, list[dict]] = {name: [] for name in (*names, "centre")}
        for position, image, tissue, heats in _heats(model, dataset, sentences, maps, context, random):
            row = {"label": label} | dataset.index.loc[dataset.index.index[position], list(CARRIED)].to_dict()
            row["sentence"] = sentences[position].text
            for name, heat in heats.items():
                game = pointing_game(heat, boxes[position], tissue, tolerance)
                measures = {"hit": game.hit, "chance": game.chance, "flat": game.flat}
                measures |= regions.columns(heat, tissue, boxes[position], quantiles, OVERLAPS)
                scores[name].append(row | {"map": name} | measures)
            if position in chosen:
                figure = f"{label}_{len(shown):03d}"
                figures[figure] = shown_beside(image, heats[maps[0].name], boxes[position])
                shown.append({"figure": figure} | scores[maps[0].name][-1])
        options = {"resamples": resamples, "seed": seed}
        entries = summary(scores, _measures(quantiles), **options)
        entries["chance/pointing_game"] = _entry(scores[BASELINE], None, "chance", "image", options)
        entries["without_sentence"] = statistics.entry(len(boxes) - len(sentences), n=len(boxes))
        metrics |= {f"{label}/{name}": entry for name, entry in entries.items()}
        rows += [row for table in scores.values() for row in table]
        left_out += without(dataset.index, label, boxes, sentences)
    tables = {"images": pd.DataFrame(rows), "gallery": pd.DataFrame(shown), "without_sentence": pd.DataFrame(left_out)}
    return Result(
        "grounding", _protocol(split, maps, metrics, labels, tolerance, context, sanity), metrics, tables, figures
    )


def asked(
    index: pd.DataFrame, positions: Sequence[int], label: str
) -> tuple[dict[int, np.ndarray], dict[int, phrases.Sentence]]:
    """By position the boxes [k, 4] of a label, and of those that have one the first sentence that affirms it."""
    boxes = {int(p): b for p in positions if len(b := boxes_of(index.iloc[p], label))}
    said = {p: phrases.affirming(index.iloc[p], label) for p in boxes}
    return boxes, {p: found[0] for p, found in said.items() if found}


def without(index: pd.DataFrame, label: str, boxes, sentences) -> list[dict[str, Any]]:
    """A row of each image with boxes that has no sentence."""
    return [{"label": label} | index.loc[index.index[p], list(CARRIED)].to_dict() for p in boxes if p not in sentences]


def _maps_of(model, methods: Sequence[str | Mapping[str, Any]]) -> list[Map]:
    """The maps that are asked for, and brightness."""
    made = []
    for given in methods or ("local_alignment" if model.local_heads else "hires_cam",):
        given = {"method": given} if isinstance(given, str) else dict(given)
        method, stage, options = given.pop("method", ""), given.pop("stage", None), dict(given.pop("options", {}))
        name = given.pop("name", f"{method}_{stage}" if stage else method)
        if given:
            raise UserError(
                f"a method of the evaluator grounding has no {', '.join(given)}: give method, stage, options or name."
            )
        made.append(Map(name, method, model.map_stage(method, stage), options))
    if BASELINE not in [m.name for m in made]:
        made.append(Map(BASELINE, BASELINE, model.map_stage(BASELINE), {}))
    names = [m.name for m in made]
    if doubled := [name for name in names if names.count(name) > 1 or name in ("centre", "chance")]:
        raise UserError(f"the evaluator grounding has several maps {doubled[0]!r}: give each a name of its own.")
    return made


def _heats(
    model, dataset, sentences: Mapping[int, phrases.Sentence], maps: Sequence[Map], context: bool, random
) -> Iterator[tuple]:
    """(position, canvas, breast, {name: map [H, W]}) of each row with a sentence; beside the maps those of the weights
    `random` towards the same directions, unless that is None, and "centre"."""
    for chunk in chunks(sorted(sentences)):
        images = read(dataset, chunk)
        asked = [sentences[position] for position in chunk]
        heats = {}
        for m in maps:
            given = images, _directions(model, m, asked, context)
            heats[m.name] = model.saliency(*given, method=m.method, stage=m.stage, **m.options)
            if random is not None and m.method != BASELINE:
                with model.using(random):
                    heats[m.name + RANDOMISED] = model.saliency(*given, method=m.method, stage=m.stage, **m.options)
        for i, position in enumerate(chunk):
            tissue = of_maps.breast_mask(images[i])
            yield (
                position,
                images[i],
                tissue,
                {name: heat[i] for name, heat in heats.items()} | {"centre": nearness(tissue)},
            )


def _directions(model, m: Map, sentences: Sequence[phrases.Sentence], context: bool) -> np.ndarray:
    """float32 [n, D]: what the map is of, for each sentence."""
    alone = model.text_directions([sentence.text for sentence in sentences], m.method, m.stage)
    if not context or METHODS[m.method].over != "head":
        return alone
    vectors, there = model.embed_sentences([sentence.context for sentence in sentences], model.local_heads[m.stage])
    rows, numbers = np.arange(len(sentences)), np.array([sentence.number for sentence in sentences])
    last = np.minimum(numbers, there.shape[1] - 1)
    whole = (numbers == last) & there[rows, last]
    return np.where(whole[:, None], vectors[rows, last], alone)


def nearness(tissue: np.ndarray) -> np.ndarray:
    """float32 [H, W] from 0 to 1: a map whose maximum is the pixel at the centroid of the breast `tissue` [H, W]."""
    rows, columns = np.nonzero(tissue)
    y, x = np.indices(tissue.shape)
    distance = np.hypot(y - rows.mean(), x - columns.mean())
    return (1 - distance / distance.max()).astype(np.float32)


def _measures(quantiles) -> dict[str, tuple[str, str]]:
    """{metric: what is counted, and out of what}, columns of an image's row."""
    return {"pointing_game": ("hit", "image")} | {
        f"localised_{q:g}_iou_{least:g}": (f"found_{q:g}_{least:g}", "boxes") for q in quantiles for least in OVERLAPS
    }


def summary(
    scores: Mapping[str, list[dict]],
    measures: Mapping[str, tuple[str, str]],
    beside: Sequence[str] = (BASELINE, "centre"),
    **options,
) -> dict[str, dict]:
    """Metrics of one label from the rows of its images, which are the same for all of `scores`: of each the measures, and
    of those that are not `beside` the others what they are above brightness."""
    entries = {}
    for name, table in scores.items():
        for measure, columns in measures.items():
            bases = {f"{name}/{measure}": None}
            if name not in beside:
                bases[f"{name}/{measure}_minus_{BASELINE}"] = scores[BASELINE]
            entries |= {metric: _entry(table, base, *columns, options) for metric, base in bases.items()}
    return entries


def _entry(table: list[dict], base: list[dict] | None, counted: str, of: str, options) -> dict[str, Any]:
    """The share of a column in another, "image" in the number of rows; or what it is above that of a baseline's rows,
    on the same resamples."""
    if not table:
        return statistics.entry(None, n=0, reason="no image has boxes of this label and a sentence that affirms it")
    above, patients = np.array([row[counted] for row in table], float), [row["patient"] for row in table]
    if base is None and of == "image":
        return statistics.mean(above, patients, **options)
    less = 0 if base is None else np.array([row[counted] for row in base], float)
    return statistics.ratio(above - less, [1 if of == "image" else row[of] for row in table], patients, **options)


def _protocol(split: str, maps: Sequence[Map], metrics, labels, tolerance: float, context: bool, sanity: bool) -> str:
    described = "; ".join(
        f"{m.name}: {METHODS[m.method].title}"
        + (f" at stage {m.stage}" if m.stage else "")
        + "".join(f", {name}={value}" for name, value in m.options.items())
        for m in maps
    )
    left_out = ", ".join(
        f"{entry['value']:.0f} of {entry['n']} with boxes of {label}"
        for label in labels
        for entry in [metrics[f"{label}/without_sentence"]]
    )
    how = "within its text" if context else "by itself"
    randomised = "randomised: with random weights, towards the trained model's directions. " if sanity else ""
    return (
        f"Split {split}, images with boxes of the label, each with the first sentence of its own texts that affirms the "
        f"label for its side and view; images without such a sentence are left out: {left_out}. Maps: {described}. A local "
        f"head reads the sentence {how}, all others by itself; brightness reads none. centre: a map of the nearness to the "
        "breast's centroid; chance: a random pixel of the breast. pointing_game: the map's maximum lies in a box of the "
        f"label, tolerance {tolerance:g} canvas pixels; a map without a maximum is a miss. localised: share of the boxes that "
        "overlap, by that IoU, the bounding box of a connected part of the breast's pixels from that quantile of the map on. "
        f"minus_brightness: the difference to brightness on the same images and resamples. {randomised}"
        f"Intervals: {statistics.INTERVAL}."
    )


grounding.check = lambda model, methods=(), **others: _maps_of(model, methods)  # see options.py
