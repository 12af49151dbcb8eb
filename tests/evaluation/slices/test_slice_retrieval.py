"""Retrieval: Δ and its exact null by loops and by permutations, ties, near duplicates, and both ends of the list."""

import numpy as np

from mammoclip_jax.evaluation.slices import retrieval
from mammoclip_jax.evaluation.slices.projection import Projector


def made(seed=0, n=60, c=5, d=4, sentences=9):
    rng = np.random.default_rng(seed)
    projector = Projector(rng.normal(size=(d, c)), rng.normal(size=d))
    bank = rng.normal(size=(sentences, d))
    return projector, rng.normal(size=(n, c)), rng.random(n) < 0.7, bank / np.linalg.norm(bank, axis=1, keepdims=True)


def test_the_difference_of_right_and_wrong_by_a_loop():
    projector, features, right, bank = made()
    found = retrieval.contrast(projector, features, right)
    sums, counts = np.zeros((2, 4)), np.zeros(2)
    for x, good in zip(features, right):
        sums[int(good)] += projector.weights @ x + projector.bias
        counts[int(good)] += 1
    delta = sums[1] / counts[1] - sums[0] / counts[0]
    np.testing.assert_allclose(found.delta, delta, atol=1e-12)
    np.testing.assert_allclose(retrieval.score(bank, found)[0], [sum(t * delta) for t in bank], atol=1e-12)
    assert (found.right, found.wrong) == (right.sum(), (~right).sum())


def test_the_null_is_that_of_permutations():
    projector, features, right, bank = made(1)
    scores, z = retrieval.score(bank, retrieval.contrast(projector, features, right))
    along = projector.along(features, bank)
    rng, drawn = np.random.default_rng(2), []
    for _ in range(4000):
        order = rng.permutation(right)
        drawn.append(along[order].mean(0) - along[~order].mean(0))
    np.testing.assert_allclose(scores / z, np.std(drawn, axis=0), rtol=0.05)
    assert np.abs(np.mean(drawn, axis=0) / np.std(drawn, axis=0)).max() < 0.1


def test_a_class_without_errors_has_no_contrast_and_a_flat_sentence_no_z():
    projector, features, right, bank = made(3)
    assert retrieval.contrast(projector, features, np.ones(60, bool)) is None
    assert retrieval.contrast(projector, features, np.zeros(60, bool)) is None
    flat = retrieval.contrast(projector._replace(weights=projector.weights * [[1], [1], [1], [0]]), features, right)
    assert retrieval.score(np.eye(4), flat)[1][3] == 0


def test_of_equal_scores_the_first_comes_first():
    assert retrieval.top([1.0, 3, 2, 3, 2], 4).tolist() == [1, 3, 2, 4]


def test_sentences_that_say_the_same_are_one_and_both_ends_are_listed():
    projector, features, right, _ = made(4)
    found = retrieval.contrast(projector, features, right)
    toward = found.delta / np.linalg.norm(found.delta)
    other = np.linalg.qr(np.c_[toward, np.eye(4)[:, :2]])[0][:, 1]
    near = toward + 0.2 * other  # cosine .98
    bank = np.stack([other, toward, near / np.linalg.norm(near), -toward, toward, (toward + other) / np.sqrt(2)])
    texts = ["beside", "A mass.", "one mass", "no mass", "a mass", "half of it"]
    right_end, wrong_end = retrieval.retrieve(texts, bank, found, count=3)
    assert right_end.place[0] in (1, 2) and set(right_end.place[1:]) <= {0, 5} and right_end.merged[0] == 2
    assert wrong_end.place[0] == 3 and wrong_end.z[0] < 0 < right_end.z[0]
    assert len(retrieval.retrieve(texts, bank, found, count=2)[0].place) == 2
    loose = retrieval.retrieve(texts, bank, found, count=6, alike=1.1)[0]
    assert loose.merged.sum() == 1  # the same words, whatever the vectors
