"""Kills a small run again and again, at random moments, and starts it again each time.

    python tests/kill_often.py --kills=200 --seed=0 --json=kills.json

The run is the whole pretraining job of tests/configs/tiny.py with more steps and saves. Every process is killed by
SIGKILL: at any moment, while a step trains, while a checkpoint is written, or while it evaluates. A run that got to
its end is compared with one that was never killed, and the next begins, until there were enough kills. It fails unless

  - every start goes on from the newest checkpoint that was listed when the process before was killed,
  - the final state (parameters, optimiser, average, key), all losses and the evaluations are the same bits,
  - no process ends by itself before the run is whole.

Imports would take most of the time: each process is forked from one that has imported everything and touched no device.
"""

import argparse
import collections
import hashlib
import json
import logging
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402

import mammoclip_jax.models.bert  # noqa: E402, F401  else imported by each process
import mammoclip_jax.models.resnet  # noqa: E402, F401
from mammoclip_jax import run  # noqa: E402
from mammoclip_jax.training import checkpoint, distributed, goodput  # noqa: E402
from mammoclip_jax.training.writer import read_metrics  # noqa: E402

STEPS, SAVE_EVERY, EVALUATE_EVERY = 240, 30, 40  # a save takes as long as some 15 steps
WAYS = {"any moment": 0.3, "a step": 0.2, "a save": 0.3, "an evaluation": 0.2}  # what to aim at, and how often
LOOK_EVERY = 0.003  # seconds
TIMEOUT = 900  # seconds for one process


def small_config(folder: Path, data: Path | None = None):
    """The tiny job; `data` is the folder of a run whose data are used again."""
    config = runpy.run_path(str(Path(__file__).parent / "configs/tiny.py"))["get_config"]()
    config.compilation_cache = str(folder / "cache")
    config.train.update(steps=STEPS, checkpoint_every=SAVE_EVERY, eval_every=EVALUATE_EVERY)
    del config.evaluate.evaluators["saliency"]  # the evaluation at the end changes nothing that is compared
    if data:
        config.data.folders.phantom = str(data / "data")
        config.data.phantom.phantom["out"] = config.data.prepare.phantom["root"] = str(data / "exams")
    return config


def forked(function, log: Path) -> int:
    """Process id of a child that calls the function and exits with 0, or with 1 and a traceback in the log."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        for noisy in ("absl", "jax", "orbax", "grain"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def job(config, workdir: Path):
    def keep_every_program(folder):  # those that compile in less than a second too
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    distributed.enable_compilation_cache = keep_every_program
    run.pretrain(config, workdir, before=goodput.process_age())


def outcome(workdir: Path, log: Path) -> dict:
    """What must be the same: hashes of the final state's arrays, and the figures of the log of metrics."""
    file = workdir / "outcome.json"

    def write():
        step, _, _ = checkpoint.load(workdir)
        state = checkpoint.read_state((workdir / "checkpoints" / str(step)).absolute())
        arrays = {
            jax.tree_util.keystr(path): hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
            for path, x in jax.tree_util.tree_leaves_with_path(state)
        }
        speed = ("images_per_second", "data_wait_share")
        rows = [
            {name: value for name, value in row.items() if name not in speed}
            for row in read_metrics(workdir / "metrics.jsonl")
        ]
        file.write_text(json.dumps({"step": step, "arrays": arrays, "rows": rows}))

    _, status = os.waitpid(forked(write, log), 0)
    if status:
        raise SystemExit(f"{workdir} cannot be read: see {log}")
    return json.loads(file.read_text())


