"""DeLong's test against structural components by loops; permutations, paired intervals and adjusted p values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import bootstrap, discrimination, paired, probability


def kernel(x, y):
    return 1.0 if x > y else 0.5 if x == y else 0.0


def components(truth, score):
    """V10 of the positives and V01 of the negatives over all pairs, O(n^2)."""
    x, y = score[truth == 1], score[truth == 0]
    matrix = np.array([[kernel(i, j) for j in y] for i in x])
    return matrix.mean(1), matrix.mean(0)


def naive_delong(truth, a, b):
    """DeLong, DeLong and Clarke-Pearson 1988: (difference, variance of it)."""
    va, vb = components(truth, a), components(truth, b)
    variance = sum(np.var(p - q, ddof=1) / len(p) for p, q in zip(va, vb))
    return va[0].mean() - vb[0].mean(), variance


def naive_clustered(truth, scores, patients):
    """Covariance of AUROCs of clustered data, sum by sum as in Obuchowski 1997, section 3."""
    found = [components(truth, s) for s in scores]
    areas = [v10.mean() for v10, _ in found]
    m, n, names = int((truth == 1).sum()), int((truth == 0).sum()), np.unique(patients)
    with_positive = sum(((patients == p) & (truth == 1)).any() for p in names)
    with_negative = sum(((patients == p) & (truth == 0)).any() for p in names)
    out = np.zeros((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = s01 = s11 = s11_other = 0.0
            for p in names:
                positive, negative = patients[truth == 1] == p, patients[truth == 0] == p
                x = [found[k][0][positive].sum() - positive.sum() * areas[k] for k in (r, s)]
                y = [found[k][1][negative].sum() - negative.sum() * areas[k] for k in (r, s)]
                s10, s01 = s10 + x[0] * x[1], s01 + y[0] * y[1]
                s11, s11_other = s11 + x[0] * y[1], s11_other + x[1] * y[0]
            count = len(names)
            out[r, s] = (
                s10 * with_positive / ((with_positive - 1) * m) / m
                + s01 * with_negative / ((with_negative - 1) * n) / n
                + (s11 + s11_other) * count / (count - 1) / (m * n)
            )
    return out


def made(seed, distinct=1000, n=45, patients=12):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(int)
    a, b = (np.round(rng.normal(size=n) + truth, 6 if distinct > 10 else 0) for _ in range(2))
    return truth, a, b, rng.integers(0, patients, n)


@pytest.mark.parametrize("distinct", [3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_delong_is_that_of_the_structural_components(seed, distinct):
    truth, a, b, _ = made(seed, distinct)
    for found, expected in zip(paired.placements(truth, a), components(truth, a)):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    found = paired.delong(truth, a, b)
    difference, variance = naive_delong(truth, a, b)
    assert found.auroc_a == pytest.approx(roc_auc_score(truth, a))
    assert found.difference == pytest.approx(difference) and found.error == pytest.approx(np.sqrt(variance))
    assert found.p == pytest.approx(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    assert found.low == pytest.approx(difference - norm.ppf(0.975) * np.sqrt(variance))


@pytest.mark.parametrize("distinct", [3, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_the_clustered_covariance_is_obuchowskis(seed, distinct):
    truth, a, b, patients = made(seed, distinct)
    areas, covariance = paired.auroc_covariance(truth, [a, b], patients)
    np.testing.assert_allclose(covariance, naive_clustered(truth, [a, b], patients), atol=1e-12)
    assert areas == pytest.approx([roc_auc_score(truth, a), roc_auc_score(truth, b)])


def test_with_one_image_a_patient_clustered_is_plain():
    truth, a, b, _ = made(7)
    names = np.random.default_rng(0).permutation(len(truth)).astype(str)
    assert paired.delong(truth, a, b, names) == pytest.approx(paired.delong(truth, a, b), rel=1e-9)


def test_copies_of_an_image_add_no_certainty():
    truth, a, b, _ = made(8)
    who = np.arange(len(truth))
    once = paired.delong(truth, a, b, who)
    thrice = paired.delong(*(np.repeat(x, 3) for x in (truth, a, b)), np.repeat(who, 3))
    assert thrice.p == pytest.approx(once.p) and thrice.error == pytest.approx(once.error)
    assert paired.delong(*(np.repeat(x, 3) for x in (truth, a, b))).error < 0.7 * once.error


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=25
    )
)
def test_any_scores_give_a_p_or_say_that_there_is_none(items):
    truth, a, b, patients = (np.array(column) for column in zip(*items))
    if truth.min() == truth.max():
        with pytest.raises(UserError, match="positive and negative cases"):
            paired.delong(truth, a, b, patients)
        return
    found = paired.delong(truth, a, b, patients)
    assert np.isnan(found.p) or 0 <= found.p <= 1
    assert paired.delong(truth, b, a, patients).p == pytest.approx(found.p, nan_ok=True)
    same = paired.delong(truth, a, a * 2, patients)
    assert same.difference == 0 and (same.p == 1 or np.isnan(same.error))


def test_the_permutation_test_finds_a_difference_and_none_between_equals():
    rng = np.random.default_rng(0)
    truth, who = rng.integers(0, 2, 120), np.arange(120) // 2
    good, bad = truth + 0.5 * rng.normal(size=120), rng.normal(size=120)
    assert paired.permutation_test(discrimination.AUROC, truth, good, bad, who, permutations=99) == 0.01
    assert paired.permutation_test(discrimination.AUROC, truth, good, good, who, permutations=99) == 1.0
    # Another scale is the same order, so the same model.
    assert paired.permutation_test(discrimination.AUROC, truth, good, 100 * good, who, permutations=99) == 1.0
    p = np.clip(good, 0, 1)
    assert paired.permutation_test(probability.BRIER, truth, p, np.full(120, 0.9), who, permutations=99) == 0.01


def test_an_enumerated_permutation_test():
    """Three patients: the p value is near the share among all eight exchanges."""
    truth, a, b, who = np.array([1, 0, 1]), np.array([0.9, 0.1, 0.8]), np.array([0.4, 0.3, 0.7]), np.array([0, 1, 2])
    brier = lambda p: np.mean((p - truth) ** 2)
    swaps = [np.array([bool(k >> i & 1) for i in range(3)]) for k in range(8)]
    drawn = [brier(np.where(s, b, a)) - brier(np.where(s, a, b)) for s in swaps]
    exact = np.mean(np.abs(drawn) >= abs(drawn[0]) - 1e-12)
    found = paired.permutation_test(probability.BRIER, truth, a, b, who, permutations=4000)
    assert found == pytest.approx(exact, abs=0.03)


def test_the_interval_of_a_difference_uses_the_same_resamples():
    truth, a, b, patients = made(3, patients=30)
    found = paired.difference(discrimination.AUROC, truth, a, b, patients, resamples=100, seed=2)
    arrays = [
        np.repeat(np.arange(45), w.astype(int))
        for w in np.concatenate(list(statistics.patient_weights(patients, 100, 2)))
    ]
    arrays = [r for r in arrays if len(set(truth[r])) == 2]
    drawn = np.array([roc_auc_score(truth[r], a[r]) - roc_auc_score(truth[r], b[r]) for r in arrays])
    left = [patients != p for p in np.unique(patients)]
    left_out = np.array([roc_auc_score(truth[r], a[r]) - roc_auc_score(truth[r], b[r]) for r in left])
    low, high = bootstrap.levels(found["value"], drawn, left_out)
    assert found["value"] == pytest.approx(roc_auc_score(truth, a) - roc_auc_score(truth, b))
    assert found["low"] == pytest.approx(np.quantile(drawn, low, method="lower"), abs=1e-9)
    assert found["high"] == pytest.approx(np.quantile(drawn, high, method="higher"), abs=1e-9)


def test_a_difference_without_value_says_why():
    found = paired.difference(discrimination.AUROC, [1, 1], [0.1, 0.2], [0.3, 0.4], [0, 1])
    assert found["value"] is None and "both classes" in found["reason"]
    found = paired.difference(discrimination.AUROC, [0, 1], [0.1, 0.2], [0.3, np.nan], [0, 1])
    assert "not finite" in found["reason"]
    assert paired.difference(discrimination.AUROC, [], [], [], [])["reason"] == "nothing to score"


def test_benjamini_and_hochbergs_step_up():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    order = [0.01 * 4 / 1, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5]  # of 0.01, 0.03, 0.04, 0.5; never falling
    np.testing.assert_allclose(paired.benjamini_hochberg(p), [order[0], np.nan, order[2], order[1], order[3]])
    assert np.isnan(paired.benjamini_hochberg([np.nan])).all()


def test_the_mean_of_draws_is_that_of_their_values_and_draws_alike_are_one():
    rng = np.random.default_rng(3)
    truth, patients = np.repeat([0, 1], 60), np.arange(120) // 2
    draws = [truth + rng.normal(0, scale, 120) for scale in (0.5, 1, 2)]
    found = paired.mean_of_draws(discrimination.AUROC, truth, draws, patients, resamples=200)
    areas = [roc_auc_score(truth, each) for each in draws]
    assert found["value"] == pytest.approx(np.mean(areas)) and found["sd"] == pytest.approx(np.std(areas, ddof=1))
    assert found["low"] < found["value"] < found["high"]
    one = statistics.estimate({"": discrimination.AUROC}, truth, draws[1], patients, resamples=200)[""]
    assert paired.mean_of_draws(discrimination.AUROC, truth, draws[1:2], patients, resamples=200) == one
    twice = paired.mean_of_draws(discrimination.AUROC, truth, [draws[1]] * 2, patients, resamples=200)
    assert {key: twice[key] for key in one} == pytest.approx(one) and twice["sd"] == 0
    above = paired.mean_of_draws(discrimination.AUROC, truth, draws[:2], patients, base=draws[2:], resamples=200)
    assert above["value"] == pytest.approx(np.mean(areas[:2]) - areas[2])
    bad = paired.mean_of_draws(discrimination.AUROC, truth, [draws[0], draws[1] * np.nan], patients, resamples=200)
    assert bad["value"] is None and "not finite" in bad["reason"]
