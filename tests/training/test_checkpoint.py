"""Checkpoints that were damaged, half written or did not fit on the disk; other shardings; the position in the data."""

import errno
import json
import logging
import os
import random
import shutil

import grain
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.training import checkpoint, checksum, disk
from mammoclip_jax.training.checkpoint import Checkpoints
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.types import TrainState

META = {"config": {"name": "test"}, "tokenizer": {"words": list(range(300))}}


def mesh(**axes):
    return make_mesh(axes or {"data": -1})


def state(step, sharding=None):
    """Numbers that tell the step; `sharding` of the large array."""
    sharding = sharding or NamedSharding(mesh(), PartitionSpec())
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    w = np.random.default_rng(step).normal(size=(64, 128)).astype(np.float32)
    return jax.device_put(
        TrainState(np.int32(step), {"w": w, "b": np.ones(3)}, {"mean": w[0]}, (w * 2,), None, jax.random.key(step)),
        TrainState(everywhere, {"w": sharding, "b": everywhere}, everywhere, (sharding,), None, everywhere),
    )


def batches(given=0):
    iterator = iter(grain.MapDataset.range(100).to_iter_dataset())
    for _ in range(given):
        next(iterator)
    return iterator


def save(workdir, *steps):
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), batches(step), META)


def restored(workdir, like=None):
    """(state, iterator) from a fresh start."""
    iterator = batches()
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(like or state(0), iterator), iterator


def assert_is(found, step):
    found, expected = (each._replace(key=jax.random.key_data(each.key)) for each in (found, state(step)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 3, 6)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_newest_checkpoint_is_restored_with_its_position(workdir):
    found, iterator = restored(workdir)
    assert_is(found, 6)
    assert next(iterator) == 6


def test_the_averaged_parameters_are_what_is_loaded(tmp_path):
    average = {
        "params": {"w": np.full((64, 128), 7, np.float32), "b": np.zeros(3)},
        "batch_stats": {"mean": np.full(3, 2.0, np.float32)},
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(3)._replace(ema=jax.device_put(average)), batches(3), META)
    _, variables, _ = checkpoint.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, average)


def test_a_checkpoint_of_averaged_parameters_alone_goes_on(tmp_path):
    """As they were saved at first: it takes over the statistics with which it was used then."""
    parameters, statistics = {"w": np.full((4, 2), 7, np.float32)}, {"mean": np.full(3, 2.0, np.float32)}
    everywhere = NamedSharding(mesh(), PartitionSpec())
    old = state(3)._replace(
        ema=jax.device_put(parameters, everywhere), batch_stats=jax.device_put(statistics, everywhere)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(old, batches(3), META)
    expected = {"params": parameters, "batch_stats": statistics}
    with Checkpoints(tmp_path) as checkpoints:
        zeros = jax.tree.map(np.zeros_like, expected)
        found = checkpoints.restore(old._replace(ema=jax.device_put(zeros, everywhere)), batches())
    jax.tree.map(np.testing.assert_array_equal, found.ema, expected)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load(tmp_path)[1], expected)


def test_every_file_is_noted(saved):
    for step in (3, 6):
        folder = saved / "checkpoints" / str(step)
        noted = json.loads((folder / checksum.NAME).read_text())["files"]
        assert {folder / name for name in noted} | {folder / checksum.NAME} == set(files(folder))


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def truncate(path, generator):
    os.truncate(path, generator.randrange(path.stat().st_size))


def remove(path, generator):
    path.unlink()


def vanish(path, generator):
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_taken(workdir, caplog, seed):
    generator = random.Random(seed)
    newest = workdir / "checkpoints/6"
    path = files(newest)[seed] if seed < len(files(newest)) else generator.choice(files(newest))
    kinds = (flip, truncate, remove) if path.parent == newest else (flip, truncate, remove, vanish)
    damage = generator.choices(kinds, (6, 3, 1, 1)[: len(kinds)])[0]
    damage(path, generator)
    with caplog.at_level(logging.WARNING):
        found, iterator = restored(workdir)
    assert_is(found, 3)
    assert next(iterator) == 3
    assert "checkpoint of step 6 cannot be read" in caplog.text
    assert path.name in caplog.text or damage is vanish
    assert checkpoint.steps(workdir / "checkpoints") == [3]
    assert (workdir / "damaged_checkpoints/6").is_dir()


def test_after_a_damage_the_step_is_saved_again(workdir):
    flip(workdir / "checkpoints/6/meta/metadata", random.Random(0))
    restored(workdir)
    save(workdir, 6)
    assert_is(restored(workdir)[0], 6)


def test_inference_takes_the_one_before_too_and_refuses_a_damaged_one_that_is_named(workdir, caplog):
    flip(workdir / "checkpoints/6/checksums.json", random.Random(0))
    step, variables, meta = checkpoint.load(workdir)
    assert step == 3 and meta == META and "checkpoint of step 6 cannot be read" in caplog.text
    np.testing.assert_array_equal(variables["params"]["w"], state(3).params["w"])
    with pytest.raises(UserError, match="step 6: checksums.json"):
        checkpoint.load(workdir / "checkpoints/6")


