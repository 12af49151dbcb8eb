"""What an earlier run has made and this one can take over: the records of images whose file and row are unchanged.

Each index row holds a key: a hash of the file's name, size and time of change, and of what the tables say about the
pixels. A row whose key is found keeps its record, byte for byte; so an incremental run gives the shards of a clean one.
Records of another program (`program`) would lie beside new ones that look different: a set that grows or changes is
then made anew.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import pandas as pd
from array_record.python.array_record_module import ArrayRecordReader

from mammoclip_jax.data.manifest import Problem, SourceTable, tuples
from mammoclip_jax.data.pool import in_threads
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.data.store.shards import shard_name

_STAT_THREADS = 16  # a network file system answers many at a time


class Stored(NamedTuple):
    """A record on the disk and its index row."""

    path: Path
    position: int
    records: int  # in that file
    columns: dict


def present(table: SourceTable, root: Path) -> tuple[SourceTable, list[str]]:
    """The table without the rows whose file is missing, which become problems, and "size time" of each file left."""
    files = table.rows["file"].tolist()
    stamps = list(in_threads(lambda file: _stamp(root / file if file else None), files, _STAT_THREADS))
    stage, remedy = (
        ("absent", "download it, or leave it: a part of the set is fine")
        if table.partial
        else ("file", "check the path and --root")
    )
    missing = [
        Problem(row.file, stage, "file missing", remedy, row.image, row.row)
        for row, stamp in zip(tuples(table.rows[["file", "image", "row"]]), stamps)
        if not stamp
    ]
    there = pd.Series([bool(stamp) for stamp in stamps], dtype=bool)
    rows = table.rows[there.to_numpy()].reset_index(drop=True)
    problems = list(table.problems) + missing
    return table._replace(rows=rows, problems=problems), [stamp for stamp in stamps if stamp]


def _stamp(path: Path | None) -> str:
    try:
        status = os.stat(path) if path else None
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return ""
    return f"{status.st_size} {status.st_mtime_ns}" if status and os.path.isfile(path) else ""


def keys(
    rows: pd.DataFrame,
    stamps: Sequence[str],
    hashed: Callable[[str], str],
    others: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """The key of each row: what its record depends on, beside the parameters of the whole set.

    `others` are the places of the rows on whose files a row's record depends as well.
    """
    names = ["file", "laterality", "view", "vendor", "boxes"]
    facts = [[stamp, *values] for stamp, values in zip(stamps, rows[names].itertuples(index=False))]
    seen = [[fact[:4] for fact in map(facts.__getitem__, places)] for places in others or [()] * len(facts)]
    return [hashed(json.dumps(own + [more] if more else own)) for own, more in zip(facts, seen, strict=True)]


def plain_hash(text: str) -> str:
    """16 hex digits, for data sets with public identifiers; private ones use their key (identity.py)."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def program() -> str:
    """16 hex digits of the code that makes a record of a file, and of the OpenCV that resizes."""
    folder = Path(__file__).parent
    files = [
        *sorted((folder / "pixels").glob("*.py")),
        folder / "make.py",
        folder / "store" / "codecs.py",
        folder / "batches" / "units.py",
    ]  # the last says which views share a scale
    return hashlib.sha256(cv2.__version__.encode() + b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def of_dataset(out: Path) -> dict[str, Stored]:
    """The records of a finished data set, by key; none of one made before there were keys."""
    info = json.loads((out / "dataset.json").read_text())
    index = read_table(out / "index.parquet")
    if "key" not in index:
        return {}
    return _stored(index.to_dict("records"), lambda shard: out / shard_name(shard, info["shards"]))


def of_building(building: Path, out: Path) -> dict[str, Stored]:
    """The records of the finished shards of a run that was stopped; its last act is to move them to `out`."""
    records: dict[str, Stored] = {}
    for side in building.glob("[0-9]*.json"):
        shards = json.loads((building / "parameters.json").read_text())["shard_count"]
        name = shard_name(int(side.stem), shards)
        path = building / name if (building / name).is_file() else out / name
        records |= _stored(json.loads(side.read_text())["rows"], lambda shard, path=path: path)
    return records


def _stored(rows: list[dict], path: Callable[[int], Path]) -> dict[str, Stored]:
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row["shard"]] = sizes.get(row["shard"], 0) + 1
    return {row["key"]: Stored(path(row["shard"]), row["position"], sizes[row["shard"]], row) for row in rows}


def load(stored: Stored) -> bytes | None:
    """The record, or None if it is not what the index says."""
    try:
        record = ArrayRecordReader(str(stored.path)).read([stored.position])[0]
    except (IndexError, ValueError, RuntimeError, OSError):
        return None
    return record if hashlib.sha256(record).hexdigest() == stored.columns["sha256"] else None


def link(rows: Sequence[Stored | None], path: Path) -> bool:
    """Makes `path` a hard link to the earlier shard that holds just these records in this order, if there is one."""
    first = rows[0] if rows else None
    if first is None or len(rows) != first.records:
        return False
    if any(row is None or row.path != first.path or row.position != place for place, row in enumerate(rows)):
        return False
    try:
        path.unlink(missing_ok=True)
        os.link(first.path, path)
    except OSError:  # another file system, or one without links
        return False
    return True
