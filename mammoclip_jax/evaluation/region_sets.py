"""Regions of a data set's images that are scored: the boxes of findings, places of normal tissue, and what is known of
each, by a model and by its size and brightness alone.

A set of regions is a table, one row a region: COLUMNS, the box in canvas pixels.
"""

import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions import sliding
from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.data.store import region_tables as store
from mammoclip_jax.data.text import concepts as lexicons
from mammoclip_jax.evaluation.features import chunks, known_where, read
from mammoclip_jax.evaluation.metrics.regions import boxes_mask
from mammoclip_jax.evaluation.predictions import IDENTITY
from mammoclip_jax.inference.prompts import NORMAL
from mammoclip_jax.names import check_name

BOX = ["left", "top", "right", "bottom"]
COLUMNS = ("position", *IDENTITY, "real", "label", *BOX)  # position: the row of the data set's index
SLIDING = "sliding"  # boxes all over the breast, made when they are asked for; else regions are a side table's name
PLACES = 32  # regions of an image that are computed at a time, at most
NOTHING = np.zeros((0, 4)), np.zeros(0, int)  # of an image without regions, as `by_position` has others
TRIES = 40  # places that are looked at for a region of normal tissue
TISSUE = 0.75  # share of such a region that is breast, at least

# Kinds of vectors of regions, and how a model computes them: [n H W] images and [n R 4] boxes -> [n R D].
KINDS: dict[str, Callable] = {
    "head": lambda model, images, boxes: model.embed_regions(images, boxes),
    "places": lambda model, images, boxes: model.embed_places(images, boxes),
    "crops": lambda model, images, boxes: model.embed_crops(images, boxes),
    "stages": lambda model, images, boxes: model.region_means(images, boxes),
}
# Those beside which a model's texts lie, and what makes them.
IN_TEXT_SPACE = {
    "head": "the head of regions",
    "places": "the last stage's mean over the box, projected as an image's features are",
    "crops": "what is cut out around the box, enlarged to an image",
}


def kind_of(model, asked: str | None = None) -> str:
    """The kind of vectors beside which a model's texts lie: as asked, else of its head of regions, else of places of the
    last stage.

    Raises:
        UserError: there is no such kind.
    """
    if asked is None:
        return "head" if getattr(model, "region_heads", ()) else "places"
    check_name(asked, IN_TEXT_SPACE, "kind of vectors beside texts")
    return asked


