"""The command `evaluate`: from a workdir to a page and a JSON file."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from fakes import FakeDataset, FakeModel
from test_classifier import FakeClassifier

from mammoclip_jax import evaluate as command
from mammoclip_jax import provenance
from mammoclip_jax.config import defaults
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.suite import seen_before
from mammoclip_jax.inference import loading
from mammoclip_jax.tasks import labelled, split_as_trained


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the command with some flags; the folders `phantom` and `films` are made of arithmetic."""
    config = defaults()
    config.data.folders.phantom = "{workdir}/phantom"
    config.data.folders.films = "/elsewhere/films"
    config.evaluate.evaluators.zero_shot = {"resamples": 5}
    config.evaluate.evaluators.saliency = {"resamples": 5, "gallery": 1}
    model = FakeModel()
    model.config = config
    folders = {
        str(tmp_path / "phantom"): FakeDataset(3),
        "/elsewhere/films": FakeDataset(1, split="train", name="films", real=True),
    }
    monkeypatch.setattr(Dataset, "open", lambda folder: folders[folder])

    def call(model=model, **flags):
        monkeypatch.setattr(loading, "load", lambda path, batch_size: model)
        given = {
            "workdir": str(tmp_path),
            "weights": "",
            "config": None,
            "dataset": [],
            "evaluators": [],
            "split": "",
            "out": "",
            "batch_size": 8,
            "cache": "",
            "allow_training_patients": False,
            "json": str(tmp_path / "figures.json"),
        }
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**given | flags))
        assert command.main([]) == 0
        return json.loads((tmp_path / "figures.json").read_text())

    return call


def test_the_config_of_the_run_says_what_to_do(run, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    figures = run()
    assert set(figures["protocol"]) == {"phantom/zero_shot", "phantom/saliency"}
    assert figures["metrics"]["phantom/zero_shot/mass/auroc"]["value"] == 1.0 and figures["step"] == 7
    assert "Training loss" in (tmp_path / "evaluation" / "report.html").read_text()
    assert "phantom/zero_shot/mass/auroc" in capsys.readouterr().out


def test_flags_choose_data_sets_evaluators_split_and_folder(run, tmp_path):
    figures = run(dataset=["/elsewhere/films"], evaluators=["zero_shot"], split="train", out=str(tmp_path / "there"))
    assert set(figures["protocol"]) == {"films/zero_shot"}
    assert (tmp_path / "there" / "results" / "films" / "zero_shot" / "scores.csv").is_file()


def test_a_checkpoint_inside_a_run_finds_the_runs_folder(run, tmp_path):
    run(workdir=str(tmp_path / "checkpoints" / "7"))
    assert (tmp_path / "evaluation" / "report.html").is_file()


def test_data_sets_of_one_name_are_both_evaluated(run, tmp_path):
    figures = run(dataset=[str(tmp_path / "phantom"), str(tmp_path / "phantom")], evaluators=["zero_shot"])
    assert set(figures["protocol"]) == {"phantom/zero_shot", "phantom_2/zero_shot"}


def test_what_an_earlier_evaluation_left_goes(run, tmp_path):
    results = tmp_path / "evaluation" / "results"
    run()
    (results / "mine.txt").write_text("no result")
    assert (results / "phantom" / "saliency").is_dir()
    run(dataset=["/elsewhere/films"], evaluators=["zero_shot"], split="train")
    assert (results / "films" / "zero_shot" / "scores.csv").is_file() and (results / "mine.txt").exists()
    assert not list((results / "phantom").glob("*"))


def test_an_unknown_evaluator_is_explained(run):
    with pytest.raises(UserError, match="Did you mean 'retrieval'"):
        run(evaluators=["retreival"])


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(split="tset"), "no split 'tset'. Did you mean 'test'"),
        (
            dict(workdir="", weights="b", dataset=["/elsewhere/films"], out="o", evaluators=["zero_shoot"]),
            "no evaluator 'zero_shoot'. Did you mean 'zero_shot'",
        ),
    ],
)
def test_a_wrong_name_is_said_before_weights_are_read(run, given, message):
    with pytest.raises(UserError, match=message):
        run(model=None, **given)


