"""Groups of texts that say the same."""

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from mammoclip_jax.data.text import duplicates


def test_exact():
    texts = ["No mass.", "A mass", "no  mass", "1.5 cm", "15 cm", "", "  "]
    np.testing.assert_array_equal(duplicates.exact(texts), [0, 1, 0, 2, 3, 4, 4])


def _texts(n, seed=0):
    rng = np.random.default_rng(seed)
    words = np.array([f"word{i}" for i in range(400)])
    found = [" ".join(rng.choice(words, 40)) for _ in range(n)]
    for i in range(0, n, 3):  # a variant with one other word
        parts = found[i].split()
        parts[int(rng.integers(40))] = "other"
        found.append(" ".join(parts))
    return found


@pytest.mark.parametrize("threshold", [0.7, 0.85])
def test_near_agrees_with_comparing_all_pairs(threshold):
    texts = _texts(120)
    x = TfidfVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    alike = (x @ x.T).toarray() >= threshold
    group = np.arange(len(texts))
    for _ in range(len(texts)):
        joined = np.array([group[row].min() for row in alike])
        if (joined == group).all():
            break
        group = joined
    found = duplicates.near(texts, threshold)
    np.testing.assert_array_equal(found, pd.factorize(group)[0])
    np.testing.assert_array_equal(found, duplicates.near(texts, threshold))
    assert len(set(found)) == 120


def test_near_of_few_or_no_words():
    assert duplicates.near([], 0.9).shape == (0,)
    np.testing.assert_array_equal(duplicates.near(["", "mass", "mass.", "...", "cyst"]), [0, 1, 1, 0, 2])
    np.testing.assert_array_equal(duplicates.near(["No mass", "no mass", "a cyst"], 1.0), [0, 0, 1])


def test_groups_of_an_index():
    index = pd.DataFrame({"texts": [["No mass.", "Negative."], ["no mass", "negative"], [], ["A mass."], [""]]})
    np.testing.assert_array_equal(duplicates.groups(index), [0, 0, -1, 1, -1])
    np.testing.assert_array_equal(duplicates.groups(index, 0.8), [0, 0, -1, 1, -1])


def test_no_result_depends_on_how_many_texts_and_pairs_are_worked_on_at_a_time(monkeypatch):
    texts = [*_texts(60, seed=1), "", "...", *_texts(30, seed=1)]
    found = duplicates.near(texts, 0.8)
    monkeypatch.setattr(duplicates, "_TEXTS", 7)
    monkeypatch.setattr(duplicates, "_PAIRS", 5)
    np.testing.assert_array_equal(duplicates.near(texts, 0.8), found)
    assert len(set(found)) < len(set(duplicates.exact(texts)))


def test_texts_are_compared_with_the_first_of_their_bucket_and_the_one_before(monkeypatch):
    texts = _texts(40, seed=2) + ["...", "other words"]
    counts = TfidfVectorizer(ngram_range=(1, 2), use_idf=False, norm=None).fit_transform(texts)
    rows = np.flatnonzero(np.diff(counts.indptr))
    expected = set()
    rng = np.random.default_rng(0)
    for _ in range(duplicates.BANDS):
        factors = rng.integers(1, 2**31 - 1, (duplicates.BAND_ROWS, 2))
        buckets: dict = {}
        for place, row in enumerate(rows):
            words = counts.indices[counts.indptr[row] : counts.indptr[row + 1]].astype(object)
            buckets.setdefault(tuple(min((words * int(a) + int(b)) % (2**31 - 1)) for a, b in factors), []).append(
                place
            )
        for own in buckets.values():
            expected |= {(own[0], other) for other in own[1:]} | set(zip(own, own[1:]))
    found = duplicates._candidates(counts, rows)
    assert set(zip(*(part.tolist() for part in np.divmod(found, len(rows))))) == expected
