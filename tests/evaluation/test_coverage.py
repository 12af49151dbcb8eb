"""How often 95 % intervals hold the truth, in simulated data where a patient's images resemble each other.

Each patient has the label 1 with some probability, an effect ~ N(0, 1) that all images share, and for each image
score = separation * label + effect + N(0, 1), so that the AUROC between patients is Φ(separation / 2).
"""

from statistics import NormalDist

import numpy as np
import pytest

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics import confusion, discrimination, paired


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
    below = NormalDist(0, spread).cdf(cut)          # specificity at the cut, and by symmetry sensitivity
    # exp(score / 2) is a skewed value: the mean of a log-normal with variance 2 / 4.
    skewed = np.exp(0.25) * (1 - prevalence + prevalence * np.exp(separation / 2))
    truths = {"auroc": NormalDist().cdf(separation / 2), "balanced_accuracy": below,
              "rate": prevalence * below + (1 - prevalence) * (1 - below), "mean": skewed}
    hits = dict.fromkeys(truths, 0)
    for draw in range(draws):
        label, score, who = simulated(rng, patients, images, prevalence, separation)
        options = {"resamples": 300, "seed": draw}
        found = {"auroc": statistics.auroc(label, score, who, **options),
                 "balanced_accuracy": statistics.balanced_accuracy(label, score >= cut, who, **options),
                 "rate": statistics.mean(score >= cut, who, **options),
                 "mean": statistics.mean(np.exp(score / 2), who, **options)}
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
    metrics = {"auprc": discrimination.AVERAGE_PRECISION, "best_f1": discrimination.BEST_F1,
               "sensitivity": discrimination.at_specificity(0.9), "specificity": discrimination.at_sensitivity(0.8)}
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
