"""Two processes of which one is asked to stop: both stop at the same step, and one process alone goes on from there."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# What each process runs: number of processes, its place, port, workdir, steps.
PROGRAM = """
import logging, sys, time
import grain, jax, numpy as np
from mammoclip_jax.config import defaults
from mammoclip_jax.training import loop
from mammoclip_jax.training.mesh import make_mesh, replicated
from mammoclip_jax.types import TrainState
from test_loop import Trainer, naive, state, step_fn

processes, place, port, workdir, steps = (int(x) if x.isdigit() else x for x in sys.argv[1:])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8 // processes)
logging.basicConfig(level=logging.WARNING)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, place)
config = defaults()
config.train.update(steps=steps, batch_size=8, log_every=1, checkpoint_every=1000)
mesh = make_mesh({"data": -1})
rows = [{"x": np.full(8 // processes, step, np.float32), "record": np.zeros((8 // processes, 1))}
        for step in range(1, steps + 1)]


class Batches:
    given = 0

    def __next__(self):
        self.given += 1
        if processes > 1:
            time.sleep(0.05)
            print("batch", self.given, flush=True)
        return rows[self.given - 1]

    def get_state(self):
        return {"batches": self.given}

    def set_state(self, state):
        self.given = state["batches"]


start = jax.jit(lambda: state()._replace(key=jax.random.key(0)), out_shardings=replicated(mesh))()
try:
    outcome = loop.fit(Trainer(mesh, step_fn), start, Batches(), config=config, workdir=workdir, meta={})
    print("finished", float(outcome.state.params["w"]) == naive(steps))
except loop.Stopped as stopped:
    print("stopped", stopped, flush=True)
"""


def process(*arguments):
    places = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_processes_stop_together_and_one_alone_goes_on(tmp_path, asked):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [process(2, place, port, tmp_path, 400) for place in range(2)]
    for line in both[asked].stdout:
        if "batch 7" in line:
            both[asked].send_signal(signal.SIGTERM)
            break
    outputs = [each.communicate(timeout=300)[0] for each in both]
    said = [[line for line in output.splitlines() if line.startswith("stopped saved step")] for output in outputs]
    assert said[0] == said[1] and len(said[0]) == 1, outputs
    assert sum("asked to stop" in output for output in outputs) == 1
    if asked == 0:  # what is saved is the same
        output = process(1, 0, 0, tmp_path, 400).communicate(timeout=300)[0]
        assert "finished True" in output, output
