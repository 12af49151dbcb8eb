"""Data set folders to batches of labelled images: what classifiers, detectors and segmentations are trained on.

An example is an image, a breast or an exam with the values of its labels, and, for a detector, its boxes; for a segmentation its
masks. What a step
sees depends on the seed alone, as in pipeline.py: not on threads, nor on the number of processes.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grain
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.batches.stream import BatchIterator, Part, check_alike, of_items
from mammoclip_jax.data.batches.units import GROUPS, UNITS, View
from mammoclip_jax.data.store.map_files import MapFiles
from mammoclip_jax.data.store.masks import Masks
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text.label_values import names_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name, suggestion

SAMPLINGS = ("uniform", "balanced")


class Target(NamedTuple):
    """What is to be learnt.

    Attributes:
        labels: names of the outputs.
        values_of: the label whose values `labels` are, such as "density" of A, B, C, D; "": each output is a yes/no
            label of its own.
        boxes: whether boxes with these labels are wanted too.
        masks: whether the labels are channels of the data sets' masks (store/masks.py), and what is known of those counts.
    """

    labels: tuple[str, ...]
    values_of: str = ""
    boxes: bool = False
    masks: bool = False

    def of(self, labels: Mapping) -> np.ndarray:
        """Float32 [K] of a manifest's labels: 1, 0, or NaN where unknown; a class is one-hot, all NaN where unknown.

        Raises:
            UserError: a yes/no label holds something else, or a class is not among the outputs.
        """
        return np.array(self._of(labels), np.float32)

    def of_rows(self, labels: Sequence[str]) -> Float32[np.ndarray, "n K"]:
        """`of` the labels, JSON, of each row; alike ones are read once."""
        made = {one: self._of(json.loads(one)) for one in dict.fromkeys(labels)}
        return np.array([made[one] for one in labels], np.float32).reshape(-1, len(self.labels))

    def _of(self, labels: Mapping) -> list[float]:
        if not self.values_of:
            values = [labels.get(name) for name in self.labels]
            for name, value in zip(self.labels, values):
                if value not in (None, 0, 1):
                    raise UserError(
                        f"label {name!r} is no yes/no label, it holds {value!r}: set config.task.label to "
                        f"{name!r} and config.model.labels to its values."
                    )
            return [np.nan if value is None else float(value) for value in values]
        value = labels.get(self.values_of)
        if value is None:
            return [np.nan] * len(self.labels)
        if str(value) not in self.labels:
            raise UserError(
                f"label {self.values_of!r} holds {value!r}, which is not in config.model.labels "
                f"{self.labels}.{suggestion(str(value), self.labels)}"
            )
        return [float(name == str(value)) for name in self.labels]


class Example(NamedTuple):
    """One training example before sampling."""

    source: int  # position of the data set in the list given
    images: tuple[tuple[int, View], ...]  # (row of its index, what is known of it)
    target: tuple[float, ...]
    # (row, class, left, top, right, bottom); a box of several classes once for each.
    boxes: tuple[tuple[int, int, float, float, float, float], ...] = ()


def examples(datasets: Sequence[Dataset], split: str, target: Target, unit: str = "image") -> list[Example]:
    """The images, breasts or exams of a split whose target is known, at least in part, in the order of the indexes.

    A label of a breast or exam is there when it is in any of its images, and absent when it is absent in all; of
    classes it has the last, in their order, that its images have. Where boxes are wanted, a label that is there without
    a box is unknown: somewhere the image shows what would else be taught as background.

    Raises:
        UserError: no example is left, or a label is of the wrong kind.
    """
    check_name(unit, UNITS, "unit of config.task.unit")
    items: list[Example] = []
    without = np.zeros(len(target.labels), int)
    for source, dataset in enumerate(datasets):
        index = dataset.index.reset_index(drop=True)
        index = index[index["split"] == split]
        masks = Channels(Masks.open(dataset), target.labels) if target.masks else None
        if index.empty:
            continue
        # Columns and lists, and no frame for each example, of which there may be a million.
        groups = GROUPS[unit](index)
        values = masks.there(index.index.to_numpy()) if masks else target.of_rows(index["labels"].tolist())
        value = joined(values, groups, classes=bool(target.values_of))
        boxes = _boxes(index, target) if target.boxes else [()] * len(index)
        boxed = [(number, kind) for number, own in zip(groups.tolist(), boxes) for _, kind, *_ in own]
        with_box = np.zeros(value.shape, bool)
        with_box[tuple(np.array(boxed, int).reshape(-1, 2).T)] = True
        if target.boxes:
            without += ((value == 1) & ~with_box).sum(axis=0)
            value[value == 1] = np.nan
        value[with_box] = 1  # what has a box is there
        images = list(zip(index.index.tolist(), units.views(index)))
        known = (~np.isnan(value).all(axis=1)).tolist()
        for places, own, there in zip(units.members(groups), value.tolist(), known):
            if there:
                drawn = tuple([box for place in places for box in boxes[place]])
                items.append(Example(source, tuple([images[place] for place in places]), tuple(own), drawn))
    if not items:
        folders = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(
            f"no {unit} to use in split {split!r} of {folders}: none has a value of "
            f"{target.values_of or ', '.join(target.labels)}; look at the columns split and labels of "
            f"index.parquet{', and at masks-annotated.json' if target.masks else ''}."
        )
    if without.any():
        counts = ", ".join(f"{name} {count}" for name, count in zip(target.labels, without) if count)
        logging.warning("labelled without a box, and neither taught as there nor as background: %s", counts)
    return items


def joined(
    values: Float32[np.ndarray, "n K"], groups: Int[np.ndarray, " n"], classes: bool
) -> Float32[np.ndarray, "G K"]:
    """Targets of images -> of the breasts or exams, numbered from 0, that they make up; NaN where unknown."""
    order = np.argsort(groups, kind="stable")
    values, groups = values[order], groups[order]
    starts, known = np.flatnonzero(np.diff(groups, prepend=-1)), ~np.isnan(values)
    if classes:
        rank = np.where(known.any(axis=1), values.argmax(axis=1), -1)
        last = np.flatnonzero(rank == np.maximum.reduceat(rank, starts)[groups])
        return values[last[np.unique(groups[last], return_index=True)[1]]]
    highest = np.maximum.reduceat(np.where(known, values, -1), starts)
    return np.where(highest >= 0, highest, np.nan).astype(np.float32)


def _boxes(rows: pd.DataFrame, target: Target) -> list[tuple]:
    """Those of each row, as `Example` has them."""
    classes = {name: place for place, name in enumerate(target.labels)}
    return [
        tuple(
            (row, classes[name], *map(float, box["box"]))
            for box in json.loads(boxes)
            for name in names_of(box)
            if name in classes
        )
        if boxes != "[]"
        else ()
        for row, boxes in zip(rows.index.tolist(), rows["boxes_canvas"].tolist())
    ]


@dataclass(frozen=True)
class _Sample:
    """Example to one row of a Batch, arrays without the leading dimension. Can be pickled."""

    datasets: tuple[Dataset, ...]
    views: int
    boxes: int  # places for boxes in a view; 0: none are wanted
    flip_horizontal: float
    flip_vertical: float
    masks: tuple["Channels", ...] = ()  # of each data set; (): none are wanted
    maps: MapFiles | None = None  # of the images, wanted instead of these; of examples of one image

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        places, there = units.standing([view for _, view in example.images], self.views, rng)
        records = [example.images[place][0] for place in places]
        horizontal, vertical = rng.random(2) < (self.flip_horizontal, self.flip_vertical)
        target = np.array(example.target, np.float32)
        planes = {"masks": np.stack([self.masks[example.source].planes(r) for r in records])} if self.masks else {}
        return (
            self._boxes(example, records)
            | planes
            | self._images(example.source, records)
            | {
                "record": np.array(records, np.int32),
                "source": np.int32(example.source),
                "view_mask": there,
                "target": np.nan_to_num(target),
                "known": ~np.isnan(target),
                "flip_horizontal": np.bool_(horizontal),
                "flip_vertical": np.bool_(vertical),
                "mask": np.bool_(True),
            }
        )

    def _images(self, source: int, records: list[int]) -> dict[str, np.ndarray]:
        if self.maps:
            return {f"map/{stage}": values for stage, values in self.maps.of((source, records[0])).items()}
        images = {record: self.datasets[source].read(record) for record in dict.fromkeys(records)}
        return {"image": np.stack([images[record] for record in records])}

    def _boxes(self, example: Example, records: list[int]) -> dict[str, np.ndarray]:
        if not self.boxes:
            return {}
        shape = (self.views, self.boxes)
        boxes, classes = np.zeros((*shape, 4), np.float32), np.full(shape, -1, np.int32)
        for view, record in enumerate(records):
            own = [box for box in example.boxes if box[0] == record]
            for place, (_, kind, *corners) in enumerate(own):
                boxes[view, place], classes[view, place] = corners, kind
        return {"boxes": boxes, "box_classes": classes}


class Channels(NamedTuple):
    """Some channels of a data set's masks, in an order of one's own."""

    masks: Masks
    names: tuple[str, ...]

    def places(self) -> list[int]:
        """Where they are in the store; UserError for a name that is not there."""
        for name in self.names:
            check_name(name, self.masks.channels, "channel of the masks")
        return [self.masks.channels.index(name) for name in self.names]

    def there(self, rows: Int[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n K"]:
        """1 where an image has pixels in the mask, 0 where it has none, NaN where that is not known."""
        return np.where(self.known(rows), (self.pixels(rows) > 0).astype(np.float32), np.float32(np.nan))

    def known(self, rows: int | Int[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n K"]:
        """Of which channels an image's mask is known."""
        return self.masks.known(rows)[..., self.places()]

    def pixels(self, rows: int | Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n K"]:
        """How many pixels of an image are in each mask, 0 where it is not known."""
        return self.masks.pixels(rows)[..., self.places()]

    def planes(self, row: int) -> np.ndarray:
        """Bit planes [H W] of `plane_type`: bit k of the k-th name."""
        stored, places = self.masks.planes(row), self.places()
        planes = np.zeros(stored.shape, plane_type(len(places)))
        for bit, place in enumerate(places):
            planes |= (stored >> place & 1).astype(planes.dtype) << bit
        return planes


def plane_type(channels: int) -> type:
    """Of the bit planes of so many channels."""
    return np.uint8 if channels <= 8 else np.uint16


def most_boxes(examples: Sequence[Example]) -> int:
    """The largest number of boxes of an image, at least 1."""
    counts = Counter((example.source, box[0]) for example in examples for box in example.boxes)
    return max([1, *counts.values()])


def train_iterator(
    datasets: Sequence[Dataset],
    examples: Sequence[Example],
    *,
    batch_size: int,
    views: int,
    boxes: int,
    seed: int,
    rows: Sequence[int] | None = None,
    sampling: str = "uniform",
    flip_horizontal: float = 0.0,
    flip_vertical: float = 0.0,
    channels: Sequence[str] = (),
    maps: MapFiles | None = None,
    read_threads: int = 4,
) -> BatchIterator:
    """Endless shuffled batches of `examples`, whose state can be saved: the keys of Batch but the texts'.

    Args:
        found: of `examples`.
        views: images of an example; `boxes`: places for boxes in each, 0 for none.
        rows: the places in each batch that this process makes (None: all).
        sampling: "uniform": every example once an epoch, but for those left over by its last batch; "balanced": of
            each class, or of those that have any of the labels and those that have none, equally many in the long run,
            each in its own order.
        channels: of the data sets' masks that are wanted too.
        maps: of the images, instead of which they come, as "map/STAGE"; of examples of one image.

    Raises:
        UserError: too few examples, images of different shapes, or only one class to balance.
    """
    check_alike(datasets)
    check_name(sampling, SAMPLINGS, "sampling of config.task.sampling")
    if sampling == "balanced":
        stream = _balanced(examples, seed)
    else:
        stream = of_items(list(examples)).seed(seed).shuffle()[: len(examples) // batch_size * batch_size]
        if not len(stream):
            raise UserError(
                f"a batch of {batch_size} needs more than the {len(examples)} examples that there are: "
                "lower config.train.batch_size or add data sets."
            )
        stream = stream.repeat()
    masks = tuple(Channels(Masks.open(dataset), tuple(channels)) for dataset in datasets) if channels else ()
    sample = _Sample(tuple(datasets), views, boxes, flip_horizontal, flip_vertical, masks, maps)
    rows = tuple(range(batch_size) if rows is None else map(int, rows))
    stream = grain.MapDataset.source(Part(stream.random_map(sample), batch_size, rows))
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=2 * len(rows) if read_threads else 0)
    return BatchIterator(iter(stream.to_iter_dataset(options).batch(len(rows), drop_remainder=True)), len(rows))


def _balanced(examples: Sequence[Example], seed: int) -> grain.MapDataset:
    targets = np.nan_to_num([example.target for example in examples])
    one_hot = targets.shape[1] > 1 and (targets.sum(axis=1) == 1).all()
    kinds = targets.argmax(axis=1) if one_hot else targets.any(axis=1)
    classes = [[examples[i] for i in np.flatnonzero(kinds == kind)] for kind in np.unique(kinds)]
    if len(classes) < 2:
        raise UserError("config.task.sampling=balanced needs two classes, and all examples are of one: use uniform.")
    streams = [of_items(members).seed(seed + i).shuffle().repeat() for i, members in enumerate(classes)]
    return grain.MapDataset.mix(streams, weights=[1 / len(streams)] * len(streams)).seed(seed)
