"""A tiny training: a batch that fits any encoder, and the step of a config."""

import jax
import numpy as np

from mammoclip_jax import inference, losses, models
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import frozen_parameters, make_optimizer
from mammoclip_jax.training.step import init_state, init_variables, make_gradient_fn, make_train_step

HEIGHT, WIDTH, LENGTH, VOCABULARY = 32, 32, 8, 40
FAST = {"xla_backend_optimization_level": 0}        # these programs run a few times, and take longer to compile


def batch(breasts=8, height=HEIGHT, width=WIDTH, length=LENGTH, vocabulary=VOCABULARY, flips=False):
    """Two views and two texts a breast; half of the breasts mirrored where `flips`."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, (breasts, 2, height, width), dtype=np.uint8),
        "token_ids": rng.integers(0, vocabulary, (breasts, 2, length), dtype=np.int32),
        "token_mask": np.arange(length) < rng.integers(3, length, (breasts, 2, 1)),
        "flip_horizontal": (rng.random(breasts) < 0.5) & flips, "flip_vertical": (rng.random(breasts) < 0.5) & flips,
        "record": np.zeros((breasts, 2), np.int32), "source": np.zeros(breasts, np.int32),
        "mask": np.ones(breasts, bool),
    }


def build(config, mesh):
    """(model, state on the mesh, step function, gradient function)."""
    model = models.build(config.model, VOCABULARY)
    preprocess = inference.preprocess_options(config)
    variables = jax.jit(lambda key: init_variables(model, key, (HEIGHT, WIDTH, 1), LENGTH),
                        compiler_options=FAST)(jax.random.key(0))
    params, train, towers = variables["params"], config.train, config.model.frozen
    optimizer = make_optimizer(train, params, towers)
    state = jax.device_put(init_state(variables, optimizer, jax.random.key(1), train), meshes.replicated(mesh))
    gradient_fn = make_gradient_fn(model, losses.build(config.losses), preprocess, mesh,
                                   frozen_parameters(train, params, towers))
    return model, state, make_train_step(gradient_fn, optimizer, train), gradient_fn
