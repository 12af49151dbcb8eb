"""The geometry term against naive loops, with breasts of one view; the same on 1 and 8 devices in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.training.mesh import batch_sharding, make_mesh
from mammoclip_jax.types import Embeddings

B, J, D = 16, 3, 4
SCALE = 5.0


@pytest.fixture(scope="module")
def rows():
    """Mega-patches, their reconstructions, and which breasts have both views."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, 2, J, D)), rng.normal(size=(B, 2, J, D)), np.arange(B) % 5 != 1


def run(rows, mesh=None, **options):
    named = {f"cross_view/{part}": x for part, x in zip(("cells", "rebuilt", "there"), rows)}
    (term,) = losses.build({"geometry": options})
    named["cross_view/logit_scale"] = jnp.float32(SCALE)
    return term.function(Embeddings(None, None, None, None, named), {}, mesh)


def naive(queries, keys):
    """Half of the rows' and of the columns' cross-entropy."""
    n = len(queries)
    logits = [[SCALE * q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys] for q in queries]
    rows = [np.log(sum(np.exp(logits[i][j]) for j in range(n))) - logits[i][i] for i in range(n)]
    columns = [np.log(sum(np.exp(logits[i][j]) for i in range(n))) - logits[j][j] for j in range(n)]
    return (np.mean(rows) + np.mean(columns)) / 2


def naive_terms(cells, rebuilt, there):
    kept = np.flatnonzero(there)
    view = np.mean([naive(cells[b, v], rebuilt[b, v]) for b in kept for v in range(2)])
    position = np.mean([naive(cells[kept, v, j], rebuilt[kept, v, j]) for j in range(J) for v in range(2)])
    return view, position


def test_both_terms_equal_the_naive_loops(rows):
    view, position = naive_terms(*rows)
    loss, metrics = run(rows, positions=0.5)
    np.testing.assert_allclose((metrics["view"], metrics["position"]), (view, position), rtol=1e-5)
    np.testing.assert_allclose(loss, view + 0.5 * position, rtol=1e-5)
    assert metrics["pairs"] == rows[2].sum()
    loss, metrics = run(rows, positions=0.0)
    assert "position" not in metrics
    np.testing.assert_allclose(loss, view, rtol=1e-5)
    assert run((*rows[:2], np.zeros(B, bool)))[0] == 0


@pytest.mark.parametrize("form", ["plain", "gathered", "ring"])
def test_same_value_and_gradient_on_one_and_eight_devices(rows, form):
    found = []
    for devices, how in ((1, "plain"), (8, form)):
        mesh = make_mesh({"data": -1}, jax.devices()[:devices])
        placed = jax.device_put([np.float32(rows[0]), np.float32(rows[1]), rows[2]], batch_sharding(mesh))

        def loss(cells, rebuilt, there, mesh=mesh, how=how):
            return run((cells, rebuilt, there), mesh, form=how)[0]

        found.append(jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*placed)))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=2e-5, atol=1e-6), *found)
