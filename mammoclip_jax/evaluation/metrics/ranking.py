"""Metrics of ranked lists: where the first right item stands, and how many of the first k agree. Exact under ties.

Items of one similarity are in random order, and every metric is its expectation over these orders: a model that gives
all items the same similarity scores what chance scores. Cosines are compared in whole multiples of 1 / `STEPS`. The
similarity matrix is never whole in memory: a block of queries at a time, and no result depends on the block.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import gammaln

STEPS = 1e6  # cosines that agree in float32's own precision count as tied
ELEMENTS = 2**23  # of a block of the similarity matrix: 64 MB


def blocks(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, similarity float64 [rows, G] in whole steps) of unit-norm `queries` [Q, D] and `gallery` [G, D].

    In float64, so that blocks of another size round the same way.
    """
    transposed = np.multiply(np.asarray(gallery).T, STEPS, dtype=np.float64)
    size = max(1, ELEMENTS // max(len(gallery), 1))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        similarity = np.asarray(queries[rows], dtype=np.float64) @ transposed
        yield rows, np.rint(similarity, out=similarity)


def standing(queries, gallery, query_group, gallery_group) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each query: the wrong items above its best right one, the wrong and the right that tie with it, all right.

    An item is right where its group (int [G]) is the query's (int [Q]); each query has a right item at least.
    """
    of_queries, of_gallery = np.asarray(query_group), np.asarray(gallery_group)
    return standing_of(queries, gallery, lambda rows: of_queries[rows, None] == of_gallery)


def standing_of(
    queries, gallery, relevant: Callable[[slice], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `standing`, where `relevant(rows)` says which items are right, bool [rows, G], of some of the queries."""
    above, tied_wrong, tied_right, right = (np.zeros(len(queries), dtype=np.int64) for _ in range(4))
    for rows, similarity in blocks(queries, gallery):
        wanted = relevant(rows)
        best = similarity.max(axis=1, keepdims=True, where=wanted, initial=-np.inf)
        above[rows] = np.count_nonzero(similarity > best, axis=1)
        tied = similarity == best
        tied_right[rows], right[rows] = _counts(tied & wanted, wanted)
        tied_wrong[rows] = np.count_nonzero(tied, axis=1) - tied_right[rows]
    return above, tied_wrong, tied_right, right


def first_rank(above: np.ndarray, tied_wrong: np.ndarray, tied_right: np.ndarray) -> np.ndarray:
    """Expected rank [Q] of the first right item, from 1.

    The first of r right among w wrong items in random order stands at (r + w + 1) / (r + 1).
    """
    return above + (tied_wrong + tied_right + 1) / (tied_right + 1)


def hit(k: int, above: np.ndarray, tied_wrong: np.ndarray, tied_right: np.ndarray) -> np.ndarray:
    """Probability [Q] that a right item is among the first k.

    Of the tied items, `k - above` are shown; all of them are wrong with the hypergeometric probability
    C(tied_wrong, shown) / C(tied_wrong + tied_right, shown). Without ties this is 0 or 1.
    """
    shown = np.maximum(k - above, 0)
    possible = shown <= tied_wrong
    shown = np.minimum(shown, tied_wrong)
    all_wrong = np.exp(_log_choose(tied_wrong, shown) - _log_choose(tied_wrong + tied_right, shown))
    return np.where(possible, 1 - all_wrong, 1.0)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def agreement(
    queries, gallery, query_class, gallery_class, query_owner, gallery_owner, ks: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(precision [Q, len(ks)], chance [Q]): share of the first k items whose class is the query's, and of all items.

    Items of the query's own owner (int, such as the patient) are no candidates. Where there are fewer candidates than
    k, all of them are the first k; where there are none, the row is NaN.
    """
    precision, chance = np.full((len(queries), len(ks)), np.nan), np.full(len(queries), np.nan)
    deepest = min(max(ks), len(gallery))
    for rows, similarity in blocks(queries, gallery):
        own = np.asarray(query_owner)[rows, None] == np.asarray(gallery_owner)
        agrees = (np.asarray(query_class)[rows, None] == np.asarray(gallery_class)) & ~own
        similarity[own] = -np.inf
        agreeing, count = _counts(agrees, ~own)
        chance[rows] = _divide(agreeing, count)
        top = np.argpartition(similarity, -deepest, axis=1)[:, -deepest:]  # in any order
        value, right = (np.take_along_axis(of, top, axis=1) for of in (similarity, agrees))
        lowest = value.min(axis=1, keepdims=True)
        tied = similarity == lowest  # only at this value may items be left out of the top
        tied_all, tied_agreeing = _counts(tied, tied & agrees)
        ranked = -np.sort(-value, axis=1)
        for column, k in enumerate(ks):
            shown = np.minimum(k, count)
            last = np.take_along_axis(ranked, np.maximum(shown - 1, 0)[:, None], axis=1)
            over, over_agreeing = _counts(value > last, (value > last) & right)
            same, same_agreeing = _counts(value == last, (value == last) & right)
            cut = (last == lowest)[:, 0]
            share = _divide(np.where(cut, tied_agreeing, same_agreeing), np.where(cut, tied_all, same))
            precision[rows, column] = _divide(over_agreeing + (shown - over) * share, shown)
    return precision, chance


def _counts(*masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """How many of each row are True."""
    return tuple(np.count_nonzero(mask, axis=1) for mask in masks)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(b), np.nan), where=b > 0)
