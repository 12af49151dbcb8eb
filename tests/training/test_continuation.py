"""A run goes on only as what it was: which fields may change, what is refused, what is noted."""

import json
import operator
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import continuation
from mammoclip_jax.training.checkpoint import Checkpoints
from mammoclip_jax.types import TrainState

GOLDEN = Path(__file__).parents[1] / "golden"


def config_of(**task):
    config = defaults()
    config.data.folders.films = "films"
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=100, warmup_steps=10)
    config.task.update(task)
    return config


def meta_of(config, fingerprint="abc", **changes):
    return {
        "config": continuation.plain(config),
        "tokenizer": "words",
        "preprocessing": {"height": 64, "bits": 8},
        "provenance": {"data": {"films": {"fingerprint": fingerprint}}},
    } | changes


@pytest.fixture
def workdir(tmp_path):
    """A run at step 40."""
    state = TrainState(jnp.int32(40), {"w": jnp.ones(3)}, {}, {}, None, jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, types.SimpleNamespace(get_state=lambda: {"batches": 40}), meta_of(config_of()))
    return tmp_path


def changed(part, **values):
    """The config with other values in a part; "" is the top."""
    config = config_of()
    with config.unlocked():
        (operator.attrgetter(part)(config) if part else config).update(values)
    return config


@pytest.mark.parametrize(
    "part, values",
    [
        ("", dict(name="other", cpu_devices=4)),
        ("mesh", dict(fsdp=2)),
        ("evaluate", dict(split="all")),
        ("train", dict(checkpoint_every=7, log_every=3, eval_every=9, keep_checkpoints=5)),
        ("model.image", dict(remat="block")),
        ("data", dict(read_threads=1)),
        ("data.folders", dict(films="moved/films")),
    ],
)
def test_what_is_learnt_stays_the_same(workdir, part, values):
    config = changed(part, **values)
    found = continuation.check(config, workdir)
    assert {name.rpartition(".")[2]: new for name, (_, new) in found.items()} == values


@pytest.mark.parametrize(
    "part, values, said",
    [
        ("task", dict(fold=2), "config.task.fold: 0 -> 2"),
        ("", dict(seed=1), "config.seed: 0 -> 1"),
        ("train", dict(lr=1e-3, batch_size=16), r"config.train.batch_size: 8 -> 16; config.train.lr: 5e-05 -> 0.001"),
        ("model.image", dict(name="resnet"), 'config.model.image.name: "absent" -> "resnet"'),
        ("losses", dict(info_nce=dict(weight=1.0)), 'config.losses.info_nce.weight: "absent" -> 1.0'),
        ("losses.mammo_clip", dict(weight=2.0), "config.losses.mammo_clip.weight: 1.0 -> 2.0"),
        ("train", dict(steps=30), "config.train.steps: 100 -> 30"),
        ("augment", dict(scale=(0.8, 1.0)), r"config.augment.scale: \[1.0, 1.0\] -> \[0.8, 1.0\]"),
    ],
)
def test_another_run_is_refused_with_the_difference(workdir, part, values, said):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"at step 40 of a run with another config.*{said}"):
        continuation.check(changed(part, **values), workdir)
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_more_steps_are_taken_and_the_rate_is_said(workdir, caplog):
    assert continuation.check(changed("train", steps=200), workdir) == {"train.steps": (100, 200)}
    assert "was 100 and is 200: the rate at step 40 is 4.7e-05 instead of 3.75e-05" in caplog.text


def test_fields_of_another_version_are_no_difference(workdir):
    old = continuation.plain(config_of())
    del old["task"]["better"]
    old["train"]["forgotten"] = 3
    assert continuation.differences(old, continuation.plain(config_of())) == {}


def test_the_config_of_the_weights_is_kept_with_its_changes(workdir):
    config = changed("train", log_every=1)
    for _ in range(2):  # the second start changes nothing more
        continuation.note(config, workdir, continuation.check(config, workdir))
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["train"]["log_every"] == 10
    (change,) = kept["changes"]
    assert change["step"] == 40 and change["fields"] == {"train.log_every": [10, 1]} and change["date"][:2] == "20"
    (workdir / "new").mkdir()
    continuation.note(config, workdir / "new", {})
    new = json.loads((workdir / "new" / "config.json").read_text())
    assert new["train"]["log_every"] == 1 and "changes" not in new


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(fingerprint="xyz"), 'data set films: "abc" -> "xyz"'),
        (dict(tokenizer="others"), "tokenizer"),
        (dict(preprocessing={"height": 64, "bits": 16}), "config.preprocessing.bits: 8 -> 16"),
    ],
)
def test_other_data_are_refused(workdir, change, said):
    continuation.check_content(meta_of(config_of()), workdir)
    with pytest.raises(UserError, match=f"has learnt from other data: .*{said}"):
        continuation.check_content(meta_of(config_of(), **change), workdir)


def test_a_folder_without_a_checkpoint_takes_any_config(tmp_path):
    assert continuation.check(config_of(), tmp_path / "new") == {} == continuation.check(config_of(fold=3), tmp_path)
    continuation.check_content(meta_of(config_of()), tmp_path)


def test_a_run_of_an_older_program_goes_on(tmp_path):
    """tests/golden/run_of_0.1.zip, at step 40: averages of the parameters alone, and evaluate.curve_evaluators.

    Made by `Checkpoints.save` of commit c11a52c: w = 3, the batch statistics' mean = 2, the average of w = 7.
    """
    shutil.unpack_archive(GOLDEN / "run_of_0.1.zip", tmp_path)
    config = changed("train", ema_decay=0.5)
    config.predict.method = "grad_cam"  # the default then; of overlays, which may change
    assert not continuation.check(config, tmp_path)
    average = {"params": {"w": jnp.zeros((4, 2))}, "batch_stats": {"mean": jnp.zeros(3)}}
    fresh = TrainState(jnp.int32(0), average["params"], average["batch_stats"], {}, average, jax.random.key(0))
    position = types.SimpleNamespace(set_state=lambda state: found.update(state))
    found = {}
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(fresh, position)
    assert found == {"batches": 40} and state.step == 40
    assert (state.params["w"] == 3).all()
    assert (state.ema["params"]["w"] == 7).all() and (state.ema["batch_stats"]["mean"] == 2).all()
    continuation.check_content(meta_of(config), tmp_path)
