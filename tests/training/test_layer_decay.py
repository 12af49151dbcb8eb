"""Layer-wise learning rates: the last layers of an image encoder learn at the full rate, each one below at a share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.training.optimizer import layer_factors, make_optimizer


def params_of(options):
    encoder = models.image_encoder(options)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    return {
        "image_encoder": jax.tree.map(lambda x: jnp.ones(x.shape), shapes["params"]),
        "classification_head": {"kernel": jnp.ones((3, 2))},
    }


def by_layer(params, decay=0.5):
    factors = layer_factors(params, decay)
    flat = jax.tree_util.tree_leaves_with_path(factors)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): value for path, value in flat}


@pytest.mark.parametrize(
    "options, depths",
    [
        (
            dict(name="efficientnet", variant="b0", width=0.25, depth=0.3),
            {"head/": 0, "head_bn/": 0, "block07/": 1, "block06/": 2, "block00/": 8, "stem/": 9, "stem_bn/": 9},
        ),
        (
            dict(name="vit", width=16, depth=3, heads=2, size=64, patch=16),
            {"layernorm/": 0, "encoder/layer_2/": 1, "encoder/layer_0/": 3, "embeddings/": 4},
        ),
        (dict(name="convnext"), {"layernorm/": 0, "encoder/stages_3/layers_2": 1, "embeddings/": 22}),
        (dict(name="resnet", variant="18"), {"layer4_1": 1, "layer1_0": 8, "conv1": 9, "bn1": 9}),
    ],
)
def test_the_rate_falls_by_layer(options, depths):
    found = by_layer(params_of(options))
    assert found["classification_head/kernel"] == 1
    for start, depth in depths.items():
        values = {v for path, v in found.items() if path.startswith("image_encoder/" + start)}
        assert max(values) == 0.5**depth, (start, values)


def test_the_step_is_scaled_and_nothing_else():
    params = params_of(dict(name="vit", width=16, depth=2, heads=2, size=64, patch=16))
    gradients = jax.tree.map(jnp.ones_like, params)
    config = defaults().train
    config.update(warmup_steps=0, steps=10, lr=0.1, weight_decay=0.01)

    def update(decay):
        config.layer_decay = decay
        optimizer = make_optimizer(config, params)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    whole, scaled, factors = update(1.0), update(0.5), layer_factors(params, 0.5)
    for a, b, factor in zip(*map(jax.tree.leaves, (whole, scaled, factors)), strict=True):
        np.testing.assert_allclose(b, a * factor, rtol=1e-6)


def test_what_is_frozen_stays_beside_it():
    params = params_of(dict(name="vit", width=16, depth=2, heads=2, size=64, patch=16))
    config = defaults().train
    config.update(warmup_steps=0, steps=10, lr=0.1, layer_decay=0.5, frozen=("image_encoder/embeddings/.*",))
    optimizer = make_optimizer(config, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    encoder = updates["image_encoder"]
    assert not any(np.any(x) for x in jax.tree.leaves(encoder["embeddings"]))
    last, first = (np.mean(encoder["encoder"][layer]["norm1"]["scale"]) for layer in ("layer_1", "layer_0"))
    np.testing.assert_allclose(first, last / 2, rtol=1e-6)
