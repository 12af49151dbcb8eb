"""Accuracy, balanced accuracy, macro-F1, kappa and rates against scikit-learn; weighted, against repeated arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import confusion

THEIRS = {
    "accuracy": (confusion.ACCURACY, sk.accuracy_score),
    "balanced_accuracy": (confusion.BALANCED_ACCURACY, sk.balanced_accuracy_score),
    "macro_f1": (confusion.MACRO_F1, lambda y, p: sk.f1_score(y, p, average="macro", zero_division=0)),
    "kappa": (confusion.KAPPA["unweighted"], sk.cohen_kappa_score),
    "kappa_linear": (confusion.KAPPA["linear"], lambda y, p: sk.cohen_kappa_score(y, p, weights="linear")),
    "kappa_quadratic": (confusion.KAPPA["quadratic"], lambda y, p: sk.cohen_kappa_score(y, p, weights="quadratic")),
}
RATES = {
    "sensitivity": (confusion.SENSITIVITY, lambda y, p: sk.recall_score(y, p)),
    "specificity": (confusion.SPECIFICITY, lambda y, p: sk.recall_score(y, p, pos_label=0)),
    "ppv": (confusion.POSITIVE_PREDICTIVE_VALUE, lambda y, p: sk.precision_score(y, p)),
    "npv": (confusion.NEGATIVE_PREDICTIVE_VALUE, lambda y, p: sk.precision_score(y, p, pos_label=0)),
}


@pytest.mark.parametrize("name, classes", [*((name, 2) for name in (*THEIRS, *RATES)), *((name, 4) for name in THEIRS)])
def test_values_and_resamples_are_scikit_learns(name, classes):
    metric, theirs = (THEIRS | RATES)[name]
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 50)
    said = np.where(rng.random(50) < 0.5, truth, rng.integers(0, classes, 50))
    one_hot = confusion.one_hot(said, classes)
    assert metric.point(truth, one_hot) == pytest.approx(theirs(truth, said))
    weights = np.concatenate(list(statistics.patient_weights(np.arange(50) // 3, 60, 1)))
    found = metric.of(metric.summary(truth, one_hot)(weights))
    for w, value in zip(weights.astype(int), found):
        y, p = np.repeat(truth, w), np.repeat(said, w)
        assert len(set(y)) == classes and value == pytest.approx(theirs(y, p), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=15))
def test_any_decisions_have_scikit_learns_value_or_a_reason(items):
    truth, said = (np.array(column) for column in zip(*items))
    found = statistics.estimate(
        {name: metric for name, (metric, _) in THEIRS.items()},
        truth,
        confusion.one_hot(said, 3),
        np.arange(len(truth)),
        resamples=15,
    )
    there = np.unique(truth)
    expected = {"accuracy": sk.accuracy_score(truth, said)}
    if len(there) > 1:  # averages are over the classes that occur
        averaged = {"labels": there, "average": "macro", "zero_division": 0}
        expected |= {
            "balanced_accuracy": sk.recall_score(truth, said, **averaged),
            "macro_f1": sk.f1_score(truth, said, **averaged),
        }
    if len({*truth, *said}) > 1:
        expected |= {
            name: sk.cohen_kappa_score(truth, said, labels=[0, 1, 2], weights=name.partition("_")[2] or None)
            for name in THEIRS
            if name.startswith("kappa")
        }
    for name in THEIRS:
        if name in expected:
            assert found[name]["value"] == pytest.approx(expected[name]), name
        else:
            assert found[name]["value"] is None and found[name]["reason"], name


def test_public_functions_take_classes():
    truth, said, patients = [0, 1, 2, 2, 1, 0], [0, 1, 2, 1, 1, 0], [0, 0, 1, 1, 2, 2]
    assert statistics.accuracy(truth, said, patients)["value"] == pytest.approx(5 / 6)
    assert statistics.balanced_accuracy(truth, said, patients)["value"] == pytest.approx(5 / 6)
    expected = sk.f1_score(truth, said, average="macro")
    assert statistics.macro_f1(truth, said, patients)["value"] == pytest.approx(expected)
    found = statistics.cohen_kappa(truth, said, patients, weighting="quadratic")
    assert found["value"] == pytest.approx(sk.cohen_kappa_score(truth, said, weights="quadratic"))
    assert statistics.macro_f1(truth, said, patients, classes=4)["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "function", [statistics.accuracy, statistics.balanced_accuracy, statistics.macro_f1, statistics.cohen_kappa]
)
def test_nothing_says_so(function):
    assert function([], [], [])["reason"] == "nothing to score"


def test_rates_without_a_denominator_say_why():
    truth, none = np.array([0, 0, 1]), confusion.at_threshold([1.0, 2.0, 3.0], 9)
    rates = {name: metric for name, (metric, _) in RATES.items()}
    found = statistics.estimate(rates, truth, none, range(3), resamples=0)
    assert found["ppv"]["value"] is None and found["ppv"]["reason"] == "nothing is predicted so"
    assert found["sensitivity"]["value"] == 0.0 and found["specificity"]["value"] == 1.0
    found = statistics.estimate({"": confusion.SENSITIVITY}, truth[:2], none[:2], range(2))[""]
    assert "all 2 are negative" in found["reason"]


def test_a_score_that_reaches_the_threshold_is_positive_and_ties_go_to_the_first_class():
    assert confusion.at_threshold([0.2, 0.5, 0.7], 0.5).argmax(1).tolist() == [0, 1, 1]
    found = confusion.matrices(np.array([1, 1]), np.array([[0.5, 0.5], [0.4, 0.6]]))(np.array([[1, 2]], np.float32))
    assert found.tolist() == [[[0, 0], [1, 2]]]
