"""How often 95 % intervals hold the truth, in simulated data where a patient's images resemble each other.

Each patient has the label 1 with some probability, an effect ~ N(0, 1) that all images share, and for each image
score = separation * label + effect + N(0, 1), so that the AUROC between patients is Φ(separation / 2).
"""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.special import expit

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import confusion, discrimination, paired, probability


def simulated(rng, patients, images, prevalence, separation):
    """(label int [n], score [n], patient [n])"""
    who = np.repeat(np.arange(patients), images)
    label = (rng.random(patients) < prevalence)[who].astype(int)
    return label, separation * label + rng.normal(size=patients)[who] + rng.normal(size=len(who)), who


def covered(entry, truth):
    return entry["low"] <= truth <= entry["high"]


@pytest.mark.slow
@pytest.mark.parametrize("patients, images, prevalence, separation", [(100, 3, 0.3, 1.5), (150, 2, 0.15, 2.5)])
def test_intervals_cover_at_the_nominal_rate(patients, images, prevalence, separation, thorough):
    """300 data sets, 300 resamples each: 95 % +- 3.8, three standard errors; or 1,000 and +- 2.

    In the second, some 22 patients are positive.
    """
    draws, tolerance = (1000, 0.02) if thorough else (300, 0.038)
    rng = np.random.default_rng(1)
    cut, spread = separation / 2, np.sqrt(2)
    below = NormalDist(0, spread).cdf(cut)  # specificity at the cut, and by symmetry sensitivity
    # exp(score / 2) is a skewed value: the mean of a log-normal with variance 2 / 4.
    skewed = np.exp(0.25) * (1 - prevalence + prevalence * np.exp(separation / 2))
    truths = {
        "auroc": NormalDist().cdf(separation / 2),
        "balanced_accuracy": below,
        "rate": prevalence * below + (1 - prevalence) * (1 - below),
        "mean": skewed,
    }
    hits = dict.fromkeys(truths, 0)
    for draw in range(draws):
        label, score, who = simulated(rng, patients, images, prevalence, separation)
        options = {"resamples": 300, "seed": draw}
        found = {
            "auroc": statistics.auroc(label, score, who, **options),
            "balanced_accuracy": statistics.balanced_accuracy(label, score >= cut, who, **options),
            "rate": statistics.mean(score >= cut, who, **options),
            "mean": statistics.mean(np.exp(score / 2), who, **options),
        }
        for name, truth in truths.items():
            hits[name] += covered(found[name], truth)
    assert {name: hit / draws for name, hit in hits.items() if abs(hit / draws - 0.95) > tolerance} == {}


@pytest.mark.slow
def test_intervals_of_other_metrics_cover_too(thorough):
    """200 data sets, 95 % +- 4.6, three standard errors, or 400 and +- 3; the truth is the value in a million images.

    The best F1 is the exception: as a maximum over thresholds it is optimistic, which the interval corrects in part.
    """
    draws, tolerance = (400, 0.03) if thorough else (200, 0.046)
    shape = (100, 2, 0.3, 1.5)
    metrics = {
        "auprc": discrimination.AVERAGE_PRECISION,
        "best_f1": discrimination.BEST_F1,
        "sensitivity": discrimination.at_specificity(0.9),
        "specificity": discrimination.at_sensitivity(0.8),
    }
    decisions = {"macro_f1": confusion.MACRO_F1, "kappa": confusion.KAPPA["unweighted"]}
    rng = np.random.default_rng(2)
    label, score, _ = simulated(rng, 500_000, *shape[1:])
    truths = {name: metric.point(label, score) for name, metric in metrics.items()}
    truths |= {name: metric.point(label, confusion.at_threshold(score, 0.75)) for name, metric in decisions.items()}
    hits = dict.fromkeys(truths, 0)
    for draw in range(draws):
        label, score, who = simulated(rng, *shape)
        options = {"resamples": 300, "seed": draw}
        found = statistics.estimate(metrics, label, score, who, **options)
        found |= statistics.estimate(decisions, label, confusion.at_threshold(score, 0.75), who, **options)
        for name, truth in truths.items():
            hits[name] += covered(found[name], truth)
    assert hits.pop("best_f1") / draws > 0.9
    assert {name: hit / draws for name, hit in hits.items() if abs(hit / draws - 0.95) > tolerance} == {}


