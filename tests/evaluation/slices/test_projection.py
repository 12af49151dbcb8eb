"""The projection: an affine map is found again, R² is about the mean vector, and too little is refused."""

import tracemalloc

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import projection


def made(seed=0, n=200, c=6, d=4, noise=0.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, c)) * rng.uniform(0.1, 30, c) + rng.normal(size=c) * 5
    weights, bias = rng.normal(size=(d, c)), rng.normal(size=d)
    return features, features @ weights.T + bias + noise * rng.normal(size=(n, d)), weights, bias


def test_a_known_affine_map_is_found_again():
    features, vectors, weights, bias = made()
    found = projection.ridge(features, vectors, [0.0])[0]
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    np.testing.assert_allclose(found.bias, bias, atol=1e-9)
    assert projection.r_squared(found, features, vectors) == pytest.approx(1)


def test_ridge_is_the_least_of_its_objective():
    features, vectors, *_ = made(1, noise=3.0)
    strength = 40.0
    found = projection.ridge(features, vectors, [strength])[0]
    # Rows that the penalty stands for; the mean is taken off first, so that the bias is free.
    x = np.vstack([features - features.mean(0), np.sqrt(strength) * np.eye(6)])
    y = np.vstack([vectors - vectors.mean(0), np.zeros((6, 4))])
    np.testing.assert_allclose(found.weights, np.linalg.lstsq(x, y)[0].T, atol=1e-10)
    np.testing.assert_allclose(found(features.mean(0)[None])[0], vectors.mean(0), atol=1e-10)


def test_products_with_directions_need_no_projected_vectors_and_blocks_change_nothing(monkeypatch):
    features, vectors, *_ = made(2, noise=1.0)
    directions = np.random.default_rng(3).normal(size=(5, 4))
    whole = projection.fit((features[:100], vectors[:100]), (features[100:], vectors[100:]))
    expected = (features @ whole.weights.T + whole.bias) @ directions.T
    monkeypatch.setattr(projection, "_ROWS", 7)
    again = projection.fit((features[:100], vectors[:100]), (features[100:], vectors[100:]))
    np.testing.assert_allclose(again.along(features, directions), expected, atol=1e-8)
    np.testing.assert_allclose(again(features), features @ whole.weights.T + whole.bias, atol=1e-8)
    assert again.strength == pytest.approx(whole.strength) and again.r2 == pytest.approx(whole.r2)


def test_the_strength_is_chosen_on_validation_and_scales_with_the_features():
    features, vectors, *_ = made(4, n=60, noise=60.0)
    parts = (features[:30], vectors[:30]), (features[30:], vectors[30:])
    found = projection.fit(*parts, least=-9)
    scale = np.trace(np.cov(features[:30].T, bias=True)) * 30 / 6
    each = projection.ridge(*parts[0], [part * scale for part in projection.STRENGTHS])
    values = [projection.r_squared(one, *parts[1]) for one in each]
    assert found.r2 == pytest.approx(max(values))
    larger = projection.fit(*((1000 * x, y) for x, y in parts), least=-9)
    assert larger.r2 == pytest.approx(found.r2) and larger.strength == pytest.approx(1e6 * found.strength)


def test_predicting_the_mean_vector_is_worth_nothing_even_of_a_narrow_cone():
    rng = np.random.default_rng(5)
    cone = rng.normal(size=300)[None] * 0 + np.r_[np.ones(30), np.zeros(270)] + rng.normal(size=(100, 300)) * 0.1
    cone /= np.linalg.norm(cone, axis=1, keepdims=True)
    mean = projection.Projector(np.zeros((300, 2)), cone.mean(0))
    assert projection.r_squared(mean, np.zeros((100, 2)), cone) == pytest.approx(0, abs=1e-12)
    about_a_number = 1 - ((cone - cone.mean(0)) ** 2).sum() / ((cone - cone.mean()) ** 2).sum()
    assert about_a_number > 0.5  # what LADDER's formula gives


def test_features_that_say_nothing_of_the_vectors_are_refused_with_the_reason():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(80, 5)), rng.normal(size=(80, 3)) + 9
    with pytest.raises(UserError, match=r"R² is -?0\.\d+, 0.3 is needed.*metadata"):
        projection.fit((x[:40], y[:40]), (x[40:], y[40:]))
    with pytest.raises(UserError, match="all alike"):
        projection.fit((np.ones((9, 2)), y[:9]), (np.ones((9, 2)), y[9:18]))


def test_rows_that_do_not_pair_or_are_not_finite_are_refused():
    x, y, *_ = made(7)
    with pytest.raises(UserError, match="training part has 200 rows of features and 199"):
        projection.fit((x, y[1:]), (x, y))
    y[3, 1] = np.nan
    with pytest.raises(UserError, match="vectors of 1 validation images are not finite"):
        projection.fit((x, np.nan_to_num(y)), (x, y))


def test_memory_does_not_grow_with_the_images_beyond_their_scores():
    """A tenth of 100,000 images with 512 numbers: what is made beside them is a tenth of its 2 GiB at most."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((10_000, 512), dtype=np.float32)
    y = x[:, ::8] + rng.standard_normal((10_000, 64), dtype=np.float32)
    tracemalloc.start()
    try:
        found = projection.fit((x[:5000], y[:5000]), (x[5000:], y[5000:]), strengths=(1e-3,))
        found.along(x, np.eye(64)[:8])
        assert tracemalloc.get_traced_memory()[1] < 0.1 * 2**31
    finally:
        tracemalloc.stop()
