"""Items that other processes read from a file of this machine, which they share, instead of being sent them.

A process that is started gets its work pickled. A million breasts, or an index, would be written, sent and kept once for each
of them; here they are written once, to a temporary file, when the first asks, and each maps it into memory. On Linux the
file has no name in any folder, and others reach it through this process: nothing is left of it, even where this is killed.
"""

import atexit
import mmap
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

_DESCRIPTORS = Path("/proc/self/fd")
_opened: list[IO[bytes]] = []  # as long as this process lives


class Shared(Sequence):
    """A sequence as it was given. Pickled it is the name of a file, which lasts as long as this process does."""

    def __init__(self, items: Sequence):
        self._items, self._file = items, ""
        self._lock = threading.Lock()  # Grain starts its processes in as many threads

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: Any) -> Any:
        return self._items[place]

    def __reduce__(self) -> tuple:
        with self._lock:
            self._file = self._file or _written(self._items)
        return _Mapped, (self._file,)


class ByRow(Mapping):
    """Row of an index to what is known of it, shared in the same way."""

    def __init__(self, known: Mapping[int, Any]):
        self._rows = np.array(sorted(known), np.int64)
        self._known = Shared([known[row] for row in self._rows.tolist()])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows.tolist())

    def __getitem__(self, row: int) -> Any:
        place = int(np.searchsorted(self._rows, row))
        if place == len(self._rows) or self._rows[place] != row:
            raise KeyError(row)
        return self._known[place]


class _Mapped(Sequence):
    """The same in another process: an item is read when it is asked for."""

    def __init__(self, file: str):
        self._file = file
        with open(file, "rb") as opened:
            self._bytes = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        count = int.from_bytes(self._bytes[-8:], "little")
        self._ends = np.frombuffer(self._bytes, np.int64, count + 1, len(self._bytes) - 8 * (count + 2))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        place = range(len(self))[place]
        return pickle.loads(self._bytes[self._ends[place] : self._ends[place + 1]])

    def __reduce__(self) -> tuple:
        return _Mapped, (self._file,)


def _written(items: Sequence) -> str:
    """The name under which other processes open the file of the items, where each ends, and how many there are."""
    ends = np.zeros(len(items) + 1, np.int64)
    named = {} if _DESCRIPTORS.is_dir() else {"delete": False}
    file: IO[bytes] = (tempfile.NamedTemporaryFile if named else tempfile.TemporaryFile)(
        prefix="mammoclip-", suffix=".items", **named
    )
    for place, item in enumerate(items):
        ends[place + 1] = ends[place] + file.write(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))
    file.write(bytes(-int(ends[-1]) % 8))
    file.write(ends.tobytes())
    file.write(len(items).to_bytes(8, "little"))
    file.flush()
    _opened.append(file)
    if named:
        atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name if named else f"/proc/{os.getpid()}/fd/{file.fileno()}"
