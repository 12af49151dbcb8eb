"""The command `evaluate`: from a workdir to a page and a JSON file."""

import json
from types import SimpleNamespace

import pytest

from .fakes import FakeDataset, FakeModel
from mammoclip_jax import evaluate as command
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError


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
    folders = {str(tmp_path / "phantom"): FakeDataset(3),
               "/elsewhere/films": FakeDataset(1, split="train", name="films", real=True)}
    monkeypatch.setattr(command.Dataset, "open", lambda folder: folders[folder])

    def call(model=model, **flags):
        monkeypatch.setattr(command.inference, "load", lambda path, batch_size: model)
        given = {"workdir": str(tmp_path), "weights": "", "config": None, "dataset": [], "evaluators": [], "split": "", "out": "",
                 "batch_size": 8, "cache": "", "json": str(tmp_path / "figures.json")}
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


def test_weights_without_a_run_are_evaluated_where_one_says(run, tmp_path):
    figures = run(workdir="", weights="models/b5", dataset=["/elsewhere/films"], evaluators=["zero_shot"],
                  split="train", out=str(tmp_path / "there"))
    assert set(figures["protocol"]) == {"films/zero_shot"} and (tmp_path / "there" / "report.html").is_file()


def test_a_config_says_how_weights_are_evaluated(run, tmp_path):
    config = defaults()
    config.evaluate.evaluators.saliency = {"resamples": 5, "gallery": 1}
    figures = run(workdir="", weights="models/b5", config=config, dataset=[str(tmp_path / "phantom")],
                  out=str(tmp_path / "there"))
    assert set(figures["protocol"]) == {"phantom/saliency"}


@pytest.mark.parametrize("given, message", [
    ({"workdir": ""}, "either --workdir=RUN or --weights"),
    ({"weights": "b"}, "either --workdir=RUN or --weights"),
    ({"workdir": "", "weights": "b"}, "give --dataset, --evaluators, --out"),
    ({"workdir": "", "weights": "b", "dataset": ["c"], "out": "d"}, "give --evaluators[.]"),
])
def test_one_model_and_what_no_config_says(run, given, message):
    with pytest.raises(UserError, match=message):
        run(**given)


def test_an_evaluator_that_is_not_for_the_model_is_refused(run):
    model = FakeModel()
    model.kind = "classifier"
    with pytest.raises(UserError, match="'zero_shot' takes a dual_encoder, and this model is a classifier. .*saliency"):
        run(model=model, evaluators=["zero_shot"])
