"""The command calibrate: what it measures is stored where `load` finds it."""

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FakeDataset
from test_meaning import Bright

from mammoclip_jax import calibrate as command
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.weights import calibration_file, opening


def values(**changed):
    given = dict(
        weights="w", dataset="", fit_on="val", test_on="test", method="", prompts="", mirror=False, windows=0.0
    )
    given |= dict(pool="", patients=10, resamples=0, batch_size=4, store=True, out="", json="")
    return SimpleNamespace(**(given | changed))


def test_what_is_measured_is_stored_with_the_model_and_tables_with_out(tmp_path, monkeypatch, capsys):
    dataset = FakeDataset(30, seed=1)
    patient = dataset.index["patient"].str[1:].astype(int)
    dataset.index["split"] = np.select([patient < 12, patient < 21], ["train", "val"], "test")
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(loading, "load", lambda name, **options: Bright())
    monkeypatch.setattr(opening, "is_ours", lambda name: str(name).startswith(str(tmp_path)))
    monkeypatch.setattr(command, "open_dataset", lambda model, folder, path: dataset)
    monkeypatch.setattr(command.flags, "FLAGS", values(weights=str(run), out=str(tmp_path / "out")))
    assert command.main([]) == 0
    (entry,) = calibration_file.read(run)
    assert entry["reference"]["train"]["patients"] == 10 and entry["reference"]["val"]["patients"] == 9
    assert (tmp_path / "out" / "calibration" / "predictions.csv").is_file()
    assert "mass/brier_calibrated" in capsys.readouterr().out
    model = Bright()
    model.calibration = [entry]
    images = np.stack(dataset.images[:4])
    assert not np.allclose(model.classify(images, calibrated=True), model.classify(images))
    monkeypatch.setattr(command.flags, "FLAGS", values(weights="hub/model"))
    with pytest.raises(UserError, match="import it first"):
        command.main([])


def test_without_a_folder_in_the_config_the_data_set_must_be_named(tmp_path):
    with pytest.raises(UserError, match="does not name the one it learnt from"):
        command.open_dataset(Bright(), tmp_path, "")
