"""The command `compare`: two models, subgroups, transfer; files and exit status."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from mammoclip_jax import compare as command
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import choices, comparison, result
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics import entry

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "evaluation" / "made_predictions.py")))

INDEX = made.index()


@pytest.fixture
def folders(tmp_path):
    """Results of two models, with a file for yes/no labels and one for classes."""
    for name, noise in (("a", 0.7), ("b", 4)):
        folder = tmp_path / name / "made" / "zero_shot"
        folder.mkdir(parents=True)
        made.yes_no(INDEX, noise, seed=1).to_csv(folder / "predictions.csv", index=False)
        made.density(INDEX, noise, seed=2).to_csv(folder / "predictions_density.csv", index=False)
    return tmp_path


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call(*words, **given):
        values = {
            "metric": [],
            "level": "breast",
            "by": [],
            "dataset": [],
            "transfer": "",
            "evaluator": "",
            "resamples": 20,
            "permutations": 19,
            "out": "",
            "json": str(tmp_path / "figures.json"),
        }
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**values | given))
        assert command.main(["compare", *map(str, words)]) == 0
        return json.loads((tmp_path / "figures.json").read_text())

    return call


def test_two_folders(run, folders, capsys):
    out = folders / "out"
    figures = run(folders / "a", folders / "b", out=str(out))
    name = "made/zero_shot/predictions/comparison"
    assert figures["metrics"][f"{name}/mass/auroc_difference"]["low"] > 0
    rows = figures["tables"][f"{name}/comparison"]
    assert rows[0]["metric"] == "auroc" and rows[0]["p_delong"] < 0.001
    assert "made/zero_shot/predictions_density/comparison" in figures["protocol"]
    printed = capsys.readouterr().out
    assert "kappa_quadratic" in printed and "<0.001" in printed
    for file in ("comparison.csv", "comparison.tex", "comparison.json", "roc_mass.png", "precision_recall_mass.png"):
        assert (out / name / file).stat().st_size > 0
    assert (out / "metrics.csv").is_file()


def test_two_files_of_different_names(run, folders):
    (folders / "mine.csv").write_bytes((folders / "a/made/zero_shot/predictions.csv").read_bytes())
    figures = run(folders / "mine.csv", folders / "b/made/zero_shot/predictions.csv", metric=["brier"])
    assert list(figures["metrics"]) == ["comparison/mass/brier_difference"]


def test_folders_with_different_files_are_refused(run, folders):
    (folders / "b/made/zero_shot/predictions_density.csv").unlink()
    (folders / "b/made/zero_shot/predictions_birads.csv").write_bytes(
        (folders / "b/made/zero_shot/predictions.csv").read_bytes()
    )
    with pytest.raises(UserError, match="only one has .*predictions_birads, .*predictions_density"):
        run(folders / "a", folders / "b")


def test_subgroups(run, folders, monkeypatch):
    monkeypatch.setattr(Dataset, "open", lambda folder: SimpleNamespace(index=INDEX))
    file, out = folders / "a/made/zero_shot/predictions.csv", folders / "out"
    figures = run(file, by=["density", "view"], dataset=["data/made"], out=str(out))
    assert figures["metrics"]["subgroups/mass/density=A/auroc"]["n"] == 20
    assert (out / "subgroups" / "forest_mass.png").is_file() and (out / "subgroups" / "subgroups.tex").is_file()
    with pytest.raises(UserError, match="--by needs --dataset"):
        run(file, by=["density"])
    with pytest.raises(UserError, match="takes one --metric"):
        run(file, by=["density"], dataset=["data/made"], metric=["auroc", "auprc"])


def test_transfer(run, tmp_path, capsys):
    for train, value in (("x", 0.9), ("y", 0.6)):
        result.save([Result("t/zero_shot", "", {"mass/auroc": entry(value, n=9)})], tmp_path / train)
    figures = run(f"x={tmp_path / 'x'}", f"y={tmp_path / 'y'}", transfer="mass/auroc")
    assert figures["metrics"]["transfer/x to t/auroc"]["value"] == 0.9
    assert "0.600" in capsys.readouterr().out
    with pytest.raises(UserError, match="TRAINING_SET=RESULTS"):
        run(tmp_path / "x", transfer="mass/auroc")


def test_help_names_what_there_is():
    assert choices.METRICS == tuple(comparison.METRICS) and choices.LEVELS == tuple(comparison.LEVEL_NAMES)


@pytest.mark.parametrize("words, given", [((), {}), (("a",), {}), (("a", "b", "c"), {}), (("a", "b"), {"by": ["age"]})])
def test_other_words_are_explained(run, words, given):
    with pytest.raises(UserError, match="give two results to compare"):
        run(*words, **given)
