"""The loop: one compilation, a NaN that stops it, a checkpoint that carries everything, a log without repeats."""

import errno
import json
import os
import signal
import time
from typing import Callable, NamedTuple

import grain
import jax
import numpy as np
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import checkpoint, goodput, loop
from mammoclip_jax.training.mesh import make_mesh, replicated
from mammoclip_jax.training.writer import MetricWriter, Progress, read_metrics
from mammoclip_jax.types import TrainState


def batches(bad_step=None):
    """Batches of one number a row; batch `bad_step` (from 1) holds a NaN."""
    values = [np.full(8, step, np.float32) for step in range(1, 31)]
    if bad_step:
        values[bad_step - 1][3] = np.nan
    rows = [{"x": value, "record": np.arange(8)[:, None] + 10 * i, "source": np.zeros(8, int)}
            for i, value in enumerate(values)]
    return iter(grain.MapDataset.source(rows).repeat().to_iter_dataset())


def state():
    return TrainState(jax.numpy.zeros((), int), {"w": jax.numpy.ones(())}, {}, (), None, jax.random.key(0))


def step_fn(state, batch):
    mean = batch["x"].mean()
    return state._replace(step=state.step + 1, params={"w": state.params["w"] * 0.5 + mean}), {"loss": mean}


class Trainer(NamedTuple):
    """What the loop uses of a trainer.Trainer."""

    mesh: jax.sharding.Mesh
    step: Callable
    batch: dict = {"image": jax.ShapeDtypeStruct((8, 2, 4, 4), "uint8")}     # its shape alone

    def jitted(self):
        return jax.jit(self.step, out_shardings=replicated(self.mesh))


def trainer(step=step_fn):
    return Trainer(make_mesh({"data": -1}), step)


def fit(workdir, steps, iterator=None, step=step_fn, evaluate=None, **options):
    config = defaults()
    config.train.update(dict(steps=steps, batch_size=8, log_every=1, checkpoint_every=4) | options)
    return loop.fit(trainer(step), jax.device_put(state(), replicated(trainer().mesh)), iterator or batches(),
                    config=config, workdir=workdir, meta={"config": {"name": "test"}}, evaluate=evaluate)


def naive(steps):
    w = 1.0
    for step in range(1, steps + 1):
        w = w * 0.5 + step
    return w


def test_resume_goes_on_with_the_next_batch(tmp_path):
    assert float(fit(tmp_path, 6).state.params["w"]) == naive(6)
    outcome = fit(tmp_path, 10)
    assert float(outcome.state.params["w"]) == naive(10) and int(outcome.state.step) == 10
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    step, variables, meta = checkpoint.load(tmp_path)
    assert step == 10 and float(variables["params"]["w"]) == naive(10) and meta["config"]["name"] == "test"


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    compiled, seen = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None)

    def fresh_step(state, batch):       # not compiled by another test
        return step_fn(state, batch)

    fit(tmp_path, 12, step=fresh_step, eval_every=1, checkpoint_every=5,
        evaluate=lambda state: seen.append(len(compiled)) or {})
    assert len(seen) == 12 and seen[0] > 0
    assert seen[1:] == [seen[1]] * 11


def test_another_shape_is_an_error_and_not_a_recompilation(tmp_path):
    rows = [{"x": np.ones(8 * n, np.float32), "record": np.zeros((8 * n, 1)), "source": np.zeros(8 * n)}
            for n in (1, 2)]
    with pytest.raises(TypeError, match="compiled"):
        fit(tmp_path, 2, iter(grain.MapDataset.source(rows).to_iter_dataset()))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_records(tmp_path):
    with pytest.raises(UserError, match="the loss of step 6 is nan"):
        fit(tmp_path, 10, batches(bad_step=6))
    found = json.loads((tmp_path / "not_finite_step_6.json").read_text())
    assert np.ravel(found["records"]).tolist() == list(range(50, 58))
    assert checkpoint.load(tmp_path)[0] == 4        # the last one before it


def test_a_state_with_nan_is_never_saved(tmp_path):
    with pytest.raises(UserError):
        fit(tmp_path, 10, batches(bad_step=8))      # a checkpoint is due at 8
    assert checkpoint.load(tmp_path)[0] == 4


