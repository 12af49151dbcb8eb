"""Reliability tables, recalibration, and thresholds chosen on other data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.metrics import calibration


def made(n=4000, slope=1.0, seed=0):
    """(truth, score) where logit(p) = slope * score - 1."""
    rng = np.random.default_rng(seed)
    score = 2 * rng.normal(size=n)
    return (rng.random(n) < expit(slope * score - 1)).astype(int), score


def test_the_reliability_table_is_scikit_learns():
    truth, score = made()
    table = calibration.reliability(truth, expit(score), bins=10)
    rate, probability = calibration_curve(truth, expit(score), n_bins=10)
    np.testing.assert_allclose(table["rate"], rate)
    np.testing.assert_allclose(table["probability"], probability)
    assert table["n"].sum() == 4000
    gap = (table["n"] * (table["rate"] - table["probability"]).abs()).sum() / 4000
    assert statistics.calibration_error(truth, expit(score), range(4000), bins=10, resamples=0)[
        "value"
    ] == pytest.approx(gap)
    empty = calibration.reliability([], [])
    assert len(empty) == 15 and empty["rate"].isna().all()
    assert calibration.reliability([1, 0], [0.5, 0.5], equal_mass=True)["n"].tolist() == [0, 2]


def test_platt_finds_the_slope_and_is_scikit_learns_but_for_the_smoothed_targets():
    truth, score = made(slope=1.7)
    found = calibration.platt(truth, score)
    theirs = LogisticRegression(C=1e9).fit(score[:, None], truth)
    assert found.slope == pytest.approx(theirs.coef_[0, 0], rel=0.02) and found.slope == pytest.approx(1.7, rel=0.1)
    assert found.intercept == pytest.approx(theirs.intercept_[0], abs=0.03)
    shifted = calibration.platt(truth, 1000 + 50 * score)
    np.testing.assert_allclose(shifted(1000 + 50 * score), found(score), atol=1e-4)


def test_platt_of_separable_scores_is_finite():
    found = calibration.platt([0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0])
    assert np.isfinite(found).all() and 0 < found(1.0) < 0.4 < 0.6 < found(4.0) < 1


def test_the_temperature_is_found_for_two_classes_and_more():
    truth, score = made(slope=1.0)
    assert calibration.temperature(truth, expit(2.5 * (score - 1))).temperature == pytest.approx(2.5, rel=0.1)
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(4000, 3))
    truth = (softmax(logits, axis=1).cumsum(1) < rng.random((4000, 1))).sum(1)
    sure = softmax(3 * logits, axis=1)
    found = calibration.temperature(truth, sure)
    assert found.temperature == pytest.approx(3, rel=0.1)
    np.testing.assert_allclose(found(sure).sum(1), 1)
    assert (found(sure).argmax(1) == sure.argmax(1)).all()
    p = np.array([0.0, 0.2, 1.0])
    np.testing.assert_allclose(calibration.Temperature(2.0)(p)[1], expit(logit(0.2) / 2))
    assert np.isfinite(calibration.Temperature(2.0)(p)).all()


def test_recalibration_on_validation_helps_on_test():
    truth, score = made(6000)
    sure = expit(3 * score - 3)
    for method in (calibration.platt, calibration.temperature):
        found = calibration.recalibrated(
            (truth[:3000], sure[:3000]), (truth[3000:], sure[3000:], np.arange(3000) // 2), method, resamples=50
        )
        # The bound of the raw error is above the value after: more than chance.
        assert found["ece_recalibrated"]["value"] < found["ece"]["low"], method
        assert found["brier_recalibrated"]["value"] < found["brier"]["value"], method


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=25), st.floats(0, 1))
def test_a_chosen_threshold_reaches_what_was_wanted_and_no_other_does_better(items, wanted):
    truth, score = (np.array(column) for column in zip(*items))
    if truth.min() == truth.max():
        with pytest.raises(UserError, match="needs positive and negative cases"):
            calibration.choose_threshold(truth, score)
        return

    def rates(cut):
        return (score >= cut)[truth == 1].mean(), (score < cut)[truth == 0].mean()

    cuts = [*np.unique(score), np.inf]
    hit, clear = rates(calibration.choose_threshold(truth, score, sensitivity=wanted))
    assert hit >= wanted - 1e-9 and clear >= max(c for h, c in map(rates, cuts) if h >= wanted - 1e-9)
    hit, clear = rates(calibration.choose_threshold(truth, score, specificity=wanted))
    assert clear >= wanted - 1e-9 and hit >= max(h for h, c in map(rates, cuts) if c >= wanted - 1e-9)
    assert sum(rates(calibration.choose_threshold(truth, score))) == pytest.approx(max(map(sum, map(rates, cuts))))


def test_a_threshold_lies_between_two_scores():
    truth, score = [0, 0, 1, 1], [1.0, 2.0, 4.0, 5.0]
    assert calibration.choose_threshold(truth, score) == 3.0
    assert calibration.choose_threshold(truth, score, specificity=1) == 3.0
    assert calibration.choose_threshold(truth, score, sensitivity=0.5) == 4.5
    assert calibration.choose_threshold(truth, score, specificity=0) == 1.0
    assert calibration.choose_threshold(truth, score, sensitivity=0) > 5.0
    near = np.nextafter(1.0, 2.0)
    assert calibration.choose_threshold([0, 1], [1.0, near]) == near
    with pytest.raises(UserError, match="not both"):
        calibration.choose_threshold(truth, score, sensitivity=0.9, specificity=0.9)


def test_an_operating_point_is_chosen_on_validation_and_reported_on_test():
    truth, score = made(4000)
    test = truth[2000:], score[2000:], np.arange(2000) // 4
    found = calibration.operating_point((truth[:2000], score[:2000]), test, specificity=0.9, resamples=100)
    cut = found["threshold"]["value"]
    assert cut == calibration.choose_threshold(truth[:2000], score[:2000], specificity=0.9)
    assert found["specificity"]["value"] == (score[2000:] < cut)[truth[2000:] == 0].mean()
    assert found["specificity"]["value"] == pytest.approx(0.9, abs=0.03)
    assert found["sensitivity"]["low"] < found["sensitivity"]["value"] < found["sensitivity"]["high"]


def test_nothing_to_fit_says_so():
    with pytest.raises(UserError, match="of 2 validation cases 0 are positive"):
        calibration.platt([0, 0], [1, 2])
    with pytest.raises(UserError, match="nothing to fit"):
        calibration.temperature([], [])
