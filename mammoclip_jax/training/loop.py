"""The training loop: restore, step, log, evaluate, save, stop."""

import contextlib
import json
import logging
import math
import signal
import time
from pathlib import Path
from typing import Callable, NamedTuple

import jax

from mammoclip_jax.errors import UserError
from mammoclip_jax.training import checkpoint
from mammoclip_jax.training.mesh import put_batch
from mammoclip_jax.training.writer import MetricWriter, Progress


class Stopped(Exception):
    """The run was asked to stop (SIGTERM or SIGINT); it has saved and goes on with the same workdir."""


class Outcome(NamedTuple):
    state: object
    metrics: dict           # the last training metrics, with images_per_second and data_wait_share


def fit(
    trainer,
    state,
    iterator,
    *,
    config,
    workdir,
    meta: dict,
    evaluate: Callable | None = None,
) -> Outcome:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
        trainer: a `trainer.Trainer`: the step and the mesh.
        state: on the mesh, as `trainer.init` makes it.
        iterator: a checkpointable Grain iterator of this process's `Batch`es.
        config: the whole config; `config.train` rules the loop.
        meta: JSON to keep in every checkpoint.
        evaluate: `state -> {name: value}`, called every `config.eval_every` steps and not timed as training.

    Raises:
        Stopped: on SIGTERM or SIGINT, after saving.
        UserError: the loss is not finite; the batch's records are in `workdir/not_finite_step_N.json`.
    """
    train = config.train
    images_per_step = train.batch_size * config.data.views
    main_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoint.open_manager(workdir, keep=train.keep_checkpoints))
        restored = checkpoint.restore(manager, state, iterator)
        state = state if restored is None else restored
        first = int(state.step)
        if restored is not None:
            logging.info("resumed at step %d from %s", first, manager.directory)
        writer = MetricWriter(workdir, resumed_step=first, active=main_process)
        stack.callback(writer.close)
        stop = stack.enter_context(_StopRequest())
        stack.enter_context(jax.set_mesh(trainer.mesh))
        progress = Progress(train.steps, first, images_per_step, active=main_process)
        compiled, pending, last = None, None, {}
        for step in range(first + 1, train.steps + 1):
            waited = time.monotonic()
            host_batch = next(iterator)
            progress.waited_for_data(time.monotonic() - waited)
            batch = put_batch(host_batch, trainer.mesh, config.model.image.get("rows"))
            if compiled is None:
                # Compiled once, ahead: another shape later is an error, never a silent recompilation.
                with progress.pause():
                    compiled = trainer.jitted().lower(state, batch).compile()
            state, metrics = compiled(state, batch)
            # The step before is fetched only now, so that the device never waits for the host.
            if pending:
                last = _finish(pending, progress, writer, train, workdir)
            pending = (step, metrics, host_batch)
            save_due = step % train.checkpoint_every == 0 or step == train.steps or stop.requested
            evaluation_due = evaluate and train.eval_every and step % train.eval_every == 0 and not stop.requested
            if save_due or evaluation_due:
                last, pending = _finish(pending, progress, writer, train, workdir), None
            with progress.pause():
                if evaluation_due:
                    writer.write(step, evaluate(state))
                if save_due:
                    checkpoint.save(manager, state, iterator, meta)
            if stop.requested and step < train.steps:
                raise Stopped(f"saved step {step} and stopped; the same command with the same --workdir goes on")
        return Outcome(state, last)


def _finish(pending, progress, writer, train, workdir) -> dict:
    """Fetches the metrics of a dispatched step, checks, logs and shows them; returns them as floats."""
    step, metrics, batch = pending
    metrics = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(metrics["loss"]):
        path = Path(workdir, f"not_finite_step_{step}.json")
        path.write_text(json.dumps({"step": step, "records": batch["record"].tolist(),
                                    "sources": batch["source"].tolist(), "metrics": str(metrics)}))
        raise UserError(f"the loss of step {step} is {metrics['loss']}: the records of its batch are in {path} "
                        "(source = position in config.data.folders, record = row of its index.parquet). "
                        "Look at those images, or lower config.train.lr; the run goes on from its last checkpoint.")
    figures = progress.figures(step)
    figures.pop("seconds_left")
    if step % train.log_every == 0 or step == train.steps:
        writer.write(step, metrics | figures)
    progress.show(step, metrics["loss"])
    return metrics | figures


class _StopRequest:
    """Notes SIGTERM and the first SIGINT while the loop runs; the loop stops at the end of its step."""

    def __enter__(self):
        self.requested = False
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number, frame):
        self.requested = True
        logging.warning("asked to stop: finishing the step, then saving")

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
