"""AUROC, AUPRC, operating points and best F1 against scikit-learn, and their weighted forms against loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import bootstrap, discrimination


def pairs_won(labels, scores):
    """AUROC by its definition: the share of positive-negative pairs in the right order, ties half."""
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels == 1] for n in scores[labels == 0]]
    return np.mean(won)


def operating(labels, scores, *, sensitivity=None, specificity=None):
    """The best of the other rate over all thresholds that reach a wanted one."""
    best = 0.0
    for cut in [np.inf, *scores]:
        said = scores >= cut
        hit, clear = said[labels == 1].mean(), (~said)[labels == 0].mean()
        if specificity is not None and clear >= specificity - 1e-9:
            best = max(best, hit)
        if sensitivity is not None and hit >= sensitivity - 1e-9:
            best = max(best, clear)
    return best


def best_f1(labels, scores):
    """The greatest F1 over thresholds that are scores."""
    said = [scores >= cut for cut in set(scores)]
    return max(2 * (labels[s] == 1).sum() / (s.sum() + labels.sum()) for s in said)


NAIVE = {
    "auroc": (discrimination.AUROC, pairs_won),
    "auprc": (discrimination.AVERAGE_PRECISION, average_precision_score),
    "best_f1": (discrimination.BEST_F1, best_f1),
    "sensitivity": (discrimination.at_specificity(0.8), lambda y, s: operating(y, s, specificity=0.8)),
    "specificity": (discrimination.at_sensitivity(0.75), lambda y, s: operating(y, s, sensitivity=0.75)),
}


def made(seed, distinct, n=40):
    rng = np.random.default_rng(seed)
    return (rng.random(n) < 0.4).astype(int), rng.integers(0, distinct, n).astype(float), rng.integers(0, 15, n)


@pytest.mark.parametrize("distinct", [1, 3, 1000])
@pytest.mark.parametrize("name", NAIVE)
def test_values_and_resamples_agree_with_a_loop(name, distinct):
    metric, naive = NAIVE[name]
    labels, scores, patients = made(distinct, distinct)
    assert metric.point(labels, scores) == pytest.approx(naive(labels, scores), abs=1e-12)
    weights = np.concatenate(list(statistics.patient_weights(patients, 60, 3)))
    found = metric.of(metric.summary(labels, scores)(weights))
    for w, value in zip(weights.astype(int), found):
        y, s = np.repeat(labels, w), np.repeat(scores, w)
        assert value == pytest.approx(naive(y, s), abs=1e-9) if 0 < y.sum() < len(y) else np.isnan(value)


@pytest.mark.parametrize("name", NAIVE)
@given(items=st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=20))
def test_any_scores(name, items):
    """With ties, one class, all equal: as the loop, or without a value and with a reason."""
    metric, naive = NAIVE[name]
    labels, scores = (np.array(column) for column in zip(*items))
    patients = np.arange(len(labels)) // 2
    found = statistics.estimate({"": metric}, labels, scores.astype(float), patients, resamples=20)[""]
    if labels.min() == labels.max():
        assert found["value"] is None and "both classes" in found["reason"]
    else:
        assert found["value"] == pytest.approx(naive(labels, scores))
        assert found["low"] is None or found["low"] <= found["high"]


def test_the_interval_is_that_of_the_resampled_arrays():
    labels, scores, patients = made(5, 1000, n=60)
    found = statistics.auroc(labels, scores, patients, resamples=60, seed=3)
    arrays = [
        np.repeat(np.arange(60), w.astype(int))
        for w in np.concatenate(list(statistics.patient_weights(patients, 60, 3)))
    ]
    drawn = np.array([roc_auc_score(labels[r], scores[r]) for r in arrays if len(set(labels[r])) == 2])
    left_out = np.array([roc_auc_score(labels[patients != p], scores[patients != p]) for p in np.unique(patients)])
    low, high = bootstrap.levels(found["value"], drawn, left_out)
    assert found["low"] == pytest.approx(np.quantile(drawn, low, method="lower"), abs=1e-9)
    assert found["high"] == pytest.approx(np.quantile(drawn, high, method="higher"), abs=1e-9)
    assert found["n"] == 60


@pytest.mark.parametrize("function", [statistics.auroc, statistics.average_precision, statistics.best_f1])
def test_what_cannot_be_scored_says_why(function):
    assert function([], [], [])["reason"] == "nothing to score"
    assert "both classes" in function([1, 1, 1], [1, 2, 3], [1, 2, 3])["reason"]
    assert "all 2 are negative" in function([0, 0], [1, 2], [1, 2])["reason"]
    assert "1 scores are not finite" in function([0, 1], [np.nan, 1.0], [0, 1])["reason"]


def test_two_patients_of_one_class_each_still_give_an_entry():
    found = statistics.auroc([0, 1], [0.1, 0.9], ["a", "b"], resamples=20)
    assert found["value"] == 1.0 and found["reason"]


def test_operating_points_take_no_threshold_between_the_cases():
    labels, scores = [0, 0, 0, 0, 1, 1], [1, 2, 3, 4, 3.5, 5]
    at = statistics.sensitivity_at_specificity(labels, scores, range(6), 0.75, resamples=0)
    assert at["value"] == 1.0
    assert statistics.sensitivity_at_specificity(labels, scores, range(6), 0.76, resamples=0)["value"] == 0.5
    assert statistics.specificity_at_sensitivity(labels, scores, range(6), 0.51, resamples=0)["value"] == 0.75


@pytest.mark.parametrize("distinct", [4, 1000])
def test_macro_auroc_is_scikit_learns_one_against_the_rest(distinct):
    rng = np.random.default_rng(distinct)
    truth, p = rng.integers(0, 4, 60), rng.integers(1, distinct + 1, (60, 4)).astype(float)
    p /= p.sum(1, keepdims=True)
    found = statistics.macro_auroc(truth, p, np.arange(60) // 2, resamples=50)
    assert found["value"] == pytest.approx(roc_auc_score(truth, p, multi_class="ovr", average="macro"))
    assert found["low"] < found["value"] < found["high"]
    weights = np.random.default_rng(0).integers(0, 3, (5, 60))
    drawn = discrimination.MACRO_AUROC.of(discrimination.MACRO_AUROC.summary(truth, p)(weights.astype(np.float32)))
    for w, value in zip(weights, drawn):
        y, q = np.repeat(truth, w), np.repeat(p, w, axis=0)
        assert value == pytest.approx(roc_auc_score(y, q, multi_class="ovr"))


def test_the_mean_over_labels_equals_that_of_repeated_items():
    """Labels one below the other: what is drawn again of a label stays with that label."""
    rng = np.random.default_rng(3)
    number, truth = np.repeat([0, 1, 2], 40), rng.integers(0, 2, 120)
    p = np.stack([rng.normal(size=120) + truth * number, number], axis=1)
    weights = rng.integers(0, 3, (4, 120))
    drawn = discrimination.MEAN_AUROC.of(discrimination.MEAN_AUROC.summary(truth, p)(weights.astype(np.float32)))
    for w, value in zip(weights, drawn):
        y, q = np.repeat(truth, w), np.repeat(p, w, axis=0)
        assert value == pytest.approx(np.mean([roc_auc_score(y[q[:, 1] == k], q[q[:, 1] == k, 0]) for k in range(3)]))
    assert discrimination.MEAN_AUROC.point(truth, p) < discrimination.AUROC.point(truth[80:], p[80:, 0])


def test_an_absent_class_is_left_out_of_macro_auroc():
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 3)
    found = statistics.macro_auroc([0, 1, 0], p, [0, 1, 2], resamples=0)
    assert found["value"] == np.mean([roc_auc_score([1, 0, 1], p[:, 0]), roc_auc_score([0, 1, 0], p[:, 1])])
    assert statistics.macro_auroc([1, 1], p[:2], [0, 1])["reason"] == "all are of one class"
