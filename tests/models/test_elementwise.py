"""GELU and dropout against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mammoclip_jax.models.elementwise import Dropout, gelu


def test_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-6, 6, 1001)
    np.testing.assert_allclose(gelu(x.astype(np.float32)), x * norm.cdf(x), atol=1e-6, rtol=1e-5)
    slope = jax.vmap(jax.grad(gelu))(x.astype(np.float32))
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=2e-6)
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(rate):
    x = jnp.ones((400, 500))
    y = np.asarray(Dropout(rate, False).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    kept = y != 0
    assert abs(kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / x.size) ** 0.5
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-3)
    assert abs(y.mean() - 1) < 0.02
    other = np.asarray(Dropout(rate, False).apply({}, x, rngs={"dropout": jax.random.key(1)}))
    assert (other != y).any()


def test_dropout_at_its_ends():
    x = jnp.ones(8)
    np.testing.assert_array_equal(Dropout(0.5, True).apply({}, x), x)
    np.testing.assert_array_equal(Dropout(0.0, False).apply({}, x), x)
    np.testing.assert_array_equal(Dropout(1.0, False).apply({}, x), 0)
