"""The process that holds the model: one exam at a time, watched from outside, so that a time limit can end it.

What reads files of unknown origin is thereby not the process that talks to the network and keeps the queue: if it
crashes, or takes too long, it is started again, and the queue goes on.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mammoclip_jax.errors import UserError

LOOK_EVERY = 0.2  # seconds: whether it shall stop
READY, SCORED, REFUSED = "ready", "scored", "refused"


class Failed(Exception):
    """An exam cannot be scored; the text is fit for its sender and names nobody."""


class TimedOut(Failed):
    """It took longer than it may."""


class Died(Exception):
    """The process ended while it worked, or was stopped."""


class Worker:
    """A process that calls `make(*arguments)` once, and then what that returned, `score(files, out)`, for each exam.

    Args:
        make: a function of a module, which the process imports; a UserError of it is final.
        stop: set where the process shall end, `grace` seconds later at the latest.
    """

    def __init__(self, make: Callable, arguments: tuple, stop: threading.Event, grace: float = 0.0):
        self._make, self._arguments, self._stop, self._grace = make, arguments, stop, grace
        self._process = self._connection = self._lifeline = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether it can be given an exam."""
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            UserError: the model cannot be opened.
            Died: the process ended before, or was stopped.
        """
        self.end()
        context = multiprocessing.get_context("spawn")  # a process with threads cannot be forked
        self._connection, theirs = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(self._make, self._arguments, theirs, lifeline), name="mammoclip model", daemon=True
        )
        self._process.start()
        theirs.close()
        lifeline.close()
        kind, said = self._answer(float("inf"))
        if kind != READY:
            self.end()
            raise UserError(said)

    def score(self, files: Path, out: Path, seconds: float) -> None:
        """Scores the exam in `files` into the new folder `out`.

        Raises:
            Failed: the exam cannot be scored; TimedOut: not in `seconds`, and the process has ended.
            Died: the process ended.
        """
        try:
            self._connection.send((files, out))
        except OSError as error:
            self.end()
            raise Died from error
        kind, said = self._answer(seconds)
        if kind != SCORED:
            raise Failed(said)

    def _answer(self, seconds: float) -> tuple[str, str]:
        begin, stopped = time.monotonic(), None
        try:
            while not self._connection.poll(LOOK_EVERY):
                now = time.monotonic()
                if self._stop.is_set() and now - (stopped := stopped or now) >= self._grace:
                    raise EOFError
                if now - begin > seconds:
                    self.end()
                    raise TimedOut(f"it took longer than the {seconds:g} s that an exam may take")
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self.end()
            raise Died from error

    def end(self, patience: float = 0.0) -> None:
        """Ends the process, if there is one: it may end by itself for `patience` seconds, if it has nothing to do."""
        if self._process:
            self._connection.close()
            self._process.join(patience)
            self._process.kill()
            self._process.join()
            self._lifeline.close()
            self._process = None


def _work(make: Callable, arguments: tuple, connection, lifeline) -> None:
    """The process: answers until its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it as well, and the parent decides
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    os.environ["TQDM_DISABLE"] = "1"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print; what matters is logged, to stderr
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it quotes values, which may name a patient
    try:
        score = make(*arguments)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has to know
        if not isinstance(error, UserError):
            traceback.print_exc()
        connection.send((REFUSED, str(error) if isinstance(error, UserError) else f"no model: {told(error)}"))
        return
    connection.send((READY, ""))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_attempt(score, *connection.recv()))


def _attempt(score: Callable, files: Path, out: Path) -> tuple[str, str]:
    try:
        score(files, out)
        return SCORED, ""
    except UserError as error:
        return REFUSED, str(error).replace(str(files), "the exam").replace(str(out), "the result")
    except Exception as error:  # noqa: BLE001  no exam may end the service
        return REFUSED, told(error)


def told(error: Exception) -> str:
    """Kind and place of an error: its text may hold a header's values."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _end_with_parent(lifeline) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(1)
