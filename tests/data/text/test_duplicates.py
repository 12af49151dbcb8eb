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
