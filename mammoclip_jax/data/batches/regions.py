"""The regions of drawn images, and the concepts that each may show (`config.data.regions`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.shared import ByRow
from mammoclip_jax.data.text import concepts, label_values
from mammoclip_jax.errors import UserError

ANNOTATED = "boxes"  # the source that is no side table


class Regions(NamedTuple):
    """Which regions, in `places` of a view; none where there are 0."""

    places: int = 0
    sources: tuple[str, ...] = (ANNOTATED,)  # that, or names of the data set's tables of regions
    concepts: str = ""  # a lexicon
    background: bool = False  # a table's region beside all annotated ones shows the background


def regions(given: Mapping[str, Any]) -> Regions:
    """The `Regions` of `config.data.regions`.

    Raises:
        UserError: there are places and no source or no lexicon, or the background of what is not asked for.
    """
    found = Regions(given["places"], tuple(given["sources"]), given["concepts"], given["background"])
    if found.places < 0:
        raise UserError(f"config.data.regions.places={found.places} must be 0 (none) or more.")
    if not found.places:
        if set_ := [name for name in ("concepts", "background") if getattr(found, name)]:
            raise UserError(f"nothing reads config.data.regions.{set_[0]} without config.data.regions.places.")
        return found
    if not found.sources:
        raise UserError(f'config.data.regions.sources is empty: name "{ANNOTATED}", or tables of regions.')
    if not found.concepts:
        raise UserError(
            f"config.data.regions.concepts names no lexicon: one of {', '.join(concepts.LEXICONS)}, or a .json file."
        )
    if found.background and (ANNOTATED not in found.sources or len(found.sources) < 2):
        raise UserError(
            f'config.data.regions.background is of a table\'s regions beside annotated ones: name "{ANNOTATED}" and a '
            f"table in config.data.regions.sources, which is {found.sources}."
        )
    return found


class Found(NamedTuple):
    """The regions of an image: n, of C concepts."""

    boxes: np.ndarray  # float32 [n 4], canvas pixels
    allowed: np.ndarray  # bool [n C]
    cosines: np.ndarray  # float32 [n C], 0 where no teacher compared


@dataclass(frozen=True)
class OfImages:
    """The regions of drawn images, at most `places` of each. Can be pickled."""

    places: int
    found: tuple[
        Mapping[int, tuple[Found, ...]], ...
    ]  # by data set: row to its regions by source, annotated ones first
    width: int  # concepts

    def __call__(self, source: int, records: Sequence[int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """boxes [V R 4], box_classes, region_allowed and region_cosines of a `Batch`; all of an image where they fit,
        else those of the first source before any of the next, and of one source any."""
        shape = (len(records), self.places)
        boxes, classes = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.int32)
        allowed, cosines = np.zeros((*shape, self.width), bool), np.zeros((*shape, self.width), np.float32)
        for view, record in enumerate(records):
            free = 0
            for own in self.found[source].get(record, ()):
                count = min(len(own.boxes), self.places - free)
                chosen, places = rng.permutation(len(own.boxes))[:count], slice(free, free + count)
                boxes[view, places], classes[view, places] = own.boxes[chosen], 0
                allowed[view, places], cosines[view, places] = own.allowed[chosen], own.cosines[chosen]
                free += count
        return {"boxes": boxes, "box_classes": classes, "region_allowed": allowed, "region_cosines": cosines}


def reader(datasets: Sequence[Dataset], split: str, wanted: Regions) -> OfImages | None:
    """(position of the data set, V drawn rows of its index, generator) -> the regions of a Batch; None without places.

    An annotated box allows the concepts of its finding. A table's region that has a label does as well, unless the image's
    labels deny it; one without allows all that they do not deny, where a teacher compared it with them. With `background`
    a table's region allows the background alone where it touches no annotated box, and each finding of its image has one.
    A region with more than one concept that no teacher compared with them allows none: nothing says which it shows.

    Raises:
        UserError: a table is missing, is of another data set, or was compared with other concepts.
    """
    if not wanted.places:
        return None
    lexicon = concepts.load(wanted.concepts)
    found = tuple(ByRow(_of_dataset(dataset, split, wanted, lexicon)) for dataset in datasets)
    if not any(found):
        folders = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(f"no image in split {split!r} of {folders} has a region of {', '.join(wanted.sources)}.")
    return OfImages(wanted.places, found, len(lexicon))


def _of_dataset(dataset, split, wanted, lexicon) -> dict[int, tuple[Found, ...]]:
    index = dataset.index.reset_index(drop=True)
    index = index[index["split"] == split]
    by_source = [
        {} if name == ANNOTATED else _by_row(tables.read(dataset.path, name), lexicon, name) for name in wanted.sources
    ]
    found = {}
    for row, labels, placed in zip(index.index, index["labels"], index["boxes_canvas"]):
        labels, items = json.loads(labels), json.loads(placed)
        own = []
        for name, table in zip(wanted.sources, by_source):
            if name == ANNOTATED:
                own.append(_annotated(items, labels, lexicon))
            elif row in table:
                own.append(_of_table(table[row], items, labels, lexicon, wanted.background))
        own = [regions for regions in own if len(regions.boxes)]
        if own:
            found[int(row)] = tuple(own)
    return found


def _by_row(table: tables.Table, lexicon, name: str) -> dict[int, pd.DataFrame]:
    given = table.info.get("concepts") or {}
    if given and given.get("names") != [concept.name for concept in lexicon]:
        raise UserError(
            f"the regions {name!r} were compared with the concepts {', '.join(given.get('names', ()))}, and "
            f"config.data.regions.concepts has {', '.join(concept.name for concept in lexicon)}: take one lexicon."
        )
    return {int(row): frame for row, frame in table.frame.groupby("row")}


def _annotated(items, labels, lexicon) -> Found:
    allowed = [concepts.of_box(lexicon, item, labels) for item in items]
    return _found([item["box"] for item in items], allowed, [None] * len(items), len(lexicon))


def _of_table(frame: pd.DataFrame, items, labels, lexicon, background: bool) -> Found:
    boxes = frame[list(tables.BOX)].to_numpy(np.float32)
    image = concepts.allowed(lexicon, labels, items)
    plain = np.array([not concept.finding for concept in lexicon])
    beside = np.zeros(len(boxes), bool)
    if background and _all_boxed(items, labels, lexicon):
        corners = np.array([item["box"] for item in items], np.float32).reshape(-1, 4)
        beside = (iou(boxes[:, None], corners) == 0).all(axis=1)
    # A label beside cosines is the teacher's own, which they say better.
    allowed = [
        plain & image
        if apart
        else concepts.of_box(lexicon, {"labels": label.split(", ")}, labels) & image
        if label and not len(near)
        else image
        for apart, label, near in zip(beside, frame["label"], frame["cosines"])
    ]
    return _found(boxes, allowed, [x if len(x) else None for x in frame["cosines"]], len(lexicon))


def _all_boxed(items, labels, lexicon) -> bool:
    """Whether each finding of the lexicon that the image's labels say is there has a box, so that other places have none."""
    named = {concept.finding for concept in lexicon if concept.finding}
    boxed = {finding for item in items for finding in concepts.findings_of(item)}
    states = label_values.flags(labels)
    return all(key in boxed for key in named if states.get(key))


def _found(boxes, allowed, cosines, width: int) -> Found:
    """Without the concepts of a region of which nothing says which it shows."""
    sure = np.array([x.sum() == 1 or there is not None for x, there in zip(allowed, cosines)], bool)
    allowed = np.array(allowed, bool).reshape(-1, width) & sure[:, None]
    compared = [np.zeros(width) if x is None else x for x in cosines]
    return Found(np.array(boxes, np.float32).reshape(-1, 4), allowed, np.array(compared, np.float32).reshape(-1, width))
