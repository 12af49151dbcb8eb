"""Does a map for a text or label look where the finding is? Scored against two guesses that look at no finding at all,
and, if asked, against maps of the same model with random weights."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import boxes_of, chunks, label_values, read, select
from mammoclip_jax.evaluation.metrics import map_similarity, regions
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.explain import METHODS
from mammoclip_jax.explain.maps import peak_of
from mammoclip_jax.inference.overlay import side_by_side
from mammoclip_jax.inference.prompt_files import load_prompts, prompts_name
from mammoclip_jax.inference.prompts import directions
from mammoclip_jax.names import check_name

LABELS = ("mass", "calcification")
CARRIED = ("image", "patient", "laterality", "view", "real")  # columns of the index that the tables have
_GALLERY_SIDE = 480  # pixels of a gallery picture's longer side


class PointingGame(NamedTuple):
    """How one map stands to one image's boxes. All but `energy` are probabilities of a hit under the pointing rule."""

    hit: float  # the map's maximum; when several pixels share it, their share inside
    centre: float  # the centroid of the breast
    chance: float  # a random pixel of the breast
    energy: float  # share of the map's sum inside; no tolerance
    box_share: float  # share of the breast inside; no tolerance
    flat: bool  # the map has no maximum; it counts as a miss


class Settings(NamedTuple):
    """Of the maps of every image."""

    method: str
    stage: str
    options: Mapping[str, Any]
    tolerance: float
    quantiles: tuple[float, ...]
    deletion_steps: int
    deletion_fill: str


class Explanation(NamedTuple):
    """One image's map with one set of weights."""

    heat: np.ndarray  # [H, W]
    curves: np.ndarray | None  # [2, steps + 1]: insertion and deletion


