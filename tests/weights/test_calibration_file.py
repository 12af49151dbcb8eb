"""What scores mean travels with a model: stored whole, one entry of a kind, carried by runs' and models' folders."""

import json

import numpy as np
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import actions, calibration_file, folder, opening


def entry(fingerprint="f", method="platt", **looks):
    return {"fingerprint": fingerprint, "looks": looks, "prompts": "", "method": method, "dataset": "/home/a/data/mine"}


def test_an_entry_takes_the_place_of_one_of_the_same_weights_and_looks(tmp_path):
    assert calibration_file.read(tmp_path) == []
    for one in (entry(), entry(mirror=True), entry("g"), entry(method="isotonic")):
        path = calibration_file.store(tmp_path, one)
    assert calibration_file.read(tmp_path) == [entry(mirror=True), entry("g"), entry(method="isotonic")]
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == ["calibration.json"]


@pytest.mark.parametrize(
    "text, said", [("{", "cannot be read"), ("[]", "cannot be read"), ('{"format": 9, "entries": []}', "of format 9")]
)
def test_a_damaged_or_newer_file_is_named(tmp_path, text, said):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(UserError, match=said):
        calibration_file.read(tmp_path)


def test_a_checkpoint_has_the_file_of_its_run(tmp_path):
    for name in ("run", "run/checkpoints", "run/checkpoints/300", "run/best/checkpoints/300", "run/best"):
        assert calibration_file.folder_of(tmp_path / name) == tmp_path / "run", name
    assert calibration_file.folder_of(tmp_path / "7") == tmp_path / "7"  # a model's folder may be called so


def test_an_exported_folder_has_it_without_paths_and_may_get_more(tmp_path):
    config = defaults()
    config.model.image.update(name="resnet", variant="18")
    meta = {
        "kind": "classifier",
        "step": 3,
        "config": config.to_dict(),
        "tokenizer": None,
        "preprocessing": {"height": 96, "width": 64},
        "provenance": {},
        "calibration": [entry()],
    }
    out = folder.write(tmp_path / "m", {"params": {"head": {"bias": np.zeros(2, np.float32)}}}, meta, card="")
    assert opening.open_weights(out)[1]["calibration"] == [entry() | {"dataset": "mine"}]
    calibration_file.store(out, entry("g"))
    assert len(opening.open_weights(out)[1]["calibration"]) == 2
    again = folder.write(
        out, {"params": {"head": {"bias": np.zeros(2, np.float32)}}}, meta | {"calibration": ()}, card=""
    )
    assert not (again / "calibration.json").exists()


def test_adapters_that_are_merged_take_it_along(monkeypatch):
    from mammoclip_jax import provenance
    from mammoclip_jax.config import complete

    config = defaults()
    config.model.lora.update(pattern="x")
    plain = {"params": {"kernel": np.ones((2, 2), np.float32)}}
    variables = {"params": {"kernel": np.zeros((2, 2), np.float32), "lora": np.ones(2, np.float32)}}
    model = {**config.to_dict()["model"], "lora": {}}
    monkeypatch.setattr(actions.lora, "merged", lambda *given: (plain, model))
    old = provenance.fingerprint(config, variables)
    meta = {"config": config.to_dict(), "calibration": [entry(old), entry("of another step")]}
    _, found = actions.merged(variables, meta)
    (kept,) = found["calibration"]
    assert kept["fingerprint"] == provenance.fingerprint(complete(found["config"]), plain) != old
    json.dumps(kept)
