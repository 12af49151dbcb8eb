"""Masks of a data set's images, as a side store beside its shards: binary channels in canvas pixels, by record.

    DIR/masks-NAME.array_record   a record (codecs.py) for each image that has masks: bit planes [H W], bit k of channel k
    DIR/masks-NAME.parquet        of each record: row (of index.parquet), known and pixels (lists over the channels), sha256
    DIR/masks-NAME.json           channels, canvas, the data set's fingerprint, provenance; written last

A channel that is not known of an image is no mask of nothing: nobody has looked for it. Folders without such a store
are whole; "annotated" are the masks that a source brings along.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Bool, Int, Shaped, UInt8

from mammoclip_jax.data.store import side_tables, storage
from mammoclip_jax.data.store.codecs import decode, encode
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.data.store.shards import Dataset, ShardWriter
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text

ANNOTATED = "annotated"
MOST = 16  # channels: the bits of a pixel
CODEC = "zstd"
VERSION = 1


class Entry(NamedTuple):
    """What is stored of an image."""

    row: int  # of index.parquet
    known: tuple[bool, ...]  # of each channel
    pixels: tuple[int, ...]  # in the mask, of each channel
    record: bytes


def entry(row: int, channels: Sequence[str], masks: Mapping[str, Bool[np.ndarray, "H W"]]) -> Entry:
    """The entry of an image's masks on its canvas, by channel; a channel that is not among them is unknown."""
    size = next(iter(masks.values())).shape
    stacked = np.stack([masks[name] if name in masks else np.zeros(size, bool) for name in channels], axis=-1)
    pixels = stacked.sum(axis=(0, 1))
    return Entry(
        row, tuple(name in masks for name in channels), tuple(map(int, pixels)), encode(packed(stacked), CODEC)
    )


def packed(masks: Bool[np.ndarray, "H W K"]) -> Shaped[np.ndarray, "H W"]:
    """Bit planes uint8, of more than eight channels uint16."""
    kind = np.uint8 if masks.shape[-1] <= 8 else np.uint16
    bits = np.left_shift(1, np.arange(masks.shape[-1])).astype(kind)
    return (masks.astype(kind) * bits).sum(axis=-1, dtype=kind)


def unpacked(planes: Shaped[np.ndarray, "*n"], channels: int) -> UInt8[np.ndarray, "*n K"]:
    """The way back from `packed`: 0 and 1."""
    return (planes[..., None] >> np.arange(channels).astype(planes.dtype) & 1).astype(np.uint8)


def write(
    folder: Path,
    name: str,
    channels: Sequence[str],
    entries: Iterable[Entry],
    fingerprint: str,
    provenance: Mapping[str, Any],
) -> int:
    """Writes a store in the place of an earlier one of that name; returns how many images have masks.

    Args:
        fingerprint: of the data set whose rows they are.
        provenance: where they come from, into the JSON file.

    Raises:
        UserError: more channels than a pixel has bits, or the same twice.
    """
    if not 1 <= len(set(channels)) == len(channels) <= MOST:
        raise UserError(f"masks have 1 to {MOST} channels with names of their own, not {', '.join(channels) or 'none'}")
    records, table, description = _files(folder, name)
    description.unlink(missing_ok=True)  # until all is there, nothing is
    writer, rows = ShardWriter(records), []
    for item in entries:
        writer.write(item.record)
        digest = hashlib.sha256(item.record).hexdigest()
        rows.append((item.row, list(item.known), list(item.pixels), digest))
    writer.close()
    side_tables.write_frame(folder, table.stem, pd.DataFrame(rows, columns=["row", "known", "pixels", "sha256"]))
    info = {"version": VERSION, "channels": list(channels), "images": len(rows), "fingerprint": fingerprint}
    write_text(description, json.dumps(info | dict(provenance), indent=2) + "\n")
    return len(rows)


def remove(folder: Path, name: str) -> None:
    """Removes the store of that name, if there is one."""
    for path in reversed(_files(folder, name)):
        path.unlink(missing_ok=True)


def info(folder, name: str = ANNOTATED) -> dict[str, Any]:
    """The JSON file of a store in a data set folder; {} where there is none."""
    path = (storage.located(folder) if isinstance(folder, str) else folder) / f"masks-{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _files(folder, name: str) -> tuple:
    """The records, the table, the description, which stands for all."""
    return tuple(folder / f"masks-{name}.{ending}" for ending in ("array_record", "parquet", "json"))


