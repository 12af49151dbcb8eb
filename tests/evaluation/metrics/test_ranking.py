"""Ranked lists against loops that draw orders, and against sorting where nothing ties."""

import itertools

import numpy as np
import pytest

from mammoclip_jax.evaluation.metrics import ranking


def orders(similarity):
    """All orders of the items by similarity, those of one similarity in every order."""
    levels = [np.flatnonzero(similarity == level) for level in sorted(set(similarity), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(level) for level in levels)):
        yield [item for part in parts for item in part]


def vectors(rng, n, tied):
    """Vectors whose products tie often, or never."""
    return rng.integers(-1, 2, (n, 3)).astype(np.float32) if tied else rng.normal(size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_hits_are_the_mean_over_all_orders_of_tied_items(seed, tied):
    rng = np.random.default_rng(seed)
    queries, gallery = vectors(rng, 5, tied), vectors(rng, 7, tied)
    gallery_group = rng.integers(0, 3, 7)
    query_group = rng.choice(gallery_group, 5)
    above, tied_wrong, tied_right, right = ranking.standing(queries, gallery, query_group, gallery_group)
    ranks = ranking.first_rank(above, tied_wrong, tied_right)
    for q in range(5):
        firsts = [
            1 + next(i for i, item in enumerate(order) if gallery_group[item] == query_group[q])
            for order in orders(np.round(gallery @ queries[q], 6))
        ]
        assert ranks[q] == pytest.approx(np.mean(firsts))
        assert right[q] == (gallery_group == query_group[q]).sum()
        for k in (1, 2, 5, 9):
            assert ranking.hit(k, above, tied_wrong, tied_right)[q] == pytest.approx(np.mean(np.array(firsts) <= k))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_precision_is_the_mean_over_all_orders_and_never_counts_the_own_patient(seed, tied):
    rng = np.random.default_rng(seed)
    queries, gallery = vectors(rng, 6, tied), vectors(rng, 8, tied)
    query_class, gallery_class = rng.integers(0, 2, 6), rng.integers(0, 3, 8)  # class 2: no query has it
    query_owner, gallery_owner = rng.integers(0, 3, 6), rng.integers(0, 3, 8)
    found, chance = ranking.agreement(
        queries, gallery, query_class, gallery_class, query_owner, gallery_owner, (1, 3, 20)
    )
    for q in range(6):
        others = gallery_owner != query_owner[q]
        agrees = (gallery_class == query_class[q])[others]
        shares = np.array(
            [
                [agrees[order[:k]].mean() for k in (1, 3, 20)]
                for order in orders(np.round(gallery[others] @ queries[q], 6))
            ]
        )
        assert found[q] == pytest.approx(shares.mean(0))
        assert chance[q] == pytest.approx(agrees.mean())


def test_without_candidates_precision_is_not_a_number():
    one = np.ones((2, 3), dtype=np.float32)
    found, chance = ranking.agreement(one, one, np.zeros(2), np.zeros(2), np.array([0, 1]), np.array([1, 1]), (1, 5))
    assert found[0].tolist() == [1, 1] and np.isnan(found[1]).all() and np.isnan(chance[1])


@pytest.mark.parametrize("elements", [1, 30, 77, 10**9])
def test_the_block_changes_nothing(monkeypatch, elements):
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(n, 16)).astype(np.float32) for n in (23, 31))
    queries[5:9] = gallery[3]
    group, owner = rng.integers(0, 4, 31), rng.integers(0, 9, 31)
    group[:4] = range(4)
    arguments = (queries, gallery, group[:23], group, owner[:23], owner, (1, 5))
    expected = (*ranking.standing(*arguments[:4]), *ranking.agreement(*arguments))
    monkeypatch.setattr(ranking, "ELEMENTS", elements)
    for a, b in zip((*ranking.standing(*arguments[:4]), *ranking.agreement(*arguments)), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("elements", [1, 100, 10**9])
def test_ties_in_blocks_count_as_in_the_whole_matrix(monkeypatch, elements):
    """Equal up to float32's rounding, within a block and across its border, right and wrong items among them."""
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(4, 8))
    drawn = kinds[rng.integers(0, 4, 60)] + rng.normal(size=(60, 8)) * 1e-8
    gallery = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    queries, group = gallery[::2], rng.integers(0, 6, 60)
    similarity = np.rint(queries.astype(np.float64) @ gallery.T.astype(np.float64) * ranking.STEPS)
    right = group[::2, None] == group
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    whole = [(similarity > best), (similarity == best) & ~right, (similarity == best) & right, right]
    assert (whole[1].sum(axis=1) > 2).any() and (whole[2].sum(axis=1) > 2).any()
    monkeypatch.setattr(ranking, "ELEMENTS", elements)
    for found, expected in zip(ranking.standing(queries, gallery, group[::2], group), whole, strict=True):
        np.testing.assert_array_equal(found, expected.sum(axis=1))
    ks, owner = (1, 5, 20), np.arange(60)
    precision, _ = ranking.agreement(queries, gallery, group[::2], group, owner[::2], owner, ks)
    for q, own in enumerate(similarity):
        others = np.arange(60) != 2 * q
        values, agrees = own[others], (group == group[2 * q])[others]
        for k, found in zip(ks, precision[q]):
            last = np.sort(values)[-k]
            over, same = values > last, values == last
            assert found == pytest.approx((agrees[over].sum() + (k - over.sum()) * agrees[same].mean()) / k)
