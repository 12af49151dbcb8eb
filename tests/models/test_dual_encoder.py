"""The two towers together: projections."""

import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError


def build(**options):
    config = defaults().model
    config.image.update(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.text.update(
        name="bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.update(dim=8, **options)
    return models.build(config, 50)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 2, 48, 40, 1)).astype(np.float32)
    ids = rng.integers(0, 50, (4, 2, 7), dtype=np.int32)
    return image, ids, np.ones_like(ids, bool)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_vectors_have_unit_norm(inputs, kind):
    model = build(projection={"kind": kind, "dropout": 0.0})
    out, _ = jax.jit(lambda key: model.init_with_output(key, *inputs, train=False))(jax.random.key(0))
    assert out.image.shape == (4, 2, 8) and out.text.shape == (4, 2, 8)
    np.testing.assert_allclose(np.linalg.norm(out.image, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out.text, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(out.logit_scale, 1 / 0.07, rtol=1e-5)
    assert out.named["image/stage4"].shape[:2] == out.image.shape[:2] == (4, 2)


def test_an_encoder_that_ends_in_the_shared_space_has_no_projection(inputs):
    """The vector is the pooled one (64 numbers of this network), of length one."""
    model = build(projected=("image",))
    with pytest.raises(UserError, match="gives 64 numbers, and config.model.dim is 8"):
        jax.eval_shape(lambda key: model.init(key, *inputs, train=False), jax.random.key(0))
    model = build(projected=("image",)).copy(dim=64)
    out, variables = jax.jit(lambda key: model.init_with_output(key, *inputs, train=False))(jax.random.key(0))
    assert "image_projection" not in variables["params"] and "text_projection" in variables["params"]
    pooled = np.asarray(out.named["image/pooled"])
    np.testing.assert_allclose(out.image, pooled / np.linalg.norm(pooled, axis=-1, keepdims=True), rtol=1e-5)
    with pytest.raises(UserError, match="config.model.projected names 'images'"):
        jax.eval_shape(lambda key: build(projected=("images",)).init(key, *inputs, train=False), jax.random.key(0))
