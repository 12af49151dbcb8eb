"""The table of predictions: what is read back, and the errors for what is no such table."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import predictions

ROWS = pd.DataFrame(
    {
        "dataset": "d",
        "patient": ["001", "NA"],
        "study": ["s", "t"],
        "image": ["i1", "i2"],
        "laterality": ["L", ""],
        "view": ["CC", "MLO"],
    }
)


def written(path, table):
    table.to_csv(path, index=False)
    return path


def test_what_an_evaluator_stores_is_read_back(tmp_path):
    table = ROWS.assign(label="mass", truth=[1.0, np.nan], score=[0.25, -1e-9])
    found = predictions.read(written(tmp_path / "predictions.csv", table))
    assert found["patient"].tolist() == ["001", "NA"] and found["laterality"].tolist() == ["L", ""]
    (mass,) = predictions.labels(found)
    assert mass.label == "mass" and mass.classes == () and mass.rows.equals(found[list(predictions.IDENTITY)])
    np.testing.assert_array_equal(mass.truth, [1, np.nan])
    np.testing.assert_array_equal(mass.prediction, [0.25, -1e-9])


def test_labels_with_classes_and_yes_no_labels_may_share_a_table(tmp_path):
    mass = ROWS.assign(label="mass", truth=["1", "0"], score=[0.25, 0.5])
    density = ROWS.assign(label="density", truth=["B", ""], p_A=[0.2, 0.9], p_B=[0.8, 0.1])
    table = predictions.read(written(tmp_path / "predictions.csv", pd.concat([mass, density])))
    first, second = predictions.labels(table)
    assert first.prediction.shape == (2,) and second.prediction.shape == (2, 2) and second.classes == ("A", "B")
    np.testing.assert_array_equal(second.truth, [1, np.nan])
    # Tables in memory, as an evaluator has them, do as well.
    assert [p.label for p in predictions.labels(density.assign(truth=["A", None]))] == ["density"]


def test_a_folder_gives_all_its_files_under_their_names(tmp_path):
    (tmp_path / "vindr" / "zero_shot").mkdir(parents=True)
    for name in ("predictions", "predictions_density"):
        written(tmp_path / "vindr" / "zero_shot" / f"{name}.csv", ROWS.assign(label="m", truth=1, score=0.5))
    names = ["vindr/zero_shot/predictions", "vindr/zero_shot/predictions_density"]
    assert list(predictions.read_all(tmp_path)) == names
    assert list(predictions.read_all(tmp_path / "vindr" / "zero_shot" / "predictions.csv")) == ["predictions"]


def test_of_a_run_that_was_evaluated_again_the_later_results_are_read(tmp_path):
    for folder, score in (("results", 0.1), ("evaluation", 0.9)):
        (tmp_path / folder / "vindr").mkdir(parents=True)
        written(tmp_path / folder / "vindr" / "predictions.csv", ROWS.assign(label="m", truth=1, score=score))
    (name, table), *others = predictions.read_all(tmp_path).items()
    assert name == "vindr/predictions" and not others and (table["score"] == 0.9).all()


def test_errors_name_the_file_and_what_to_do(tmp_path):
    good = ROWS.assign(label="mass", truth=1, score=[0.5, 0.6])
    bad = {
        "has no column study, view": good.drop(columns=["study", "view"]),
        "no column score": good.drop(columns="score"),
        "has no rows": good[:0],
        "image 'i1' of 'd' occurs twice for label 'mass'": pd.concat([good, good[:1]]),
        "line 3: score is 'high', not a number": good.assign(score=["0.5", "high"]),
    }
    for number, (message, table) in enumerate(bad.items()):
        path = written(tmp_path / f"{number}.csv", table)
        with pytest.raises(UserError, match=message) as error:
            predictions.read(path)
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match="there is no file"):
        predictions.read(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="holds no predictions"):
        (tmp_path / "empty").mkdir()
        predictions.read_all(tmp_path / "empty")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "nothing.csv").write_text("")
    for name in ("binary.csv", "nothing.csv"):
        with pytest.raises(UserError, match=f"{name} is not a CSV table"):
            predictions.read(tmp_path / name)


@pytest.mark.parametrize(
    "truth, columns, message",
    [
        ([1, 2], {"score": 0.5}, "truth is '2'; it should be one of 0, 1, or empty"),
        (["1", "maybe"], {"score": 0.5}, "truth is 'maybe'"),
        (["A", "E"], {"p_A": 0.5, "p_B": 0.5}, "truth is 'E'; it should be one of A, B, or empty"),
        ([1, 0], {"score": np.nan}, "neither a score nor any p_<class>"),
    ],
)
def test_truths_and_predictions_are_checked(truth, columns, message):
    with pytest.raises(UserError, match=f"x.csv.*{message}"):
        list(predictions.labels(ROWS.assign(label="mass", truth=truth, **columns), "x.csv"))
