"""The step of attributes that is measured: maps of the encoder's shapes, and what they take of a disk."""

import jax
import numpy as np
import pytest

from mammoclip_jax.benchmarks import programs
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import make_mesh


def config_of():
    config = defaults()
    config.task.kind = "attributes"
    config.data.folders.images = "images"
    config.model.image.update(name="resnet", variant="18", width=4, depths=(1, 1))
    config.model.update(labels=("mass", "calcification"), stages=("stage1", "stage2"))
    config.model.attributes.update(dim=4, prompts="phantom", hidden=3)
    config.train.batch_size = 4
    return config


def test_a_step_is_taken_on_maps_of_the_encoders_shapes():
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        about, step = programs.attributes(config_of(), {"height": 32, "width": 16}, mesh)
        losses = [step()["loss"] for _ in range(3)]
    assert about["images"] == 4 and about["grid"] == "8x4x4 + 4x2x8" and about["size"] == (32, 16)
    assert about["map_bytes"] == 4 * (8 * 4 * 4 + 4 * 2 * 8)
    assert np.isfinite(losses).all() and losses[0] != losses[2]


def test_without_cached_maps_there_is_nothing_to_measure():
    config = config_of()
    config.task.cached_maps = False
    with pytest.raises(UserError, match="a step on cached maps"):
        programs.attributes(config, {"height": 32, "width": 16}, make_mesh({"data": 1}, jax.devices()[:1]))
