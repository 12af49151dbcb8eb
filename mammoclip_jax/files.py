"""Files that appear whole or not at all."""

import contextlib
import os
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


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
