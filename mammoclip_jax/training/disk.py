"""A full disk: asked about before it is needed, and explained when it comes all the same."""

import contextlib
import errno
import shutil
from pathlib import Path

from mammoclip_jax.errors import UserError

MARGIN = 1.05  # of what a checkpoint took last time


def check_space(folder, needed: int, what: str = "a checkpoint needs") -> None:
    """Raises UserError where `needed` bytes, and a little more, do not fit into the file system of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed * MARGIN:
        raise UserError(_message(folder, f"{what} {readable(needed * MARGIN)}, {readable(free)} are free."))


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, says that the disk or the quota is full."""
    while error is not None:
        # TensorStore and others hand on the words alone.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            words in str(error) for words in ("No space left on device", "Disk quota exceeded")
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained(folder, needed: int = 0):
    """Turns the error of a full disk under `folder` into a UserError that names it and says what to do.

    `needed`: bytes that were to be written, where that is known.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        wanted = f"about {readable(needed)} are needed, " if needed else ""
        raise UserError(_message(folder, f"{wanted}{readable(free)} are free; writing failed with: {error}")) from error


def readable(count: float) -> str:
    """Bytes for people: 1.50 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _message(folder, what: str) -> str:
    return (
        f"the disk of {Path(folder).absolute()} is full. Free some space (old runs, profiles), lower "
        "config.train.keep_checkpoints, or move the run to a larger disk; then the same command goes on from the "
        f"last checkpoint. {what}"
    )