def test_weights_without_a_run_are_evaluated_where_one_says(run, tmp_path):
    figures = run(
        workdir="",
        weights="models/b5",
        dataset=["/elsewhere/films"],
        evaluators=["zero_shot"],
        split="train",
        out=str(tmp_path / "there"),
    )
    assert set(figures["protocol"]) == {"films/zero_shot"} and (tmp_path / "there" / "report.html").is_file()


def test_a_config_says_how_weights_are_evaluated(run, tmp_path):
    config = defaults()
    config.evaluate.evaluators.saliency = {"resamples": 5, "gallery": 1}
    figures = run(
        workdir="", weights="models/b5", config=config, dataset=[str(tmp_path / "phantom")], out=str(tmp_path / "there")
    )
    assert set(figures["protocol"]) == {"phantom/saliency"}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"workdir": ""}, "either --workdir=RUN or --weights"),
        ({"weights": "b"}, "either --workdir=RUN or --weights"),
        ({"workdir": "", "weights": "b"}, "give --dataset, --evaluators, --out"),
        ({"workdir": "", "weights": "b", "dataset": ["c"], "out": "d"}, "give --evaluators[.]"),
    ],
)
def test_one_model_and_what_no_config_says(run, given, message):
    with pytest.raises(UserError, match=message):
        run(**given)


def test_an_evaluator_that_is_not_for_the_model_is_refused(run):
    model = FakeModel()
    model.kind = "classifier"
    with pytest.raises(UserError, match="'zero_shot' takes a dual_encoder, and this model is a classifier. .*saliency"):
        run(model=model, evaluators=["zero_shot"])


@pytest.fixture
def folds(monkeypatch):
    """A classifier of fold 1 of 3 of the data set `phantom`, as its run would have it, and the patients of each split."""

    def split(path, info, index):
        found = FakeDataset(9)
        found.index = index
        return found

    monkeypatch.setattr(labelled, "Dataset", split)
    dataset = FakeDataset(9)
    model = FakeClassifier(folds=3, fold=1)
    model.config.model.labels = model.labels
    model.preprocessing, model.provenance = dataset.info["preprocessing"], {"data": {"other": {"fingerprint": "f00"}}}
    (own,) = split_as_trained(model, {"any": dataset}).values()
    model.trained_on = provenance.trained_on([own])
    return model, {name: set(group) for name, group in own.index.groupby("split")["patient"]}


def test_a_data_set_it_was_trained_on_is_split_as_it_was_then(run, folds, tmp_path, monkeypatch):
    """Whoever names it, and wherever it lies: its content decides."""
    model, patients = folds
    monkeypatch.setattr(Dataset, "open", lambda folder: FakeDataset(9))
    figures = run(
        model,
        workdir="",
        weights="w",
        dataset=["/elsewhere/copy"],
        evaluators=["classification"],
        out=str(tmp_path / "there"),
    )
    (table,) = (tmp_path / "there").rglob("predictions.csv")
    assert set(pd.read_csv(table)["patient"]) == patients["test"]
    assert f"trained on none of the {len(patients['test'])} patients." in figures["protocol"]["phantom/classification"]


def test_patients_it_was_trained_on_are_refused_unless_asked_for(run, folds, monkeypatch):
    model, patients = folds
    later, trained = FakeDataset(9), len(patients["train"])
    later.info["fingerprint"] = "f01"  # prepared again, in another size or with more patients
    monkeypatch.setattr(Dataset, "open", lambda folder: later)
    asked = dict(dataset=["/elsewhere/later"], evaluators=["classification"])
    with pytest.raises(
        UserError,
        match=f"trained on {trained} of the 9 patients of data set 'phantom', split 'test',.*--allow_training",
    ):
        run(model, **asked)
    (sentence,) = run(model, **asked, allow_training_patients=True)["protocol"].values()
    assert f"trained on {trained} of the 9 patients: this does not measure" in sentence


def test_what_is_not_on_record_is_said(folds):
    model, patients = folds
    others = FakeDataset(9)
    others.index = others.index[others.index["patient"].isin(patients["test"])]
    model.provenance = {"parents": [{"patients_known": False}]}
    said = seen_before(model, "phantom", others, {"split": "test"}, False)
    assert said.endswith("patients; of weights that it started from that is not on record.")
    model.trained_on = None
    assert "is not on record" in seen_before(model, "phantom", others, {"split": "test"}, False)
