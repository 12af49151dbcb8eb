"""A run that is killed and started again ends with the same bits as one that was not."""

import json
import os
import signal
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
STEPS = 12


def start(workdir, *overrides, data=None, which="training"):
    """The command as a user types it; `data` are the folders of an earlier run, used again; `which` of tiny.py."""
    folders = (
        [
            f"--config.data.folders.phantom={data / 'data'}",
            f"--config.data.prepare.phantom.root={data / 'exams'}",
            f"--config.data.phantom.phantom.out={data / 'exams'}",
        ]
        if data
        else []
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mammoclip_jax.pretrain",
            f"--config={ROOT / 'tests/configs/tiny.py'}:{which}",
            f"--workdir={workdir}",
            f"--json={workdir}/figures.json",
            *folders,
            *overrides,
        ],
        cwd=workdir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def wait_for_step(process, workdir, step):
    """Returns once the metrics show `step`."""
    for _ in range(6000):
        rows = read_metrics(workdir / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def final_variables(workdir):
    step, variables, _ = checkpoint.load(workdir)
    assert step == STEPS
    return variables


def assert_same_bits(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def losses_by_step(workdir):
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]
    return {row["step"]: row["loss"] for row in rows}, len(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    workdir.mkdir()
    finish(start(workdir, which="all"))
    return workdir


@pytest.mark.slow
def test_the_whole_job_leaves_what_it_promises(whole):
    figures = json.loads((whole / "figures.json").read_text())
    assert figures["step"] == STEPS and np.isfinite(figures["loss"]) and figures["images_per_second"] > 0
    assert 0 <= figures["data_wait_share"] <= 1
    assert 0 < figures["goodput"] < 1 and figures["ledger"]["attempts"] == 1
    assert sum(figures["ledger"]["seconds"].values()) == pytest.approx(figures["ledger"]["wall"])
    assert {"phantom/zero_shot/mass/auroc", "phantom/saliency/mass/pointing_game"} <= set(figures["metrics"])
    assert Path(figures["report"]).stat().st_size > 10_000
    losses, rows = losses_by_step(whole)
    assert sorted(losses) == list(range(1, STEPS + 1)) and rows == STEPS
    assert any("eval/phantom/zero_shot/mass/auroc" in row for row in read_metrics(whole / "metrics.jsonl"))
    assert list((whole / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_asked_to_stop_and_started_again(whole, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    process = start(workdir, data=whole)
    wait_for_step(process, workdir, 4)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == command.INTERRUPTED, output
    assert "goes on" in output
    finish(start(workdir, data=whole))
    assert_same_bits(final_variables(whole), final_variables(workdir))
    assert losses_by_step(workdir) == losses_by_step(whole)


@pytest.mark.slow
def test_killed_and_the_newest_checkpoint_damaged(whole, tmp_path):
    """The run goes on from the checkpoint before; from the newest in test_killed_at_random_moments."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    process = start(workdir, data=whole)
    while len(checkpoint.steps(workdir / "checkpoints")) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    *_, before, newest = sorted(checkpoint.steps(workdir / "checkpoints"))
    for path in (workdir / "checkpoints" / str(newest)).rglob("*"):
        if path.is_file() and path.parent.name != "meta":
            path.write_bytes(path.read_bytes()[:10])
    output = finish(start(workdir, data=whole))
    assert "cannot be read" in output and f"resumed at step {before}" in output
    assert_same_bits(final_variables(whole), final_variables(workdir))
    assert losses_by_step(workdir) == losses_by_step(whole)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """In short what `python tests/kill_often.py --kills=200` does at length."""
    figures = tmp_path / "kills.json"
    done = subprocess.run(
        [sys.executable, ROOT / "tests/kill_often.py", "--kills=2", "--seed=1", f"--json={figures}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(figures.read_text())
    assert found["kills"] == sum(found["by_phase"].values()) == 2 and found["same_bits"]
    assert 0 < found["goodput"] < 1 and 0.8 < found["accounted"] < 1.02
