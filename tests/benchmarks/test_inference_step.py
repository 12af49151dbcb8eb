"""The encoder forward alone, as it is measured: how many images, their size, what it counts as work."""

import jax
import jax.numpy as jnp
import pytest
from fake_worker import FakeWorker

from mammoclip_jax import models
from mammoclip_jax.aot import flops
from mammoclip_jax.benchmarks import programs, training
from mammoclip_jax.training.mesh import make_mesh


@pytest.mark.parametrize("devices", [1, 2])
def test_the_encoder_runs_forward_alone(config, devices):
    config.model.image = dict(name="resnet", variant="18", width=4, depths=(1, 1))
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        about, step = programs.WORKS["inference"](config, {"images": 4, "height": 32, "width": 24}, mesh)
        assert step() == {}
    encoder = models.image_encoder(config.model.image.to_dict(), jnp.float32)
    example = jax.ShapeDtypeStruct((4, 32, 24, config.image.channels), jnp.float32)
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), example)
    assert about["images"] == 4 and about["compile_seconds"] > 0 and about["compiled_flops"] > 0
    assert about["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert about["model_flops"] == flops.model_flops(lambda v, x: encoder.apply(v, x, train=False), variables, example)


def test_each_device_has_as_many_images(config):
    asked = []

    class Worker(FakeWorker):
        def __init__(self, module, specification, environment):
            asked.append((module, specification["images"], specification["height"], specification["width"]))
            count = specification["devices"]
            super().__init__(
                module, {"seconds": (1.0,), "bytes": 1, "about": {"images": 3 * count, "devices": count}}, environment
            )

    options = {"height": 64, "width": 48, "lengths": (8,), "vocab_size": 50, "steps": 1, "warm_up": 1, "tunables": ""}
    rows = training.rows(config, "inference", start=Worker, images=3, devices=(1, 2), **options)
    assert [images for _, images, *_ in asked] == [3, 6] and asked[0][2:] == (64, 48)
    assert [row["images_per_second_per_device"] for row in rows] == [3.0, 3.0] and rows[0]["work"] == "inference"
