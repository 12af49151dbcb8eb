"""Where figures of a run go: metrics.jsonl, TensorBoard, and one progress line."""

import json
import math
import re
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from mammoclip_jax.files import write_text
from mammoclip_jax.progress import span


class MetricWriter:
    """Appends rows `{"step": int, name: float, ...}` to `workdir/metrics.jsonl` and the same to TensorBoard.

    On resume, rows after the restored step are cut off, so that each step stands once; where the evaluation of that
    step is `owed`, its figures are too. Only process 0 writes.
    """

    def __init__(self, workdir, *, resumed_step: int, owed: bool = False, active: bool = True):
        self.active = active
        if not active:
            return
        path = Path(workdir, "metrics.jsonl")
        kept = [row for row in read_metrics(path) if row["step"] < resumed_step + ("loss" in row or not owed)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(Path(workdir, "tensorboard")), purge_step=resumed_step + 1)

    def write(self, step: int, metrics) -> None:
        """Numbers that are not finite, as of a term that has not started, are null in JSON and left out of TensorBoard."""
        if not self.active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in ((name, value) for name, value in values.items() if math.isfinite(value)):
            self._board.add_scalar(re.sub(r"[^-/\w.]", "_", name), value, step)  # what TensorBoard takes as a name

    def close(self) -> None:
        if self.active:
            self._file.close()
            self._board.close()


def read_metrics(path) -> list[dict]:
    """Rows of a metrics.jsonl; a last line cut short by a killed process is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Progress:
    """One line that is rewritten on a terminal, and printed every half minute elsewhere.

    The time of training is what the ledger calls productive or waiting for data: compilation, evaluation and saving do
    not count.
    """

    def __init__(self, total: int, first: int, images_per_step: int, ledger, active: bool = True):
        self.total, self.first, self.images_per_step, self.active = total, first, images_per_step, active
        self.ledger = ledger
        self.terminal = sys.stderr.isatty()
        self.shown = time.monotonic()

    def figures(self, step: int) -> dict:
        """images_per_second, data_wait_share of the training time so far, and seconds left."""
        waited = self.ledger.seconds("data_wait")
        elapsed = max(self.ledger.seconds("productive") + waited, 1e-9)
        steps = max(step - self.first, 1)
        return {
            "images_per_second": steps * self.images_per_step / elapsed,
            "data_wait_share": waited / elapsed,
            "seconds_left": (self.total - step) * elapsed / steps,
        }

    def clear(self) -> None:
        """Makes room on a terminal for other lines; the next step writes the line anew."""
        if self.active and self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.shown = 0.0

    def show(self, step: int, loss: float) -> None:
        now = time.monotonic()
        last = step == self.total
        if not self.active or (now - self.shown < (0.5 if self.terminal else 30) and not last):
            return
        self.shown = now
        figures = self.figures(step)
        line = (
            f"step {step}/{self.total}  loss {loss:.4f}  {figures['images_per_second']:.1f} images/s  "
            f"data wait {figures['data_wait_share']:.1%}" + ("" if last else f"  {span(figures['seconds_left'])} left")
        )
        end = "\n" if last or not self.terminal else ""
        print(f"\r\x1b[K{line}" if self.terminal else line, end=end, file=sys.stderr, flush=True)
