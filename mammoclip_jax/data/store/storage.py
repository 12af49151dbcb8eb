"""Data set folders anywhere: on this machine as they are, elsewhere (s3://, gs://, memory:// ...) through fsspec.

ArrayRecord reads local files only, so a remote file is fetched once, whole, into a cache folder: MAMMOCLIP_CACHE, else
`mammoclip_jax` in XDG_CACHE_HOME or ~/.cache. The cached file's name holds the remote one's address and version (its
time or ETag), so a file that changes is fetched again. The cache may be removed at any time.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole


class Remote:
    """A file or folder that is not of this machine, with what is needed of `Path`: `/`, name, is_file, reading.

    Can be pickled. Raises UserError where its storage cannot be reached.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self._url).name

    def is_file(self) -> bool:
        with self._reached() as (system, path):
            return system.isfile(path)

    def read_bytes(self) -> bytes:
        with self._reached() as (system, path):
            return system.cat_file(path)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def fetched(self) -> Path:
        """The file in the cache. Any number of processes may ask for it at once; one of them fetches it."""
        with self._reached() as (system, path):
            version = f"{self._url} {system.ukey(path)} {system.size(path)}"
            target = cache_folder() / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}-{self.name}"
            if target.is_file():
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target.with_name(target.name + ".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.is_file():
                    self._fetch(system, path, target)
        return target

    def _fetch(self, system: fsspec.AbstractFileSystem, path: str, target: Path) -> None:
        with whole(target) as partial:
            system.get_file(path, str(partial))
            size, expected = partial.stat().st_size, system.size(path)
            if size != expected:
                raise UserError(f"{self} came with {size} of {expected} bytes. Try again.")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
        try:
            yield fsspec.core.url_to_fs(self._url)
        except ImportError as error:  # s3fs, gcsfs, ... are not installed; the message says which
            raise UserError(f"{self} cannot be reached: {error}") from error
        except UserError:
            raise
        except (OSError, ValueError) as error:  # ValueError: unknown protocol
            raise UserError(
                f"{self} cannot be read: {error or type(error).__name__}. Check address, access and the "
                f"room in {cache_folder()}."
            ) from error


def located(path: Path | str) -> Path | Remote:
    """A path, or an address with a protocol, e.g. "s3://bucket/prepared/vindr" or "file:///data/mias"."""
    text = str(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Remote(text) if "://" in text else Path(path)


def local(path: Path | Remote) -> Path:
    """Where this machine can read the file: itself, or its copy in the cache."""
    return path.fetched() if isinstance(path, Remote) else path


def cache_folder() -> Path:
    """Where copies of remote files are kept."""
    if folder := os.environ.get("MAMMOCLIP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mammoclip_jax"
