"""Traces of some steps for TensorBoard, XProf or Perfetto, asked for in the config or while the run goes on."""

import logging
import time
from pathlib import Path

import jax

STEPS = 3  # that a trace holds if the file does not say
LOOK_EVERY = 1.0  # seconds between looks for the file


class Profiler:
    """Traces into `workdir/profiles/step_N`, N being the first step traced; a context that ends a trace begun.

    Asked by `steps`, the first and last step to trace, or while the run goes on by `touch workdir/profile`: the next
    three steps, or as many as are written in the file, which is then removed. Only process 0 traces (`active`).
    """

    def __init__(self, workdir, steps, ledger, *, active: bool = True):
        self.request, self.folder = Path(workdir, "profile"), Path(workdir, "profiles")
        self._steps, self._ledger, self._active = tuple(steps), ledger, active
        self._last = None  # step of the trace that runs
        self._looked = -LOOK_EVERY

    def before(self, step: int) -> None:
        """Starts a trace if one is due at this step."""
        if not self._active or self._last is not None:
            return
        if self._steps and self._steps[0] <= step <= self._steps[1]:
            self._start(step, self._steps[1])
        elif time.monotonic() - self._looked >= LOOK_EVERY:
            self._looked = time.monotonic()
            if self.request.exists():
                words = self.request.read_text().split()
                self.request.unlink()
                self._start(step, step + (int(words[0]) if words and words[0].isdigit() else STEPS) - 1)

    def after(self, step: int, metrics) -> None:
        """Ends the trace that was to hold this step, once the devices have done it."""
        if self._last is not None and step >= self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _start(self, step, last):
        with self._ledger.phase("profile"):
            self._last, self._place = last, self.folder / f"step_{step}"
            self._place.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._place))
        logging.info("tracing steps %d to %d", step, last)

    def _stop(self):
        self._last = None
        with self._ledger.phase("profile"):
            jax.profiler.stop_trace()
        logging.info("the trace is in %s (tensorboard --logdir=%s)", self._place, self.folder.parent)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._last is not None:
            self._stop()
