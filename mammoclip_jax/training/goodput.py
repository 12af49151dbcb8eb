"""The goodput ledger: what the wall time of a run went into, over all its attempts.

    workdir/goodput.jsonl    one row at the start and end of what is not training, and every ten seconds of training:
                             {"attempt", "time" (Unix), "phase", "step", "seconds": {kind: since the attempt began}}

An attempt is one process from its start to its end, or to its last sign of life if it was killed: the modification time
of the file, renewed every second. Its seconds are of these kinds, and add up to its wall time:

    startup      imports, data, initialisation, restoring         compile      of the training step
    data_wait    for a batch, while the devices had nothing to do    checkpoint   what saving keeps the loop from
    evaluation   on the way and at the end, with the report       profile      starting and writing a trace
    lost         steps that were done again since no checkpoint held them, and what a killed attempt was doing last
    productive   all else: steps that count

Goodput is the share of `productive`. The time between attempts, in which nothing ran, is `idle` and no part of it.
"""

import contextlib
import json
import logging
import math
import os
import threading
import time
from pathlib import Path

KINDS = ("startup", "compile", "data_wait", "checkpoint", "evaluation", "profile", "lost", "productive")
NAME = "goodput.jsonl"
ROW_EVERY = 10.0  # seconds of training between rows
SIGN_OF_LIFE = 1.0  # seconds


class Ledger:
    """The account of one attempt. Only process 0 writes (`active`); the others count for themselves.

    Args:
        before: seconds that this process has spent before, such as on imports; they count as startup.
        clock: seconds that never jump. `wall`: seconds since 1970.
    """

    def __init__(self, workdir, *, active: bool = True, before: float = 0.0, clock=time.monotonic, wall=time.time):
        self.path, self.active, self._clock, self._wall = Path(workdir, NAME), active, clock, wall
        self.kind = "startup"
        self.step = None  # the last one done
        self.marks = 0  # grows whenever a step is done or the kind of work changes
        self._seconds = dict.fromkeys(KINDS, 0.0) | {"startup": before}
        self._since = self._noted = clock()
        self._closed = threading.Event()
        if active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = read(self.path)
            self._attempt = rows[-1]["attempt"] + 1 if rows else 0
            self._note(last_seen=_last_seen(self.path))
            threading.Thread(target=self._live, name="goodput", daemon=True).start()

    def seconds(self, kind: str) -> float:
        """Of this attempt so far."""
        self._settle()
        return self._seconds[kind]

    @contextlib.contextmanager
    def phase(self, kind: str):
        """Around work of another kind."""
        before = self.kind
        self.turn_to(kind)
        try:
            yield
        finally:
            self.turn_to(before)

    def turn_to(self, kind: str) -> None:
        """What comes now is of this kind."""
        self._settle()
        self.kind = kind
        self.marks += 1
        self._note()

    def move(self, seconds: float, kind: str) -> None:
        """Seconds that just passed were of this kind instead of the current one."""
        self._settle()
        self._seconds[self.kind] -= seconds
        self._seconds[kind] += seconds

    def resumed(self, step: int) -> None:
        """Training goes on after this step; what earlier attempts did beyond it is lost."""
        self.step = step
        self._note(resumed=step)

    def done(self, step: int) -> None:
        self.step = step
        self.marks += 1
        if self._clock() - self._noted > ROW_EVERY:
            self._note()

    def close(self) -> None:
        """The attempt ends here and was not killed."""
        if not self._closed.is_set():
            self._note(end=True)
            self._closed.set()

    def summary(self) -> dict:
        """`summarise` of the run so far; {} in processes that do not write."""
        self._note()
        return summarise(read(self.path)) if self.active else {}

    def _settle(self):
        now = self._clock()
        self._seconds[self.kind] += now - self._since
        self._since = now

    def _note(self, **more):
        self._settle()
        self._noted = self._since
        if not self.active or self._closed.is_set():
            return
        row = {
            "attempt": self._attempt,
            "time": self._wall(),
            "phase": self.kind,
            "step": self.step,
            "seconds": {kind: round(value, 3) for kind, value in self._seconds.items() if value},
        } | more
        try:
            with self.path.open("ab") as file:  # one write: a row is there whole, or is the last one
                file.write(b"\n" * _cut_short(self.path) + json.dumps(row).encode() + b"\n")
        except OSError as error:  # a full disk ends the run elsewhere, and is explained there
            logging.warning("%s cannot be written: %s", self.path, error)

    def _live(self):
        while not self._closed.wait(SIGN_OF_LIFE):
            with contextlib.suppress(OSError):
                now = self._wall()
                os.utime(self.path, (now, now))


def read(path) -> list[dict]:
    """The rows of a ledger; those that a killed process or a full disk cut short are left out."""
    rows = []
    for line in Path(path).read_text(errors="replace").splitlines() if Path(path).exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "seconds" in row:
                rows.append(row)
    return rows


def summarise(rows: list[dict], last_seen: float | None = None) -> dict:
    """Sums a ledger over its attempts.

    Args:
        rows: as `read` returns them.
        last_seen: last sign of life of the last attempt (Unix).

    Returns:
        goodput: productive share of the wall time, 0 to 1.
        seconds: by kind; they add up to `wall`.
        wall: seconds of all attempts.  idle: seconds between them.  attempts: how many.
    """
    attempts = {}
    for row in rows:
        attempts.setdefault(row["attempt"], []).append(row)
    attempts = list(attempts.values())
    seconds, idle, kept = dict.fromkeys(KINDS, 0.0), 0.0, math.inf
    for own, following in reversed(list(zip(attempts, [*attempts[1:], None]))):
        last = own[-1]
        seen = (
            last["time"]
            if last.get("end")
            else max(last["time"], (following[0].get("last_seen") if following else last_seen) or 0.0)
        )
        if following:
            start = following[0]["time"] - sum(following[0]["seconds"].values())
            seen = min(seen, max(start, last["time"]))  # a copied file looks younger than it is
            idle += max(0.0, start - seen)
        for kind, value in last["seconds"].items():
            seconds[kind] += value
        # Later attempts went on from step `kept`: steps beyond it did not count.
        counted = max((row["seconds"].get("productive", 0.0) for row in own if (row["step"] or 0) <= kept), default=0.0)
        again = last["seconds"].get("productive", 0.0) - counted
        seconds["productive"] -= again
        seconds["lost"] += again + seen - last["time"]
        kept = min([kept, *(row["resumed"] for row in own if "resumed" in row)])
    wall = sum(seconds.values())
    return {
        "goodput": seconds["productive"] / wall if wall else 0.0,
        "seconds": seconds,
        "wall": wall,
        "idle": idle,
        "attempts": len(attempts),
    }


def sentence(summary: dict) -> str:
    """The summary for a log."""
    parts = ", ".join(
        f"{kind.replace('_', ' ')} {seconds:.0f} s ({seconds / max(summary['wall'], 1e-9):.1%})"
        for kind, seconds in summary["seconds"].items()
        if seconds >= 0.5
    )
    attempts = f"{summary['attempts']} attempt{'s' * (summary['attempts'] != 1)}"
    return (
        f"goodput {summary['goodput']:.1%} of {summary['wall']:.0f} s in {attempts}: {parts}; "
        f"{summary['idle']:.0f} s between attempts"
    )


def process_age() -> float:
    """Seconds since this process began, where the system tells (Linux); else 0."""
    try:
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0


def _last_seen(path) -> float | None:
    return path.stat().st_mtime if path.exists() else None


def _cut_short(path) -> bool:
    """Whether the last row has no end: the next must not go on in its line."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
