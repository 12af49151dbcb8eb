"""Stage maps of images that were computed once, in a run's folder.

    folder/STAGE.maps      the maps [N h w C] one behind the other, mapped into memory
    folder/maps.json       what made them (a fingerprint), of which images, shapes and dtypes, and how many are done

Rows are written in order, and count from when maps.json says so: a job that was stopped goes on where it was.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text

INDEX = "maps.json"
Key = tuple[int, int]  # position of the data set, row of its index


class MapFiles:
    """Maps by image; opened when the first is asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def write(
        self,
        fingerprint: str,
        keys: Sequence[Key],
        shapes: Mapping[str, tuple[tuple[int, ...], str]],
        compute: Callable[[Sequence[Key]], Iterable[Mapping[str, np.ndarray]]],
    ) -> int:
        """Sees to it that the maps of `keys` are there; returns how many of them had to be computed.

        Args:
            fingerprint: of what makes them. Maps of another are written over.
            shapes: {stage: (shape [h w C], name of the dtype)}.
            compute: of some of the keys, those that are left, the maps {stage: [n h w C]}, n after n.
        """
        asked = {
            "fingerprint": fingerprint,
            "keys": [list(key) for key in keys],
            "stages": {stage: [list(shape), dtype] for stage, (shape, dtype) in shapes.items()},
        }
        known = self._index()
        done = known["done"] if {name: known.get(name) for name in asked} == asked and self._whole(known) else 0
        if done == len(keys):
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if not done:  # an index belongs to the maps beside it
            Path(self.folder, INDEX).unlink(missing_ok=True)
        # "w+" makes files of their whole size; of a job that goes on they are there.
        mode = "r+" if done else "w+"
        files = {stage: self._open(stage, (len(keys), *shape), dtype, mode) for stage, (shape, dtype) in shapes.items()}
        row = done
        for part in compute(keys[done:]):
            for stage, values in part.items():
                files[stage][row : row + len(values)] = values
                files[stage].flush()
            row += len(values)
            write_text(Path(self.folder, INDEX), json.dumps(asked | {"done": row}))
        if row < len(keys):
            raise ValueError(f"{row} of {len(keys)} maps were computed")
        return row - done

    def of(self, key: Key) -> dict[str, np.ndarray]:
        """{stage: map [h w C]} of an image. Raises UserError for one that has none."""
        row = self._rows.get(key)
        if row is None:
            raise UserError(
                f"{self.folder} has no map of an image that was drawn (data set {key[0]}, row {key[1]}): remove the folder "
                "to make it anew."
            )
        return {stage: np.asarray(values[row]) for stage, values in self._values.items()}

    def size(self) -> int:
        """Bytes of an image's maps."""
        return sum(values[:1].nbytes for values in self._values.values())

    def held(self) -> int:
        """Bytes of the disk that the files take: of maps that are not written yet none."""
        return sum(512 * path.stat().st_blocks for path in self.folder.glob("*.maps"))

    def _index(self) -> dict[str, Any]:
        try:
            return json.loads(Path(self.folder, INDEX).read_text())
        except (OSError, ValueError):
            return {}

    def _whole(self, index: Mapping[str, Any]) -> bool:
        """Whether the files have the size that all maps take."""
        sizes = {
            stage: len(index["keys"]) * int(np.prod(shape)) * np.dtype(dtype).itemsize
            for stage, (shape, dtype) in index["stages"].items()
        }
        paths = {stage: Path(self.folder, f"{stage}.maps") for stage in sizes}
        return all(path.is_file() and path.stat().st_size == sizes[stage] for stage, path in paths.items())

    def _open(self, stage: str, shape: tuple[int, ...], dtype: str, mode: str) -> np.memmap:
        return np.memmap(Path(self.folder, f"{stage}.maps"), dtype=np.dtype(dtype), mode=mode, shape=shape)

    @functools.cached_property
    def _rows(self) -> dict[Key, int]:
        index = self._index()
        return {(source, row): place for place, (source, row) in enumerate(index["keys"][: index["done"]])}

    @functools.cached_property
    def _values(self) -> dict[str, np.memmap]:
        index = self._index()
        return {
            stage: self._open(stage, (len(index["keys"]), *shape), dtype, "r")
            for stage, (shape, dtype) in index["stages"].items()
        }
