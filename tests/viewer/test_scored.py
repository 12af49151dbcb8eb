"""Stored predictions of a data set's images, and how wrong each is."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from small_set import dataset

from mammoclip_jax.errors import UserError
from mammoclip_jax.viewer.scored import Scored, apart, has_predictions, of_exam, stored


def test_wrong_is_what_the_area_under_the_curve_lacks():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60).astype(float)
    score = np.round(rng.normal(size=60) + truth, 1)  # with ties
    wrong = Scored("mass", score, truth, "").wrong
    for side in (0, 1):
        assert wrong[truth == side].mean() == pytest.approx(1 - roc_auc_score(truth, score))
    assert 0 <= wrong.min() and wrong.max() <= 1


def test_what_is_unknown_is_neither_right_nor_wrong():
    wrong = Scored("mass", np.array([0.1, 0.9, np.nan, 0.5]), np.array([1, 0, 1, np.nan]), "").wrong
    np.testing.assert_array_equal(wrong, [1, 1, np.nan, np.nan])
    assert np.isnan(Scored("mass", np.array([0.1, 0.9]), np.ones(2), "").wrong).all()
    scored = Scored("mass", np.array([0.1, np.nan]), np.array([1.0, np.nan]), "")
    assert of_exam(scored, scored.wrong, np.array([0, 1])) == {"score": 0.1, "truth": 1.0, "wrong": None}


def test_how_far_apart_two_scores_put_an_image():
    first = np.array([0.1, 0.2, 0.3, np.nan, 0.4])
    second = np.array([50.0, 10.0, 20.0, 30.0, 100.0])  # of another kind
    np.testing.assert_allclose(apart(first, second), [2 / 3, 1 / 3, 1 / 3, np.nan, 0])
    assert np.isnan(apart(np.full(2, np.nan), np.ones(2))).all() and apart(np.ones(1), np.ones(1)) == [0]


def table(index, label="mass", **columns):
    rows = index[["dataset", "patient", "study", "image", "laterality", "view"]].assign(label=label, **columns)
    return rows


def test_predictions_find_their_images(tmp_path):
    index = dataset().index
    folder = tmp_path / "results" / "phantom" / "zero_shot"
    folder.mkdir(parents=True)
    part = index.iloc[[5, 2, 7]]
    table(part, truth=["1", "0", ""], score=[0.5, 0.25, 0.75]).to_csv(folder / "predictions.csv", index=False)
    (found,) = stored(tmp_path, index, "phantom")
    assert found.label == "mass" and "zero_shot" in found.source
    assert found.score[[5, 2, 7]].tolist() == [0.5, 0.25, 0.75] and np.isnan(found.score).sum() == 21
    assert found.truth[5] == 1 and found.truth[2] == 0 and np.isnan(found.truth[7])
    assert (
        has_predictions(tmp_path) and has_predictions(folder / "predictions.csv") and not has_predictions(folder / "x")
    )
    other = tmp_path / "results" / "phantom" / "probe"
    other.mkdir()
    table(part, truth="1", score=0.5).to_csv(other / "predictions.csv", index=False)
    assert [one.label for one in stored(tmp_path, index, "phantom")] == ["mass (probe)", "mass (zero_shot)"]


def test_each_class_of_a_label_has_scores(tmp_path):
    index = dataset().index
    rows = table(index.iloc[:2], "density", truth=["A", "B"], p_A=[0.75, 0.5], p_B=[0.25, 0.5])
    rows.to_csv(tmp_path / "predictions.csv", index=False)
    a, b = stored(tmp_path, index, "phantom")
    assert (a.label, b.label) == ("density A", "density B")
    assert a.truth[:2].tolist() == [1, 0] and b.score[:2].tolist() == [0.25, 0.5]


def test_predictions_of_other_images_are_refused(tmp_path):
    index = dataset().index
    table(index.iloc[:2].assign(dataset="vindr"), truth="1", score=0.5).to_csv(
        tmp_path / "predictions.csv", index=False
    )
    with pytest.raises(UserError, match="none is of an image of phantom"):
        stored(tmp_path, index, "phantom")
