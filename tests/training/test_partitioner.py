"""The faults of jax's partitioner that training/mesh.py and models/layers.py guard against, in its smallest form.

They are wrong gradients beside a right loss, in jax 0.10.2 and 0.12.0.1. A failure here after an update of jax says that
a fault is gone, or is another; the guards and docs/training.md then have to follow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax.training.mesh import AXES, batch_sharding, make_mesh, replicated

CHANNELS = 8


def convolution(x, kernel, stride=1):
    """Dense, grouped or depthwise, by the kernel's shape."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=CHANNELS // kernel.shape[2],
    )


@functools.cache
def arrays(rows):
    random = np.random.default_rng(0)
    channels = {"first": CHANNELS, "dense": CHANNELS, "depthwise": 1, "grouped": 2}
    kernels = {name: random.normal(size=(3, 3, n, CHANNELS)).astype(np.float32) for name, n in channels.items()}
    return kernels, random.normal(size=(8, rows, 6, CHANNELS)).astype(np.float32)


@jax.jit
def gradient(kernels, x):
    def loss(kernels):
        y = convolution(convolution(x, kernels["first"], 2), kernels["dense"], 2)
        y = convolution(convolution(y, kernels["depthwise"]), kernels["grouped"])
        return jnp.sin(y.mean((1, 2))).sum()

    return jax.value_and_grad(loss)(kernels)


def factors(rows, sizes, spec):
    """By what the partitioner multiplies each kernel's gradient, images lying over the mesh as `spec` says."""
    kernels, x = arrays(rows)
    mesh = make_mesh(sizes)
    loss, right = jax.device_get(gradient(kernels, x))
    x = jax.device_put(x, NamedSharding(mesh, spec))
    loss8, found = jax.device_get(gradient(jax.device_put(kernels, replicated(mesh)), x))
    np.testing.assert_allclose(loss8, loss, rtol=1e-4)
    factor = {name: np.vdot(found[name], right[name]) / np.vdot(right[name], right[name]) for name in right}
    for name in right:
        assert np.linalg.norm(found[name] - factor[name] * right[name]) < 5e-3 * np.linalg.norm(found[name]), name
    return {name: round(float(value), 2) for name, value in factor.items()}


RIGHT = {"first": 1, "dense": 1, "depthwise": 1, "grouped": 1}


@pytest.mark.parametrize("sizes", [{"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 4}])
def test_a_batch_that_is_replicated_over_an_axis_multiplies_depthwise_and_grouped_kernels(sizes):
    wrong = factors(16, sizes, PartitionSpec("data"))
    assert wrong == RIGHT | {"depthwise": sizes["fsdp"], "grouped": sizes["fsdp"]}
    assert batch_sharding(make_mesh(sizes)).spec == PartitionSpec(AXES)
    assert factors(16, sizes, PartitionSpec(AXES)) == RIGHT


def test_rows_that_do_not_split_evenly_double_dense_kernels_too():
    """76 rows over four devices: 38 and 19 after the strides."""
    wrong = factors(76, {"data": 2, "space": 4}, PartitionSpec("data", "space"))
    assert wrong == {"first": 1, "dense": 2, "depthwise": 2, "grouped": 2}
    assert factors(64, {"data": 2, "space": 4}, PartitionSpec("data", "space")) == RIGHT
