"""Checkpoints of everything a run needs: state, data iterator, and what the model is and where it came from.

    workdir/checkpoints/STEP/state     TrainState (arrays)
                            /data      the Grain iterator's position, one file a process
                            /meta      config, tokenizer, preprocessing, provenance (JSON)

Orbax writes to a temporary folder and renames it, in the background: a half-written step is never listed.
"""

import logging
from pathlib import Path

import grain
import jax
import orbax.checkpoint as ocp

from mammoclip_jax.errors import UserError
from mammoclip_jax.types import TrainState


def open_manager(workdir, *, keep: int = 2) -> ocp.CheckpointManager:
    """The manager of `workdir/checkpoints`; the newest `keep` steps stay."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        enable_async_checkpointing=True,
    )
    return ocp.CheckpointManager(Path(workdir, "checkpoints").absolute(), options=options)


def save(manager, state: TrainState, iterator, meta) -> None:
    """Starts writing the state; returns when the arrays are copied, the rest goes on in the background."""
    manager.save(int(state.step), args=ocp.args.Composite(
        state=ocp.args.StandardSave(_plain(state)),
        data=grain.checkpoint.CheckpointSave(iterator),
        meta=ocp.args.JsonSave(meta),
    ), force=True)


def restore(manager, state: TrainState, iterator) -> TrainState | None:
    """The newest readable checkpoint, with the iterator set to its position; None when there is none.

    A step that cannot be read is reported, skipped for the one before it, and then deleted. `state` gives structure
    and shardings.

    Raises:
        UserError: there are steps, and none of them can be read.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _plain(state))
    for step in steps:
        try:
            restored = manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target),
                data=grain.checkpoint.CheckpointRestore(iterator),
            ))
        except Exception as error:  # Orbax raises many kinds; each means that this step is of no use
            logging.warning("checkpoint of step %d cannot be read, trying the one before: %s", step, error)
            continue
        for damaged in steps[:steps.index(step)]:
            manager.delete(damaged)     # or the run could not save that step again when it comes to it
        return _typed(restored["state"], state)
    if steps:
        raise UserError(f"none of the checkpoints in {manager.directory} (steps {steps}) can be read with this "
                        "config: use the config of the run, or another --workdir.")
    return None


def load(path) -> tuple[int, dict, dict]:
    """(step, variables, meta) of a workdir, a `checkpoints` folder or one step in it, as NumPy arrays.

    `variables` holds `params` (the averaged ones where the run kept them) and `batch_stats`.

    Raises:
        UserError: no checkpoint is there.
    """
    path = Path(path)
    if path.name.isdigit() and (path / "meta").exists():
        folder, step = path.parent, int(path.name)
    else:
        folder, step = (path / "checkpoints" if (path / "checkpoints").is_dir() else path), None
    if not folder.is_dir():
        raise UserError(f"{path}: there is no such run or checkpoint folder.")
    with ocp.CheckpointManager(folder.absolute()) as manager:
        step = manager.latest_step() if step is None else step
    if step is None:
        raise UserError(f"{path}: no finished checkpoint in {folder}; train first, or name another folder.")
    place = (folder / str(step)).absolute()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        meta = reader.restore(place / "meta", args=ocp.args.JsonRestore())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(place / "state").item_metadata.tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), saved)
        state = jax.device_get(reader.restore(place / "state", target))
    params = state["ema"] or state["params"]
    return step, {"params": params, "batch_stats": state["batch_stats"] or {}}, meta


def _plain(state: TrainState) -> dict:
    """A tree that Orbax stores: the PRNG key as its raw numbers."""
    return state._asdict() | {"key": jax.random.key_data(state.key)}


def _typed(plain: dict, like: TrainState) -> TrainState:
    key = jax.random.wrap_key_data(plain["key"], impl=jax.random.key_impl(like.key))
    return TrainState(**plain | {"key": key})
