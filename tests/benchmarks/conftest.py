"""A config small enough to be timed in a test."""

import os
import tempfile

import pytest

from mammoclip_jax.config import defaults


@pytest.fixture
def config():
    config = defaults()
    config.name = "tiny"
    config.compilation_cache = os.path.join(tempfile.gettempdir(), "mammoclip_jax_test_cache")
    # At width 0.25 stage 1 has as many outputs as inputs: a shortcut here, none in efficientnet_pytorch.
    config.model.image.update(name="efficientnet", variant="b0", width=0.5, depth=0.3)
    config.model.text.update(
        name="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.model.dim = 16
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(batch_size=2, warmup_steps=0, steps=10_000, lr=1e-3)
    return config
