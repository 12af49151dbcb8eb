"""A data set folder: the writer of one shard, and the reader.

A folder holds `images-00000-of-00004.array_record` ..., whose records are those of codecs.py, `index.parquet` whose row
i is record i, and `dataset.json`, which is written last: a folder without it is not whole.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mammoclip_jax.data.store import storage
from mammoclip_jax.data.store.codecs import decode
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.data.store.shared import Shared
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import replace

SCHEMA_VERSION = 1
_READERS = 4  # threads


def shard_name(shard: int, shards: int) -> str:
    return f"images-{shard:05d}-of-{shards:05d}.array_record"


class ShardWriter:
    """Writes records under a temporary name; `close` makes the file appear whole, under its own name."""

    def __init__(self, path: Path):
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        # One record a group: random access reads no neighbours. Records are already coded.
        self._writer = ArrayRecordWriter(str(self._partial), "group_size:1,uncompressed")

    def write(self, record: bytes) -> None:
        self._writer.write(record)

    def close(self) -> None:
        self._writer.close()
        replace(self._partial, self.path)


class Dataset:
    """A data set folder: `path`, `info` (dataset.json), `index` (DataFrame, row i = record i), `read(i)`, `len()`.

    The folder may lie on any storage that fsspec knows: see storage.py.

    Can be pickled, for processes of this machine that this one outlives, and shared by threads; files are opened in each
    process when first read, the index where it is asked for (store/shared.py).
    """

    def __init__(self, path: Path | storage.Remote, info: dict, index: pd.DataFrame):
        self.path, self.info, self._index = path, info, Shared([index])
        self._shard = index["shard"].to_numpy(np.int32)
        self._position = index["position"].to_numpy(np.int32)
        self._reset()

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Opens a folder that `prepare` has finished.

        Raises:
            UserError: there is no such folder, it is not whole, or another version wrote it.
        """
        path = storage.located(path)
        if not (path / "dataset.json").is_file():
            raise UserError(
                f"{path} is no finished data set: dataset.json is missing. Run prepare with --out={path}; "
                "it goes on where it stopped."
            )
        info = json.loads((path / "dataset.json").read_text())
        if info.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {info.get('schema_version')}, this version reads "
                f"{SCHEMA_VERSION}. Prepare it again into another folder."
            )
        names = ["index.parquet"] + [shard_name(shard, info["shards"]) for shard in range(info["shards"])]
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} is not whole: {', '.join(missing[:3])} missing. Copy it again or prepare it anew.")
        index = read_table((path / "index.parquet").read_bytes())
        for column in ("texts", "sections"):
            index[column] = [list(value) for value in index[column]]
        if len(index) != info["counts"]["images"]:
            raise UserError(
                f"{path} is not whole: index.parquet has {len(index)} rows, dataset.json counts "
                f"{info['counts']['images']}. Prepare it anew."
            )
        return cls(path, info, index)

    @property
    def index(self) -> pd.DataFrame:
        """Row i is record i."""
        if not isinstance(self._index, Shared):
            self._index = Shared([self._index[0]])
        return self._index[0]

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, row: int) -> np.ndarray:
        """The image of an index row: uint8 or uint16 [H, W].

        Raises:
            UserError: the shard is damaged.
        """
        try:
            return decode(self.record(row))
        except UserError:
            raise
        except ValueError as error:
            raise self._damaged(row, error) from error

    def record(self, row: int) -> bytes:
        """The record of an index row as it was written, not decoded.

        Raises:
            UserError: the shard is damaged.
        """
        reader = self._reader(int(self._shard[row]))
        try:
            return reader.read([int(self._position[row])])[0]
        except (IndexError, ValueError, RuntimeError) as error:
            raise self._damaged(row, error) from error

    def _damaged(self, row: int, error: Exception) -> UserError:
        name = shard_name(int(self._shard[row]), self.info["shards"])
        return UserError(
            f"{self.path / name} is damaged at record {self._position[row]} ({type(error).__name__}). "
            "Copy it again or prepare it anew."
        )

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                file = storage.local(self.path / shard_name(shard, self.info["shards"]))
                self._readers[shard] = ArrayRecordReader(str(file), options="readahead_buffer_size:0")
            return self._readers[shard]

    def _reset(self) -> None:
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_readers", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()


def read(dataset: Dataset, rows: Sequence[int]) -> np.ndarray:
    """Canvases [n, H, W] uint8 or uint16 of these rows of the index, read side by side."""
    with ThreadPoolExecutor(_READERS) as pool:
        return np.stack(list(pool.map(dataset.read, map(int, rows))))
