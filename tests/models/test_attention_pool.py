"""The attention pool against a loop over cells and heads."""

import jax
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attention_pool import AttentionPool

N, H, W, C, HEADS, DIM = 2, 2, 3, 8, 2, 5


def naive(params, x):
    """[dim] of one map [h w C]."""
    cells = x.reshape(-1, C)
    tokens = np.concatenate([[cells.mean(0)], cells]) + params["positional_embedding"]

    def projected(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    found = []
    for head in np.split(np.arange(C), HEADS):
        query = projected("q_proj", tokens[0])[head]
        weights = np.array([np.exp(query @ projected("k_proj", t)[head] / np.sqrt(len(head))) for t in tokens])
        found += list(sum(w * projected("v_proj", t)[head] for w, t in zip(weights / weights.sum(), tokens)))
    return projected("c_proj", np.array(found))


def test_equals_the_loop():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, H, W, C)).astype(np.float32)
    pool = AttentionPool(HEADS, DIM)
    shapes = jax.eval_shape(pool.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    found = jax.jit(pool.apply)({"params": params}, x)
    np.testing.assert_allclose(found, [naive(params, one) for one in x], rtol=1e-4, atol=1e-4)


def test_channels_that_do_not_split_over_heads_are_explained():
    with pytest.raises(UserError, match="8 channels of the map do not split over heads=3"):
        AttentionPool(3, DIM).init(jax.random.key(0), np.zeros((1, 2, 2, C), np.float32))


def test_places_are_resampled_to_other_grids():
    """Equal places of all cells stay equal; others are moved as the columns of a picture are, and the mean's is not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, H, W, C)).astype(np.float32)
    made, wide = AttentionPool(HEADS, DIM), AttentionPool(HEADS, DIM, grid=(H, 2 * W))
    shapes = jax.eval_shape(made.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    mean, cells = params["positional_embedding"][:1], params["positional_embedding"][1:].reshape(H, W, C)
    apply = jax.jit(
        lambda pool, places: pool.apply({"params": params | {"positional_embedding": places}}, x), static_argnums=0
    )

    def places(grid):
        return np.concatenate([mean, grid.reshape(-1, C)])

    constant = np.broadcast_to(cells[:1, :1], (H, 2 * W, C))
    expected = apply(made, places(constant[:, :W]))
    np.testing.assert_allclose(apply(wide, places(constant)), expected, rtol=1e-5, atol=1e-5)
    # Halving reads the middle between the second and third of four columns by Keys' kernel with a = -.75.
    doubled = rng.normal(size=(H, 2 * W, C)).astype(np.float32)
    edges = np.pad(doubled, ((0, 0), (1, 1), (0, 0)), "edge")
    weights = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
    halved = np.stack([np.einsum("k,hkc->hc", weights, edges[:, 2 * j : 2 * j + 4]) for j in range(W)], axis=1)
    expected = apply(made, places(halved.astype(np.float32)))
    np.testing.assert_allclose(apply(wide, places(doubled)), expected, rtol=1e-4, atol=1e-5)
    assert abs(apply(wide, places(doubled)) - apply(wide, places(constant))).max() > 1e-2
