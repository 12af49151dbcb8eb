"""Regions of a data set's images, found once and kept beside its shards.

    DIR/regions-NAME.parquet    one row a region, by the image's record (`COLUMNS`)
    DIR/regions-NAME.json       how they were found: method, options, weights and their terms, concepts, counts, and the
                                fingerprint of the data set; written last: a table without it is none

They belong to the data set as it was: one that `prepare` has changed since needs them anew.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow

from mammoclip_jax.data.store import side_tables, storage
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.names import suggestion

VERSION = 1
BOX = ("left", "top", "right", "bottom")
COLUMNS = pyarrow.schema(
    [("row", pyarrow.int32())]  # record of index.parquet
    + [(side, pyarrow.float32()) for side in BOX]  # canvas pixels; right and bottom exclusive
    + [("score", pyarrow.float32())]  # of the method's own, 0 to 1
    + [("label", pyarrow.string())]  # "" where none is known
    + [("cosines", pyarrow.list_(pyarrow.float32()))]  # [C] with each concept; empty where no teacher compared
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Table(NamedTuple):
    """Regions, sorted by image and in the method's order within one, and how they were found."""

    frame: pd.DataFrame  # the columns of COLUMNS
    info: dict[str, Any]


def check_name(name: str) -> None:
    """Raises UserError unless files may be called by it on any system."""
    if not _NAME.fullmatch(name):
        raise UserError(f"a table of regions cannot be called {name!r}: use letters, digits, '-', '_' and '.'.")


def write(folder: str | Path, name: str, frame: pd.DataFrame, info: dict[str, Any]) -> dict[str, Any]:
    """Stores regions beside the data set in `folder`, in place of those of that name.

    Args:
        frame: the columns of COLUMNS, sorted by row.
        info: JSON: how they were found.

    Returns:
        What is stored of `info`: with version, name, columns' hash and the data set's fingerprint.
    """
    check_name(name)
    folder = Path(folder)
    info = info | {"version": VERSION, "name": name, "fingerprint": _fingerprint(folder), "regions": len(frame)}
    path = folder / f"{_stem(name)}.json"
    path.unlink(missing_ok=True)  # it belongs to the table beside it: without it there is none
    frame = frame[COLUMNS.names]
    side_tables.write_frame(folder, _stem(name), frame, schema=COLUMNS, index=False)
    info |= {"sha256": hashlib.sha256((folder / f"{_stem(name)}.parquet").read_bytes()).hexdigest()}
    write_text(path, json.dumps(info, indent=2) + "\n")
    return info


def read(folder: str | Path | storage.Remote, name: str) -> Table:
    """The regions `name` of the data set in `folder`, which may lie on any storage.

    Raises:
        UserError: there are none of that name, they are not whole, or the data set is another one by now.
    """
    check_name(name)
    place = folder if isinstance(folder, storage.Remote) else storage.located(folder)
    path = place / f"{_stem(name)}.json"
    again = f"Make them with `python -m mammoclip_jax.regions --data={place} --name={name} --method=...`"
    if not path.is_file():
        known = names(place)
        raise UserError(
            f"{place} has no regions {name!r} ({_stem(name)}.json is missing).{suggestion(name, known)} "
            f"There are: {', '.join(known) or 'none'}. {again}."
        )
    info = json.loads(path.read_text())
    if info.get("version") != VERSION:
        raise UserError(f"{path} has version {info.get('version')}, this program reads {VERSION}. {again}.")
    if info["fingerprint"] != (there := _fingerprint(place)):
        raise UserError(
            f"{path} belongs to a data set with the fingerprint {info['fingerprint']}, this one has {there}: it was "
            f"prepared anew, or the file was copied from elsewhere. {again}."
        )
    frame = side_tables.read_frame(place, _stem(name), f"{again}.")
    if len(frame) != info["regions"] or list(frame.columns) != COLUMNS.names:
        raise UserError(f"{path} and the table beside it do not belong together. {again}.")
    return Table(frame, info)


def names(folder: str | Path | storage.Remote) -> list[str]:
    """The names of the regions that a data set on this machine has; elsewhere files are not listed: []."""
    if isinstance(folder, storage.Remote):
        return []
    return sorted(path.stem.removeprefix("regions-") for path in Path(folder).glob("regions-*.json"))


def _stem(name: str) -> str:
    return f"regions-{name}"


def _fingerprint(folder: Path | storage.Remote) -> str:
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"{folder} is no finished data set: dataset.json is missing.")
    return json.loads(path.read_text())["fingerprint"]