def boxed(index: pd.DataFrame, positions: Sequence[int], labels: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """(The boxes that are of one of `labels` alone, how many are of several) in the images at `positions`."""
    rows, several = [], 0
    for position in map(int, positions):
        row = index.iloc[position]
        for item in json.loads(row["boxes_canvas"]):
            named = lexicons.findings_of(item) & set(labels)
            several += len(named) > 1
            if len(named) == 1:
                rows.append(_row(position, row, named.pop(), item["box"]))
    return pd.DataFrame(rows, columns=list(COLUMNS)), several


def whole_known(rows: pd.DataFrame, labels: Sequence[str]) -> np.ndarray:
    """bool [n]: images of which it is known for each label that they lack it, or where it is."""
    return np.all([known_where(rows, label) for label in labels], axis=0)


def normal(dataset, positions: Sequence[int], labels: Sequence[str], sizes: np.ndarray, seed: int) -> pd.DataFrame:
    """A region of normal tissue in each image at `positions` of which all is known, where there is room for one.

    Its width and height are a row of `sizes` [m, 2], its centre a pixel of the breast, both drawn by `seed` and the
    image's position; it overlaps no box of any kind, lies within the image, and most of it is breast.
    """
    index = dataset.index
    wanted = np.asarray(positions)[whole_known(index.iloc[positions], labels)] if len(sizes) else []
    rows = []
    for chunk in chunks(wanted):
        for position, image in zip(chunk, read(dataset, chunk)):
            row = index.iloc[position]
            taken = np.array([item["box"] for item in json.loads(row["boxes_canvas"])], float).reshape(-1, 4)
            box = _free(breast_mask(image), taken, sizes, np.random.default_rng([seed, position]))
            if box is not None:
                rows.append(_row(position, row, NORMAL, box))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(position: int, row: pd.Series, label: str, box: Sequence[float]) -> tuple:
    return (position, *(row[name] for name in (*IDENTITY, "real")), label, *map(float, box))


def _free(tissue: np.ndarray, taken: np.ndarray, sizes: np.ndarray, rng) -> np.ndarray | None:
    """A box [4] on the breast `tissue` [H, W] that overlaps none of `taken` [k, 4]; None where none was found."""
    height, width = tissue.shape
    rows, columns = np.nonzero(tissue)
    for _ in range(TRIES):
        half, pixel = sizes[rng.integers(len(sizes))] / 2, rng.integers(len(rows))
        centre = np.array([columns[pixel], rows[pixel]]) + 0.5
        box = np.concatenate([centre - half, centre + half])
        inside = (box[:2] >= 0).all() and box[2] <= width and box[3] <= height
        if inside and not (iou(taken, box[None]) > 0).any():
            pixels = boxes_mask(box[None], tissue.shape)
            if pixels.any() and tissue[pixels].mean() >= TISSUE:
                return box
    return None


def vectors(model, dataset, regions: pd.DataFrame, kind: str) -> np.ndarray:
    """float32 [n, D] of the regions; `kind` is a key of KINDS, and of IN_TEXT_SPACE of unit norm.

    Raises:
        UserError: there is no such kind, or the model has no such vectors.
    """
    check_name(kind, KINDS, "kind of vectors of regions")
    if not len(regions):
        return np.zeros((0, 1), np.float32)
    groups = [np.asarray(rows) for _, rows in sorted(regions.groupby("position").indices.items())]
    most = max(map(len, groups))
    places = min(1 << (most - 1).bit_length(), PLACES)
    parts = [group[i : i + places] for group in groups for i in range(0, len(group), places)]
    boxes = regions[BOX].to_numpy(np.float32)
    out = None
    for chunk in chunks(range(len(parts))):
        asked = [parts[i] for i in chunk]
        images = read(dataset, [int(regions["position"].iloc[part[0]]) for part in asked])
        padded = np.stack([np.resize(boxes[part], (places, 4)) for part in asked])  # filled up with its own again
        found = np.asarray(KINDS[kind](model, images, padded), np.float32)
        if out is None:
            out = np.zeros((len(regions), found.shape[-1]), np.float32)
        for part, own in zip(asked, found):
            out[part] = own[: len(part)]
    return out


def appearance(dataset, regions: pd.DataFrame) -> pd.DataFrame:
    """What is seen of each region without a model: log_width, log_height in canvas pixels, mean and max grey value in
    [0, 1]."""
    boxes, positions = regions[BOX].to_numpy(float), regions["position"].to_numpy()
    grey = np.zeros((len(regions), 2))
    for chunk in chunks(np.unique(positions)):
        for position, image in zip(chunk, read(dataset, chunk)):
            for place in np.flatnonzero(positions == position):
                inside = cut(image, boxes[place]) / np.iinfo(image.dtype).max
                grey[place] = inside.mean(), inside.max()
    sides = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1))
    return pd.DataFrame(np.hstack([sides, grey]), columns=["log_width", "log_height", "mean", "max"])


def cut(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The pixels [h, w] of `image` [H, W] that a box [4] touches; one at least."""
    height, width = image.shape
    x0, y0 = (int(np.clip(np.floor(low), 0, size - 1)) for low, size in zip(box[:2], (width, height)))
    x1, y1 = (int(np.clip(np.ceil(high), low + 1, size)) for high, low, size in zip(box[2:], (x0, y0), (width, height)))
    return image[y0:y1, x0:x1]


def candidates(dataset, positions: Sequence[int], regions: str, seed: int = 0) -> pd.DataFrame:
    """Regions of the images at `positions` that no label was asked for: columns position, BOX, and score, that of the
    method that found them.

    Args:
        regions: SLIDING, or a side table of the data set.

    Raises:
        UserError: the data set has no such table.
    """
    wanted = np.unique(np.asarray(positions, int))
    if regions != SLIDING:
        frame = store.read(dataset.path, regions).frame.rename(columns={"row": "position"})
        return frame.loc[frame["position"].isin(wanted), ["position", *BOX, "score"]].reset_index(drop=True)
    parts = []
    for chunk in chunks(wanted):
        for position, image in zip(chunk, read(dataset, chunk)):
            found = sliding.propose(image, seed=(seed, position))
            parts.append(pd.DataFrame(found.boxes, columns=BOX).assign(position=position, score=found.scores))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*BOX, "position", "score"])
    return table[["position", *BOX, "score"]]


def by_position(regions: pd.DataFrame) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """{position: (its boxes float64 [k, 4], their places in the table [k])}."""
    boxes = regions[BOX].to_numpy(np.float64)
    return {int(p): (boxes[places], places) for p, places in regions.groupby("position").indices.items()}