def saves_begun(workdir: Path) -> list[int]:
    """The steps whose checkpoint is half written."""
    return [int(path.name.partition(".")[0]) for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")]


def last_attempt(workdir: Path) -> tuple[int, int | None, str]:
    """(number of attempts, step that the last one went on from, what it was doing last) by the ledger."""
    rows = goodput.read(workdir / goodput.NAME)
    own = [row for row in rows if row["attempt"] == rows[-1]["attempt"]]
    return (
        (own[-1]["attempt"] + 1, next((row["resumed"] for row in own if "resumed" in row), None), own[-1]["phase"])
        if rows
        else (0, None, "")
    )


class Aim:
    """Where a process is to be killed: some time after a step, a save or an evaluation, or after its start."""

    def __init__(self, generator, workdir: Path, usual: float):
        """`usual`: seconds that a process needs from start to end."""
        self.way = generator.choices(list(WAYS), list(WAYS.values()))[0]
        self.delay = generator.uniform(0, {"any moment": usual / 2, "a save": 0.1}.get(self.way, 0.3))
        self.steps = generator.randint(1, 60)
        self.workdir, self.attempts, self.resumed = workdir, last_attempt(workdir)[0], None

    def reached(self) -> bool:
        if self.way == "any moment":
            return True
        if self.resumed is None:
            attempts, resumed, _ = last_attempt(self.workdir)
            self.resumed = resumed if attempts > self.attempts else None
            return False
        if self.way == "a step":
            rows = read_metrics(self.workdir / "metrics.jsonl")
            return bool(rows) and rows[-1]["step"] >= self.resumed + self.steps
        if self.way == "a save":
            return any(step >= min(self.resumed + self.steps, STEPS) for step in saves_begun(self.workdir))
        return last_attempt(self.workdir)[2] == "evaluation"


def watch(child: int, aim: Aim) -> bool:
    """Returns when the child was killed (True) or has ended well (False)."""
    began, ready = time.monotonic(), None
    while True:
        now = time.monotonic()
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and status:
            raise SystemExit(f"a process ended by itself with status {status}: see {aim.workdir}.log")
        if ended:
            return False
        if ready is None and aim.reached():
            ready = now
        if ready is not None and now - ready >= aim.delay:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        if now - began > TIMEOUT:
            os.kill(child, signal.SIGKILL)
            raise SystemExit(f"a process does not get to its end: see {aim.workdir}.log")
        time.sleep(LOOK_EVERY)


def phase_at_death(workdir: Path, attempts: int) -> str:
    """What the process that was just killed was doing; `attempts` is how many the ledger knew before it began."""
    now, resumed, phase = last_attempt(workdir)
    if now == attempts:
        return "startup"
    if resumed is not None and saves_begun(workdir):
        return "save"
    return {"productive": "training", "checkpoint": "save"}.get(phase, phase)


def killed_run(workdir: Path, data: Path, generator, usual: float, kills: int, counts) -> tuple[int, float]:
    """One run to its end, killed at most `kills` times: how often, and how many seconds its processes lived."""
    config, log, killed, lived = small_config(workdir.parent, data), Path(f"{workdir}.log"), 0, 0.0
    workdir.mkdir()
    while True:
        listed = checkpoint.steps(workdir / "checkpoints")
        aim = Aim(generator, workdir, usual)
        if killed == kills:
            aim.delay = TIMEOUT
        began = time.monotonic()
        was_killed = watch(forked(lambda: job(config, workdir), log), aim)
        lived += time.monotonic() - began
        attempts, resumed, _ = last_attempt(workdir)
        if attempts > aim.attempts and resumed is not None and resumed != max(listed, default=0):
            raise SystemExit(f"{workdir}: went on from step {resumed}, but step {max(listed)} was saved")
        if not was_killed:
            return killed, lived
        killed += 1
        phase = phase_at_death(workdir, aim.attempts)
        counts[phase] += 1
        print(
            f"{workdir.name}: kill {killed} during {phase}, saved {checkpoint.steps(workdir / 'checkpoints')}",
            flush=True,
        )


def different(expected: dict, found: dict) -> str:
    """The first difference between two outcomes, '' if there is none."""
    for name, value in expected["arrays"].items():
        if found["arrays"].get(name) != value:
            return f"array {name}"
    return "" if found == expected else "metrics.jsonl"


def kill_often(kills: int, seed: int, folder: Path) -> dict:
    """Runs in `folder` until `kills` processes were killed: the figures, for people on the way and for programs."""
    generator, counts = random.Random(seed), collections.Counter()
    whole, log = folder / "whole", folder / "whole.log"
    for attempt in ("compiled", "whole"):  # the second time everything is compiled, as in the runs to come
        workdir = folder / attempt
        workdir.mkdir()
        began = time.monotonic()
        _, status = os.waitpid(
            forked(
                lambda: job(small_config(folder, None if attempt == "compiled" else folder / "compiled"), workdir), log
            ),
            0,
        )
        if status:
            raise SystemExit(f"the run that is not killed failed: see {log}")
        usual = time.monotonic() - began
    expected = outcome(whole, log)
    print(f"a run that is not killed takes {usual:.1f} s", flush=True)
    ledger, done, runs, lived = collections.Counter(), 0, 0, 0.0
    while done < kills:
        runs += 1
        workdir = folder / f"run_{runs}"
        killed, seconds = killed_run(workdir, folder / "compiled", generator, usual, kills - done, counts)
        done, lived = done + killed, lived + seconds
        difference = different(expected, outcome(workdir, Path(f"{workdir}.log")))
        if difference:
            raise SystemExit(f"{workdir} differs from {whole} in {difference}")
        summary = goodput.summarise(goodput.read(workdir / goodput.NAME))
        print(f"{workdir.name}: the same bits; {goodput.sentence(summary)}", flush=True)
        ledger.update(summary["seconds"])
    return {
        "kills": done,
        "runs": runs,
        "by_phase": dict(counts),
        "same_bits": True,
        "goodput": ledger["productive"] / ledger.total(),
        "ledger": dict(ledger),
        "accounted": ledger.total() / lived,
    }  # the ledgers' sum over the seconds that the processes lived


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    parser.add_argument("--folder", default="", help="where the runs are kept; by default a folder that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = kill_often(options.kills, options.seed, Path(options.folder or temporary))
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
