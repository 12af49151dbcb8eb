"""MBConv blocks by kernels against the same blocks as XLA compiles them, by Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import kernels
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.layers import Place
from mammoclip_jax.models.mbconv import Block, BlockSpec
from mammoclip_jax.training.mesh import batch_sharding, make_mesh

DROP = 0.3


def pads(size):
    return ((size // 2,) * 2,) * 2


@functools.partial(jax.jit, static_argnums=(0,))
def step(block, variables, x, direction):
    """(output, running statistics), gradients of the parameters and of x."""

    def loss(params, x):
        drop = jnp.float32(DROP), jax.random.key(1)
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updated = block.apply(given, x, True, pads(block.spec.size), drop, mutable=["batch_stats"])
        return jnp.sum(y.astype(jnp.float32) * direction), (y.astype(jnp.float32), updated)

    (_, made), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return made, gradients


def case(size, channels, outputs, shape, dtype):
    block = Block(BlockSpec(3, size, 1, channels, 6 * channels, 2, outputs), dtype, "native")
    x = jax.random.normal(jax.random.key(0), (*shape, channels)).astype(dtype)
    variables = block.init(jax.random.key(2), x, False, pads(size))
    leaves, tree = jax.tree.flatten(variables)
    draws = np.random.default_rng(0)
    leaves = [leaf + jnp.asarray(0.1 * draws.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    direction = jax.random.normal(jax.random.key(3), (*shape, outputs))
    return block, jax.tree.unflatten(tree, leaves), x, direction


def distances(block, variables, x, direction, devices=1):
    """Of each array, the distance of kernels and XLA as a share of its norm."""
    ours = block.clone(kernels="pallas")
    assert kernels.mbconv_fits(ours, x, pads(block.spec.size))
    plain = step(block, variables, x, direction)
    if devices > 1:
        mesh = make_mesh({"data": 2, "fsdp": devices // 2}, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            fused = step(ours, variables, *(jax.device_put(v, batch_sharding(mesh)) for v in (x, direction)))
    else:
        fused = step(ours, variables, x, direction)

    def distance(a, b):
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    return jax.tree.map(distance, plain, fused)


def test_values_gradients_and_statistics_are_those_of_xla():
    """Odd sizes, a block of channels that is not full, drop-connect, squeeze-excite, a shortcut."""
    worst = max(jax.tree.leaves(distances(*case(3, 6, 6, (2, 5, 9), jnp.float32))))
    assert worst < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype,limit", [(jnp.float32, 5e-6), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("size,outputs", [(5, 22), (3, 9)])
def test_two_blocks_of_channels_on_eight_devices(size, outputs, dtype, limit):
    """Global moments: a device's own would be far from XLA's."""
    errors = distances(*case(size, 22, outputs, (16, 7, 11), dtype), devices=8)
    assert max(jax.tree.leaves(errors)) < limit


@pytest.mark.slow
def test_a_network_with_remat_and_scan_has_the_same_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 49, 33, 1))
    results = {}
    for name, options in {"xla": {}, "pallas": {"remat": "expand"}}.items():
        model = EfficientNet("b0", width=0.25, depth=0.5, kernels=name, depthwise="native", **options)
        variables = model.init(jax.random.key(1), x)

        @jax.jit
        def gradient(params, model=model, rest=variables["batch_stats"]):
            def loss(params):
                given = {"params": params, "batch_stats": rest}
                (y, _), updated = model.apply(
                    given, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(4)}
                )
                return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), updated

            return jax.grad(loss, has_aux=True)(params)

        results[name] = gradient(variables["params"])
    for a, b in zip(*map(jax.tree.leaves, results.values())):
        assert np.linalg.norm(a - b) <= 2e-3 * np.linalg.norm(a) + 1e-5


def test_what_the_kernels_do_not_take_is_left_to_xla():
    x = jnp.zeros((2, 4, 4, 8))
    spec = BlockSpec(3, 3, 1, 8, 48, 2, 8)
    for changed, padding in (
        ({"spec": spec._replace(stride=2)}, pads(3)),
        ({"spec": spec._replace(expanded=8)}, pads(3)),
        ({"spec": spec._replace(squeezed=0)}, pads(3)),
        ({"place": Place(rows="space")}, pads(3)),
        ({"place": Place(columns=2)}, pads(3)),
        ({}, ((0, 1), (0, 1))),
    ):
        block = Block(**{"spec": spec, "dtype": jnp.float32, "formulation": None, "kernels": "pallas"} | changed)
        assert not kernels.mbconv_fits(block, x, padding)
    with pytest.raises(UserError, match="pallas"):
        EfficientNet("b0", kernels="palas")
