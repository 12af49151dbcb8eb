"""Texts that say the same, or nearly: for soft targets, de-duplicated negatives and fair retrieval figures."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

# Two texts that share 0.7 of their words and pairs are compared with a probability of 1 - (1 - 0.7^3)^32 = 0.999999.
BANDS, BAND_ROWS = 32, 3
_PRIME = 2**31 - 1
_TEXTS, _PAIRS = 2**14, 2**16  # worked on at a time: no result depends on them, memory does


def exact(texts: Sequence[str]) -> np.ndarray:
    """Group number int64 [N] of each text, in the order of first appearance; case, space and stops are ignored."""
    plain = [" ".join(re.sub(r"[.!?;,]+(?=\s|$)", "", text.lower()).split()) for text in texts]
    return pd.factorize(pd.Series(plain, dtype="str"))[0].astype(np.int64)


def near(texts: Sequence[str], threshold: float = 0.9) -> np.ndarray:
    """Group number int64 [N]: texts joined by steps of TF-IDF cosine >= `threshold`, over words and pairs of words.

    Single linkage, so both ends of a chain are in one group. Time and memory grow with the number of texts, not its
    square: compared are only texts that share a band of their MinHash signature (Broder, SEQUENCES 1997), each with the
    first of the band's bucket and the one before it.
    """
    same = exact(texts)
    if not len(same):
        return same
    _, first = np.unique(same, return_index=True)
    # Two seconds to import, and most commands that come here count nothing.
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    counts = HashingVectorizer(
        ngram_range=(1, 2), n_features=2**20, norm=None, alternate_sign=False, token_pattern=r"(?u)\b\w+\b"
    ).transform([texts[i] for i in first])
    filled = np.flatnonzero(np.diff(counts.indptr))
    if len(filled) < 2:
        return same
    pairs = _candidates(counts, filled)
    weights = TfidfTransformer().fit(counts).transform(counts, copy=False)  # in their place
    graph = coo_array(_alike(weights, filled, pairs, threshold), shape=(len(first), len(first)))
    return pd.factorize(connected_components(graph, directed=False)[1][same])[0].astype(np.int64)


def _alike(weights: csr_array, rows: np.ndarray, pairs: np.ndarray, threshold: float) -> tuple:
    """(ones, (a, b)) of the `pairs`, of places in `rows`, whose weights have a cosine of at least `threshold`."""
    found: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(pairs), _PAIRS):
        a, b = np.divmod(pairs[start : start + _PAIRS], len(rows))
        a, b = rows[a], rows[b]
        cosine = np.asarray(weights[a].multiply(weights[b]).sum(axis=1)).ravel()
        found.append(np.stack([a, b])[:, cosine >= threshold - 1e-9])  # for the rounding of a cosine of 1
    a, b = np.concatenate(found, axis=1)
    return np.ones(len(a)), (a, b)


def _candidates(counts: csr_array, rows: np.ndarray) -> np.ndarray:
    """Pairs of places in `rows` that share a band, int64 [P]: n times the first, and the second; no row is empty."""
    links = []
    for bucket in _buckets(counts, rows):
        order = np.argsort(bucket, kind="stable")
        buckets = bucket[order]
        opens = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        leader = order[np.repeat(opens, np.diff(np.r_[opens, len(order)]))]
        before = np.r_[order[:1], order[:-1]]
        before[opens] = order[opens]
        for other in (leader, before):
            links.append((other * len(rows) + order)[other != order])
    return np.unique(np.concatenate(links))


def _buckets(counts: csr_array, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Of each band the bucket int64 [n] of each row: equal where its minima of all the band's hashes are."""
    rng = np.random.default_rng(0)
    words = np.flatnonzero(np.bincount(counts.indices))  # each is hashed once, however many texts have it
    place = np.zeros(counts.shape[1], np.int32)
    place[words] = np.arange(len(words))
    of = place[counts.indices]
    bounds = np.r_[counts.indptr[rows], len(of)]
    blocks = [bounds[start : start + _TEXTS + 1] for start in range(0, len(rows), _TEXTS)]
    for _ in range(BANDS):
        bucket = np.zeros(len(rows), np.int64)
        for a, b in rng.integers(1, _PRIME, (BAND_ROWS, 2)):
            hashes = ((words * a + b) % _PRIME).astype(np.int32)
            least = [np.minimum.reduceat(hashes[of[own[0] : own[-1]]], own[:-1] - own[0]) for own in blocks]
            bucket = pd.factorize(bucket << 31 | np.concatenate(least))[0]
        yield bucket


def groups(index: pd.DataFrame, threshold: float = 1.0) -> np.ndarray:
    """A text group for each row of a data set's index, int64 [N]: rows whose texts together are alike; -1 without text.

    `threshold` 1 joins exactly alike texts, a lower one near ones. A column `text_group` of it serves soft targets.
    """
    joined = [" ".join(texts) for texts in index["texts"]]
    group_of = np.full(len(joined), -1, np.int64)
    some = [i for i, text in enumerate(joined) if text.strip()]
    texts = [joined[i] for i in some]
    group_of[some] = exact(texts) if threshold >= 1 else near(texts, threshold)
    return group_of
