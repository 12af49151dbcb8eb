"""GLAM's head: a naive loop over mega-patches, and which pooling carries geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.cross_view import CrossView
from mammoclip_jax.types import Embeddings

B, SIDE, C = 4, 7, 8  # mega-patches of 2 x 2: the last row and column of patches are left out


def inputs(maps):
    return {"image/last": maps, "mask": np.ones(len(maps), bool), "view_mask": np.ones((len(maps), 2), bool)}


@pytest.fixture(scope="module")
def maps():
    return np.random.default_rng(0).normal(size=(B, 2, SIDE, SIDE, C)).astype(np.float32)


def made(head, maps, seed=0):
    return head.init_with_output(jax.random.key(seed), inputs(maps), False)


def naive_attention(x, other, params, heads):
    q, k, v = (
        y @ np.float64(params[name]["kernel"]) + params[name]["bias"]
        for y, name in ((x, "query"), (other, "key"), (other, "value"))
    )
    found, width = np.zeros_like(q), C // heads
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(len(x)):
            weights = np.exp([q[i, part] @ k[j, part] / np.sqrt(width) for j in range(len(other))])
            found[i, part] = sum(w * v[j, part] for j, w in enumerate(weights)) / weights.sum()
    return found @ np.float64(params["out"]["kernel"]) + params["out"]["bias"]


@pytest.mark.parametrize("columns", [True, False])
def test_cells_and_what_the_other_view_makes_of_them(maps, columns):
    found, variables = made(CrossView("last", cell=(2, 2), columns=columns, heads=2), maps)
    params = variables["params"]
    cells = np.zeros((B, 2, 3, 3, C))
    for b, v, i, j in np.ndindex(B, 2, 3, 3):
        mean = np.float64(maps[b, v, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]).mean(axis=(0, 1))
        cells[b, v, i, j] = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-5)
    np.testing.assert_allclose(found["cells"], cells.reshape(B, 2, 9, C), rtol=1e-4, atol=1e-5)
    for b, v, i, j in np.ndindex(B, 2, 3, 3):
        other = cells[b, 1 - v, :, j] if columns else cells[b, 1 - v].reshape(9, C)
        expected = naive_attention(cells[b, v, i, j][None], other, params[f"attention{v + 1}"], 2)[0]
        np.testing.assert_allclose(found["rebuilt"][b, v, 3 * i + j], expected, rtol=1e-4, atol=1e-5)
    found = {part: np.asarray(x) for part, x in found.items()}
    for b, v, i, j, k in np.ndindex(B, 2, 3, 3, 3):
        mine = cells[b, v, i, j]
        made_of = naive_attention(mine[None], cells[b, 1 - v, :, k], params[f"attention{v + 1}"], 2)[0]
        cosine = mine @ made_of / np.linalg.norm(mine) / np.linalg.norm(made_of)
        assert abs(found["column_cosines"][b, v, 3 * i + j, k] - cosine) < 1e-4


def loss(head, variables, maps):
    """The geometry term."""
    (term,) = losses.build({"geometry": {}})
    named = {f"cross_view/{part}": x for part, x in head.apply(variables, inputs(maps), True).items()}
    return float(term.function(Embeddings(None, None, None, None, named), {}, None)[0])


def test_only_the_average_carries_geometry(maps):
    """All patches of one view in another order: the average-pooled loss sees it, free queries do not."""
    with jax.enable_x64(True):
        maps = maps.astype(np.float64)
        # Views that agree, so that there is something to lose.
        maps[:, 1] = maps[:, 0]
        order = np.random.default_rng(1).permutation(SIDE * SIDE)
        shuffled = maps.copy()
        shuffled[:, 1] = maps[:, 1].reshape(B, -1, C)[:, order].reshape(maps[:, 1].shape)
        change = {}
        for pooling in ("average", "attention"):
            head = CrossView("last", cell=(2, 2), pooling=pooling, heads=2, pooler_heads=2, dtype=jnp.float64)
            variables = jax.tree.map(lambda x: x.astype(np.float64), made(head, maps)[1])
            if pooling == "average":  # each looks at the same mega-patch of the other view
                for name in ("attention1", "attention2"):
                    for part, factor in (("query", 3), ("key", 3), ("value", 1), ("out", 1)):
                        variables["params"][name][part]["kernel"] = factor * np.eye(C)
            change[pooling] = abs(loss(head, variables, shuffled) - loss(head, variables, maps))
    assert change["average"] > 0.5 and change["attention"] < 1e-9, change


@pytest.mark.parametrize(
    "options, views, message",
    [
        ({"pooling": "averge"}, 2, "no pooling of the cross-view head 'averge'. Did you mean 'average'"),
        ({"cell": (8, 2)}, 2, "has 7 x 7 patches, fewer than one mega-patch"),
        ({"heads": 3}, 2, "the 8 channels of the stage do not split over heads=3"),
        ({}, 1, "needs the two views CC and MLO, got 1"),
    ],
)
def test_what_does_not_fit_is_explained(maps, options, views, message):
    with pytest.raises(UserError, match=message):
        made(CrossView("last", **options), maps[:, :views])