def test_a_run_that_dies_as_soon_as_a_step_is_listed_has_saved_it(workdir):
    """Orbax writes its own files again just before; they are noted at the next look, which never comes here."""
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state(9), batches(9), META)
        checkpoints._manager.wait_until_finished()
        left = shutil.copytree(workdir / "checkpoints", workdir / "left/checkpoints").parent
    assert_is(restored(left)[0], 9)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt", "meta", "state"])
def test_an_older_one_half_deleted_does_not_matter_and_goes_when_its_time_comes(workdir, name):
    path = workdir / "checkpoints/3" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_is(restored(workdir)[0], 6)
    save(workdir, 9, 12)
    assert checkpoint.steps(workdir / "checkpoints") == [6, 9, 12]


def test_nothing_is_moved_when_all_are_damaged(workdir):
    for step in (3, 6):
        truncate(workdir / f"checkpoints/{step}/state/manifest.ocdbt", random.Random(0))
    with pytest.raises(UserError, match="step 6: state/manifest.ocdbt: .* bytes long.*step 3: state/manifest.ocdbt"):
        restored(workdir)
    assert checkpoint.steps(workdir / "checkpoints") == [3, 6]


@pytest.mark.parametrize("name, rows", [("v", 64), ("w", 32)])
def test_another_config_is_told_apart_from_damage(workdir, name, rows):
    other = state(0)._replace(params={name: state(0).params["w"][:rows], "b": state(0).params["b"]})
    with pytest.raises(UserError, match="can be read with this config"):
        restored(workdir, other)
    assert checkpoint.steps(workdir / "checkpoints") == [3, 6]


def test_a_half_written_step_is_removed_and_not_listed(workdir):
    shutil.copytree(workdir / "checkpoints/6", workdir / "checkpoints/9.orbax-checkpoint-tmp")
    assert_is(restored(workdir)[0], 6)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]


@pytest.mark.parametrize(
    "axes, spec",
    [
        ({"data": 2, "fsdp": 4}, PartitionSpec("fsdp")),
        ({"data": 4, "fsdp": 2}, PartitionSpec(None, "fsdp")),
        ({"data": 1, "fsdp": 8}, PartitionSpec(("data", "fsdp"))),
    ],
)
def test_a_state_is_restored_onto_other_meshes_and_back(tmp_path, workdir, axes, spec):
    sharding = NamedSharding(mesh(**axes), spec)
    found, _ = restored(workdir, state(0, sharding))
    assert found.params["w"].sharding == sharding and found.opt_state[0].sharding == sharding
    assert_is(found, 6)
    with Checkpoints(tmp_path / "sharded") as checkpoints:
        checkpoints.save(found, batches(6), META)
    assert_is(restored(tmp_path / "sharded")[0], 6)


def failing(error):
    def write(*arguments, **options):
        raise error

    return write


@pytest.mark.parametrize(
    "error, said",
    [
        (RuntimeError("the storage went away"), r"not listed \(whole checkpoints: 3, 6;.*the storage went away"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "not listed.*disk of .*checkpoints is full.* needed.* free"),
        (ValueError('RESOURCE_EXHAUSTED: Error writing "d/ab": No space left on device'), "not listed.* is full"),
    ],
)
def test_a_save_that_fails_in_the_background_is_told_and_never_listed(workdir, monkeypatch, error, said):
    checkpoints = Checkpoints(workdir)
    monkeypatch.setattr(checksum, "write", failing(error))
    checkpoints.save(state(9), batches(9), META)
    with pytest.raises(UserError, match=f"step 9 could not be saved and is {said}"):
        while True:
            checkpoints.poll()  # as the loop does, each step
    checkpoints.__exit__(None, None, None)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]
    monkeypatch.undo()
    assert_is(restored(workdir)[0], 6)


def test_a_failed_save_is_told_by_the_next_one_or_at_the_end(workdir, monkeypatch):
    monkeypatch.setattr(checksum, "write", failing(RuntimeError("gone")))
    with pytest.raises(UserError, match="step 9 could not be saved"):
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(state(9), batches(9), META)
            checkpoints.save(state(12), batches(12), META)
    with pytest.raises(UserError, match="step 9 could not be saved"):
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(state(9), batches(9), META)
    assert checkpoint.steps(workdir / "checkpoints") == [3, 6]


def test_a_checkpoint_that_will_not_fit_is_not_begun(workdir, monkeypatch):
    size = checksum.size(workdir / "checkpoints/6")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, size))
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(UserError, match="checkpoints is full.*a checkpoint needs .* KiB, .* KiB are free"):
            checkpoints.save(state(9), batches(9), META)
    assert checkpoint.steps(workdir / "checkpoints") == [3, 6]


def test_a_full_disk_is_explained_and_other_errors_are_left_alone(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is full.*Free some space"):
        with disk.explained(tmp_path):
            with open("/dev/full", "w") as file:
                file.write("x")
    with pytest.raises(OSError, match="No such file"):
        with disk.explained(tmp_path):
            open(tmp_path / "nothing")


def test_bytes_are_readable():
    assert [disk.readable(count) for count in (5, 2048, 3 * 2**20, 1.5 * 2**30, 2000 * 2**30)] == [
        "5 bytes",
        "2 KiB",
        "3 MiB",
        "1.50 GiB",
        "2000.00 GiB",
    ]
