"""The watchdog: a run in which no step gets done ends itself, so that whoever started it starts it again."""

import faulthandler
import logging
import os
import threading
import time
from pathlib import Path

import jax

# EX_TEMPFAIL, as after a request to stop: the same command goes on, and the launch scripts run it again.
EXIT_STATUS = os.EX_TEMPFAIL


class Watchdog:
    """A context in which a step may take `seconds` at most, and an evaluation on the way `evaluation`; 0: any time.

    Only they count: while the ledger says that the run compiles, saves or starts up, nothing is waited for. The stacks of
    all threads go to `workdir/hung_step_N.txt`, and the process ends at once with `EXIT_STATUS`:
    whoever hangs in a collective or in a driver can neither clean up nor save.
    """

    def __init__(self, ledger, workdir, seconds: float, evaluation: float = 0.0, *, end=os._exit):
        self.ledger, self.workdir, self._end = ledger, Path(workdir), end
        self.limits = {kind: limit for kind, limit in (("productive", seconds), ("evaluation", evaluation)) if limit}
        self._marks, self._silent = None, 0.0
        self._over = threading.Event()

    def __enter__(self):
        if self.limits:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error):
        self._over.set()

    def _watch(self):
        every = min(min(self.limits.values()) / 10, 10.0)
        looked = time.monotonic()
        while not self._over.wait(every):
            now = time.monotonic()
            # A process that was held up altogether (SIGSTOP, a suspended machine) is not a hung one.
            self.look(min(now - looked, 2 * every))
            looked = now

    def look(self, passed: float) -> None:
        """`passed` seconds after the last look: has anything been done since?"""
        kind = self.ledger.kind
        if self.ledger.marks != self._marks or kind not in self.limits:
            self._marks, self._silent = self.ledger.marks, 0.0
            return
        self._silent += passed
        if self._silent >= self.limits[kind]:
            self._bark(kind)

    def _bark(self, kind):
        process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        done = self.ledger.step or 0
        what, step, field = (
            (f"step {done + 1}", done + 1, "watchdog_seconds")
            if kind == "productive"
            else (f"the evaluation after step {done}", done, "watchdog_evaluation_seconds")
        )
        path = self.workdir / f"hung_step_{step}{process}.txt"
        logging.critical(
            "%s has not ended in %g s (config.train.%s): the stacks of all threads are in %s. Ending with "
            "status %d; the same command goes on from the last checkpoint.",
            what,
            self.limits[kind],
            field,
            path,
            EXIT_STATUS,
        )
        try:
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            self._end(EXIT_STATUS)
