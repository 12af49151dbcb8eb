"""Does a map for a text look where the finding is? Scored against two guesses that look at no finding at all."""

import json
from typing import Any, Iterator, Mapping, NamedTuple

import cv2
import numpy as np
import pandas as pd

from mammoclip_jax.data.pixels import breast
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import chunks, label_values, read, select
from mammoclip_jax.evaluation.overlay import side_by_side
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.zero_shot import (
    Pair,
    load_prompts,
    prompts_name,
    text_bank,
)

# What a map explains: "score" the cosine to the positive texts minus that to the negative ones (the zero-shot score);
# "positive" the cosine to the positive texts alone.
EXPLAIN = ("score", "positive")
METHODS = {"grad_cam": "Grad-CAM", "hires_cam": "HiResCAM"}
_CARRIED = ("image", "patient", "laterality", "view", "real")
_GALLERY_SIDE = 480      # pixels of a gallery picture's longer side


class Look(NamedTuple):
    """How one map stands to one image's boxes. All but `energy` are probabilities of a hit under the pointing rule."""

    hit: float            # the map's maximum; when several pixels share it, their share inside
    centre: float         # the centroid of the breast
    chance: float         # a random pixel of the breast
    energy: float         # share of the map's sum inside; no tolerance
    box_share: float      # share of the breast inside; no tolerance
    flat: bool            # the map has no maximum; it counts as a miss


def saliency(model, dataset, *, split: str = "test", labels: tuple[str, ...] = ("mass", "calcification"),
             prompts: str | Mapping[str, Any] = "mammo_clip", explain: str = "score", stage: str | None = None,
             method: str = "grad_cam", tolerance: float = 0.0, patients: int | None = None, gallery: int = 6,
             resamples: int = statistics.RESAMPLES, seed: int = 0) -> Result:
    """Pointing game and energy in box of saliency maps for each label's texts, on the images with its boxes.

    Args:
        explain: one of EXPLAIN.
        stage: of the image encoder; None is the last.
        method: one of METHODS.
        tolerance: canvas pixels added to each side of a box, for the map and both baselines.
        gallery: pictures of each label, drawn by `seed`, hits and misses alike; where no image has boxes of a label
            they show images that have the label.

    Metrics: "mass/pointing_game", "mass/centre_guess", "mass/chance", "mass/ratio_to_centre", "mass/ratio_to_chance",
    "mass/energy_in_box", "mass/box_share", "mass/energy_ratio".
    """
    pairs = {label: pair for label, pair in load_prompts(prompts).items() if label in labels}
    stage = stage or model.stages[-1]
    positions = select(dataset.index, split, patients, seed)
    metrics, figures, looks, shown = {}, {}, [], []
    for label, direction in directions(model, pairs, explain).items():
        boxes = {p: b for p in positions if len(b := boxes_of(dataset.index.iloc[p], label))}
        chosen = _gallery_choice(dataset, positions, boxes, label, gallery, seed)
        rows = []
        for position, image, heat in _maps(model, dataset, sorted({*boxes, *chosen}), direction, stage, method):
            row = {"label": label} | dataset.index.loc[dataset.index.index[position], list(_CARRIED)].to_dict()
            if position in boxes:
                row |= look(heat, boxes[position], breast_mask(image), tolerance)._asdict()
                rows.append(row)
            if position in chosen:
                name = f"{label}_{len(shown):03d}"
                figures[name] = side_by_side(image, heat, boxes.get(position, ()), peak_of(heat), _GALLERY_SIDE)
                shown.append({"figure": name} | row)
        metrics |= {f"{label}/{name}": entry for name, entry in _summary(rows, resamples, seed).items()}
        looks += rows
    tables = {"images": pd.DataFrame(looks), "gallery": pd.DataFrame(shown)}
    return Result("saliency", _protocol(split, prompts, stage, method, explain, tolerance), metrics, tables, figures)


def _maps(model, dataset, positions: list[int], direction: np.ndarray, stage: str,
          method: str) -> Iterator[tuple]:
    """(position, canvas, map) of each row at `positions`."""
    for chunk in chunks(positions):
        images = read(dataset, chunk)
        maps = model.grad_cam(images, np.stack([direction] * len(chunk)), stage=stage, method=method)
        yield from zip(chunk, images, np.asarray(maps), strict=True)


