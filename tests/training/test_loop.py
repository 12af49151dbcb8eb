"""The loop: one compilation, a NaN that stops it, a checkpoint that carries everything, a log without repeats."""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

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
    rows = [
        {"x": value, "record": np.arange(8)[:, None] + 10 * i, "source": np.zeros(8, int)}
        for i, value in enumerate(values)
    ]
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
    batch: dict = {"image": jax.ShapeDtypeStruct((8, 2, 4, 4), "uint8")}  # its shape alone

    def jitted(self):
        return jax.jit(self.step, out_shardings=replicated(self.mesh))


def trainer(step=step_fn):
    return Trainer(make_mesh({"data": -1}), step)


def fit(workdir, steps, iterator=None, step=step_fn, evaluate=None, task={}, **options):
    config = defaults()
    config.task.update(task)
    config.train.update(dict(steps=steps, batch_size=8, log_every=1, checkpoint_every=4) | options)
    return loop.fit(
        trainer(step),
        jax.device_put(state(), replicated(trainer().mesh)),
        iterator or batches(),
        config=config,
        workdir=workdir,
        meta={"config": {"name": "test"}},
        evaluate=evaluate,
    )


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
        lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
    )

    def fresh_step(state, batch):  # not compiled by another test
        return step_fn(state, batch)

    fit(
        tmp_path,
        12,
        step=fresh_step,
        eval_every=1,
        checkpoint_every=5,
        evaluate=lambda state: seen.append(len(compiled)) or {},
    )
    assert len(seen) == 12 and seen[0] > 0
    assert seen[1:] == [seen[1]] * 11


def test_another_shape_is_an_error_and_not_a_recompilation(tmp_path):
    rows = [
        {"x": np.ones(8 * n, np.float32), "record": np.zeros((8 * n, 1)), "source": np.zeros(8 * n)} for n in (1, 2)
    ]
    with pytest.raises(TypeError, match="compiled"):
        fit(tmp_path, 2, iter(grain.MapDataset.source(rows).to_iter_dataset()))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_records(tmp_path):
    with pytest.raises(UserError, match="the loss of step 6 is nan"):
        fit(tmp_path, 10, batches(bad_step=6))
    found = json.loads((tmp_path / "not_finite_step_6.json").read_text())
    assert np.ravel(found["records"]).tolist() == list(range(50, 58))
    assert checkpoint.load(tmp_path)[0] == 4  # the last one before it


def test_a_state_with_nan_is_never_saved(tmp_path):
    with pytest.raises(UserError):
        fit(tmp_path, 10, batches(bad_step=8))  # a checkpoint is due at 8
    assert checkpoint.load(tmp_path)[0] == 4


@pytest.mark.parametrize("every", [4, 2])
def test_a_finite_loss_with_a_gradient_that_is_not_is_found_before_it_is_saved(tmp_path, every):
    def step(state, batch):
        state, metrics = step_fn(state, batch)
        bad = jax.numpy.where(state.step == 8, jax.numpy.nan, 0.0)
        return state._replace(params={"w": state.params["w"] + bad}), metrics | {"gradient_norm": 1 + bad}

    with pytest.raises(UserError, match="the gradient_norm of step 8 is nan"):
        fit(tmp_path, 10, step=step, checkpoint_every=every)
    assert checkpoint.load(tmp_path)[0] == 8 - every
    found = json.loads((tmp_path / "not_finite_step_8.json").read_text())
    assert np.ravel(found["records"]).tolist() == list(range(70, 78))


def test_parameters_that_are_not_finite_are_never_saved_nor_gone_on_from(tmp_path, monkeypatch):
    """Whatever made them so; a run that an older program left with them goes on from the checkpoint before."""

    def step(state, batch):
        state, metrics = step_fn(state, batch)
        return state._replace(params={"w": state.params["w"] / (state.step != 8)}), metrics

    with pytest.raises(UserError, match="the parameters after step 8 are not finite"):
        fit(tmp_path, 10, step=step)
    assert checkpoint.load(tmp_path)[0] == 4
    with monkeypatch.context() as patch:
        patch.setattr(loop, "all_finite", lambda state: state["step"] < 99)
        fit(tmp_path, 9, step=step, keep_checkpoints=3)
    assert checkpoint.load(tmp_path)[0] == 9
    assert float(fit(tmp_path, 10).state.params["w"]) == naive(10)
    assert (tmp_path / "damaged_checkpoints" / "9").is_dir()


def test_an_evaluation_that_a_stop_cut_off_comes_when_the_run_goes_on(tmp_path):
    """The best state, the patience and the log are those of a run that was not stopped."""

    def run(name, iterator=None):
        return fit(
            tmp_path / name,
            12,
            iterator,
            evaluate=lambda state: {"eval/w": -abs(float(state.step) - 6)},
            eval_every=3,
            checkpoint_every=20,
            task=dict(monitor="eval/w", patience=1),
        )

    class Stopping:
        """Batches of which the sixth comes with a request to stop."""

        def __init__(self):
            self.batches, self.given = batches(), 0
            self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

        def __next__(self):
            self.given += 1
            if self.given == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.batches)

    whole = run("whole")
    with pytest.raises(loop.Stopped, match="saved step 6"):
        run("stopped", Stopping())
    again = run("stopped")
    assert int(again.state.step) == int(whole.state.step) == 6
    best, other = ((tmp_path / name / "best.json").read_text() for name in ("whole", "stopped"))
    assert best == other and [entry["step"] for entry in json.loads(best)["evaluations"]] == [3, 6, 9]
    rows, others = (
        [
            {key: row.get(key) for key in ("step", "loss", "eval/w")}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "stopped")
    )
    assert rows == others


def test_evaluations_are_logged_at_their_steps(tmp_path):
    fit(
        tmp_path, 6, log_every=2, eval_every=3, checkpoint_every=6, evaluate=lambda state: {"eval/w": state.params["w"]}
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert {row["step"]: row["eval/w"] for row in rows if "eval/w" in row} == {3: naive(3), 6: naive(6)}
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]


def test_no_interval_is_only_at_the_end(tmp_path):
    fit(tmp_path, 3, log_every=0, eval_every=0, checkpoint_every=0)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [3]
    assert checkpoint.load(tmp_path)[0] == 3


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
