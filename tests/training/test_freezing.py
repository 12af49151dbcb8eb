"""Frozen towers and parameters: they keep their bits, cost no gradient, and the rest trains as it would."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import HEIGHT, LENGTH, VOCABULARY, WIDTH, batch, build

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import init_variables

RESNET = dict(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
BERT = dict(name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def tiny_config(frozen=(), rules=()):
    config = defaults()
    config.model.image.update(RESNET)
    config.model.text.update(BERT)
    config.model.update(dim=8, frozen=frozen)
    config.image.channels = 1
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(steps=20, warmup_steps=1, lr=1e-2, weight_decay=0.5, ema_decay=0.7, frozen=rules)
    return config


def three_steps(config):
    """States before and after, without their keys."""
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    _, before, step, _ = build(config, mesh)
    step, placed, state = jax.jit(step), meshes.put_batch(batch(), mesh), before
    for _ in range(3):
        state, _ = step(state, placed)
    return [
        flatten_dict(jax.device_get(s._replace(key=None, opt_state=None))._asdict(), sep="/") for s in (before, state)
    ]


@pytest.mark.parametrize(
    "frozen, rules, still, moving",
    [
        pytest.param(
            *(("image",), (), ("image_encoder/",), ("image_projection/dense/kernel", "text_encoder/")),
            marks=pytest.mark.slow,
        ),
        (
            ("image", "text"),
            (),
            ("image_encoder/", "text_encoder/"),
            ("image_projection/", "text_projection/dense/kernel"),
        ),
        (
            (),
            ("image_encoder/layer1_0", "logit_scale"),
            ("image_encoder/layer1_0", "logit_scale"),
            ("image_encoder/conv1",),
        ),
    ],
)
def test_frozen_parts_keep_their_bits_under_decay_and_averaging(frozen, rules, still, moving):
    before, after = three_steps(tiny_config(frozen, rules))
    statistics = [path for path in before if path.startswith("batch_stats/")]
    assert statistics
    for path in before:
        collection, _, name = path.replace("ema/params/", "ema/").partition("/")
        same = np.array_equal(np.asarray(before[path]), np.asarray(after[path]))
        if collection in ("params", "ema"):
            assert same or not name.startswith(still), path
        if path.startswith(("batch_stats/", "ema/batch_stats/")):
            assert same == ("image" in frozen), path
    for name in moving:
        assert any(
            not np.array_equal(before[path], after[path])
            for path in before
            if path.startswith((f"params/{name}", f"ema/params/{name}"))
        ), name


def flops(config):
    """Of the compiled gradient on one device."""
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    _, state, _, gradient_fn = build(config, mesh)
    compiled = jax.jit(gradient_fn).lower(state, meshes.put_batch(batch(), mesh)).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.slow
def test_no_gradient_is_computed_for_what_is_frozen():
    """A backward pass costs about twice the forward pass; without it a tower costs about a third."""
    whole, tower, rule = (
        flops(config) for config in (tiny_config(), tiny_config(("image",)), tiny_config((), ("image_encoder/",)))
    )
    assert tower < 0.6 * whole and rule < 0.6 * whole, (whole, tower, rule)


@pytest.mark.slow
def test_the_gradients_of_the_rest_are_as_without_freezing():
    """By rules, which leave the towers in training mode; a frozen tower changes its own mode too."""
    results = []
    for rules in ((), ("image_encoder/", "text_encoder/encoder/layer_0/attention")):
        mesh = meshes.make_mesh({}, jax.devices()[:1])
        _, state, _, gradient_fn = build(tiny_config((), rules), mesh)
        gradients = jax.jit(gradient_fn)(state, meshes.put_batch(batch(), mesh))[3]
        results.append(flatten_dict(jax.device_get(gradients), sep="/"))
    zero = 0
    for path, gradient in results[0].items():
        if path.startswith("image_encoder/"):
            assert not np.any(results[1][path]), path
            zero += 1
        elif np.any(results[1][path]):
            np.testing.assert_allclose(results[1][path], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max())
        else:
            assert path.startswith("text_encoder/"), path
    assert zero > 10


def test_a_tower_of_another_name_is_refused():
    model = models.build(tiny_config(("vision",)).model, VOCABULARY)
    with pytest.raises(UserError, match="config.model.frozen names 'vision'"):
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0), (HEIGHT, WIDTH, 1), LENGTH))
