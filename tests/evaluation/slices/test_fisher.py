"""Fisher's test is that of permutations, and patients with several images count for what they are worth."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm

from mammoclip_jax.evaluation.slices import fisher


def test_fisher_is_scipys_and_that_of_all_permutations():
    right, member = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1], bool), np.array([1, 0, 1, 0, 1, 0, 0, 1, 0], bool)
    table = [right[member].sum(), member.sum(), right[~member].sum(), (~member).sum()]
    found = float(fisher.worse(*table))
    cells = [[table[0], table[1] - table[0]], [table[2], table[3] - table[2]]]
    assert found == pytest.approx(fisher_exact(cells, alternative="less").pvalue)
    gap = right[member].mean() - right[~member].mean()
    gaps = []
    for places in combinations(range(9), 4):
        inside = np.isin(np.arange(9), places)
        gaps.append(right[inside].mean() - right[~inside].mean())
    assert found == pytest.approx(np.mean(np.array(gaps) <= gap + 1e-12))


def test_images_of_a_patient_that_are_copies_count_once():
    rng = np.random.default_rng(2)
    right, member = rng.random(90) < 0.7, rng.random(90) < 0.4
    patients = np.arange(90).astype(str)
    once = fisher.worth(right, member, patients)
    assert once == fisher.images(right, member)
    four = [np.repeat(x, 4) for x in (right, member, patients)]
    assert fisher.worth(*four) == once and fisher.images(*four[:2]) == tuple(4 * x for x in once)
    assert fisher.design_effect(np.ones(8, bool), np.repeat(["a", "b"], 4)) == pytest.approx(4)
    assert fisher.design_effect(np.array([1, 0] * 4, bool), np.repeat(["a", "b", "c", "d"], 2)) == 1


def test_with_several_images_a_patient_the_test_keeps_its_level():
    """Patients of four images that mostly fail together, an attribute of the patient: no difference there is."""
    rng, found = np.random.default_rng(3), []
    for _ in range(400):
        sick, has = rng.random(80) < 0.3, rng.random(80) < 0.5
        wrong = np.where(rng.random((80, 4)) < 0.9, sick[:, None], rng.random((80, 4)) < 0.3).ravel()
        right, member = ~wrong, np.repeat(has, 4)
        counts = fisher.worth(right, member, np.repeat(np.arange(80), 4).astype(str)), fisher.images(right, member)
        found.append([float(fisher.worse(*one)) for one in counts])
    clustered, images = (np.mean(np.array(found) < 0.05, axis=0)).tolist()
    assert clustered <= 0.08 and images > 0.12


def test_the_two_sided_p_is_twice_the_smaller_one_sided():
    cells = [[12, 3], [20, 25]]
    counts = (12, 15, 20, 45)
    one = [fisher_exact(cells, alternative=side).pvalue for side in ("less", "greater")]
    assert float(fisher.different(*counts)) == pytest.approx(2 * min(one))
    assert float(fisher.different(3, 6, 5, 10)) == 1


def test_within_strata_by_a_loop_and_a_gap_between_strata_alone_is_none():
    tables = [(30, 40, 50, 55), (5, 20, 8, 18), (3, 3, 0, 0)]
    apart = sum(a - n * (a + b) / (n + m) for a, n, b, m in tables)
    variance = sum(n * m * (a + b) * (n + m - a - b) / ((n + m) ** 2 * (n + m - 1)) for a, n, b, m in tables)
    assert fisher.worse_within(tables) == pytest.approx(norm.cdf(apart / variance**0.5))
    # As good in either stratum, and mostly in the one where all are bad.
    strata = [(9, 10, 90, 100), (30, 100, 3, 10)]
    assert fisher.worse(*np.sum(strata, axis=0)) < 1e-10 and fisher.worse_within(strata) == pytest.approx(0.5)
    assert fisher.worse_within([(3, 3, 0, 0)]) == 1
