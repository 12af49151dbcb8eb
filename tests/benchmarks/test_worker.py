"""The line protocol between the benchmark and the processes that it times."""

import mmap
import os
from pathlib import Path

import pytest

from mammoclip_jax.benchmarks.resident import Peak
from mammoclip_jax.benchmarks.worker import Worker
from mammoclip_jax.errors import UserError

HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def test_a_worker_steps_when_told_and_says_what_it_needed():
    with Worker("fake_worker", {"bytes": 2**26}, HERE) as worker:
        assert worker.about == {"parameters": 3}
        before = worker.peak()
        worker.warm_up(2)
        assert worker.seconds == []
        assert worker.step() > 0 and worker.step() > 0
        assert len(worker.seconds) == 2 and [figures["loss"] for figures in worker.figures] == [0.5, 0.5]
        assert all(figures["others"] is None or 0 <= figures["others"] <= 1 for figures in worker.figures)
        after = worker.peak()
        assert after["since"] in ("reset", "start") and after["bytes"] > before["bytes"] + 2**25
    assert worker._process.returncode == 0


def test_its_user_errors_arrive():
    with Worker("fake_worker", {"fail": True}, HERE) as worker, pytest.raises(UserError, match="cannot be done"):
        worker.step()


def test_a_process_that_dies_is_named():
    with pytest.raises(UserError, match="process of no_such_module ended with status 1"):
        Worker("no_such_module", {})


def test_a_peak_does_not_count_what_was_before():
    with mmap.mmap(-1, 2**27) as pages:  # no malloc, which may keep what is freed
        for start in range(0, len(pages), 4096):
            pages[start] = 1
        high = Peak().bytes()
    peak = Peak()
    assert peak.since == "start" or peak.bytes() < high - 2**26