class Masks:
    """The masks of a data set by the rows of its index: `channels`, `size`, `known(row)`, `pixels(row)`, `read(row)`.

    Can be pickled and shared by threads; the records are opened in each process when first read.
    """

    def __init__(self, folder, name: str, info: Mapping[str, Any], table: pd.DataFrame, size: tuple[int, int]):
        self.channels: tuple[str, ...] = tuple(info["channels"])
        self.info, self.table = info, table
        self._file, self.size = _files(folder, name)[0], size
        self._rows = table["row"].to_numpy(np.int64)
        # By row of the index; the last is that of an image without masks, of which nothing is known.
        self._place = np.full(self._rows.max(initial=-1) + 2, -1)
        self._place[self._rows] = np.arange(len(table))
        self._of = {name: self._column(table[name]) for name in ("known", "pixels")}
        self._reset()

    @classmethod
    def open(cls, dataset: Dataset, name: str = ANNOTATED) -> "Masks":
        """The masks of that name in the folder of a data set.

        Raises:
            UserError: there are none, they are those of other images, or a file is missing.
        """
        found = info(dataset.path, name)
        if not found:
            raise UserError(
                f"{dataset.path} has no masks {name!r} (masks-{name}.json). Prepare it again from a source that has "
                "masks, which adds them (docs/data.md), or use a data set that has them."
            )
        if found["version"] > VERSION:
            raise UserError(f"{dataset.path}: masks-{name} are of version {found['version']}: update mammoclip_jax.")
        if found["fingerprint"] != dataset.info["fingerprint"]:
            raise UserError(
                f"{dataset.path}: masks-{name} were made of other images than those that are there now: run the "
                "command that made them again."
            )
        missing = [path.name for path in _files(dataset.path, name) if not path.is_file()]
        if missing:
            raise UserError(f"{dataset.path} is not whole: {', '.join(missing)} missing. Copy it again.")
        table = read_table((dataset.path / f"masks-{name}.parquet").read_bytes())
        size = dataset.info["preprocessing"]["height"], dataset.info["preprocessing"]["width"]
        return cls(dataset.path, name, found, table, size)

    @property
    def rows(self) -> list[int]:
        """Rows of the index that have masks."""
        return self._rows.tolist()

    def known(self, row: int | Int[np.ndarray, "*n"]) -> Bool[np.ndarray, "*n K"]:
        """Which channels are known of an image, or of each of several."""
        return self._of["known"][self._at(row)].astype(bool)

    def pixels(self, row: int | Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n K"]:
        """How many canvas pixels each channel's mask has; 0 where it is not known."""
        return self._of["pixels"][self._at(row)]

    def read(self, row: int) -> UInt8[np.ndarray, "H W K"]:
        """The masks of an image, 0 and 1; 0 where they are not known.

        Raises:
            UserError: the records are damaged.
        """
        return unpacked(self.planes(row), len(self.channels))

    def planes(self, row: int) -> Shaped[np.ndarray, "H W"]:
        """The same as bit planes, uint8 or uint16: bit k of channel k."""
        if self._at(row) < 0:
            return np.zeros(self.size, np.uint8 if len(self.channels) <= 8 else np.uint16)
        try:
            return decode(self.record(row))
        except ValueError as error:
            raise self._damaged(row, error) from error

    def record(self, row: int) -> bytes:
        """The record of a row as it was written, not decoded."""
        try:
            return self._reader().read([int(self._at(row))])[0]
        except (IndexError, ValueError, RuntimeError, OSError) as error:
            raise self._damaged(row, error) from error

    def _column(self, values: pd.Series) -> np.ndarray:
        given = np.array([list(own) for own in values], int).reshape(-1, len(self.channels))
        return np.concatenate([given, np.zeros((1, len(self.channels)), int)])

    def _at(self, row: int | np.ndarray) -> np.ndarray:
        """Where the records of rows are; -1 where they have none."""
        rows = np.asarray(row)
        return self._place[np.where((rows >= 0) & (rows < len(self._place)), rows, -1)]

    def _damaged(self, row: int, error: Exception) -> UserError:
        return UserError(
            f"{self._file} is damaged at record {int(self._at(row))} ({type(error).__name__}). Copy it again, or remove "
            f"{self._file.name} and prepare the data set again."
        )

    def _reader(self) -> ArrayRecordReader:
        with self._lock:
            if self._open is None:
                self._open = ArrayRecordReader(str(storage.local(self._file)), options="readahead_buffer_size:0")
            return self._open

    def _reset(self) -> None:
        self._open: ArrayRecordReader | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock", "table")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()
