"""Side tables: what is computed once of a data set's texts or images, and lies beside its shards or in a run's folder.

    folder/NAME.npy        float32 [N, ...], mapped into memory, and
    folder/NAME.json       what they were computed by (a fingerprint), and the hash of each row's key   (`Arrays`)
    folder/NAME.parquet    a table                                                                      (`write_frame`)

Both appear whole or not at all.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mammoclip_jax.data.store import storage
from mammoclip_jax.data.store.parquet import read_table
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole, write_text


def key_hash(key: str) -> str:
    """128 bits of a key, so that no index holds a report."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


class Arrays:
    """Rows of one shape by their keys (texts, image names); opened when the first is asked for."""

    def __init__(self, folder: str | Path, name: str):
        self.path, self.index = (Path(folder, f"{name}.{ending}") for ending in ("npy", "json"))

    def of(self, keys: Sequence[str]) -> np.ndarray:
        """float32 [T, ...]. Raises UserError for a key that has no row."""
        try:
            rows = [self._rows[key_hash(key)] for key in keys]
        except KeyError as error:
            raise UserError(
                f"{self.path} has no row for a text or image that was drawn: the data sets or the options in "
                "config.data are not those it was made with. Remove it to make it anew."
            ) from error
        return np.asarray(self._values[rows])

    def serves(self, fingerprint: str, keys: Iterable[str]) -> bool:
        """Whether there are rows of all `keys`, made by what the fingerprint names."""
        try:
            known = json.loads(self.index.read_text())
            complete = len(np.load(self.path, mmap_mode="r")) == len(known["keys"])
        except (OSError, ValueError, KeyError):
            return False
        return complete and known["fingerprint"] == fingerprint and {*map(key_hash, keys)} <= {*known["keys"]}

    def write(self, fingerprint: str, keys: Sequence[str], parts: Iterable[np.ndarray]) -> None:
        """Stores the rows of `keys`, which come in `parts` [n, ...]; what a stop leaves behind is not taken for them."""
        values, row = None, 0
        with whole(self.path) as partial:
            for part in parts:
                if values is None:
                    values = np.lib.format.open_memmap(partial, "w+", np.float32, (len(keys), *part.shape[1:]))
                values[row : row + len(part)] = part
                row += len(part)
            values.flush()
            # An index belongs to the rows beside it: without one there are none.
            self.index.unlink(missing_ok=True)
        write_text(self.index, json.dumps({"fingerprint": fingerprint, "keys": [key_hash(key) for key in keys]}))

    @functools.cached_property
    def _values(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(json.loads(self.index.read_text())["keys"])}


def write_frame(folder: str | Path, name: str, frame: pd.DataFrame, **options) -> None:
    """Stores a table as folder/NAME.parquet; `options` are those of `DataFrame.to_parquet`."""
    with whole(Path(folder, f"{name}.parquet")) as partial:
        frame.to_parquet(partial, **options)


def read_frame(folder: str | Path | storage.Remote, name: str, remedy: str) -> pd.DataFrame:
    """The table folder/NAME.parquet. Raises UserError where there is none: `remedy` says what to do."""
    place = folder if isinstance(folder, storage.Remote) else storage.located(folder)
    path = place / f"{name}.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    return read_table(storage.local(path))
