"""The test parts of folds together are scored as one table is."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import folds
from mammoclip_jax.evaluation.metrics import classification
from mammoclip_jax.evaluation.result import Result, save

RNG = np.random.default_rng(0)


def table(images, classes=False):
    rows = pd.DataFrame(
        {
            "dataset": "mias",
            "patient": [f"p{i // 2}" for i in images],
            "study": [f"p{i // 2}" for i in images],
            "image": [f"i{i}" for i in images],
            "laterality": "",
            "view": "MLO",
        }
    )
    if not classes:
        return rows.assign(label="abnormal", truth=RNG.integers(0, 2, len(images)), score=RNG.random(len(images)))
    p = RNG.dirichlet(np.ones(3), len(images))
    return rows.assign(
        label="density", truth=RNG.choice(list("FGD"), len(images)), p_F=p[:, 0], p_G=p[:, 1], p_D=p[:, 2]
    )


def write(folder, predictions, evaluator="mias/classification"):
    save([Result(evaluator, "", {}, {"predictions": predictions})], folder)
    return folder


@pytest.mark.parametrize("classes", [False, True])
def test_metrics_are_those_of_the_whole_table(tmp_path, classes):
    parts = [table(range(20 * k, 20 * k + 20), classes) for k in range(3)]
    (found,) = folds.pooled([write(tmp_path / str(k), part) for k, part in enumerate(parts)], resamples=50)
    whole = pd.concat(parts, ignore_index=True)
    if classes:
        expected = classification.multiclass(
            whole, whole["truth"], whole[["p_F", "p_G", "p_D"]].to_numpy(), list("FGD"), resamples=50
        )
    else:
        expected = classification.binary(whole, whole["truth"], whole["score"], resamples=50)
    assert found.name == "mias/classification"
    for metric, entry in expected.items():
        own = found.metrics[f"{'density' if classes else 'abnormal'}/{metric}"]
        assert own["n"] == entry["n"] and own["value"] == pytest.approx(entry["value"], abs=1e-12)
        assert own["low"] == pytest.approx(entry["low"], abs=1e-9)
    assert found.tables["folds"].groupby("fold").size().nunique() == 1


def test_what_is_no_set_of_folds_is_refused(tmp_path):
    first = write(tmp_path / "0", table(range(10)))
    again = write(tmp_path / "1", table(range(5, 15)))
    with pytest.raises(UserError, match="'i5' is tested in two folds"):
        folds.pooled([first, again])
    other = write(tmp_path / "2", table(range(20, 30)), "phantom/classification")
    with pytest.raises(UserError, match="no folds of one experiment"):
        folds.pooled([first, other])
