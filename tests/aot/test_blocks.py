"""Single blocks compiled by themselves: the same result as in the network, and a row of figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.aot import blocks, topology
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.lone_block import lone_block


def test_a_row_of_the_first_block_with_stride():
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.1, depth=0.2, remat="expand")
    target = topology.load("cpu:1")
    row = blocks.compile_block(config, 1, 2, 64, 48, target)
    assert row | {"hbm_gib_per_image": 0, "temporaries_gib": 0} == {
        **dict(block=1, stage=2, kernel=3, stride=2, kernels="auto", ms=None, hbm_gib_per_image=0, temporaries_gib=0)
    }
    lines = blocks.text([row]).splitlines()
    assert lines[0].startswith("| block | stage") and lines[2].startswith("| 1 | 2 | 3 | 2 | auto |  |")
    with pytest.raises(UserError, match="no block 7: 7 blocks"):
        blocks.compile_block(config, 7, 2, 64, 48, target)
    config.model.image = {"name": "resnet"}
    with pytest.raises(UserError, match="resnet, not efficientnet"):
        blocks.compile_block(config, 0, 2, 64, 48, target)


def test_maps_between_blocks_are_those_of_the_network():
    """With `lanes`, whose cells change from block to block."""
    encoder = EfficientNet("b0", depth=0.2, lanes=True)
    x = jax.ShapeDtypeStruct((2, 64, 64, 1), jnp.float32)
    random = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    (_, stages), variables = jax.eval_shape(lambda: encoder.init_with_output(random, jnp.zeros(x.shape)))
    for index in range(7):
        block = lone_block(encoder, index, 2, 64, 64)
        after, map_ = block.gradient.shape, stages[f"stage{index + 1}"].shape
        assert after[0] == map_[1] and np.prod(after[1:]) == np.prod([*map_[2:], map_[0]])
        assert jax.tree.map(jnp.shape, block.variables["params"]) == jax.tree.map(
            jnp.shape, variables["params"][f"block{index:02d}"]
        )
        y, _, (_, to_x) = jax.eval_shape(block.run, block.variables, block.x, block.gradient, jax.random.key(0))
        assert y.shape == after and to_x.shape == block.x.shape
