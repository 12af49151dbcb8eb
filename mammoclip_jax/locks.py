"""A folder for one process at a time, on whatever host it runs.

The system's lock (flock) ends with its process, however that ends, but not every shared file system has it, or keeps it
between hosts. So the lock file also says who has it, and its time is renewed every few seconds while its owner lives:
what another host left is watched, and taken over where nothing renews it. No clocks are compared.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from mammoclip_jax.errors import UserError

BEAT = 10.0  # seconds
WATCH = 90.0  # seconds; NFS may show the time that a file had a minute ago


@contextlib.contextmanager
def locked(path: Path | str, doing: str, instead: str, watch: float = WATCH) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; afterwards it is gone.

    Args:
        doing: what its holder does, and `instead`: what one can do but wait; both for the error.
        watch: seconds to look whether a holder on another host still lives.

    Raises:
        UserError: another process holds it; named by its host, its number and since when.
    """
    path, here = Path(path), socket.gethostname()
    file, given = _open(path)
    with file:
        holder = _holder(file)
        if given is None or given and holder.get("host", here) != here:
            given = not holder or not _renewed(path, holder, watch)
        if not given:
            raise UserError(
                f"{_named(holder)} is {doing}. Wait for it, or {instead}. If it surely does not run any more, "
                f"remove {path}."
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"host": here, "process": os.getpid(), "since": now}))
        file.flush()
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(file.fileno(), ended), daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            path.unlink(missing_ok=True)


def _open(path: Path) -> tuple[TextIO, bool | None]:
    """The lock file, and whether the system gives its lock to this process; None where the file system has no locks."""
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file, False
        except OSError:
            return file, None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, True
        file.close()  # its last holder has just removed it


def _holder(file: TextIO) -> dict:
    """What the file says of who holds it, or ended without letting go; {} where it says nothing."""
    file.seek(0)
    text = file.read()
    try:
        return json.loads(text) if text else {}
    except ValueError:  # cut off
        return {"host": "", "process": "", "since": ""}


def _named(holder: dict) -> str:
    return (
        "process {process} on host {host!r}, since {since},".format(**holder)
        if holder.get("host")
        else "another process"
    )


def _renewed(path: Path, holder: dict, watch: float) -> bool:
    """Whether the file's time changes while it is watched."""
    logging.warning(
        "%s is held by %s which cannot be seen from here: looking for up to %g s whether it still runs",
        path,
        _named(holder),
        watch,
    )
    first, latest = os.stat(path).st_mtime_ns, time.monotonic() + watch
    while time.monotonic() < latest:
        time.sleep(min(1.0, watch / 10))
        if os.stat(path).st_mtime_ns != first:
            return True
    logging.warning("it does not: the lock is taken over")
    return False


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
