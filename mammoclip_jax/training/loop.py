"""The training loop: restore, step, log, evaluate, save, stop."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.progress import working
from mammoclip_jax.training import disk
from mammoclip_jax.training.best import Best
from mammoclip_jax.training.checkpoint import Checkpoints, all_finite
from mammoclip_jax.training.goodput import Ledger
from mammoclip_jax.training.mesh import put_batch, replicated
from mammoclip_jax.training.profile import Profiler
from mammoclip_jax.training.stop import Stopped, StopRequest
from mammoclip_jax.training.watchdog import Watchdog
from mammoclip_jax.training.writer import MetricWriter, Progress

OWED = "evaluation_owed"  # in a checkpoint's meta: the run was asked to stop before the evaluation of that step


class Outcome(NamedTuple):
    state: object
    metrics: dict  # the last training metrics, with images_per_second and data_wait_share


def fit(
    trainer,
    state,
    iterator,
    *,
    config,
    workdir,
    meta: dict,
    evaluate: Callable | None = None,
    ledger: Ledger | None = None,
) -> Outcome:
    """Trains to `config.steps`, from the newest whole checkpoint in `workdir` if there is one.

    Args:
        trainer: a `trainer.Trainer`: the step and the mesh.
        state: on the mesh, as `trainer.init` makes it.
        iterator: a checkpointable Grain iterator of this process's `Batch`es.
        config: the whole config; `config.train` rules the loop.
        meta: JSON to keep in every checkpoint.
        evaluate: `state -> {name: value}`, called every `config.eval_every` steps and not timed as training. With
            `config.task.monitor` the state with the highest value of that name is what is returned in the end, and
            `config.task.patience` may end training early (training/best.py).
        ledger: of the run's time; by default one of this call.

    Raises:
        Stopped: on SIGTERM or SIGINT, after saving.
        UserError: a loss, gradient or parameter is not finite (the batch's records are in
            `workdir/not_finite_step_N.json`), a checkpoint could not be written, or none of those there can be read.
    """
    train, main_process = config.train, jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(disk.explained(workdir))
        if ledger is None:
            ledger = stack.enter_context(contextlib.closing(Ledger(workdir, active=main_process)))
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=train.keep_checkpoints))
        restored = checkpoints.restore(state, iterator)
        state = state if restored is None else restored
        first = int(state.step)
        owed = checkpoints.meta.get(OWED, False)
        ledger.resumed(first)
        writer = stack.enter_context(
            contextlib.closing(MetricWriter(workdir, resumed_step=first, owed=owed, active=main_process))
        )
        rows = trainer.batch["image" if "image" in trainer.batch else "record"]  # maps may stand for the images
        images = math.prod(rows.shape[:2])
        progress = Progress(train.steps, first, images, ledger, active=main_process)
        task = config.task
        best = Best(workdir, task.monitor, task.patience, first - owed, task.better) if task.monitor else None
        stop = stack.enter_context(StopRequest(trainer.mesh))
        stack.enter_context(Watchdog(ledger, workdir, train.watchdog_seconds, train.watchdog_evaluation_seconds))
        profiler = stack.enter_context(Profiler(workdir, train.profile_steps, ledger, active=main_process))
        stack.enter_context(jax.set_mesh(trainer.mesh))
        stack.enter_context(ledger.phase("productive"))
        compiled, pending, last = None, None, {}

        def evaluation(step, state):
            progress.clear()
            with ledger.phase("evaluation"):
                figures = evaluate(state)
                writer.write(step, figures)
            if best:
                with ledger.phase("checkpoint"):
                    best.update(step, figures, state, iterator, meta)

        if owed and evaluate:
            evaluation(first, state)
        last_step = first if best and best.over else train.steps
        for step in range(first + 1, last_step + 1):
            profiler.before(step)
            host_batch = _next_batch(iterator, pending, ledger)
            batch = put_batch(host_batch, trainer.mesh, config.model.image.get("rows"))
            if compiled is None:
                # Compiled once, ahead: another shape later is an error, never a silent recompilation.
                with ledger.phase("compile"), working("compiling the training step"):
                    compiled = trainer.jitted().lower(state, batch).compile()
                    finite = (
                        jax.jit(all_finite, out_shardings=replicated(trainer.mesh)).lower(state._asdict()).compile()
                    )
            state, metrics = compiled(state, batch)
            # The step before is fetched only now, so that the device never waits for the host.
            if pending:
                last = _finish(pending, progress, writer, train, workdir)
            pending = (step, metrics, host_batch)
            profiler.after(step, metrics)
            stopping = stop.agreed() and step < train.steps
            save_due = due(step, train.checkpoint_every) or step == train.steps or stopping
            evaluation_due = bool(evaluate) and due(step, train.eval_every)
            if save_due or evaluation_due:
                last, pending = _finish(pending, progress, writer, train, workdir), None
                if not finite(state._asdict()):
                    raise _not_finite(
                        f"the parameters after step {step} are not finite", step, metrics, host_batch, workdir
                    )
            if evaluation_due and not stopping:
                evaluation(step, state)
                save_due = save_due or best is not None  # at most one evaluation is repeated when a run goes on
            over = best is not None and best.over
            if save_due:
                with ledger.phase("checkpoint"):
                    # Who asks to stop may not wait for an evaluation: the run that goes on begins with it.
                    checkpoints.save(state, iterator, meta | {OWED: True} if evaluation_due and stopping else meta)
            else:
                checkpoints.poll()
            if stopping or over:
                break
        with ledger.phase("checkpoint"):
            checkpoints.wait()
        if int(state.step) < train.steps and not (best and best.over):
            raise Stopped(f"saved step {step} and stopped; the same command with the same --workdir goes on")
        return Outcome(best.restore(state, iterator) if best else state, last)


def due(step: int, every: int) -> bool:
    """Is the step one of those that come `every` so many? None is where that is 0."""
    return every > 0 and step % every == 0


def _not_finite(what: str, step, metrics, batch, workdir) -> UserError:
    """The error of a step after which nothing may be saved; notes the records of its batch."""
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = Path(workdir, f"not_finite_step_{step}{process}.json")
    figures = {name: str(value) for name, value in metrics.items()}
    write_text(
        path,
        json.dumps(
            {"step": step, "records": batch["record"].tolist(), "sources": batch["source"].tolist(), "metrics": figures}
        ),
    )
    return UserError(
        f"{what}: the records of its batch are in {path} (source = position in "
        "config.data.folders, record = row of its index.parquet). Look at those images, or lower "
        "config.train.lr; the run goes on from its last checkpoint."
    )


def _next_batch(iterator, pending, ledger):
    """The next batch. The wait counts as such unless the devices had the step before to do all the while."""
    started = time.monotonic()
    batch = next(iterator)
    if not pending or pending[1]["loss"].is_ready():
        ledger.move(time.monotonic() - started, "data_wait")
    return batch


def _finish(pending, progress, writer, train, workdir) -> dict:
    """Fetches the metrics of a dispatched step, checks, logs and shows them; returns them as floats."""
    step, metrics, batch = pending
    metrics = {name: float(value) for name, value in metrics.items()}
    progress.ledger.done(step)
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise _not_finite(f"the {name} of step {step} is {metrics[name]}", step, metrics, batch, workdir)
    figures = progress.figures(step)
    figures.pop("seconds_left")
    if due(step, train.log_every) or step == train.steps:
        writer.write(step, metrics | figures)
    progress.show(step, metrics["loss"])
    return metrics | figures