def test_resampling_images_instead_of_patients_would_be_far_too_sure():
    """Four images a patient share the patient's label and an effect, so images are far from independent."""
    rng = np.random.default_rng(1)
    draws, by_patients, by_images = 200, 0, 0
    truth = NormalDist().cdf(0.5)
    for _ in range(draws):
        label, score, who = simulated(rng, 60, 4, 0.5, 1.0)
        by_patients += covered(statistics.auroc(label, score, who, resamples=200), truth)
        by_images += covered(statistics.auroc(label, score, np.arange(240), resamples=200), truth)
    assert 0.91 <= by_patients / draws <= 0.985
    assert by_images / draws < 0.85


@pytest.mark.slow
def test_delongs_intervals_and_tests_hold_for_patients_and_not_for_images():
    """Two models of equal worth that share part of their noise: p below 0.05 in about 5 % of 500 data sets."""
    rng = np.random.default_rng(4)
    draws, rejected, rejected_by_images = 500, 0, 0
    for _ in range(draws):
        label, a, who = simulated(rng, 80, 4, 0.4, 1.5)
        b = a + rng.normal(size=80)[who]
        a = a + rng.normal(size=80)[who]
        rejected += paired.delong(label, a, b, who).p < 0.05
        rejected_by_images += paired.delong(label, a, b).p < 0.05
    assert 0.03 <= rejected / draws <= 0.08
    assert rejected_by_images / draws > 0.15


@pytest.mark.slow
@pytest.mark.parametrize("metric", [discrimination.AUROC, discrimination.AVERAGE_PRECISION])
def test_the_permutation_test_is_uniform_where_the_models_can_be_exchanged(metric):
    """250 data sets, 59 permutations: the shares of p up to 0.1, 0.25, 0.5 are these, within three standard errors."""
    rng, p = np.random.default_rng(5), []
    for seed in range(250):
        label, shared, who = simulated(rng, 40, 2, 0.4, 1.5)
        a, b = (shared + rng.normal(size=40)[who] for _ in range(2))
        p.append(paired.permutation_test(metric, label, a, b, who, permutations=59, seed=seed))
    for level in (0.1, 0.25, 0.5):
        assert abs(np.mean(np.array(p) <= level + 1e-9) - level) < 3 * np.sqrt(level * (1 - level) / 250)


FEW = [(1, 1), (1, 60), (2, 60), (3, 60), (6, 60), (60, 2), (4, 4)]  # patients with the label, and without
RATES = {
    "sensitivity": confusion.SENSITIVITY,
    "specificity": confusion.SPECIFICITY,
    "accuracy": confusion.ACCURACY,
    "balanced_accuracy": confusion.BALANCED_ACCURACY,
}


def of_few(rng, positives, negatives, images, separation):
    """As `simulated`, with so many patients of each."""
    who = np.repeat(np.arange(positives + negatives), images)
    label = (who < positives).astype(int)
    return label, separation * label + rng.normal(size=positives + negatives)[who] + rng.normal(size=len(who)), who


@pytest.mark.parametrize("images, separation", [(1, 1.5), (3, 3.0)])
@pytest.mark.parametrize("positives, negatives", FEW)
def test_intervals_of_few_patients_cover_too(positives, negatives, images, separation, thorough):
    """Down to one patient with the label and one without: 60 studies hold 93 % less three standard errors, or 1,000.

    Wider than 95 % is right here: what holds for any distribution of the scores is on the safe side. Other metrics have
    no interval.
    """
    draws = 1000 if thorough else 60
    least = 0.93 - 3 * np.sqrt(0.93 * 0.07 / draws)
    rng, below = np.random.default_rng(6), NormalDist(0, np.sqrt(2)).cdf(separation / 2)
    truths = dict.fromkeys(RATES, below) | {"auroc": NormalDist().cdf(separation / 2)}
    hits = dict.fromkeys(truths, 0)
    for draw in range(draws):
        label, score, who = of_few(rng, positives, negatives, images, separation)
        options = {"resamples": 100, "seed": draw}
        found = statistics.estimate(RATES, label, confusion.at_threshold(score, separation / 2), who, **options)
        found |= {"auroc": statistics.auroc(label, score, who, **options)}
        for name, truth in truths.items():
            hits[name] += covered(found[name], truth)
    assert {name: hit / draws for name, hit in hits.items() if hit / draws < least} == {}
    for metric in (
        discrimination.AVERAGE_PRECISION,
        discrimination.BEST_F1,
        probability.BRIER,
        probability.PROBABILISTIC_F1,
        confusion.KAPPA["unweighted"],
    ):
        scored = (label, confusion.at_threshold(score, 1) if metric is confusion.KAPPA["unweighted"] else expit(score))
        entry = statistics.estimate({"": metric}, *scored, who, resamples=20)[""]
        assert entry["low"] is None and "patient" in entry["reason"] and "10 are needed" in entry["reason"]


