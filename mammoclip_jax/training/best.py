"""The best state so far by a figure of the evaluations on the way, and when to stop waiting for a better one.

workdir/best.json                 the monitor, which figure of it is the better, every evaluation's step and figure
workdir/best/checkpoints/STEP     a whole checkpoint: what is loaded of the run
"""

import json
import math
import shutil
from pathlib import Path

import jax

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.names import check_name
from mammoclip_jax.training.checkpoint import Checkpoints, steps
from mammoclip_jax.training.processes import barrier

SIGNS = {"higher": 1, "lower": -1}
KEPT = 2  # the one before too: a run that is killed between this save and its own goes on from before both


class Best:
    """Keeps the state with the best `monitor`; every process calls `update` at the same steps.

    Evaluations noted after the step that a run resumes from are forgotten: they come again, and give the same.
    """

    def __init__(self, workdir, monitor: str, patience: int, resumed_step: int, better: str = "higher"):
        """
        Args:
            patience: evaluations without a better figure, after which `over` is True; 0: never.
            better: "higher" or "lower".

        Raises:
            UserError: `better` is another word, or the run has kept its best state by another monitor.
        """
        check_name(better, SIGNS, "config.task.better")
        self._kept_by, self._sign, self._patience = {"monitor": monitor, "better": better}, SIGNS[better], patience
        self._path, self.folder = Path(workdir, "best.json"), Path(workdir, "best")
        noted = self._noted()
        self._history = [entry for entry in noted if entry["step"] <= resumed_step]
        self._best = max(self._history, key=self._worth, default=None)
        barrier("best.json is read")
        if jax.process_index() == 0:
            for step in steps(self.folder / "checkpoints"):
                if step > resumed_step:
                    shutil.rmtree(self.folder / "checkpoints" / str(step))
        barrier("the best state is looked at")

    def _noted(self) -> list[dict]:
        """The evaluations in best.json."""
        if not self._path.exists():
            return []
        noted = json.loads(self._path.read_text())
        before = {name: noted[name] for name in self._kept_by}
        if before != self._kept_by:
            changed = ", ".join(
                f"config.task.{name}: {before[name]!r} -> {value!r}"
                for name, value in self._kept_by.items()
                if before[name] != value
            )
            raise UserError(
                f"this run has kept its best state by another figure ({changed}; {self._path}): take the "
                "old one, or another --workdir."
            )
        return noted["evaluations"]

    def _worth(self, entry) -> float:
        return self._sign * entry["value"]

    @property
    def over(self) -> bool:
        """Whether training should end."""
        if not self._patience or self._best is None:
            return False
        return sum(entry["step"] > self._best["step"] for entry in self._history) >= self._patience

    def update(self, step: int, figures, state, iterator, meta) -> None:
        """Notes an evaluation, and keeps the state where it is the best.

        Raises:
            UserError: there is no such figure, or it cannot be computed.
        """
        value = None
        if jax.process_index() == 0:
            monitor = self._kept_by["monitor"]
            if monitor not in figures:
                raise UserError(
                    f"config.task.monitor={monitor!r} is no figure of the evaluations on the way, or has no value, as AUROC "
                    "where the validation part lacks a class. There are: "
                    f"{', '.join(sorted(figures)) or 'config.evaluate.validation_evaluators has none'}."
                )
            value = figures[monitor]
        value = _same_everywhere(value)
        if not math.isfinite(value):
            raise UserError(
                f"{self._kept_by['monitor']} is {value} at step {step}: it cannot tell which state is the best."
            )
        self._history = [*self._history, {"step": step, "value": value}]
        if self._best is None or self._worth(self._history[-1]) > self._worth(self._best):
            self._best = self._history[-1]
            with Checkpoints(self.folder, keep=KEPT) as checkpoints:
                checkpoints.save(state, iterator, meta)
        if jax.process_index() == 0:
            write_text(self._path, json.dumps(self._kept_by | {"evaluations": self._history}, indent=1) + "\n")

    def restore(self, state, iterator):
        """The best state, or `state` where there was no evaluation.

        Raises:
            UserError: it is not there any more, or cannot be read.
        """
        if self._best is None:
            return state
        with Checkpoints(self.folder, keep=KEPT) as checkpoints:
            restored = checkpoints.restore(state, iterator)
        if restored is None:
            raise UserError(
                f"{self.folder} holds no checkpoint, though {self._path} says that step {self._best['step']} "
                "was the best: put the folder back, or remove best.json and go on without."
            )
        return restored


def _same_everywhere(value) -> float:
    """Process 0's number in every process."""
    if jax.process_count() == 1:
        return float(value)
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(jax.numpy.float32(0 if value is None else value)))
