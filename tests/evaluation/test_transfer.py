"""The table of transfer, from the metrics.csv of several runs."""

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import result
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics import entry
from mammoclip_jax.evaluation.transfer import transfer


@pytest.fixture
def runs(tmp_path):
    """Two models, each tested on two data sets; the second could not be measured on one of them."""
    for train, values in (("vindr", (0.9, 0.7)), ("embed", (0.6, None))):
        results = [
            Result(
                f"{test}/zero_shot",
                "",
                {"mass/auroc": entry(v, None if v is None else v - 0.1, n=50, reason=None if v else "one class")},
            )
            for test, v in zip(("vindr", "embed"), values)
        ]
        result.save(results, tmp_path / train / "results")
    return {name: tmp_path / name for name in ("vindr", "embed")}


def test_rows_are_training_sets_and_columns_test_sets(runs):
    found = transfer(runs, "mass/auroc")
    grid = found.tables["transfer_grid"]
    assert grid.columns.tolist() == ["train", "vindr", "embed"] and grid["train"].tolist() == ["vindr", "embed"]
    np.testing.assert_array_equal(grid[["vindr", "embed"]].to_numpy(), [[0.9, 0.7], [0.6, np.nan]])
    assert found.metrics["vindr to embed/auroc"] == {"value": 0.7, "low": pytest.approx(0.6), "high": None, "n": 50}
    assert found.metrics["embed to embed/auroc"]["reason"] == "one class"
    assert len(found.tables["transfer"]) == 4


def test_a_file_does_as_well_as_a_folder(runs):
    files = {name: folder / "results" / "metrics.csv" for name, folder in runs.items()}
    assert transfer(files, "mass/auroc").metrics == transfer(runs, "mass/auroc").metrics


def test_errors(runs, tmp_path):
    with pytest.raises(UserError, match="has no metric 'mass/aurok'.*Did you mean 'mass/auroc'"):
        transfer(runs, "mass/aurok")
    with pytest.raises(UserError, match="found: none"):
        transfer({"x": tmp_path / "nowhere"}, "mass/auroc")
    with pytest.raises(UserError, match="should be a metrics.csv of evaluate"):
        transfer({"x": tmp_path}, "mass/auroc")
    two = [Result(f"d/{name}", "", {"mass/auroc": entry(0.5, n=2)}) for name in ("zero_shot", "classification")]
    result.save(two, tmp_path / "two")
    with pytest.raises(UserError, match=r"several evaluators \(classification, zero_shot\)"):
        transfer({"x": tmp_path / "two"}, "mass/auroc")
    assert len(transfer({"x": tmp_path / "two"}, "mass/auroc", "zero_shot").metrics) == 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column result, metric"):
        transfer({"x": tmp_path / "other.csv"}, "mass/auroc")
