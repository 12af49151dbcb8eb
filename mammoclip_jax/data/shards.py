"""Records of a data set: their codec, the writer of one shard, and the reader of a data set folder.

A record is a 12-byte header (magic "MJX1", codec, bits, two zero bytes as one uint16, then height and width as uint16,
little endian) and the coded pixels. A folder holds `images-00000-of-00004.array_record` ..., `index.parquet` whose row
i is record i, and `dataset.json`, which is written last: a folder without it is not whole.
"""

import json
import os
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from mammoclip_jax.errors import UserError

SCHEMA_VERSION = 1
CODECS = ("raw", "zstd", "png")
_HEADER = struct.Struct("<4sBBHHH")
_MAGIC = b"MJX1"
_DTYPES = {8: np.dtype("u1"), 16: np.dtype("<u2")}
_PNG_LEVEL = 6


def encode(image: np.ndarray, codec: str) -> bytes:
    """The record of an image uint8 or uint16 [H, W]. The same image gives the same bytes.

    Raises:
        UserError: unknown codec.
    """
    bits = image.dtype.itemsize * 8
    if image.ndim != 2 or image.dtype.kind != "u" or bits not in _DTYPES:
        raise TypeError(f"an image is uint8 or uint16 [H, W], not {image.dtype} {image.shape}")
    if codec not in CODECS:
        raise UserError(f"there is no codec {codec!r}; choose one of {', '.join(CODECS)}")
    header = _HEADER.pack(_MAGIC, CODECS.index(codec), bits, 0, *image.shape)
    if codec == "png":
        return header + cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])[1].tobytes()
    pixels = np.ascontiguousarray(image, _DTYPES[bits])
    if codec == "zstd":
        return header + _zstd().compress(pixels.tobytes(), asbytes=True)
    return header + pixels.tobytes()


def decode(record: bytes) -> np.ndarray:
    """The image of a record, uint8 or uint16 [H, W], writable.

    Raises:
        ValueError: not a record of this schema.
    """
    magic, codec, bits, _, height, width = _HEADER.unpack_from(record)
    if magic != _MAGIC or codec >= len(CODECS) or bits not in _DTYPES:
        raise ValueError("not an image record of this schema")
    payload = memoryview(record)[_HEADER.size:]
    if CODECS[codec] == "png":
        return cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    size = height * width * _DTYPES[bits].itemsize
    if CODECS[codec] == "zstd":
        payload = _zstd().decompress(payload, decompressed_size=size)
    return np.frombuffer(payload, _DTYPES[bits]).reshape(height, width).copy()


def _zstd() -> pyarrow.Codec:
    return pyarrow.Codec("zstd", compression_level=3)


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


def replace(partial: Path, path: Path) -> None:
    """Renames once the bytes are on the disk, so that no crash leaves half a file under the final name."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    replace(partial, path)


class Dataset:
    """A data set folder: `path`, `info` (dataset.json), `index` (DataFrame, row i = record i), `read(i)`, `len()`.

    Can be pickled and shared by threads; files are opened in each process when first read.
    """

    def __init__(self, path: Path, info: dict, index: pd.DataFrame):
        self.path, self.info, self.index = path, info, index
        self._shard = index["shard"].to_numpy()
        self._position = index["position"].to_numpy()
        self._reset()

    @classmethod
    def open(cls, path: Path | str) -> "Dataset":
        """Opens a folder that `prepare` has finished.

        Raises:
            UserError: there is no such folder, it is not whole, or another version wrote it.
        """
        path = Path(path)
        if not (path / "dataset.json").is_file():
            raise UserError(f"{path} is no finished data set: dataset.json is missing. Run prepare with --out={path}; "
                            "it goes on where it stopped.")
        info = json.loads((path / "dataset.json").read_text())
        if info.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{path} has schema version {info.get('schema_version')}, this version reads "
                            f"{SCHEMA_VERSION}. Prepare it again into another folder.")
        names = ["index.parquet"] + [shard_name(shard, info["shards"]) for shard in range(info["shards"])]
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} is not whole: {', '.join(missing[:3])} missing. Copy it again or prepare it anew.")
        index = pd.read_parquet(path / "index.parquet")
        for column in ("texts", "sections"):
            index[column] = [list(value) for value in index[column]]
        if len(index) != info["counts"]["images"]:
            raise UserError(f"{path} is not whole: index.parquet has {len(index)} rows, dataset.json counts "
                            f"{info['counts']['images']}. Prepare it anew.")
        return cls(path, info, index)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, row: int) -> np.ndarray:
        """The image of an index row: uint8 or uint16 [H, W].

        Raises:
            UserError: the shard is damaged.
        """
        shard, position = int(self._shard[row]), int(self._position[row])
        try:
            return decode(self._reader(shard).read([position])[0])
        except (IndexError, ValueError, RuntimeError, pyarrow.ArrowException) as error:
            name = shard_name(shard, self.info["shards"])
            raise UserError(f"{self.path / name} is damaged at record {position} ({type(error).__name__}). "
                            "Copy it again or prepare it anew.") from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                file = self.path / shard_name(shard, self.info["shards"])
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