def boxes_of(row: pd.Series, label: str) -> np.ndarray:
    """float [k, 4]: the boxes (x0, y0, x1, y1) of `label` in canvas pixels."""
    found = [item["box"] for item in json.loads(row["boxes_canvas"]) if item["label"] == label]
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def breast_mask(canvas: np.ndarray) -> np.ndarray:
    """bool [H, W]: the breast on a canvas, as the crop finds it, at the canvas's own resolution."""
    small, _ = breast.breast_mask(canvas)
    return cv2.resize(small.astype(np.uint8), canvas.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def directions(model, pairs: Mapping[str, Pair], explain: str) -> dict[str, np.ndarray]:
    """{label: float32 [D]}: what the map differentiates, see `EXPLAIN`.

    Raises:
        UserError: `explain` is neither.
    """
    if explain not in EXPLAIN:
        raise UserError(f"explain={explain!r} is not known; use one of {', '.join(EXPLAIN)}.")
    bank = text_bank(model, pairs)
    return {label: sides[0] - sides[1] if explain == "score" else sides[0] for label, sides in bank.items()}


def inside(xy: np.ndarray, boxes: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """bool [n]: is a point (x, y) of `xy` [n, 2] in any of `boxes` [k, 4], grown by `tolerance` pixels on each side?"""
    low, high = boxes[:, :2] - tolerance, boxes[:, 2:] + tolerance
    return ((xy[:, None] >= low) & (xy[:, None] < high)).all(-1).any(-1)


def look(heat: np.ndarray, boxes: np.ndarray, tissue: np.ndarray, tolerance: float = 0.0) -> Look:
    """Scores a map `heat` [H, W] ≥ 0 against `boxes` [k, 4] in its pixels, the baselines on the breast `tissue` [H, W].

    A pixel counts by its centre. Pointing game: Zhang et al., Top-down Neural Attention by Excitation Backprop, 2016.
    """
    grid = _centres(np.ones(heat.shape, dtype=bool))
    in_box = inside(grid, boxes).reshape(heat.shape)
    flat = bool(heat.max() == heat.min())
    peaks, points = _centres(heat == heat.max()), _centres(tissue)
    return Look(
        hit=0.0 if flat else float(inside(peaks, boxes, tolerance).mean()),
        centre=float(inside(points.mean(0, keepdims=True), boxes, tolerance)[0]),
        chance=float(inside(points, boxes, tolerance).mean()),
        energy=float(heat[in_box].sum(dtype=np.float64) / max(heat.sum(dtype=np.float64), 1e-12)),
        box_share=float((in_box & tissue).sum() / tissue.sum()),
        flat=flat,
    )


def peak_of(heat: np.ndarray) -> tuple[float, float] | None:
    """(x, y) of the first maximum of a map, in continuous pixel coordinates; None for a flat map."""
    if heat.max() == heat.min():
        return None
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    return x + 0.5, y + 0.5


def _centres(mask: np.ndarray) -> np.ndarray:
    """float [n, 2]: (x, y) of the centres of the pixels that are set."""
    return np.argwhere(mask)[:, ::-1] + 0.5


def _gallery_choice(dataset, positions, boxes, label, count, seed) -> list[int]:
    positive = positions[label_values(dataset.index.iloc[positions], label) == 1]
    candidates = sorted(boxes) or list(positive)
    return [int(p) for p in np.random.default_rng(seed).permutation(candidates)[:count]]


def _summary(table: list[dict], resamples: int, seed: int) -> dict[str, dict]:
    """Metrics of one label from the rows of its images."""
    column = {name: [row[name] for row in table] for name in Look._fields}
    patient = [row["patient"] for row in table]
    options = {"resamples": resamples, "seed": seed}
    means = {"pointing_game": "hit", "centre_guess": "centre", "chance": "chance", "energy_in_box": "energy",
             "box_share": "box_share"}
    ratios = {"ratio_to_centre": ("hit", "centre"), "ratio_to_chance": ("hit", "chance"),
              "energy_ratio": ("energy", "box_share")}
    if not table:
        nothing = statistics.entry(None, n=0, reason="no image has boxes of this label")
        return dict.fromkeys((*means, *ratios), nothing)
    return ({name: statistics.mean(column[of], patient, **options) for name, of in means.items()} |
            {name: statistics.ratio(column[a], column[b], patient, **options) for name, (a, b) in ratios.items()})


def _protocol(split, prompts, stage, method, explain, tolerance) -> str:
    what = "positive minus negative texts" if explain == "score" else "positive texts"
    return (f"Split {split}, images with boxes of the label. {METHODS[method]} at stage {stage} of the cosine to the "
            f"{what} of {prompts_name(prompts)}. pointing_game: the map's maximum lies in a box of the label, "
            f"tolerance {tolerance:g} canvas pixels; a map without a maximum is a miss. centre_guess: the breast's centroid "
            "under the same rule. chance: a random pixel of the breast. energy_in_box: share of the map's sum within "
            "the boxes; box_share: share of the breast within them. Intervals: 95 %, percentile bootstrap over "
            "patients.")
