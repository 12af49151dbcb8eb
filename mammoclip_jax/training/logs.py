"""The log of a run: workdir/log.txt has all that the terminal is told, with the time, and what is too long for it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax

NAME = "log.txt"
FORMAT = "%(asctime)s %(message)s"


@contextlib.contextmanager
def kept(workdir) -> Iterator[None]:
    """What process 0 logs within goes to `workdir/log.txt` too, behind what is there; an error that ends it as well.

    The others have logs of their own (`distributed.share_workdir`).
    """
    if jax.process_index() > 0:
        yield
        return
    handler = logging.FileHandler(Path(workdir, NAME), encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except BaseException as error:
        note(f"ended by {type(error).__name__}: {error}")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def note(message: str) -> None:
    """Writes to the logs that are files, and not to the terminal."""
    record = logging.LogRecord("mammoclip_jax", logging.INFO, __file__, 0, message, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
