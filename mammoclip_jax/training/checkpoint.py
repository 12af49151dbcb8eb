"""Checkpoints of everything a run needs: state, data iterator, and what the model is and where it came from.

    workdir/checkpoints/STEP/state            TrainState (arrays)
                            /data             position in the data, once for all processes (JSON)
                            /meta             config, tokenizer, preprocessing, provenance (JSON)
                            /checksums.json   length and CRC-32 of every file
    workdir/damaged_checkpoints/STEP          what could not be used any more, kept to be looked at

Orbax writes in the background into a temporary folder, notes the checksums there, and renames it when all is written: a
step that is listed was whole. Whether it still is, is checked before it is used, and the step before takes its place if
it is not.
"""

import contextlib
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mammoclip_jax.errors import UserError
from mammoclip_jax.training import checksum, disk
from mammoclip_jax.training.processes import barrier
from mammoclip_jax.types import TrainState

# Orbax writes these, or writes them again, just before it renames the folder: they are noted when that is done, and do
# not count should the process end in between.
COMMIT_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Checkpoints:
    """The checkpoints of a run while it trains; a context that waits for the last save.

    Every process makes one and calls its methods at the same steps.
    """

    def __init__(self, workdir, *, keep: int = 2):
        """The newest `keep` steps stay. Damaged ones newer than the newest whole one are put aside.

        Raises:
            UserError: there are steps, and all of them are damaged.
        """
        self.folder = Path(workdir, "checkpoints").absolute()
        _put_damaged_aside(self.folder)
        self.meta = {}  # what the restored checkpoint says
        self._saving = None  # the step that is being written
        self._needed = 0  # bytes that it will take, about
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._note_checksums),
            ),
        )

    def restore(self, state: TrainState, iterator) -> TrainState | None:
        """The newest checkpoint, with the iterator set to its position; None when there is none.

        `state` gives structure and shardings: they, the mesh and the number of processes may be others than those
        that saved, since the iterator's state (the batches given) is the same in all processes. A step that cannot be
        restored is reported, and put aside for the one before it.

        Raises:
            UserError: there are steps, and none of them can be restored.
        """
        listed = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _plain(state))
        errors = {}
        for step in listed:
            try:
                target = abstract
                if _of_parameters_alone(_saved_tree(self.folder / str(step))["ema"]):
                    target = abstract | {"ema": abstract["ema"]["params"]}
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()
                    ),
                )
                if not jax.jit(all_finite)(restored["state"]):
                    raise ValueError("its parameters are not finite")
            except Exception as error:  # Orbax raises many kinds; each means that this step is of no use
                logging.warning("checkpoint of step %d cannot be read, trying the one before: %s", step, error)
                errors[step] = error
                continue
            if errors:
                if jax.process_index() == 0:
                    _put_aside(self.folder, list(errors))  # or the run could not save that step again
                barrier("damaged checkpoints are put aside")
                self._manager.reload()
            iterator.set_state(restored["data"])
            self.meta = restored["meta"]
            logging.info("resumed at step %d from %s", step, self.folder)
            return _typed(_migrated(restored["state"]), state)
        if listed:
            raise UserError(
                f"none of the checkpoints in {self.folder} (steps {listed}) can be read with this config: "
                f"use the config of the run, or another --workdir. The first reason: {errors[listed[0]]}"
            )
        return None

    def save(self, state: TrainState, iterator, meta) -> None:
        """Starts writing the state; returns when the arrays are copied, the rest goes on in the background.

        Raises:
            UserError: the save before failed, or this one does not fit on the disk.
        """
        self.wait()
        last = self._manager.latest_step()
        self._needed = _bytes(state) if last is None else checksum.size(self.folder / str(last))
        disk.check_space(self.folder, self._needed)
        self._saving = int(state.step)
        with self._failures_explained():
            self._manager.save(
                self._saving,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_plain(state)),
                    data=ocp.args.JsonSave(iterator.get_state()),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )

    def poll(self) -> None:
        """Looks, without waiting, how the save in the background went. Raises as `wait` does."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the save in the background is done.

        Raises:
            UserError: it failed; its step is not listed, and the ones before stay.
        """
        if self._saving is None:
            return
        with self._failures_explained():
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            checksum.write(self.folder / str(self._saving), COMMIT_FILES)
        self._saving = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        try:
            self.wait()
        except UserError as failure:
            if kind is None:
                raise
            logging.error("%s", failure)  # what ended the run counts for more
        finally:
            self._manager.close()

    def _note_checksums(self):
        """Called by Orbax, on process 0 and in the background, between writing a step and renaming its folder."""
        checksum.write(_temporary(self.folder, self._saving), leave_out=COMMIT_FILES)

    @contextlib.contextmanager
    def _failures_explained(self):
        """Around Orbax's calls: the error of a save becomes a UserError, and what it left is removed."""
        try:
            with disk.explained(self.folder, self._needed):
                yield
        except Exception as error:
            step, self._saving = self._saving, None
            if jax.process_index() == 0:
                shutil.rmtree(_temporary(self.folder, step), ignore_errors=True)
            kept = ", ".join(str(step) for step in steps(self.folder)) or "none"
            raise UserError(
                f"step {step} could not be saved and is not listed (whole checkpoints: {kept}; the same "
                f"command goes on from the newest): {error}"
            ) from error


