"""The bootstrap and its intervals; means, medians and ratios against explicit resamples."""

import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import bootstrap, discrimination, probability


def test_resampling_keeps_a_patient_whole_and_draws_as_many_as_there_are():
    patients = np.array(["a", "b", "b", "c", "c", "c"])
    for weights in statistics.patient_weights(patients, 50, 1):
        assert (weights[:, 1] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 5]).all()
        assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


@pytest.mark.parametrize("count", [7, 450])
def test_the_jackknife_leaves_each_patient_out_once(count):
    patients = np.repeat(np.arange(count), 2)
    weights = np.concatenate(list(bootstrap.left_out_weights(patients)))
    assert weights.shape == (min(count, 200), 2 * count)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and ((weights == 0).sum(0) == 1).all()
    assert np.ptp((weights == 0).sum(1)) <= 2  # groups of nearly one size


def test_the_block_size_does_not_change_the_draws(monkeypatch):
    patients = np.arange(7) // 2
    whole = [
        np.concatenate(list(blocks))
        for blocks in (bootstrap.patient_weights(patients, 31, 5), bootstrap.left_out_weights(patients))
    ]
    monkeypatch.setattr(bootstrap, "_CHUNK", 20)
    assert np.array_equal(whole[0], np.concatenate(list(bootstrap.patient_weights(patients, 31, 5))))
    assert np.array_equal(whole[1], np.concatenate(list(bootstrap.left_out_weights(patients))))


def test_the_interval_of_many_patients_is_that_of_scipys_bca():
    """A skewed mean of independent items: the widening for few patients is gone, the corrections are the same."""
    values = np.random.default_rng(0).exponential(size=200) ** 2
    ours = statistics.mean(values, np.arange(200), resamples=20_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours["low"] == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours["high"] == pytest.approx(theirs.high, abs=0.12 * width)


def test_the_interval_of_few_patients_is_as_wide_as_students():
    values = np.random.default_rng(3).normal(size=12)
    found = statistics.mean(values, np.arange(12), resamples=20_000)
    half = scipy.stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.12)


def test_ten_patients_that_matter_among_a_thousand_count_as_about_ten():
    influence = np.zeros(1000)
    influence[:10] = np.random.default_rng(0).normal(size=10)
    found = bootstrap._degrees_of_freedom(influence, (influence**2).sum())
    assert 4 < found < 20
    even = np.random.default_rng(0).normal(size=1000)
    assert bootstrap._degrees_of_freedom(even, (even**2).sum()) > 500


def test_a_patient_with_more_images_counts_more_and_stays_whole():
    found = statistics.mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], resamples=500)
    assert (found["value"], found["n"]) == (0.75, 4)
    # Worth 1.6 patients of equally many images: (3 + 1)² / (3² + 1²).
    assert found["low"] == pytest.approx(scipy.stats.beta.ppf(0.025, 1.2, 1.4))
    assert found["high"] == pytest.approx(scipy.stats.beta.ppf(0.975, 2.2, 0.4))
    assert found["reason"].startswith("exact binomial interval, 1.6 patients")


def weights_of(patients, resamples):
    return np.concatenate(list(statistics.patient_weights(patients, resamples, 0))).astype(int)


def bounds(value, drawn, left_out):
    """The bounds that the drawn values have by the module's own levels."""
    low, high = bootstrap.levels(value, np.array(drawn), np.array(left_out))
    return np.quantile(drawn, low, method="lower"), np.quantile(drawn, high, method="higher")


def test_mean_median_and_ratio_agree_with_explicit_resamples():
    rng = np.random.default_rng(0)
    values, below, patients = rng.random(30), rng.random(30) + 0.1, rng.integers(0, 14, 30)
    repeated = [np.repeat(np.arange(30), w) for w in weights_of(patients, 200)]
    left_out = [np.flatnonzero(patients != p) for p in np.unique(patients)]
    functions = {
        "mean": lambda r: values[r].mean(),
        "median": lambda r: np.quantile(values[r], 0.5, method="inverted_cdf"),
        "ratio": lambda r: values[r].mean() / below[r].mean(),
    }
    found = {
        "mean": statistics.mean(values, patients, resamples=200),
        "median": statistics.median(values, patients, resamples=200),
        "ratio": statistics.ratio(values, below, patients, resamples=200),
    }
    for name, of in functions.items():
        low, high = bounds(found[name]["value"], [of(r) for r in repeated], [of(r) for r in left_out])
        assert found[name]["low"] == pytest.approx(low, rel=1e-5), name
        assert found[name]["high"] == pytest.approx(high, rel=1e-5), name
    assert found["mean"]["value"] == pytest.approx(values.mean())
    assert found["median"]["value"] == pytest.approx(np.median(values))
    assert found["ratio"]["value"] == pytest.approx(values.mean() / below.mean())


