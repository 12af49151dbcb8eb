"""Schedules, SGD beside AdamW, and parts that are trained from a later step on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mammoclip_jax.config import check_common, defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training.optimizer import make_optimizer, schedule


def config_of(**changes):
    config = defaults().train
    config.update(steps=20, warmup_steps=1, lr=1e-2, weight_decay=0.5)
    config.update(**changes)
    return config


def test_a_rate_that_falls_at_given_steps():
    rate = schedule(
        config_of(schedule="step", steps=100, warmup_steps=10, min_lr=1e-3, decay_steps=(30, 60), decay_factor=0.1)
    )
    found = [float(rate(step)) for step in (0, 5, 10, 29, 30, 59, 60, 99)]
    np.testing.assert_allclose(found, [1e-3, 5.5e-3, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-6)
    for places in ((30, 20), (5,), (100,)):
        with pytest.raises(UserError, match="decay_steps=.*must rise, between"):
            schedule(config_of(schedule="step", steps=100, warmup_steps=10, decay_steps=places))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_rates_rise_from_the_least_and_fall_to_it(name):
    rate = schedule(config_of(schedule=name, steps=100, warmup_steps=10, min_lr=1e-3))
    np.testing.assert_allclose([rate(step) for step in (0, 10, 55, 100)], [1e-3, 1e-2, 5.5e-3, 1e-3], rtol=1e-5)
    with pytest.raises(UserError, match="min_lr=1.0 must be at most"):
        schedule(config_of(min_lr=1.0))


def test_sgd_is_torchs_with_momentum_and_the_decay_in_the_gradient():
    config = config_of(optimizer="sgd", momentum=0.9, schedule="constant", warmup_steps=0, no_decay=("bias",))
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    optimizer = make_optimizer(config, params)
    state, rng = optimizer.init(params), np.random.default_rng(0)
    expected, velocity = jax.tree.map(np.float64, params), {"kernel": 0.0, "bias": 0.0}
    for _ in range(3):
        gradients = {name: rng.normal(size=x.shape) for name, x in expected.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, params)
        params = optax.apply_updates(params, updates)
        for name, decay in (("kernel", 0.5), ("bias", 0.0)):
            velocity[name] = 0.9 * velocity[name] + gradients[name] + decay * expected[name]
            expected[name] = expected[name] - 1e-2 * velocity[name]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), params, expected)
    with pytest.raises(UserError, match="no config.train.optimizer 'sdg'. Did you mean 'sgd'"):
        make_optimizer(config_of(optimizer="sdg"), params)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"momentum": 0.5}, "momentum=0.5 where config.train.optimizer is 'adamw'"),
        ({"optimizer": "sgd", "b1": 0.8}, "b1=0.8 where config.train.optimizer is 'sgd'"),
        ({"decay_factor": 0.5}, "decay_factor=0.5 where config.train.schedule is 'cosine'"),
    ],
)
def test_options_of_another_choice_are_refused(changes, field):
    config = defaults()
    config.data.folders.films = "films"
    config.train.update(**changes)
    with pytest.raises(UserError, match=f"nothing reads config.train.{field}"):
        check_common(config, ())


def test_moments_of_a_late_part_count_from_its_start_at_the_rate_of_the_run():
    params = {"heads": {"local": {"kernel": jnp.ones(3)}}, "tower": {"kernel": jnp.ones(3)}}
    gradients = jax.tree.map(lambda x: jnp.array([0.1, -2.0, 0.3]), params)
    config = config_of()
    late = make_optimizer(config, params, starts={"heads/local": 5})
    state = late.init(params)
    for step in range(7):
        updates, state = late.update(gradients, state, params)
        of_head = updates["heads"]["local"]["kernel"]
        assert bool(jnp.any(of_head != 0)) == (step >= 5)
    fresh = optax.adamw(lambda count: schedule(config)(count + 5), weight_decay=0.5)
    other = fresh.init(gradients["tower"])
    for _ in range(2):
        expected, other = fresh.update(gradients["tower"], other, params["tower"])
    np.testing.assert_allclose(of_head, expected["kernel"], rtol=1e-6)


def test_clipping_is_by_the_norm_of_all_that_is_trained():
    params = {"heads": {"local": {"kernel": jnp.zeros(1)}}, "tower": {"kernel": jnp.zeros(1)}}
    config = config_of(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0, schedule="constant", warmup_steps=0, clip_norm=1.0
    )
    optimizer = make_optimizer(config, params, starts={"heads/local": 1})
    state = optimizer.init(params)
    for head in (0.0, 4.0):  # not started, started
        gradients = {"heads": {"local": {"kernel": jnp.array([head])}}, "tower": {"kernel": jnp.array([3.0])}}
        updates, state = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates["tower"]["kernel"], -0.6, rtol=1e-6)
    np.testing.assert_allclose(updates["heads"]["local"]["kernel"], -0.8, rtol=1e-6)
