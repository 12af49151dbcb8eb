"""Masks of a source -> the store `masks-annotated` of a data set folder, on the canvas of each image.

A mask goes the way of its image, crop, mirror, scale and place (geometry.py), by the transform in the index; a canvas
pixel is in the mask where at least half of its area is. Nothing here decodes an image, so masks can be added to a
folder that was prepared without them.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mammoclip_jax.data.manifest import MaskSource
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pool import WorkerLost, ordered_map
from mammoclip_jax.data.store import masks as store
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError

_HALF = 128  # of 255


def placed(mask: Bool[np.ndarray, "h w"], transform: Transform) -> Bool[np.ndarray, "H W"]:
    """A mask of the original on the canvas: the pixels that it covers by half or more."""
    return transform.image(mask.astype(np.uint8) * np.uint8(255)) >= _HALF


class Task(NamedTuple):
    """What a worker needs to make the masks of a row."""

    row: int
    read: Callable[[Path, Any, tuple[int, int]], Mapping[str, np.ndarray]]
    root: Path
    what: Any
    transform: str
    channels: tuple[str, ...]


def make(task: Task) -> store.Entry | str:
    """The entry of a row, or why it has none."""
    transform = Transform.from_json(task.transform)
    try:
        masks = task.read(task.root, task.what, transform.original)
    except dicom.Unreadable as error:
        return error.reason.split(":")[0]
    except OSError as error:
        return type(error).__name__
    if any(mask.shape != transform.original for mask in masks.values()):
        return "mask of another size than its image"
    if not masks:
        return "no mask fits its image"
    return store.entry(task.row, task.channels, {name: placed(mask, transform) for name, mask in masks.items()})


class Wanted(NamedTuple):
    """The masks that a folder should have."""

    source: MaskSource
    root: Path
    of: Mapping[str, Any]  # key of an index row -> what the source's reader takes

    def fingerprint(self, data: str) -> str:
        """16 hex digits of all that they depend on; the files of masks by their names."""
        parts = [store.VERSION, self.source.channels, sorted(self.of.items()), data]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def settled(out: Path, wanted: Wanted | None, data: str) -> bool:
    """Whether the folder has just the masks that are wanted, of the images with the fingerprint `data`."""
    there = store.info(out)
    return there.get("made_by") == wanted.fingerprint(data) if wanted else not there


def settle(out: Path, wanted: Wanted | None, index: pd.DataFrame, data: str, workers: int) -> None:
    """Writes the masks that are wanted of the images in `index`, or removes those that are not.

    What cannot be read is counted in the store's JSON file and named in the log by its kind, and costs no image.
    """
    if settled(out, wanted, data):
        return
    store.remove(out, store.ANNOTATED)
    if not wanted:
        return
    failed: Counter[str] = Counter()
    provenance: dict[str, Any] = {"made_by": wanted.fingerprint(data), "failed": failed}
    entries = _entries(wanted, index, workers, failed)
    count = store.write(out, store.ANNOTATED, wanted.source.channels, entries, data, provenance)
    logging.info("masks of %d images: %s", count, ", ".join(wanted.source.channels))
    for reason, number in failed.items():
        logging.warning("no masks of %d images: %s", number, reason)


def _entries(wanted: Wanted, index: pd.DataFrame, workers: int, failed: Counter) -> Iterator[store.Entry]:
    tasks = [
        Task(row, wanted.source.read, wanted.root, wanted.of[key], transform, wanted.source.channels)
        for row, (key, transform) in enumerate(zip(index["key"], index["transform"]))
        if key in wanted.of
    ]
    with contextlib.closing(ordered_map(make, tasks, min(workers, len(tasks)))) as results:
        for result in results:
            if isinstance(result, store.Entry):
                yield result
            else:
                failed[result.reason if isinstance(result, WorkerLost) else result] += 1


def checks(dataset: Dataset) -> Iterator[tuple[str, str, str]]:
    """(check, where, problem or "") of the masks in a data set folder; nothing of a folder without any."""
    if not store.info(dataset.path):
        return
    try:
        masks = store.Masks.open(dataset)
    except (UserError, ValueError, KeyError) as error:
        yield "masks", f"masks-{store.ANNOTATED}.json", f"cannot be used: {error}"
        return
    count = masks.info["images"]
    yield "masks", "masks", "" if len(masks.table) == count else f"{len(masks.table)} images, {count} by the JSON file"
    for row, digest in zip(masks.table["row"], masks.table["sha256"]):
        yield "mask records", f"masks of index.parquet row {row}", _problem(masks, int(row), digest, len(dataset))


def _problem(masks: store.Masks, row: int, digest: str, rows: int) -> str:
    if not 0 <= row < rows:
        return "there is no such row"
    try:
        record = masks.record(row)
        found = masks.read(row)
    except UserError:
        return "the record is damaged"
    if hashlib.sha256(record).hexdigest() != digest:
        return "the record is not the one that was written"
    if found.sum(axis=(0, 1)).tolist() != masks.pixels(row).tolist():
        return "the masks have other numbers of pixels than their table says"
    return "" if found.shape[:2] == masks.size else f"a mask of {found.shape[:2]} pixels, the canvas has {masks.size}"
