"""From predictions to metrics: the levels, unknown truths, classes, thresholds."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, recall_score, roc_auc_score

from mammoclip_jax.evaluation.features import LEVELS
from mammoclip_jax.evaluation.metrics import classification
from mammoclip_jax.evaluation.metrics.classification import binary, multiclass, scored

QUICK = {"resamples": 10}


@pytest.fixture
def rows():
    """30 patients, an exam each: two views of both breasts."""
    return pd.DataFrame(
        [
            {
                "dataset": "d",
                "patient": f"p{p}",
                "study": f"s{p}",
                "image": f"{p}{side}{view}",
                "laterality": side,
                "view": view,
            }
            for p in range(30)
            for side in "LR"
            for view in ("CC", "MLO")
        ]
    )


@pytest.fixture
def mass(rows):
    """(truth, score): of a breast, and of its images."""
    rng = np.random.default_rng(0)
    truth = np.repeat((rng.random(60) < 0.4).astype(float), 2)
    return truth, np.clip(0.3 * truth + rng.random(120) * 0.7, 0, 1)


def test_each_level_is_scikit_learns_value_of_pooled_scores(rows, mass):
    truth, score = mass
    found = binary(rows, truth, score, **QUICK)
    breast_truth, breast = truth[::2], score.reshape(60, 2)
    exam_truth = truth.reshape(30, 4).max(1)
    expected = {
        "": (breast_truth, breast.mean(1)),
        "_max": (breast_truth, breast.max(1)),
        "_image": (truth, score),
        "_exam": (exam_truth, breast.mean(1).reshape(30, 2).mean(1)),
        "_exam_max": (exam_truth, score.reshape(30, 4).max(1)),
    }
    for suffix, (y, s) in expected.items():
        assert found[f"auroc{suffix}"]["value"] == pytest.approx(roc_auc_score(y, s)), suffix
        assert found[f"auprc{suffix}"]["value"] == pytest.approx(average_precision_score(y, s)), suffix
        assert found[f"brier{suffix}"]["value"] == pytest.approx(np.mean((y - s) ** 2)), suffix
        assert found[f"auroc{suffix}"]["n"] == len(y)
    assert set(expected) == {level.suffix for level in LEVELS}
    names = {*classification.RANKED, *classification.PROBABILITIES}
    assert set(found) == {name + suffix for name in names for suffix in expected}


def test_images_of_unknown_truth_are_left_out(rows, mass):
    truth, score = mass[0].copy(), mass[1].copy()
    truth[:8], score[:8] = np.nan, np.nan
    assert binary(rows, truth, score, **QUICK) == binary(rows[8:], truth[8:], score[8:], **QUICK)
    nothing = binary(rows, np.full(120, np.nan), score)
    assert {entry["reason"] for entry in nothing.values()} == {"nothing to score"}
    assert all(entry["value"] is None for entry in binary(rows[:0], [], []).values())


def test_a_threshold_adds_decisions_and_may_differ_by_level(rows, mass):
    found = binary(rows, *mass, threshold=0.5, **QUICK)
    said = mass[1].reshape(60, 2).mean(1) >= 0.5
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(mass[0][::2], said, average="macro"))
    assert set(classification.DECISIONS) <= set(found)
    some = binary(rows, *mass, threshold={"": 0.5}, **QUICK)
    assert some["sensitivity"] == found["sensitivity"] and "sensitivity_image" not in some


def test_scores_that_are_no_probabilities(rows, mass):
    truth, score = mass
    found = binary(rows, truth, 10 * score, **QUICK)
    assert found["ece"]["value"] is None and "no probabilities" in found["ece"]["reason"]
    assert found["auroc"] == binary(rows, truth, score, probabilities=False, **QUICK)["auroc"]
    assert "ece" not in binary(rows, truth, score, probabilities=False, **QUICK)


@pytest.mark.parametrize("as_names", [True, False])
def test_classes(rows, as_names):
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.integers(0, 4, 60), 2)
    p = rng.dirichlet(np.ones(4), 120)
    p[np.arange(120), truth] += 0.4
    p /= p.sum(1, keepdims=True)
    given = np.array([*"ABCD"], dtype=object)[truth] if as_names else truth
    if as_names:
        given[:2] = None
    known = slice(1, None) if as_names else slice(None)
    found = multiclass(rows, given, p, tuple("ABCD"), **QUICK)
    y, breast = truth[::2][known], p.reshape(60, 2, 4).mean(1)[known]
    said = breast.argmax(1)
    assert found["kappa_quadratic"]["value"] == pytest.approx(cohen_kappa_score(y, said, weights="quadratic"))
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(y, said, average="macro"))
    assert found["macro_auroc"]["value"] == pytest.approx(roc_auc_score(y, breast, multi_class="ovr"))
    assert found["accuracy_image"]["n"] == 120 - 2 * as_names
    assert {"ece_exam", "brier_exam", "kappa_linear_exam"} <= set(found)


def test_averages_are_over_the_classes_that_occur(rows):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 120)
    found = multiclass(rows, np.array(["A", "C"] * 60), p, "ABC", **QUICK)
    truth, said = np.tile([0, 2], 60), p.argmax(1)
    assert found["macro_f1_image"]["value"] == pytest.approx(f1_score(truth, said, labels=[0, 2], average="macro"))
    assert found["balanced_accuracy_image"]["value"] == pytest.approx(
        recall_score(truth, said, labels=[0, 2], average="macro")
    )
    one_by_one = [roc_auc_score(truth == k, p[:, k]) for k in (0, 2)]
    assert found["macro_auroc_image"]["value"] == pytest.approx(np.mean(one_by_one))
    alone = multiclass(rows, np.array(["B"] * 120), p, "ABC", **QUICK)
    assert (
        alone["macro_auroc_image"]["value"] is None and alone["macro_auroc_image"]["reason"] == "all are of one class"
    )


def test_patients_of_two_data_sets_are_not_one(rows, mass):
    both = pd.concat([rows, rows.assign(dataset="e", image="e" + rows["image"])], ignore_index=True)
    found = scored(both, np.tile(mass[0], 2), np.tile(mass[1], 2))
    assert len(set(found.patients)) == 60 and len(found.truth) == 120