def all_finite(state: dict):
    """Whether every number of a state's parameters, batch statistics and average is finite; bool []."""
    arrays = jax.tree.leaves([state[name] for name in ("params", "batch_stats", "ema")])
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()


def steps(folder) -> list[int]:
    """The steps listed in a `checkpoints` folder, oldest first."""
    return sorted(int(path.name) for path in Path(folder).glob("*") if path.name.isdigit())


def load(path) -> tuple[int, dict, dict]:
    """(step, variables, meta) of a workdir, a `checkpoints` folder or one step in it, as NumPy arrays.

    `variables` holds `params` and `batch_stats` (the averaged ones where the run kept them). Of a workdir whose run
    kept its best state (best.py) that one is taken. A damaged step is reported and the one before is taken, unless it
    was asked for by name.

    Raises:
        UserError: no checkpoint is there, or none that is whole.
    """
    path = Path(path).absolute()
    path = path / "best" if steps(path / "best" / "checkpoints") else path
    if path.name.isdigit() and not (path / "checkpoints").is_dir():
        folder, wanted = path.parent, [int(path.name)]
    else:
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        wanted = steps(folder)
    if not folder.is_dir():
        raise UserError(f"{path}: there is no such run or checkpoint folder.")
    if not wanted:
        raise UserError(f"{path}: no finished checkpoint in {folder}; train first, or name another folder.")
    step, _ = newest_whole(folder, wanted)
    variables = TrainState(**read_state(folder / str(step))).variables()
    return step, variables | {"batch_stats": variables["batch_stats"] or {}}, read_meta(folder / str(step))


def newest_meta(workdir) -> tuple[int, dict | None]:
    """(step, meta) of the newest checkpoint of a run whose meta can be read; (0, None) where there is none."""
    folder = Path(workdir, "checkpoints").absolute()
    for step in reversed(steps(folder)):
        with contextlib.suppress(OSError, ValueError):  # damaged: that is said when it is restored
            return step, read_meta(folder / str(step))
    return 0, None


def read_meta(folder) -> dict:
    """The meta in the folder of a step. Not by Orbax, which would wait for all processes of the run."""
    return json.loads(Path(folder, "meta", "metadata").read_text(encoding="utf-8"))


def read_state(folder) -> dict:
    """The TrainState in the folder of a step: a dict of its fields as NumPy arrays, the PRNG key as numbers."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), _saved_tree(folder))
        return _migrated(jax.device_get(reader.restore(Path(folder, "state"), target)))


def _saved_tree(folder) -> dict:
    """Shapes and dtypes of the TrainState in the folder of a step."""
    return ocp.StandardCheckpointHandler().metadata(Path(folder, "state")).tree


def _of_parameters_alone(ema) -> bool:
    """Whether an average was saved as it was at first: a tree of parameters, to be used with the raw statistics."""
    return bool(ema) and "params" not in ema


def _migrated(state: dict) -> dict:
    """A saved state as this version has it: an average of parameters alone takes over the raw batch statistics."""
    if not _of_parameters_alone(state["ema"]):
        return state
    statistics = jax.tree.map(lambda x: x.copy(), state["batch_stats"])  # donated with the rest of the state
    return state | {"ema": {"params": state["ema"], "batch_stats": statistics}}


def newest_whole(folder, wanted) -> tuple[int, list[int]]:
    """(the newest of the steps `wanted` that is undamaged, the damaged ones that are newer); each of those is reported.

    Raises:
        UserError: all are damaged.
    """
    damaged = {}
    for step in sorted(wanted, reverse=True):
        damage = checksum.damage(Path(folder, str(step)))
        if not damage:
            return step, list(damaged)
        damaged[step] = damage
        logging.warning(
            "checkpoint of step %d cannot be read, trying the one before: %s", step, Path(folder, str(step), damage)
        )
    listed = "; ".join(f"step {step}: {damage}" for step, damage in damaged.items())
    raise UserError(
        f"none of the checkpoints in {folder} is whole ({listed}): put them back from a copy, or name another folder."
    )


def _put_damaged_aside(folder: Path) -> None:
    """Readies the folder for a run: no temporary folders, and no damaged step newer than the newest whole one.

    Process 0 looks, and the others wait for it.
    """
    if jax.process_index() == 0:
        for left in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(left)  # a save that was cut short
        listed = steps(folder)
        _put_aside(folder, newest_whole(folder, listed)[1] if listed else [])
    barrier("checkpoints are looked at")


def _put_aside(folder: Path, damaged: list[int]) -> None:
    for step in damaged:
        place = folder.parent / "damaged_checkpoints" / str(step)
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(place)
        logging.warning("the damaged checkpoint of step %d is now in %s", step, place)


def _temporary(folder: Path, step: int) -> Path:
    return folder / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"


def _bytes(state: TrainState) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(_plain(state)))


def _plain(state: TrainState) -> dict:
    """A tree that Orbax stores: the PRNG key as its raw numbers."""
    return state._asdict() | {"key": jax.random.key_data(state.key)}


def _typed(plain: dict, like: TrainState) -> TrainState:
    key = jax.random.wrap_key_data(plain["key"], impl=jax.random.key_impl(like.key))
    return TrainState(**plain | {"key": key})
