"""A tiny training: a batch that fits any encoder, and the step of a config."""

import jax
import numpy as np

from mammoclip_jax.tasks.pretrain import make_trainer

HEIGHT, WIDTH, LENGTH, VOCABULARY = 32, 32, 8, 40
STAGES = ((1, 3, 1, 1, 32, 16), (2, 5, 2, 6, 16, 24))  # of EfficientNet, with all the kinds of its blocks


def batch(breasts=8, height=HEIGHT, width=WIDTH, length=LENGTH, vocabulary=VOCABULARY, flips=False):
    """Two views and two texts a breast; half of the breasts mirrored where `flips`."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, (breasts, 2, height, width), dtype=np.uint8),
        "token_ids": rng.integers(0, vocabulary, (breasts, 2, length), dtype=np.int32),
        "token_mask": np.arange(length) < rng.integers(3, length, (breasts, 2, 1)),
        "flip_horizontal": (rng.random(breasts) < 0.5) & flips,
        "flip_vertical": (rng.random(breasts) < 0.5) & flips,
        "record": np.zeros((breasts, 2), np.int32),
        "source": np.zeros(breasts, np.int32),
        "mask": np.ones(breasts, bool),
    }


def build(config, mesh):
    """(model, state on the mesh, step function, gradient function)."""
    config.train.batch_size, config.data.text_length = 8, LENGTH
    trainer = make_trainer(config, VOCABULARY, {"height": HEIGHT, "width": WIDTH, "bits": 8}, mesh)
    return trainer.model, trainer.init(), trainer.step, trainer.gradient


def placed(state, trainer):
    """The state, lying as that of `trainer` does: drawing it anew would take as long to compile as a gradient."""
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, trainer.state))