def test_nothing_gives_a_reason_and_without_resamples_there_is_no_interval():
    for found in (
        statistics.mean([], []),
        statistics.median([], []),
        statistics.ratio([], [], []),
        statistics.ratio([1.0], [0.0], [0]),
    ):
        assert found["value"] is None and found["low"] is None and found["reason"]
    found = statistics.mean([1.0, 2.0], [0, 1], resamples=0)
    assert found == {"value": 1.5, "low": None, "high": None, "n": 2}


def test_rates_of_0_and_1_get_the_exact_bound_of_the_patients():
    patients = np.repeat(np.arange(10), 3)
    found = statistics.mean(np.zeros(30), patients)
    assert (found["value"], found["low"]) == (0.0, 0.0)
    assert found["high"] == pytest.approx(binomtest(0, 10).proportion_ci(0.95, method="exact").high)
    found = statistics.mean(np.ones(30), patients)
    assert (found["value"], found["high"]) == (1.0, 1.0)
    assert found["low"] == pytest.approx(binomtest(10, 10).proportion_ci(0.95, method="exact").low)


def test_perfect_separation_is_as_sure_as_the_rarer_class_has_patients():
    labels = np.r_[np.ones(5), np.zeros(40)]
    found = statistics.auroc(labels, labels, np.arange(45), resamples=50)
    assert (found["value"], found["high"]) == (1.0, 1.0)
    assert found["low"] == pytest.approx(binomtest(5, 5).proportion_ci(0.95, method="exact").low)
    assert "5 patients" in found["reason"]


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(2, 10)), min_size=1, max_size=40))
def test_any_values_give_an_entry_whose_bounds_are_in_order(items):
    patients, values = zip(*items)
    for found in (statistics.mean(values, patients, resamples=40), statistics.median(values, patients, resamples=40)):
        assert found["n"] == len(items)
        if found["low"] is None:
            assert len(set(patients)) < 10 or found["reason"] == "no interval: all resamples agree"
            continue
        assert found["low"] <= found["high"]
        assert min(values) - 1e-5 <= found["low"] and found["high"] <= max(values) + 1e-5


def test_the_metrics_of_one_call_are_those_of_single_calls():
    rng = np.random.default_rng(0)
    truth, score, patients = rng.integers(0, 2, 50), rng.random(50), np.arange(50) // 2
    together = statistics.estimate(
        {"a": discrimination.AUROC, "b": discrimination.AVERAGE_PRECISION, "c": probability.BRIER},
        truth,
        score,
        patients,
        resamples=80,
    )
    assert list(together) == ["a", "b", "c"]
    assert together["a"] == statistics.auroc(truth, score, patients, resamples=80)
    assert together["b"] == statistics.average_precision(truth, score, patients, resamples=80)
    assert together["c"] == statistics.brier(truth, score, patients, resamples=80)


@pytest.mark.slow
def test_twenty_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    found = statistics.auroc(rng.random(20_000) < 0.1, rng.random(20_000), np.arange(20_000) // 4)
    assert found["low"] < 0.5 < found["high"] and time.perf_counter() - started < 30


def test_an_interval_without_width_is_none():
    """A median of whole numbers that nearly all resamples agree on is not known without error: no interval, and why."""
    values = np.array([3.0] * 40 + [1.0, 9.0])
    found = statistics.median(values, np.arange(len(values)))
    assert found["value"] == 3.0 and found["low"] is None and found["high"] is None
    assert found["reason"].startswith("no interval: ") and "resamples agree" in found["reason"]
    drawn = np.array([0.5] * 990 + [0.4] * 5 + [0.6] * 5)
    found = bootstrap.interval(0.5, drawn, np.linspace(0.49, 0.51, 20), n=20)
    assert found == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 20,
        "reason": "no interval: nearly all resamples agree",
    }
    assert bootstrap.biased_interval(0.5, drawn, n=20)["reason"] == "no interval: nearly all resamples agree"
