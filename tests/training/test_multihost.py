"""Two real processes of four devices each do what one process of eight does, and each goes on where the other stopped.

The whole job of configs/tiny.py, started by launch/local.sh over the loopback interface. Results differ only by the
order in which floating-point numbers are summed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mammoclip_jax import command
from mammoclip_jax.training import checkpoint
from mammoclip_jax.training.writer import read_metrics

ROOT = Path(__file__).parents[2]
DEVICES, STEPS, STOP = 8, 12, 4
pytestmark = pytest.mark.slow


def start(workdir, processes, data=None, which="training"):
    """The job on that many processes; `data` are the folders of an earlier run, used again; `which` of tiny.py."""
    folders = (
        [
            f"--config.data.folders.phantom={data}/data",
            f"--config.data.prepare.phantom.root={data}/exams",
            f"--config.data.phantom.phantom.out={data}/exams",
        ]
        if data
        else []
    )
    environment = os.environ | {"PROCESSES": str(processes), "DEVICES": str(DEVICES // processes), "RESTARTS": "0"}
    return subprocess.Popen(
        [
            "bash",
            str(ROOT / "launch/local.sh"),
            f"--config={ROOT}/tests/configs/tiny.py:{which}",
            f"--workdir={workdir}",
            f"--json={workdir}/figures.json",
            "--config.train.batch_size=8",
            # Adam's: with the usual 1e-8 a parameter without a gradient, as a bias before a batch normalisation, goes its
            # full step in the direction of what rounding leaves of zero.
            "--config.train.eps=1.0",
            *folders,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(workdir, processes, data=None, which="training"):
    process = start(workdir, processes, data, which)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def run_until_stopped(workdir, processes, data):
    process = start(workdir, processes, data)
    while not any(row["step"] >= STOP for row in read_metrics(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == command.INTERRUPTED, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process of eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    run(workdir, 1)
    return workdir


def assert_same_run(workdir, alone):
    """The same losses, step by step, and the same parameters at the end."""
    found, expected = (
        {row["step"]: row["loss"] for row in read_metrics(path / "metrics.jsonl") if "loss" in row}
        for path in (workdir, alone)
    )
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    for step in expected:
        np.testing.assert_allclose(found[step], expected[step], rtol=1e-5, err_msg=f"loss of step {step}")
    (step, variables, _), (_, wanted, _) = checkpoint.load(workdir), checkpoint.load(alone)
    assert step == STEPS
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(variables["params"]), jax.tree.leaves(wanted["params"]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_two_processes_train_as_one_that_goes_on_alone(alone, tmp_path):
    workdir = tmp_path / "run"
    run_until_stopped(workdir, 2, alone)
    run(workdir, 1, alone)
    assert_same_run(workdir, alone)


def test_one_goes_on_as_two_which_end_the_whole_job(alone, tmp_path):
    workdir = tmp_path / "run"
    run_until_stopped(workdir, 1, alone)
    output = run(workdir, 2, alone, "all")
    assert_same_run(workdir, alone)
    figures = json.loads((workdir / "figures.json").read_text())
    assert figures["step"] == STEPS and Path(figures["report"]).stat().st_size > 10_000
    assert any(
        row["step"] == STEPS and "eval/phantom/zero_shot/mass/auroc" in row
        for row in read_metrics(workdir / "metrics.jsonl")
    )
    # Process 0 speaks for both; the other has a log of its own, and leaves nothing else.
    assert output.count("report: ") == 1 and "image_encoder/" in (workdir / "log_process_1.txt").read_text()
    assert not list(workdir.glob(".process_0*")) and not list(workdir.glob("**/*.partial"))


BATCHES = """
import sys
import jax
import numpy as np
from mammoclip_jax.training import distributed
from mammoclip_jax.training import mesh as meshes

distributed.connect(*sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 4)
whole = {"image": np.arange(16 * 2 * 8 * 3).reshape(16, 2, 8, 3), "mask": np.arange(16)}
for order, shape, rows in [
    (range(8), (8, 1, 1), None), ([0, 4, 1, 5, 6, 2, 7, 3], (8, 1, 1), None),
    ([0, 1, 4, 5, 2, 3, 6, 7], (2, 4, 1), None),
    (range(8), (4, 1, 2), "space"), ([0, 4, 1, 5, 2, 6, 3, 7], (4, 1, 2), "space"), (range(8), (1, 1, 8), "space"),
]:
    devices = np.array([jax.devices()[i] for i in order]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, meshes.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    own = meshes.process_rows(16, mesh, rows)
    placed = meshes.put_batch({name: x[own] for name, x in whole.items()}, mesh, rows)
    for name, x in placed.items():
        assert x.shape == whole[name].shape
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[name][shard.index])
"""


LATE = """
import sys
import time
import jax
import jax.numpy as jnp
import numpy as np
from mammoclip_jax.training import distributed
from mammoclip_jax.training import mesh as meshes

distributed.connect(*sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 4)
mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "space": 2})
distributed.meet(mesh)
x = meshes.put_batch({"mask": np.ones((4, 5), np.float32)}, mesh)["mask"]
total = jax.jit(jnp.sum, out_shardings=meshes.replicated(mesh)).lower(x).compile()
if jax.process_index() == 1:
    time.sleep(35)
assert total(x) == 40
"""


def begin(code):
    """Starts Python code in two processes; its arguments are those of `distributed.connect`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, f"127.0.0.1:{port}", "2", str(i)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def end_well(jobs):
    for job in jobs:
        _, errors = job.communicate(timeout=200)
        assert job.returncode == 0, errors


@pytest.fixture(scope="module", autouse=True)
def late():
    """Begun before the first test: it mostly waits."""
    jobs = begin(LATE)
    yield jobs
    for job in jobs:
        job.kill()
        job.wait()


def test_each_process_makes_the_rows_of_its_devices_wherever_they_are():
    """Also where the mesh follows the wires of a TPU slice, and where an image's rows are split between processes."""
    end_well(begin(BATCHES))


def test_a_process_may_come_late_to_a_step(late):
    end_well(late)


def test_an_error_in_one_process_ends_all_and_is_said(tmp_path):
    job = subprocess.run(
        [
            "bash",
            str(ROOT / "launch/local.sh"),
            f"--config={ROOT}/tests/configs/tiny.py",
            f"--workdir={tmp_path}/run",
            "--config.data.prepare.phantom.root=nowhere",
            "--config.data.phantom.phantom.exams=1",
        ],
        env=os.environ | {"RESTARTS": "0"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert job.returncode == 2 and job.stderr.count("error: ") >= 1 and "nowhere" in job.stderr
