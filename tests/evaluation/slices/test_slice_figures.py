"""Figures: the worst of all four groups, slices at one threshold, and how found slices hit known ones."""

import numpy as np
import pytest

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.slices import figures
from mammoclip_jax.evaluation.slices.repair import groups
from mammoclip_jax.evaluation.slices.together import Figure, measured
from mammoclip_jax.evaluation.statistics import confusion, discrimination
from mammoclip_jax.evaluation.statistics.paired import difference


def made(seed=0, n=600):
    rng = np.random.default_rng(seed)
    truth, attribute = rng.integers(0, 2, n), (rng.random(n) < 0.3).astype(float)
    right = rng.random(n) < np.where((truth == 1) & (attribute == 0), 0.7, 0.9)
    return truth, np.where(right, truth, 1 - truth), attribute, rng.integers(0, n // 3, n).astype(str)


def test_the_worst_group_by_a_loop():
    truth, decision, attribute, patients = made()
    rates = {(y, a): np.mean((decision == truth)[(truth == y) & (attribute == a)]) for y in (0, 1) for a in (0, 1)}
    found = figures.worst_group(truth, decision, attribute, patients)
    assert found["value"] == pytest.approx(min(rates.values())) and found["n"] == 600
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(rates[1, 0])


def test_groups_that_are_too_small_or_unknown_are_no_worst_group():
    truth, decision, attribute, patients = made()
    decision = np.where((truth == 0) & (attribute == 1), 1, decision)  # all of them wrong
    keep = ~((truth == 0) & (attribute == 1)) | (np.cumsum((truth == 0) & (attribute == 1)) <= 20)
    cut = [x[keep] for x in (truth, decision, attribute, patients)]
    assert figures.worst_group(*cut, least=20, resamples=0)["value"] == 0
    assert figures.worst_group(*cut, least=21, resamples=0)["value"] > 0.5
    unknown = np.where(attribute == 1, np.nan, attribute)
    assert figures.worst_group(truth, decision, unknown, patients, resamples=0)["n"] == (attribute == 0).sum()
    assert "no group has 1000" in figures.worst_group(truth, decision, attribute, patients, least=1000)["reason"]


def test_figures_together_are_what_they_are_alone():
    truth, decision, attribute, patients = made(1)
    other, score = made(2)[1], np.random.default_rng(3).normal(size=600) + truth
    everything, group = np.ones(600, bool), groups(truth, attribute)
    right = [d == truth for d in (decision, other)]
    wanted = {
        "wga": Figure(figures.WORST_GROUP, group, right[0], everything, "wga of the other"),
        "wga of the other": Figure(figures.WORST_GROUP, group, right[1], everything),
        "auroc": Figure(discrimination.AUROC, truth, score, everything),
        "accuracy of some": Figure(confusion.ACCURACY, truth, confusion.one_hot(decision, 2), group == 1),
        "accuracy of none": Figure(confusion.ACCURACY, truth, confusion.one_hot(decision, 2), group == 9),
        "sure": Figure(confusion.ACCURACY, truth, confusion.one_hot(truth, 2), everything),
    }
    found = measured(wanted, patients, resamples=200, seed=4)
    draws = {"resamples": 200, "seed": 4}
    alone = statistics.estimate({"": figures.WORST_GROUP}, group, right[0], patients, **draws)[""]
    gain = difference(figures.WORST_GROUP, group, *right, patients, **draws)
    assert found["wga"].entry == pytest.approx(alone) and found["wga"].gain == pytest.approx(gain)
    assert found["wga of the other"].gain is None
    assert found["auroc"].entry == pytest.approx(statistics.auroc(truth, score, patients, **draws))
    some = found["accuracy of some"].entry
    assert some["value"] == pytest.approx(right[0][group == 1].mean()) and some["low"] < some["value"] < some["high"]
    assert found["accuracy of none"].entry["value"] is None
    assert found["sure"].entry["high"] == 1 and 0.9 < found["sure"].entry["low"] < 1


def test_slices_at_one_threshold_by_a_loop():
    truth, decision, attribute, patients = made(5)
    members = {"with": attribute == 1, "without": attribute == 0, "few": np.arange(600) < 20}
    table = figures.slice_rates(truth, decision, members, patients, resamples=50)
    assert len(table) == 8
    for row in table.to_dict("records"):
        member = members.get(row["slice"], np.ones(600, bool)) & (truth == (row["figure"] == "sensitivity"))
        assert row["value"] == pytest.approx((decision == truth)[member].mean()) and row["n"] == member.sum()
    worst = table[table["worst"]]
    assert set(worst["figure"]) == {"sensitivity", "specificity"} and "few" not in set(worst["slice"])
    assert worst.set_index("figure")["slice"]["sensitivity"] == "without"
    assert table["reason"][table["slice"] == "few"].str.startswith("too small").all()


def test_precision_at_k_by_a_loop():
    rng = np.random.default_rng(6)
    scores, known = rng.normal(size=(80, 3)), rng.random((80, 2)) < 0.3
    scores[:5, 0] = np.nan
    scores[:, 1] += 3 * known[:, 0]
    found = figures.precision_at_k(scores, known, 10)
    best = []
    for t in range(2):
        shares = []
        for f in range(3):
            order = sorted(range(80), key=lambda i: (np.isnan(scores[i, f]), -np.nan_to_num(scores[i, f]), i))
            shares.append(np.mean([known[i, t] for i in order[:10]]))
        best.append(max(shares))
    assert found["value"] == pytest.approx(np.mean(best)) and found["best"][0] == 1
    assert figures.precision_at_k(np.empty((9, 0)), np.ones((9, 1)))["value"] is None
