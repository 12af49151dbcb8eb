"""The two towers together: projections, and images encoded in parts."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError


def build(**options):
    config = defaults().model
    config.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3, drop_rate=0.0, drop_connect_rate=0.0)
    config.text.update(name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                       hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config.update(dim=8, **options)
    return models.build(config, 50)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 2, 48, 40, 1)).astype(np.float32)
    ids = rng.integers(0, 50, (4, 2, 7), dtype=np.int32)
    return image, ids, np.ones_like(ids, bool)


def run(model, variables, inputs):
    """Embeddings, new batch statistics and the gradient of a sum of image vectors."""
    def f(params):
        out, updated = model.apply({"params": params, "batch_stats": variables["batch_stats"]}, *inputs, train=True,
                                   mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
        return jnp.sum(out.image * jnp.arange(8.0)), (out, updated["batch_stats"])
    (_, (out, stats)), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(variables["params"])
    return out, stats, gradient


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_vectors_have_unit_norm(inputs, kind):
    model = build(projection={"kind": kind, "dropout": 0.0})
    variables = model.init(jax.random.key(0), *inputs, train=False)
    out = model.apply(variables, *inputs, train=False)
    assert out.image.shape == (4, 2, 8) and out.text.shape == (4, 2, 8)
    np.testing.assert_allclose(np.linalg.norm(out.image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out.text, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(out.logit_scale, 1 / 0.07, rtol=1e-5)
    assert out.image_stages["stage5"].shape[0] == 8


def test_images_in_parts_equal_a_loop_over_the_parts(inputs):
    """Embeddings, gradient and the running statistics, which go from part to part."""
    plain, parted = build(), build(image_micro_batches=4)
    variables = plain.init(jax.random.key(0), *inputs, train=False)
    out, stats, gradient = run(parted, variables, inputs)
    images = inputs[0].reshape(8, *inputs[0].shape[2:])
    expected, looped = np.zeros((8, 8), np.float32), variables["batch_stats"]
    total = jax.tree.map(jnp.zeros_like, variables["params"])

    @jax.jit
    def one_part(statistics, part):
        def f(params):
            (vectors, _), updated = plain.apply(
                {"params": params, "batch_stats": statistics}, part, train=True, mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)}, method="encode_image")
            return jnp.sum(vectors * jnp.arange(8.0)), (vectors, updated["batch_stats"])
        return jax.value_and_grad(f, has_aux=True)(variables["params"])

    for part in range(4):
        (_, (vectors, looped)), part_gradient = one_part(looped, images[[part, part + 4]])
        expected[[part, part + 4]] = vectors
        total = jax.tree.map(jnp.add, total, part_gradient)
    np.testing.assert_allclose(out.image.reshape(8, 8), expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, looped)
    # As a whole: single tensors whose gradient is zero but for rounding (a bias before a BatchNorm) agree in nothing.
    ours, looped = (jax.flatten_util.ravel_pytree(tree["image_encoder"])[0] for tree in (gradient, total))
    assert np.linalg.norm(ours - looped) < 1e-3 * np.linalg.norm(looped)


def test_parts_must_divide_the_images(inputs):
    model = build(image_micro_batches=3)
    variables = model.init(jax.random.key(0), *inputs, train=False)
    with pytest.raises(UserError, match="8 images do not split"):
        run(model, variables, inputs)
