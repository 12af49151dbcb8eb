"""Traces are made of the steps asked for, in the config or by a file."""

import jax
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import check
from mammoclip_jax.training import profile
from mammoclip_jax.training.goodput import Ledger
from mammoclip_jax.training.profile import Profiler


@pytest.fixture
def traced(monkeypatch):
    """What the profiler was told, in order."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append(folder.rpartition("/")[2]))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
    monkeypatch.setattr(profile, "LOOK_EVERY", 0.0)
    return told


def run(workdir, traced, steps, *, asked=(), active=True, touch=None):
    with Profiler(workdir, asked, Ledger(workdir, active=False), active=active) as profiler:
        for step in steps:
            if touch and step == touch[0]:
                (workdir / "profile").write_text(touch[1])
            profiler.before(step)
            traced.append(step)
            profiler.after(step, {})
    return traced


def test_the_steps_of_the_config(tmp_path, traced):
    assert run(tmp_path, traced, range(1, 6), asked=(2, 3)) == [1, "step_2", 2, 3, "stop", 4, 5]


def test_a_run_that_goes_on_within_them(tmp_path, traced):
    assert run(tmp_path, traced, range(3, 6), asked=(2, 4)) == ["step_3", 3, 4, "stop", 5]


def test_touching_a_file_traces_the_next_steps_once(tmp_path, traced):
    assert run(tmp_path, traced, range(1, 8), touch=(3, "")) == [1, 2, "step_3", 3, 4, 5, "stop", 6, 7]
    assert not (tmp_path / "profile").exists()


def test_the_file_may_say_how_many(tmp_path, traced):
    assert run(tmp_path, traced, range(1, 4), touch=(2, "1\n")) == [1, "step_2", 2, "stop", 3]


def test_a_run_that_ends_meanwhile_keeps_the_trace(tmp_path, traced):
    assert run(tmp_path, traced, range(1, 3), asked=(2, 9)) == [1, "step_2", 2, "stop"]


def test_other_processes_do_not_trace(tmp_path, traced):
    assert run(tmp_path, traced, range(1, 4), asked=(1, 2), active=False) == [1, 2, 3]


def test_a_real_trace_is_written_and_said_where(tmp_path, caplog):
    caplog.set_level("INFO")
    ledger = Ledger(tmp_path, active=False)
    with Profiler(tmp_path, (1, 1), ledger) as profiler:
        profiler.before(1)
        profiler.after(1, jax.numpy.ones(3) + 1)
    assert list((tmp_path / "profiles/step_1").rglob("*.xplane.pb"))
    assert f"the trace is in {tmp_path / 'profiles/step_1'}" in caplog.text
    assert ledger.seconds("profile") > 0


def test_wrong_steps_are_an_error_of_the_config():
    config = defaults()
    config.data.folders.some = "folder"
    config.losses.some = {}
    config.train.profile_steps = (5, 3)
    with pytest.raises(UserError, match="profile_steps"):
        check(config)