def test_evaluations_are_logged_at_their_steps(tmp_path):
    fit(tmp_path, 6, log_every=2, eval_every=3, checkpoint_every=6,
        evaluate=lambda state: {"eval/w": state.params["w"]})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row["step"]: row["eval/w"] for row in rows if "eval/w" in row} == {3: naive(3), 6: naive(6)}
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]


def test_no_checkpoint_is_explained(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        checkpoint.load(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no finished checkpoint"):
        checkpoint.load(tmp_path)


def test_the_time_of_a_run_adds_up_over_its_attempts(tmp_path):
    began = time.monotonic()
    fit(tmp_path, 6, eval_every=2, evaluate=lambda state: time.sleep(0.05) or {})
    fit(tmp_path, 9)
    took = time.monotonic() - began
    summary = goodput.summarise(goodput.read(tmp_path / goodput.NAME))
    assert summary["attempts"] == 2 and summary["seconds"]["lost"] == 0 and summary["seconds"]["evaluation"] >= 0.15
    assert all(summary["seconds"][kind] > 0 for kind in ("startup", "compile", "data_wait", "checkpoint", "productive"))
    assert 0 < summary["wall"] + summary["idle"] <= took + 0.1


def test_a_request_to_stop_is_followed_after_the_step_and_saved(tmp_path):
    with pytest.raises(loop.Stopped, match="saved step 3"):
        fit(tmp_path, 10, eval_every=2, evaluate=lambda state: os.kill(os.getpid(), signal.SIGTERM) or {})
    assert checkpoint.load(tmp_path)[0] == 3
    assert float(fit(tmp_path, 10).state.params["w"]) == naive(10)


@pytest.fixture
def interrupt():
    """Sets what SIGINT does, as it is ignored where the tests themselves were started in the background."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait(tmp_path, interrupt):
    interrupt(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 10, eval_every=2, evaluate=lambda state: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_run_in_the_background_does_not_hear_ctrl_c_and_saves_on_sigterm(tmp_path, interrupt):
    """nohup and scripts start a process with SIGINT ignored."""
    interrupt(signal.SIG_IGN)
    asked = iter((signal.SIGINT, signal.SIGINT, signal.SIGTERM))
    with pytest.raises(loop.Stopped, match="saved step 7"):
        fit(tmp_path, 10, eval_every=2, evaluate=lambda state: os.kill(os.getpid(), next(asked)) or {})
    assert checkpoint.load(tmp_path)[0] == 7 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_save_that_fails_ends_the_run_and_the_one_before_is_gone_on_from(tmp_path, monkeypatch):
    fit(tmp_path, 4)
    monkeypatch.setattr(checkpoint.checksum, "write", lambda *arguments, **options: 1 / 0)
    with pytest.raises(UserError, match=r"step 8 could not be saved and is not listed \(whole checkpoints: 4;"):
        fit(tmp_path, 12)
    monkeypatch.undo()
    assert float(fit(tmp_path, 12).state.params["w"]) == naive(12)


def test_the_disk_full_while_metrics_are_written_is_explained(tmp_path, monkeypatch):
    def full(self, step, metrics):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricWriter, "write", full)
    with pytest.raises(UserError, match=f"the disk of {tmp_path} is full"):
        fit(tmp_path, 4)


def test_writer_cuts_what_is_after_the_restored_step_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    writer = MetricWriter(tmp_path, resumed_step=1)
    writer.write(2, {"loss": float("nan"), "rate": 5})
    writer.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": None, "rate": 5.0}]


def test_progress_counts_training_time_alone():
    class Ledger:
        def seconds(self, kind):
            return {"productive": 4.5, "data_wait": 0.5}[kind]

    figures = Progress(total=30, first=10, images_per_step=16, ledger=Ledger()).figures(15)
    assert figures == {"images_per_second": 16.0, "data_wait_share": 0.1, "seconds_left": 15.0}


def test_names_that_tensorboard_does_not_take_are_no_news(tmp_path, caplog):
    writer = MetricWriter(tmp_path, resumed_step=0)
    writer.write(1, {"eval/phantom/mass@0.5/sensitivity@0.125_fp": 0.5})
    writer.close()
    assert not caplog.records and "mass@0.5" in (tmp_path / "metrics.jsonl").read_text()
