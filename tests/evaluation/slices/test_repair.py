"""Last layers: optima, balanced draws of all four groups, and an ensemble that no label and no scale of scores moves."""

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import repair
from mammoclip_jax.evaluation.slices.repair import Ensemble, Head, Held


def made(seed=0, n=1200, agreement=0.9):
    """(features, truth, attribute): the attribute agrees with the class in so many; a second feature holds it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    attribute = np.where(rng.random(n) < agreement, truth, 1 - truth)
    signs = 2.0 * np.stack([truth, attribute], axis=1) - 1
    return np.c_[signs * [1.2, 2.0] + rng.normal(size=(n, 2)), rng.normal(size=(n, 3)) * 7 + 3], truth, attribute


def test_a_head_is_the_optimum_of_its_objective():
    x, truth, _ = made()
    weights = np.random.default_rng(1).random(len(x)) + 0.5
    sign = 2 * truth - 1

    def loss(p):
        return weights @ np.logaddexp(0, -sign * (x @ p[:-1] + p[-1])) + p[:-1] @ p[:-1] / (2 * 0.3)

    head = repair.fit_head(x, truth, 0.3, weights=weights)
    best = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-4}).x
    np.testing.assert_allclose(np.r_[head.weights, head.bias], best, atol=1e-4)
    with pytest.raises(UserError, match="both classes; 5 of 5"):
        repair.fit_head(x[:5], np.ones(5), 1.0)


def test_a_balanced_draw_has_as_many_of_each_of_the_four_groups():
    _, truth, attribute = made()
    known = np.where(np.arange(len(truth)) % 10 == 0, np.nan, attribute)
    group = repair.groups(truth, known)
    assert [(group == k).sum() for k in range(4)] == [sum((truth == y) & (known == a)) for y in (0, 1) for a in (0, 1)]
    rows = repair.balanced_rows(group, 3)
    smallest = min((group == k).sum() for k in range(4))
    assert np.bincount(group[rows], minlength=4).tolist() == [smallest] * 4 and len(set(rows)) == 4 * smallest
    assert (repair.balanced_rows(group, 3) == rows).all() and (repair.balanced_rows(group, 4) != rows).any()
    with pytest.raises(UserError, match=r"class 1 with: 0\)"):
        repair.balanced_rows(np.array([0, 0, 1, 1, 2, 2]))


def test_highest_and_lowest_are_of_both_classes():
    score, truth = np.array([5.0, 1, 4, 2, 3, 9, 7, 8, 6, 0]), np.array([0] * 5 + [1] * 5)
    assert repair.extreme_rows(score, truth, 2).tolist() == [0, 2, 3, 1, 5, 7, 8, 9]
    with pytest.raises(UserError, match="3 highest and lowest of class 0"):
        repair.extreme_rows(score, truth, 3)


def test_methods_that_know_groups_mend_the_worst_and_others_less():
    x, truth, attribute = made(2)
    test, answer, hidden = made(3, 4000, 0.5)
    held = Held(*(part[:600] for part in made(4, agreement=0.5)[:2]), repair.groups(*made(4, agreement=0.5)[1:])[:600])
    group, learn = repair.groups(truth, attribute), np.arange(len(x)) % 2 == 0
    heads = {
        "erm": repair.erm(x, truth, held),
        "class_balanced": repair.class_balanced(x, truth, held),
        "jtt": repair.jtt(x, truth, held),
        "group_dro": repair.group_dro(x, truth, group, held),
        "balanced": repair.balanced(x, truth, group, learn),
    }
    judged = Held(test, answer, repair.groups(answer, hidden))
    worst = {name: repair.worst_accuracy(head, judged) for name, head in heads.items()}
    assert worst["balanced"] > worst["erm"] + 0.15 and worst["group_dro"] > worst["erm"] + 0.15
    assert worst["jtt"] > worst["erm"] + 0.02 and abs(worst["class_balanced"] - worst["erm"]) < 0.05


def test_group_dro_is_the_least_of_the_smooth_worst_loss():
    x, truth, attribute = made(5, 400)
    group = repair.groups(truth, attribute)
    head = repair._dro(x, truth, group, 10.0, repair.SHARPNESS)
    sign = 2 * truth - 1

    def losses(p):
        each = np.logaddexp(0, -sign * (x @ p[:-1] + p[-1]))
        return np.array([each[group == k].mean() for k in range(4)])

    def smooth(p):
        worst = np.log(np.exp(repair.SHARPNESS * losses(p)).mean()) / repair.SHARPNESS
        return worst + p[:-1] @ p[:-1] / (2 * 10.0 * len(x))

    found = np.r_[head.weights, head.bias]
    step = 1e-4 * np.eye(6)
    assert all(smooth(found) <= smooth(found + sign * side) + 1e-9 for side in step for sign in (1, -1))
    slope = lambda p: np.array([(smooth(p + e) - smooth(p - e)) / 2e-4 for e in step])
    assert check_grad(smooth, slope, found) < 1e-3 and np.abs(slope(found)).max() < 1e-3
    assert losses(found).max() <= losses(np.zeros(6)).max()


def test_the_strength_is_that_of_the_best_worst_group_that_no_fit_has_seen():
    x, truth, attribute = made(6)
    group, learn = repair.groups(truth, attribute), np.arange(len(x)) % 2 == 0
    cs = (1e-6, 1.0)
    values = []
    for c in cs:
        rows = np.flatnonzero(learn)[repair.balanced_rows(group[learn])]
        scale = repair.Scale.of(x[rows])
        head = scale.plain(repair.fit_head(scale(x[rows]), truth[rows], c))
        values.append(repair.worst_accuracy(head, Held(x[~learn], truth[~learn], group[~learn])))
    best = cs[int(np.argmax(values))]
    found = repair.balanced(x, truth, group, learn, cs=cs, draws=2)
    alone = repair.balanced(x, truth, group, learn, cs=(best,), draws=2)
    np.testing.assert_array_equal(found.weights, alone.weights)
    plain = Held(x[~learn], truth[~learn], group[~learn])
    worst = [repair.worst_accuracy(repair.erm(x[learn], truth[learn], plain, cs=(c,)), plain) for c in cs]
    both = repair.on_all(repair.erm, x, truth, group, learn, cs=cs)
    alone = repair.erm(x, truth, plain, cs=(cs[int(np.argmax(worst))],))
    np.testing.assert_array_equal(both.weights, alone.weights)
    rows = repair.extreme_rows(attribute + 0.0, truth, 40)
    taken = repair.balanced(x, truth, group, learn, cs=(1.0,), extremes=(attribute + 0.0, 40))
    scale = repair.Scale.of(x[rows])
    alone = scale.plain(repair.fit_head(scale(x[rows]), truth[rows], 1.0))
    np.testing.assert_allclose(taken.weights, alone.weights, rtol=1e-9)


def test_a_standardised_head_is_the_same_head_of_plain_features():
    x, truth, _ = made(7)
    x[:, 4] = 2.5  # constant
    scale = repair.Scale.of(x)
    head = repair.fit_head(scale(x), truth, 1.0)
    np.testing.assert_allclose(scale.plain(head).logits(x), head.logits(scale(x)), atol=1e-9)


def test_the_ensemble_by_a_loop_and_unmoved_by_the_scale_of_scores():
    rng = np.random.default_rng(8)
    heads, x = [Head(rng.normal(size=3), float(k)) for k in range(3)], rng.normal(size=(7, 3))
    scores = rng.normal(size=(50, 3))
    ensemble, asked = Ensemble.of(heads, scores, 0.5), rng.normal(size=(7, 3))
    for row in range(7):
        standard = [(asked[row, k] - scores[:, k].mean()) / scores[:, k].std() for k in range(3)]
        gate = np.exp(np.array(standard) / 0.5)
        logit = sum(gate[k] / gate.sum() * (x[row] @ heads[k].weights + heads[k].bias) for k in range(3))
        assert ensemble.logits(x, asked)[row] == pytest.approx(logit)
    other = Ensemble.of(heads, scores * [1, 100, 0.01] + [5, 0, -3], 0.5)
    np.testing.assert_allclose(other.gates(asked * [1, 100, 0.01] + [5, 0, -3]), ensemble.gates(asked))
    unknown = Ensemble.of(heads, np.full((50, 3), np.nan))
    mean = repair.mean_head(heads)
    np.testing.assert_allclose(unknown.logits(x, np.full((7, 3), np.nan)), mean.logits(x))