def saliency(
    model,
    dataset,
    *,
    split: str = "test",
    labels: tuple[str, ...] | None = None,
    prompts: str | Mapping[str, Any] = "mammo_clip",
    explain: str = "score",
    stage: str | None = None,
    method: str = "grad_cam",
    options: Mapping[str, Any] = {},
    tolerance: float = 0.0,
    quantiles: tuple[float, ...] = (0.95,),
    deletion_steps: int = 0,
    deletion_fill: str = "black",
    sanity: bool = False,
    cascade: tuple[str, ...] = (),
    patients: int | None = None,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """Saliency maps for each label, on the images with its boxes: how well they lie over the boxes.

    Args:
        labels: of the prompt file, or of a classifier or detector; None: those of LABELS that it has.
        prompts: whose texts a dual encoder is asked about; a classifier or detector is asked about its labels.
        explain: one of `prompts.EXPLAIN`.
        stage: of the image encoder; None leaves the choice to the method.
        method: one of `explain.METHODS`; options: its own, such as {"window": 96}.
        tolerance: canvas pixels added to each side of a box, for the map and both baselines.
        quantiles: of the map over the breast, from which on a pixel belongs to the prediction.
        deletion_steps: points of the insertion and deletion curves, two forward passes each; 0 leaves them out.
        deletion_fill: what a deleted pixel becomes, "black" or "blur".
        sanity: whether the same is done with random weights, drawn by `seed`, and the maps compared.
        cascade: stages of the image encoder; for each, maps of a model whose weights above that stage are random are
            compared.
        gallery: pictures of each label, drawn by `seed`, hits and misses alike; where no image has boxes of a label
            they show images that have the label.

    Metrics: "mass/pointing_game", "mass/centre_guess", "mass/chance", "mass/ratio_to_centre", "mass/ratio_to_chance",
    "mass/energy_in_box", "mass/box_share", "mass/energy_ratio"; for each quantile "mass/iou_0.95", "mass/dice_0.95",
    "mass/regions_0.95", "mass/localised_0.95_iou_0.25", "mass/localised_0.95_iou_0.5"; "mass/insertion_auc",
    "mass/deletion_auc". With `sanity` all of them once more as "mass/energy_ratio_randomised", and with `sanity` or
    `cascade` "mass/rank_correlation_randomised", "mass/ssim_above_stage5".

    Raises:
        UserError: a label that there is not, or a method or stage that does not fit the model or `deletion_steps`.
    """
    settings = Settings(
        method,
        model.map_stage(method, stage),
        dict(options),
        tolerance,
        tuple(quantiles),
        deletion_steps,
        deletion_fill,
    )
    if deletion_steps and METHODS[method].over == "head":
        raise UserError(
            f"deletion_steps={deletion_steps} scores the whole image's vector, which is not what {method} explains: "
            "leave it out."
        )
    positions = select(dataset.index, split, patients, seed)
    towards = towards_of("saliency", model, prompts, labels, explain, settings.method, settings.stage)
    others = _other_weights(model, sanity, cascade, seed)
    metrics, figures, rows_of_all, shown = {}, {}, [], []
    for label, direction in towards.items():
        boxes = {p: b for p in positions if len(b := boxes_of(dataset.index.iloc[p], label))}
        chosen = _gallery_choice(dataset, positions, boxes, label, gallery, seed)
        rows = {name: [] for name in ("", *others)}
        for position, image, tissue, maps in _maps(
            model, dataset, sorted({*boxes, *chosen}), direction, settings, others
        ):
            row = {"label": label} | dataset.index.loc[dataset.index.index[position], list(CARRIED)].to_dict()
            heat = maps[""].heat
            for name in rows if position in boxes else ():
                rows[name].append(
                    row
                    | {"weights": name or "trained"}
                    | _scores(maps[name], boxes[position], tissue, settings, heat if name else None)
                )
            if position in chosen:
                name = f"{label}_{len(shown):03d}"
                figures[name] = shown_beside(image, heat, boxes.get(position, ()))
                shown.append({"figure": name} | (rows[""][-1] if position in boxes else row))
        for name in rows:
            entries = _summary(
                rows[name], settings, resamples, seed, compared=bool(name), own_scores=name in ("", "randomised")
            )
            metrics |= {f"{label}/{metric}" + f"_{name}" * bool(name): entry for metric, entry in entries.items()}
            rows_of_all += rows[name]
    tables = {"images": pd.DataFrame(rows_of_all), "gallery": pd.DataFrame(shown)}
    return Result("saliency", _protocol(model, split, prompts, explain, settings, others), metrics, tables, figures)


def shown_beside(image: np.ndarray, heat: np.ndarray, boxes: np.ndarray) -> bytes:
    """A picture of the gallery: the image with its boxes, and beside it the same under the map with its peak."""
    return side_by_side(image, heat, boxes, peak_of(heat), _GALLERY_SIDE)


def _other_weights(model, sanity: bool, cascade: tuple[str, ...], seed: int) -> dict[str, Any]:
    """{how metrics call them: random weights for `model.using`}."""
    whole = {"randomised": model.randomise(seed)} if sanity else {}
    return whole | {f"above_{stage}": model.randomise(seed, keep=stage) for stage in cascade}


def _maps(
    model, dataset, positions: list[int], direction: np.ndarray, settings: Settings, others: Mapping[str, Any]
) -> Iterator[tuple]:
    """(position, canvas, breast, {name of the weights: Shown}) of each row at `positions`; "" are the model's own."""
    for chunk in chunks(positions):
        images = read(dataset, chunk)
        tissue = np.stack([of_maps.breast_mask(image) for image in images])
        towards = np.stack([direction] * len(chunk))
        maps = {"": _explanations(model, images, tissue, towards, settings)}
        for name, variables in others.items():
            with model.using(variables):
                maps[name] = _explanations(model, images, tissue, towards, settings)
        for i, position in enumerate(chunk):
            yield position, images[i], tissue[i], {name: shown[i] for name, shown in maps.items()}


def _explanations(model, images, tissue, towards, settings: Settings) -> list[Explanation]:
    heats = np.asarray(
        model.saliency(images, towards, method=settings.method, stage=settings.stage, **settings.options)
    )
    curves = [None] * len(heats)
    if settings.deletion_steps:
        curves = model.deletion_curves(
            images, towards, heats, tissue, steps=settings.deletion_steps, fill=settings.deletion_fill
        )
    return [Explanation(*both) for both in zip(heats, curves, strict=True)]


def _scores(
    shown: Explanation, boxes: np.ndarray, tissue: np.ndarray, settings: Settings, trained: np.ndarray | None
) -> dict:
    """Columns of one image's row; `trained` is the map that a random one is compared with."""
    heat = shown.heat
    row = pointing_game(heat, boxes, tissue, settings.tolerance)._asdict() | regions.columns(
        heat, tissue, boxes, settings.quantiles
    )
    if shown.curves is not None:
        areas = np.trapezoid(shown.curves, dx=1 / settings.deletion_steps)
        row |= dict(zip(("insertion", "deletion"), areas, strict=True))
    if trained is not None:
        row |= {name: getattr(map_similarity, name)(trained, heat, tissue) for name in ("rank_correlation", "ssim")}
    return row


def towards_of(
    evaluator: str,
    model,
    prompts: str | Mapping[str, Any],
    labels: Sequence[str] | None,
    explain: str,
    method: str,
    stage: str,
) -> dict[str, np.ndarray]:
    """`directions` of the labels that are asked about; of a model with labels of its own those of its outputs.

    Raises:
        UserError: the model is not asked about a label; `evaluator` says whose labels they are.
    """
    known = {name: None for name in model.labels} or load_prompts(prompts)
    for label in labels or ():
        check_name(label, known, f"label of the evaluator {evaluator}")
    wanted = labels or tuple(label for label in LABELS if label in known)
    if not wanted:
        raise UserError(
            f"the evaluator {evaluator} looks for boxes of {' and '.join(LABELS)}, and this model is asked about "
            f"{', '.join(known)}: give its option labels."
        )
    if model.labels:
        return dict(zip(wanted, np.eye(len(known), dtype=np.float32)[[model.labels.index(label) for label in wanted]]))
    return directions(model, {label: known[label] for label in wanted}, explain, method, stage)


def inside(xy: np.ndarray, boxes: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """bool [n]: is a point (x, y) of `xy` [n, 2] in any of `boxes` [k, 4], grown by `tolerance` pixels on each side?"""
    low, high = boxes[:, :2] - tolerance, boxes[:, 2:] + tolerance
    return ((xy[:, None] >= low) & (xy[:, None] < high)).all(-1).any(-1)


def pointing_game(heat: np.ndarray, boxes: np.ndarray, tissue: np.ndarray, tolerance: float = 0.0) -> PointingGame:
    """Scores a map `heat` [H, W] ≥ 0 against `boxes` [k, 4] in its pixels, the baselines on the breast `tissue` [H, W].

    A pixel counts by its centre. Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016.
    """
    in_box = regions.boxes_mask(boxes, heat.shape)
    flat = bool(heat.max() == heat.min())
    peaks, points = _centres(heat == heat.max()), _centres(tissue)
    return PointingGame(
        hit=0.0 if flat else float(inside(peaks, boxes, tolerance).mean()),
        centre=float(inside(points.mean(0, keepdims=True), boxes, tolerance)[0]),
        chance=float(inside(points, boxes, tolerance).mean()),
        energy=float(heat[in_box].sum(dtype=np.float64) / max(heat.sum(dtype=np.float64), 1e-12)),
        box_share=float((in_box & tissue).sum() / tissue.sum()),
        flat=flat,
    )


def _centres(mask: np.ndarray) -> np.ndarray:
    """float [n, 2]: (x, y) of the centres of the pixels that are set."""
    return np.argwhere(mask)[:, ::-1] + 0.5


def _gallery_choice(dataset, positions, boxes, label, count, seed) -> list[int]:
    positive = positions[label_values(dataset.index.iloc[positions], label) == 1]
    candidates = sorted(boxes) or list(positive)
    return [int(p) for p in np.random.default_rng(seed).permutation(candidates)[:count]]


def _summary(
    table: list[dict], settings: Settings, resamples: int, seed: int, *, compared: bool, own_scores: bool
) -> dict[str, dict]:
    """Metrics of one label from the rows of its images: their `own_scores`, and their likeness to the trained maps."""
    means = {"rank_correlation": "rank_correlation", "ssim": "ssim"} if compared else {}
    ratios = {}
    if own_scores:
        means |= {
            "pointing_game": "hit",
            "centre_guess": "centre",
            "chance": "chance",
            "energy_in_box": "energy",
            "box_share": "box_share",
        }
        means |= {f"{name}_{q:g}": f"{name}_{q:g}" for q in settings.quantiles for name in ("iou", "dice", "regions")}
        means |= {"insertion_auc": "insertion", "deletion_auc": "deletion"} if settings.deletion_steps else {}
        ratios = {
            "ratio_to_centre": ("hit", "centre"),
            "ratio_to_chance": ("hit", "chance"),
            "energy_ratio": ("energy", "box_share"),
        }
        ratios |= {
            f"localised_{q:g}_iou_{least:g}": (f"found_{q:g}_{least:g}", "boxes")
            for q in settings.quantiles
            for least in regions.OVERLAPS
        }
    if not table:
        nothing = statistics.entry(None, n=0, reason="no image has boxes of this label")
        return dict.fromkeys((*means, *ratios), nothing)
    column = {name: [row[name] for row in table] for name in table[0]}
    patient = column["patient"]
    options = {"resamples": resamples, "seed": seed}
    return {name: statistics.mean(column[of], patient, **options) for name, of in means.items()} | {
        name: statistics.ratio(column[a], column[b], patient, **options) for name, (a, b) in ratios.items()
    }


def _protocol(model, split, prompts, explain, settings: Settings, others) -> str:
    what = "positive minus negative texts" if explain == "score" else "positive texts"
    what = "label's logit" if model.labels else f"cosine to the {what} of {prompts_name(prompts)}"
    where = f" at stage {settings.stage}" if settings.stage else ""
    options = "".join(f", {name}={value}" for name, value in settings.options.items())
    parts = [
        f"Split {split}, images with boxes of the label. {METHODS[settings.method].title}{where}{options} of the {what}. "
        "pointing_game: the map's maximum lies in a box of the label, "
        f"tolerance {settings.tolerance:g} canvas pixels; a map without a maximum is a miss. centre_guess: the breast's "
        "centroid under the same rule. chance: a random pixel of the breast. energy_in_box: share of the map's sum within "
        "the boxes; box_share: share of the breast within them."
    ]
    if settings.quantiles:
        parts.append(
            "iou, dice: of the union of the boxes and the breast's pixels from that quantile of the map on; "
            "regions: connected parts of it; localised: share of the boxes that overlap the bounding box of "
            "such a part by that IoU."
        )
    if settings.deletion_steps:
        parts.append(
            "insertion_auc, deletion_auc: mean score while the breast's hottest pixels replace those of a "
            f"blurred image, or become {settings.deletion_fill}, in {settings.deletion_steps} steps; the score is "
            "the logit, cosine or difference of cosines itself, no probability."
        )
    if others:
        parts.append(
            "randomised: the same with random weights, above_...: with random weights above that stage, "
            "towards the trained model's directions; rank_correlation (Spearman, over the breast) and ssim: of "
            "their maps with the trained model's."
        )
    return " ".join([*parts, f"Intervals: {statistics.INTERVAL}."])
