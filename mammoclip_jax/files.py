"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def replace(partial: str | Path, path: str | Path) -> None:
    """Renames once the bytes are on the disk, so that no crash leaves half a file under the final name."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """The name to write a file under; it becomes `path` when the block ends, and is removed should the block fail."""
    partial = Path(f"{path}.partial")
    try:
        yield partial
        replace(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


PARTIAL, FORMER = ".partial", ".former"


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """The folder to write into; it becomes `path`, in place of one that is there, when the block ends, and is removed
    should the block fail. Whatever stops the program, a folder `path` is whole; see `remove_partial`."""
    path = Path(path)
    partial, former = path.with_name(f".{path.name}{PARTIAL}"), path.with_name(f".{path.name}{FORMER}")
    for old in (partial, former):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            with open(file, "rb") if file.is_file() else contextlib.nullcontext() as written:
                if written:
                    os.fsync(written.fileno())
        if path.exists():
            os.replace(path, former)
        os.replace(partial, path)
    finally:
        for old in (partial, former):
            shutil.rmtree(old, ignore_errors=True)


def remove_partial(folder: str | Path) -> None:
    """Removes what `whole_folder` left in a folder when it was killed."""
    for end in (PARTIAL, FORMER):
        for old in Path(folder).glob(f".*{end}"):
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
