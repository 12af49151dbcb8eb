"""MaMA's terms of whole views against naive loops, with masks; the same on 1 and 8 devices in every form."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import batch_sharding, make_mesh
from mammoclip_jax.types import Embeddings

B, D = 16, 6


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def rows():
    """Vectors of two views, two texts and a head; breast 2 has one view, the last row fills up."""
    rng = np.random.default_rng(0)
    image, text, head = (rng.normal(size=(B, 2, D)) for _ in range(3))
    view_mask, mask = np.ones((B, 2), bool), np.arange(B) < B - 1
    view_mask[2, 1] = False
    return *(x.astype(np.float32) for x in (unit(image), unit(text), head)), view_mask, mask


def run(name, rows, mesh=None, texts=2, **options):
    image, text, head, view_mask, mask = rows
    named = {"simclr/vectors": head, "simclr/there": view_mask & mask[:, None]}
    (term,) = losses.build({name: options})
    embeddings = Embeddings(image, text[:, :texts], jnp.float32(7.3), None, named)
    return term.function(embeddings, {"mask": mask, "view_mask": view_mask}, mesh)


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("texts", [1, 2])
def test_view_text_is_the_sum_of_both_directions_over_the_rows_with_the_view(rows, view, texts):
    image, text, _, view_mask, mask = rows
    ours, metrics = run("view_text", rows, view=view, texts=texts)
    vectors = np.float64(image[:, view]), np.float64(text[:, view if texts == 2 else 0])
    expected = naive.info_nce(*vectors, 7.3, mask & view_mask[:, view])
    np.testing.assert_allclose(ours, sum(expected), rtol=1e-5)
    np.testing.assert_allclose((metrics["image_to_text"], metrics["text_to_image"]), expected, rtol=1e-5)


def naive_nt_xent(head, pairs, temperature):
    z = [unit(head[i, v]) for i in range(B) if pairs[i] for v in range(2)]
    total = 0.0
    for i in range(len(z)):
        exponentials = {j: np.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i}
        total -= np.log(exponentials[i ^ 1] / sum(exponentials.values()))
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.5, 0.07])
def test_nt_xent_equals_the_naive_loop(rows, temperature):
    *_, head, view_mask, mask = rows
    ours, metrics = run("nt_xent", rows, temperature=temperature)
    np.testing.assert_allclose(ours, naive_nt_xent(head, view_mask.all(axis=1) & mask, temperature), rtol=1e-5)
    assert metrics["pairs"] == B - 2
    nothing = (*rows[:4], np.zeros(B, bool))
    assert run("nt_xent", nothing)[0] == 0


@pytest.mark.parametrize("form", ["plain", "gathered", "ring"])
@pytest.mark.parametrize("name", ["nt_xent", "view_text"])
def test_same_value_and_gradient_on_one_and_eight_devices(rows, name, form):
    found = []
    for devices, how in ((1, "plain"), (8, form)):
        mesh = make_mesh({"data": -1}, jax.devices()[:devices])
        placed = jax.device_put(list(rows), batch_sharding(mesh))

        def loss(image, text, head, masks, mesh=mesh, how=how):
            return run(name, (image, text, head, *masks), mesh, form=how)[0]

        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        found.append(jax.device_get(gradient(*placed[:3], placed[3:])))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=2e-5, atol=1e-6), *found)
    # What each device would find in its own two rows is another number.
    parts = [run(name, tuple(x[i : i + 2] for x in rows))[0] for i in range(0, B, 2)]
    assert abs(np.mean(parts) - found[0][0]) > 0.1


def test_slots_that_are_not_there_are_explained(rows):
    image, text, *more = rows
    with pytest.raises(UserError, match="view_text has view=2, and config.data.views is 2"):
        run("view_text", rows, view=2)
    with pytest.raises(UserError, match="one text, or one for each of the 2 views, got 3"):
        run("view_text", (image, text.repeat(2, 1)[:, :3], *more), texts=3)
    with pytest.raises(UserError, match="compares 2 views of a row, got 1"):
        run("nt_xent", (image, text, more[0][:, :1], *more[1:]))
