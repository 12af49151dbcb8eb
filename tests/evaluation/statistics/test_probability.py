"""Calibration error, Brier score and probabilistic F1 against loops and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import probability


def kaggles_pf1(labels, predictions):
    """The RSNA challenge's "probabilistic F score" with beta 1, by its definition."""
    hits = false = 0.0
    for label, p in zip(labels, predictions):
        p = min(max(p, 0), 1)
        hits, false = (hits + p, false) if label else (hits, false + p)
    if hits == 0:
        return 0.0
    precision, recall = hits / (hits + false), hits / np.sum(labels)
    return 2 * precision * recall / (precision + recall)


def loops_ece(hit, confidence, bins):
    """Bins [0, 1/bins), ..., the last with 1."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if min(int(c * bins + 1e-12), bins - 1) == b]
        if inside:
            total += abs(np.mean(confidence[inside]) - np.mean(hit[inside])) * len(inside) / len(hit)
    return total


def made(seed, n=60):
    rng = np.random.default_rng(seed)
    return (rng.random(n) < 0.3).astype(int), np.round(rng.random(n), 2), np.arange(n) // 3


NAIVE = {
    "pf1": (probability.PROBABILISTIC_F1, kaggles_pf1),
    "brier": (probability.BRIER, brier_score_loss),
    "ece": (probability.expected_calibration_error(10), lambda y, p: loops_ece(y, p, 10)),
}


@pytest.mark.parametrize("name", NAIVE)
def test_values_and_resamples_agree_with_a_loop(name):
    metric, naive = NAIVE[name]
    labels, p, patients = made(2)
    assert metric.point(labels, p) == pytest.approx(naive(labels, p), abs=1e-6)
    weights = np.concatenate(list(statistics.patient_weights(patients, 40, 1)))
    for w, value in zip(weights.astype(int), metric.of(metric.summary(labels, p)(weights))):
        assert value == pytest.approx(naive(np.repeat(labels, w), np.repeat(p, w)), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=1, max_size=60))
def test_any_probabilities(items):
    labels, p = np.array([y for y, _ in items]), np.array([k / 20 for _, k in items])
    patients = np.arange(len(labels)) // 2
    assert statistics.brier(labels, p, patients, resamples=10)["value"] == pytest.approx(np.mean((p - labels) ** 2))
    found = statistics.calibration_error(labels, p, patients, bins=5, resamples=10)
    assert found["value"] == pytest.approx(loops_ece(labels, p, 5), abs=1e-6)
    assert found["low"] <= found["high"] if found["low"] is not None else "no interval" in found["reason"]
    found = statistics.probabilistic_f1(labels, p, patients, resamples=10)
    if labels.min() == labels.max():
        assert found["value"] is None and "both classes" in found["reason"]
    else:
        assert found["value"] == pytest.approx(kaggles_pf1(labels, p))


def test_pf1_clips_as_the_challenge_does():
    labels, p = np.array([1, 0, 1, 0]), np.array([1.5, -0.5, 0.25, 2.0])
    assert statistics.probabilistic_f1(labels, p, range(4))["value"] == pytest.approx(kaggles_pf1(labels, p))


def test_classes_are_judged_by_their_greatest_probability():
    rng = np.random.default_rng(0)
    truth, p = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    hit = (p.argmax(1) == truth).astype(float)
    assert statistics.calibration_error(truth, p, range(50), bins=10)["value"] == pytest.approx(
        loops_ece(hit, p.max(1), 10), abs=1e-6
    )
    assert statistics.brier(truth, p, range(50))["value"] == pytest.approx(((p - np.eye(3)[truth]) ** 2).sum(1).mean())


def test_bins_of_equal_mass():
    p = np.random.default_rng(0).beta(1, 8, 300)
    edges = probability.bin_edges(p, 10, equal_mass=True)
    assert np.bincount(probability.in_bins(p, edges)).tolist() == [30] * 10
    assert probability.bin_edges(np.full(20, 0.5), 10, equal_mass=True).tolist() == [0, 0.5, 1]
    labels = (np.random.default_rng(1).random(300) < p).astype(int)
    found = statistics.calibration_error(labels, p, range(300), bins=10, equal_mass=True)
    number = probability.in_bins(p, edges)
    assert found["value"] == pytest.approx(sum(abs((p - labels)[number == b].sum()) for b in range(10)) / 300, abs=1e-6)


def test_what_cannot_be_scored_says_why():
    for function in (statistics.brier, statistics.calibration_error, statistics.probabilistic_f1):
        assert function([], [], [])["reason"] == "nothing to score"
        assert "not finite" in function([0, 1], [np.nan, 0.5], [0, 1])["reason"]
    assert "2 scores are no probabilities" in statistics.brier([0, 1], [-1, 2], [0, 1])["reason"]
    assert "no probabilities" in statistics.calibration_error([0, 1], [-1, 0.5], [0, 1])["reason"]
