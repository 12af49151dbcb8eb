"""Texts that say the same, or nearly: for soft targets, de-duplicated negatives and fair retrieval figures."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

# Two texts that share 0.7 of their words and pairs are compared with a probability of 1 - (1 - 0.7^3)^32 = 0.999999.
BANDS, BAND_ROWS = 32, 3


def exact(texts: Sequence[str]) -> np.ndarray:
    """Group number int64 [N] of each text, in the order of first appearance; case, space and stops are ignored."""
    plain = [" ".join(re.sub(r"[.!?;,]+(?=\s|$)", "", text.lower()).split()) for text in texts]
    return pd.factorize(pd.Series(plain, dtype="str"))[0].astype(np.int64)


def near(texts: Sequence[str], threshold: float = 0.9) -> np.ndarray:
    """Group number int64 [N]: texts joined by steps of TF-IDF cosine >= `threshold`, over words and pairs of words.

    Single linkage, so both ends of a chain are in one group. Time grows with the number of texts, not its square:
    compared are only texts that share a band of their MinHash signature (Broder, SEQUENCES 1997), each with the first
    of the band's bucket and the one before it.
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
    weights = TfidfTransformer().fit_transform(counts)
    pairs = filled[_candidates(counts[filled])]
    cosine = np.asarray(weights[pairs[:, 0]].multiply(weights[pairs[:, 1]]).sum(axis=1)).ravel()
    a, b = pairs[cosine >= threshold - 1e-9].T  # for the rounding of a cosine of 1
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(first), len(first)))
    return pd.factorize(connected_components(graph, directed=False)[1][same])[0].astype(np.int64)


def _candidates(counts: csr_array) -> np.ndarray:
    """Pairs of rows int64 [P, 2] that share a band; no row is empty."""
    rng = np.random.default_rng(0)
    prime = 2**31 - 1
    starts, words = counts.indptr[:-1], counts.indices.astype(np.int64)
    links = []
    for _ in range(BANDS):
        factors = rng.integers(1, prime, (BAND_ROWS, 2))
        band = np.stack([np.minimum.reduceat((words * a + b) % prime, starts) for a, b in factors], axis=1)
        _, bucket = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(bucket.ravel(), kind="stable")
        buckets = bucket.ravel()[order]
        opens = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        leader = order[np.repeat(opens, np.diff(np.r_[opens, len(order)]))]
        before = np.r_[order[:1], order[:-1]]
        before[opens] = order[opens]
        links += [np.stack([leader, order], axis=1), np.stack([before, order], axis=1)]
    pairs = np.unique(np.concatenate(links), axis=0)
    return pairs[pairs[:, 0] != pairs[:, 1]]


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
