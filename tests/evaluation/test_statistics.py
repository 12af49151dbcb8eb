"""Metrics against loops, ties and single classes, and the coverage of the intervals."""

import time
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binomtest

from mammoclip_jax.evaluation import statistics


def pairs_won(labels, scores, weights):
    """AUROC by its definition: the weighted share of positive-negative pairs in the right order, ties half."""
    won = total = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(~labels):
            weight = weights[i] * weights[j]
            total += weight
            won += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total if total else np.nan


@pytest.mark.parametrize("distinct", [3, 1000])
def test_auroc_and_its_interval_agree_with_a_loop_over_pairs(distinct):
    rng = np.random.default_rng(distinct)
    labels, scores = rng.random(40) < 0.4, rng.integers(0, distinct, 40).astype(float)
    patients = rng.integers(0, 15, 40)
    found = statistics.auroc(labels, scores, patients, resamples=60, seed=3)
    assert found["value"] == pytest.approx(pairs_won(labels, scores, np.ones(40)), abs=1e-12)
    weights = np.concatenate(list(statistics.patient_weights(patients, 60, 3)))
    drawn = [pairs_won(labels, scores, w) for w in weights]
    drawn = np.array(drawn)[~np.isnan(drawn)]
    assert found["low"] == pytest.approx(np.quantile(drawn, 0.025, method="lower"), abs=1e-9)
    assert found["high"] == pytest.approx(np.quantile(drawn, 0.975, method="higher"), abs=1e-9)
    assert found["n"] == 40


def test_resampling_keeps_a_patient_whole_and_draws_as_many_as_there_are():
    patients = np.array(["a", "b", "b", "c", "c", "c"])
    for weights in statistics.patient_weights(patients, 50, 1):
        assert (weights[:, 1] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 5]).all()
        assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_the_block_size_does_not_change_the_draws(monkeypatch):
    patients = np.arange(7) // 2
    whole = np.concatenate(list(statistics.patient_weights(patients, 31, 5)))
    monkeypatch.setattr(statistics, "_CHUNK", 20)
    assert np.array_equal(whole, np.concatenate(list(statistics.patient_weights(patients, 31, 5))))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0]])
def test_one_class_gives_no_value_but_a_reason(labels):
    found = statistics.auroc(labels, np.arange(len(labels)), np.arange(len(labels)))
    assert found["value"] is None and found["low"] is None and "both classes" in found["reason"]


def test_nothing_and_non_finite_scores_give_a_reason():
    assert statistics.auroc([], [], [])["reason"] == "nothing to score"
    assert "not finite" in statistics.auroc([0, 1], [np.nan, 1.0], [0, 1])["reason"]
    assert statistics.mean([], [])["value"] is None
    assert statistics.median([], [])["value"] is None
    assert statistics.ratio([1.0], [0.0], [0])["value"] is None


def test_two_patients_of_one_class_each_still_give_an_entry():
    found = statistics.auroc([0, 1], [0.1, 0.9], ["a", "b"], resamples=20)
    assert found["value"] == 1.0 and found["reason"]


def test_mean_median_and_ratio_agree_with_explicit_resamples():
    rng = np.random.default_rng(0)
    values, below, patients = rng.random(30), rng.random(30) + 0.1, rng.integers(0, 9, 30)
    weights = np.concatenate(list(statistics.patient_weights(patients, 200, 0))).astype(int)
    repeated = [np.repeat(np.arange(30), w) for w in weights]
    expected = {
        "mean": [values[r].mean() for r in repeated],
        "median": [np.quantile(values[r], 0.5, method="inverted_cdf") for r in repeated],
        "ratio": [values[r].mean() / below[r].mean() for r in repeated],
    }
    found = {
        "mean": statistics.mean(values, patients, resamples=200),
        "median": statistics.median(values, patients, resamples=200),
        "ratio": statistics.ratio(values, below, patients, resamples=200),
    }
    for name, drawn in expected.items():
        assert found[name]["low"] == pytest.approx(np.quantile(drawn, 0.025, method="lower"), rel=1e-5), name
        assert found[name]["high"] == pytest.approx(np.quantile(drawn, 0.975, method="higher"), rel=1e-5), name
    assert found["mean"]["value"] == pytest.approx(values.mean())
    assert found["median"]["value"] == pytest.approx(np.median(values))
    assert found["ratio"]["value"] == pytest.approx(values.mean() / below.mean())


def test_intervals_cover_at_about_the_nominal_rate_only_when_patients_are_resampled():
    """Four images a patient share the patient's label and an effect, so images are far from independent."""
    rng = np.random.default_rng(1)
    draws, covered, covered_by_images = 200, 0, 0
    # Positive minus negative score is normal with mean 1 and variance 2 * (1 + 1).
    truth = 1 - NormalDist(1, 2).cdf(0)
    label, patient = np.repeat(np.arange(60) % 2, 4), np.repeat(np.arange(60), 4)
    for _ in range(draws):
        scores = label + np.repeat(rng.normal(size=60), 4) + rng.normal(size=240)
        found = statistics.auroc(label, scores, patient, resamples=200)
        covered += found["low"] <= truth <= found["high"]
        found = statistics.auroc(label, scores, np.arange(240), resamples=200)
        covered_by_images += found["low"] <= truth <= found["high"]
    assert 0.91 <= covered / draws <= 0.98
    assert covered_by_images / draws < 0.85


def test_rates_of_0_and_1_get_the_exact_bound_of_the_patients():
    patients = np.repeat(np.arange(10), 3)
    found = statistics.mean(np.zeros(30), patients)
    assert (found["value"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(binomtest(0, 10).proportion_ci(0.95, method="exact").high)
    found = statistics.mean(np.ones(30), patients)
    assert (found["value"], found["high"]) == (1.0, 1.0)
    assert found["low"] == pytest.approx(binomtest(10, 10).proportion_ci(0.95, method="exact").low)


def test_many_images_are_fast():
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    found = statistics.auroc(rng.random(4000) < 0.1, rng.random(4000), np.arange(4000) // 4)
    assert found["low"] < 0.5 < found["high"] and time.perf_counter() - started < 5
