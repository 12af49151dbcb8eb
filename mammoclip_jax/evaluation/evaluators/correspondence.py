"""CC and MLO: is the column that holds a lesion in one view found in the other?

A column of mega-patches of a head of the kind `cross_view` is a depth from the chest wall, the same in both views.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import boxes_of, chunks, read, select
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference.prompts import unit
from mammoclip_jax.models.cross_view import CrossView

LABELS = ("mass", "calcification")
VIEWS = ("CC", "MLO")
REACHED = 0.05  # of a column's pixels, from which on there is breast in it
WAYS = ("", "_rebuilt")  # ends of the metrics' names, by where the similarity of a column comes from
# What becomes of a breast, for each label.
STATES = ("no_box", "one_view", "box_in_one_view", "several_boxes", "off_grid", "scored")


class Lesion(NamedTuple):
    """One lesion in both views of a breast."""

    label: str
    rows: tuple[int, int]  # CC and MLO, in the data set's index
    centres: np.ndarray  # [2, 2]: (x, y) in canvas pixels


class Pair(NamedTuple):
    """What the head says of the CC and the MLO of a breast, on a grid of rows x columns mega-patches."""

    cells: np.ndarray  # [2, rows columns, C], unit norm
    rebuilt: np.ndarray  # [2, rows columns, columns]: cosine with what each column of the other view makes of it
    reached: np.ndarray  # bool [2, columns]: where there is breast


def correspondence(
    model,
    dataset,
    *,
    split: str = "test",
    labels: tuple[str, ...] = LABELS,
    head: str = "cross_view",
    shuffles: int = 20,
    patients: int | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """For the mega-patch that holds a lesion's centre in one view, which column of the other view is most similar?

    A breast is scored that has one box of the label in its CC and one in its MLO view; it asks twice, from CC and
    from MLO. The columns to choose from are those of the other view with breast in them. A hit is the column that
    holds the centre of the lesion's box there, however far that is from the query's own.

    Args:
        labels: of boxes.
        head: its name in config.model.heads; of the kind cross_view, with pooling "average".
        shuffles: permutations of the other view's columns a query, drawn by `seed` and the breast, for the control.

    Metrics: "mass/hit_rate" by the largest cosine of the query with a mega-patch of the column;
    "mass/hit_rate_rebuilt" by its cosine with what the head's attention makes of it from the column (what training
    compares it with, in its own column). Beside them "mass/column_chance" (one of the columns at random),
    "mass/same_column" (the query's own column), "mass/shuffled", "mass/shuffled_rebuilt" (columns permuted); ratios
    "mass/ratio_to_column_chance", "mass/ratio_to_same_column" and "mass/ratio_to_shuffled", also "…_rebuilt"; and
    "mass/scored", the share of the breasts with a box of the label that are scored.

    Raises:
        UserError: the model has no such head, or one whose mega-patches have no place in the image; no shuffles.
    """
    options = _options_of(model, head)
    if shuffles < 1:
        raise UserError(f"shuffles={shuffles} of the evaluator correspondence must be 1 or more.")
    positions = select(dataset.index, split, patients, seed)
    lesions, states = _lesions(dataset.index.iloc[positions], positions, labels)
    found: dict[str, list[dict]] = {label: [] for label in labels}
    for lesion, pair, places in _answers(model, dataset, lesions, head, options):
        on_grid = places is not None
        states[lesion.label]["scored" if on_grid else "off_grid"] += 1
        if on_grid:
            found[lesion.label] += _scores(lesion, pair, places, dataset.index, shuffles, seed)
    metrics = {}
    for label in labels:
        entries = _summary(found[label], {"resamples": resamples, "seed": seed})
        with_box = states[label].total() - states[label]["no_box"]
        share = states[label]["scored"] / with_box if with_box else None
        entries["scored"] = statistics.entry(share, n=with_box, reason=None if with_box else "no breast has a box")
        metrics |= {f"{label}/{name}": entry for name, entry in entries.items()}
    tables = {
        "breasts": pd.DataFrame(
            [{"label": label, **{state: states[label][state] for state in STATES}} for label in labels]
        ),
        "lesions": pd.DataFrame([row for label in labels for row in found[label]]),
    }
    return Result("correspondence", _protocol(model, split, head, options, shuffles), metrics, tables)


def _options_of(model, head: str) -> dict[str, Any]:
    """stage and cell of the head."""
    heads = model.config.model.get("heads", {})
    kinds = {name: options.get("kind", name) for name, options in heads.items()}
    if kinds.get(head) != "cross_view":
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no head"
        raise UserError(
            f"the evaluator correspondence asks config.model.heads.{head}, of the kind cross_view, and this model has "
            f"{listed}. Give its option head, or a model trained with such a head (configs/phantom_glam.py)."
        )
    options = dict(heads[head])
    if options.get("pooling", CrossView.pooling) != "average":
        raise UserError(
            f"the mega-patches of config.model.heads.{head} are free queries (pooling={options['pooling']!r}), which "
            "have no place in the image: there is no column to find. Only pooling='average' can be evaluated."
        )
    return {"stage": options["stage"], "cell": tuple(options.get("cell", CrossView.cell))}


def _lesions(
    rows: pd.DataFrame, positions: np.ndarray, labels: Sequence[str]
) -> tuple[list[Lesion], dict[str, Counter]]:
    """The lesions that can be asked about, and by label how many breasts are why not."""
    rows = rows.assign(position=positions).reset_index(drop=True)
    lesions, states = [], {label: Counter() for label in labels}
    for _, group in rows.groupby(units.breasts(rows), sort=False):
        places, there = units.standing(units.views(group), len(VIEWS))
        shown = group.iloc[places[there]]
        for label in labels:
            boxes = [boxes_of(row, label) for _, row in shown.iterrows()]
            state = _state(tuple(shown["view"]), [len(found) for found in boxes])
            if state == "scored":
                centres = np.concatenate(boxes).reshape(-1, 2, 2).mean(axis=1)
                lesions.append(Lesion(label, tuple(map(int, shown["position"])), centres))
            else:
                states[label][state] += 1
    return lesions, states


def _state(views: tuple[str, ...], boxes: list[int]) -> str:
    """One of STATES; `boxes`: how many each of the views has."""
    if not any(boxes):
        return "no_box"
    if views != VIEWS:
        return "one_view"
    if not all(boxes):
        return "box_in_one_view"
    return "several_boxes" if max(boxes) > 1 else "scored"


def _answers(model, dataset, lesions: list[Lesion], head: str, options: Mapping[str, Any]):
    """(lesion, Pair, int [2, 2]: row and column of its mega-patch in each view; None beyond the grid) of each lesion."""
    by_rows: dict[tuple[int, int], list[Lesion]] = {}
    for lesion in lesions:
        by_rows.setdefault(lesion.rows, []).append(lesion)
    grid, (high, wide), asked = model.stage_grid(options["stage"]), options["cell"], list(by_rows)
    for chunk in chunks(range(len(asked))):
        images = read(dataset, [row for i in chunk for row in asked[i]])
        height, width = images.shape[1:]
        outputs = model.head_outputs(head, images.reshape(len(chunk), 2, height, width))
        columns = outputs["column_cosines"].shape[-1]
        rows = outputs["cells"].shape[2] // columns
        down, across = (grid.stride, grid.row, high, rows, height), (grid.stride, grid.column, wide, columns, width)
        of_pixels = numbers(np.arange(width) + 0.5, *across)
        for place, i in enumerate(chunk):
            tissue = [of_maps.breast_mask(image) for image in images[2 * place : 2 * place + 2]]
            reached = [[mask[:, of_pixels == k].mean() >= REACHED for k in range(columns)] for mask in tissue]
            pair = Pair(unit(outputs["cells"][place]), outputs["column_cosines"][place], np.array(reached))
            for lesion in by_rows[asked[i]]:
                x, y = lesion.centres.T
                places = np.stack([numbers(y, *down), numbers(x, *across)], axis=1)
                yield lesion, pair, None if (places < 0).any() else places


def numbers(points: np.ndarray, stride: int, first: float, cell: int, count: int, length: int) -> np.ndarray:
    """int [n]: along an axis, the mega-patch of the patch that lies nearest to each of `points` [n]; -1: of none.

    Args:
        stride, first: the centre of patch i is stride i + first, as `points` in pixels.
        cell, count: patches in a mega-patch, and how many mega-patches there are; the patches behind them are in none.
        length: of the image, in pixels.
    """
    patches = max(math.ceil((length - first) / stride), cell * count)
    number = np.clip(np.floor((points - first) / stride + 0.5), 0, patches - 1).astype(int) // cell
    return np.where(number < count, number, -1)


def _scores(
    lesion: Lesion, pair: Pair, places: np.ndarray, index: pd.DataFrame, shuffles: int, seed: int
) -> list[dict]:
    """The row of each direction; `places` [2, 2]: row and column of the lesion's mega-patch, by view."""
    columns, rows = pair.reached.shape[1], []
    for view, other in ((0, 1), (1, 0)):
        (row, own), true = places[view], places[other, 1]
        query = row * columns + own
        among = np.flatnonzero(pair.reached[other] | (np.arange(columns) == true))
        right = int(np.flatnonzero(among == true)[0])
        cosines = pair.cells[other] @ pair.cells[view, query]
        similarity = {"": cosines.reshape(-1, columns).max(axis=0), "_rebuilt": pair.rebuilt[view, query]}
        rng = np.random.default_rng([seed, lesion.rows[view]])
        orders = [rng.permutation(len(among)) for _ in range(shuffles)]
        asked = index.iloc[lesion.rows[view]]
        rows.append(
            {
                "label": lesion.label,
                **{name: asked[name] for name in ("patient", "study", "laterality", "image")},
                "from": VIEWS[view],
                "to": VIEWS[other],
                "column": int(own),
                "true_column": int(true),
                "columns": len(among),
                "chance": 1 / len(among),
                "same_column": float(own == true),
            }
        )
        for way in WAYS:
            values = similarity[way][among]
            rows[-1] |= {
                f"chosen{way}": int(among[values.argmax()]),
                f"hit{way}": hit(values, right),
                f"shuffled{way}": np.mean([hit(values[order], right) for order in orders]),
            }
    return rows


def hit(values: np.ndarray, right: int) -> float:
    """1 where the largest of `values` [n] is that at `right`, 0 where not, 1 over their number where several are."""
    best = values == values.max()
    return float(best[right] / best.sum())


def _summary(rows: list[dict], options: Mapping[str, Any]) -> dict[str, dict]:
    """Metrics of a label from the rows of its lesions."""
    means = {"column_chance": "chance", "same_column": "same_column"}
    for way in WAYS:
        means |= {f"hit_rate{way}": f"hit{way}", f"shuffled{way}": f"shuffled{way}"}
    below = {
        way: {"column_chance": "chance", "same_column": "same_column", "shuffled": f"shuffled{way}"} for way in WAYS
    }
    ratios = {f"ratio_to_{name}{way}": (f"hit{way}", of) for way in WAYS for name, of in below[way].items()}
    if not rows:
        nothing = statistics.entry(None, n=0, reason="no breast has one box of this label in each of CC and MLO")
        return dict.fromkeys((*means, *ratios), nothing)
    column = {name: [row[name] for row in rows] for name in rows[0]}
    patient = column["patient"]
    return {name: statistics.mean(column[of], patient, **options) for name, of in means.items()} | {
        name: statistics.ratio(column[a], column[b], patient, **options) for name, (a, b) in ratios.items()
    }


def _protocol(model, split: str, head: str, options: Mapping[str, Any], shuffles: int) -> str:
    prepared = Preprocessing.from_dict(model.preprocessing)
    high, wide = options["cell"]
    return (
        f"Split {split}, breasts with one box of the label in CC and one in MLO; the table breasts counts the others. "
        f"MLO {'turned upright' if prepared.upright else 'as it is'}, one scale for each {prepared.scale}. Mega-patches "
        f"of {high} x {wide} patches of {options['stage']}, head {head}. The mega-patch with the box's centre in one view "
        "looks for its column in the other, among those with breast in them, from CC and from MLO. hit_rate: the column "
        "with the largest cosine to one of its mega-patches; hit_rate_rebuilt: the column from which the head's attention "
        "makes what is most like the query; a hit holds the centre of the other view's box, ties are shared. column_chance: a "
        f"random one of these columns; same_column: the query's own; shuffled: the columns permuted, {shuffles} times a "
        f"query. Intervals: {statistics.INTERVAL}."
    )
