"""How far long work is: a bar on a terminal, elsewhere a line now and then. On stderr, through `logging` where it is a line."""

import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines

_work: contextvars.ContextVar[str] = contextvars.ContextVar("work", default="")


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Bars within that have no name of their own have this one."""
    token = _work.set(what)
    try:
        yield
    finally:
        _work.reset(token)


class Bar:
    """Counts what is done of `total`; with rate and time left. To be used in a `with`.

    Args:
        unit: what is counted, in the singular.
        what: the work; by default as `named` says.
        clock: seconds that never jump.
    """

    def __init__(self, total: int, unit: str, what: str = "", clock: Callable[[], float] = time.monotonic):
        self.total, self.unit, self.what, self._clock = total, unit, what or _work.get() or f"{unit}s", clock
        self.done = 0
        self._started = self._shown = clock()
        terminal = sys.stderr.isatty() and total > 0
        self._bar = tqdm(total=total, desc=self.what, unit=unit, leave=False, dynamic_ncols=True) if terminal else None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        now = self._clock()
        if self._bar is not None:
            self._bar.update(count)
        elif now - self._shown >= EVERY and 0 < self.done < self.total:
            self._shown = now
            logging.info("%s", self.line(now - self._started))

    def line(self, seconds: float) -> str:
        """What is said after so many seconds."""
        rate = self.done / seconds
        speed = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}"
        return f"{self.what}: {self.done} of {self.total} {self.unit}s, {speed}, {span((self.total - self.done) / rate)} left"


@contextlib.contextmanager
def working(what: str, every: float = 60.0) -> Iterator[None]:
    """Says what is begun, each `every` seconds that it is not done, and how long it took; where nobody can say how far it is."""
    logging.info("%s ...", what)
    started, ended = time.monotonic(), threading.Event()

    def remind():
        while not ended.wait(every):
            logging.info("%s: not done after %s", what, span(time.monotonic() - started))

    reminder = threading.Thread(target=remind, name="progress", daemon=True)
    reminder.start()
    try:
        yield
    finally:
        ended.set()
        reminder.join()
    logging.info("%s: done in %s", what, span(time.monotonic() - started))


def span(seconds: float) -> str:
    """As "0.4 s", "34 s", "2:05" or "1:02:05"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