@pytest.mark.parametrize("positives, negatives", FEW)
def test_models_of_few_patients_differ_no_more_often_than_the_level(positives, negatives, thorough):
    """Two models of equal worth in 60 studies, or 400: no interval, no DeLong, and permutations that hold 5 %."""
    draws = 400 if thorough else 60
    rng, rejected = np.random.default_rng(7), 0
    for seed in range(draws):
        label, shared, who = of_few(rng, positives, negatives, 1, 1.5)
        a, b = (shared + rng.normal(size=len(who)) for _ in range(2))
        for metric in (discrimination.AUROC, discrimination.AVERAGE_PRECISION):
            entry = paired.difference(metric, label, a, b, who)
            assert entry["value"] is not None and entry["low"] is None and "10 are needed" in entry["reason"]
        assert np.isnan(paired.delong(label, a, b, who).p)
        rejected += paired.permutation_test(discrimination.AUROC, label, a, b, who, permutations=39, seed=seed) <= 0.05
    assert rejected / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.slow
@pytest.mark.parametrize("positives", [10, 15])
def test_the_bootstrap_holds_from_ten_patients_on(positives, thorough):
    """The first that the bootstrap serves, among 100: 93 % less three standard errors of 200 studies, or 1,000.

    Differences and DeLong's test with it: equal models differ in 7 % and three standard errors at most.
    """
    draws = 1000 if thorough else 200
    rng, hits, differ, delong = np.random.default_rng(8), 0, 0, 0
    for draw in range(draws):
        label, shared, who = of_few(rng, positives, 100 - positives, 1, 1.5)
        a, b = (shared + rng.normal(size=100) for _ in range(2))
        hits += covered(statistics.auroc(label, a, who, resamples=300, seed=draw), NormalDist().cdf(1.5 / np.sqrt(6)))
        entry = paired.difference(discrimination.AUROC, label, a, b, who, resamples=300, seed=draw)
        differ += not covered(entry, 0)
        delong += paired.delong(label, a, b, who).p < 0.05
    error = 3 * np.sqrt(0.93 * 0.07 / draws)
    assert hits / draws >= 0.93 - error
    assert max(differ, delong) / draws <= 0.07 + error


def test_no_interval_has_no_width():
    """Ties throughout, models that are the same, values that are all one: a reason, or the exact bound."""
    label, who = np.repeat([0, 1], 20), np.arange(40)
    tied = statistics.auroc(label, np.zeros(40), who, resamples=50)
    assert tied["value"] == 0.5 and tied["low"] < 0.3 and tied["high"] > 0.7 and "all resamples agree" in tied["reason"]
    rng = np.random.default_rng(0)
    score = rng.normal(size=40)
    for found in (
        statistics.average_precision(label, np.zeros(1).repeat(40), who, resamples=50),
        paired.difference(discrimination.AUROC, label, score, score, who, resamples=50),
        statistics.mean(np.full(40, 0.3), who, resamples=50),
        statistics.median(np.full(40, 3.0), who, resamples=50),
        statistics.ratio(np.eye(40)[0], np.eye(40)[0], who, resamples=50),
        statistics.ratio(rng.random(40), np.eye(40)[0], who, resamples=50),
    ):
        assert found["low"] is None or found["low"] < found["high"]
        assert found["low"] is not None or "no interval" in found["reason"]
