"""MBConv blocks by kernels against the same blocks as XLA compiles them, by Pallas' interpreter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import kernels, packed
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.layers import Place
from mammoclip_jax.models.mbconv import Block, BlockSpec
from mammoclip_jax.training.mesh import batch_sharding, make_mesh

DROP = 0.3
# Of B5's blocks with stride, whose input is odd or has cells of two columns; of its first stage.
STRIDED = {"stride": 2, "padding": ((1, 2), (1, 2)), "columns": 2}
FIRST = {"expansion": 1, "columns": 4}


def pads(size):
    return ((size // 2,) * 2,) * 2


@functools.partial(jax.jit, static_argnums=(0, 4))
def step(block, variables, x, direction, padding):
    """(output, running statistics), gradients of the parameters and of x."""

    def loss(params, x):
        drop = jnp.float32(DROP), jax.random.key(1)
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updated = block.apply(given, x, True, padding, drop, mutable=["batch_stats"])
        return jnp.sum(y.astype(jnp.float32) * direction), (y.astype(jnp.float32), updated)

    (_, made), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return made, gradients


def case(size, channels, outputs, shape, dtype, stride=1, padding=None, expansion=6, columns=1):
    """A block, its variables, input and direction of the loss; `shape` and channels are those without cells."""
    padding, (n, height, width) = padding or pads(size), shape
    spec = BlockSpec(3, size, stride, channels, expansion * channels, 2, outputs)
    block = Block(spec, dtype, "native", place=Place(columns=columns))
    x = jax.random.normal(jax.random.key(0), (*shape, channels)).astype(dtype)
    variables = block.clone(place=Place()).init(jax.random.key(2), x, False, padding)
    leaves, tree = jax.tree.flatten(variables)
    draws = np.random.default_rng(0)
    leaves = [leaf + jnp.asarray(0.1 * draws.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    made = [(length + sum(around) - size) // stride + 1 for length, around in zip((height, width), padding)]
    direction = jax.random.normal(jax.random.key(3), (n, *made, outputs))
    direction = packed.repack(direction, 1, max(columns // stride, 1))
    return block, jax.tree.unflatten(tree, leaves), packed.repack(x, 1, columns), direction, padding


def fused_step(block, variables, x, direction, padding, devices=1):
    ours = block.clone(kernels="pallas")
    assert kernels.mbconv_fits(ours, x, padding)
    if devices == 1:
        return step(ours, variables, x, direction, padding)
    mesh = make_mesh({"data": 2, "fsdp": devices // 2}, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return step(ours, variables, *(jax.device_put(v, batch_sharding(mesh)) for v in (x, direction)), padding)


def distances(one, other, floor=0.0):
    """Of each array, as a share of its norm, or of `floor` of the largest norm where that is more."""
    one, other = ([np.asarray(v, np.float64) for v in jax.tree.leaves(tree)] for tree in (one, other))
    norms = np.array([np.linalg.norm(v) for v in one])
    return np.array([np.linalg.norm(a - b) for a, b in zip(one, other)]) / np.maximum(norms, floor * norms.max())


@pytest.mark.parametrize(
    "size,shape,options",
    [(3, (2, 5, 9), {}), (3, (2, 7, 9), {"stride": 2, "padding": ((1, 1), (0, 1))}), (3, (2, 5, 12), FIRST)],
)
def test_values_gradients_and_statistics_are_those_of_xla(size, shape, options):
    """Odd sizes, a block of channels that is not full, drop-connect, squeeze-excite, a shortcut."""
    given = case(size, 6, 6, shape, jnp.float32, **options)
    assert max(distances(step(*given), fused_step(*given))) < 5e-6


LARGE = pytest.mark.parametrize(
    "size,outputs,width,options",
    [(5, 22, 11, {}), (3, 9, 11, {}), (5, 9, 12, STRIDED), (3, 9, 11, {"stride": 2}), (3, 9, 12, FIRST)],
)


@pytest.mark.slow
@LARGE
def test_two_blocks_of_channels_on_eight_devices(size, outputs, width, options):
    """Global moments: a device's own would be far from XLA's."""
    given = case(size, 22, outputs, (16, 7, width), jnp.float32, **options)
    assert max(distances(step(*given), fused_step(*given, devices=8))) < 5e-6


@pytest.mark.slow
def test_devices_exchange_sums_alone():
    """A reshape that joins the images' axis with others would have every device receive all images."""
    block, variables, *arrays, padding = case(5, 22, 9, (16, 7, 12), jnp.bfloat16, **STRIDED)
    mesh = make_mesh({"data": 2, "fsdp": 4}, jax.devices()[:8])
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(v, batch_sharding(mesh)) for v in arrays]
        program = step.lower(block.clone(kernels="pallas"), variables, *arrays, padding).compile().as_text()
    assert set(re.findall(r"\b(all-\w+|collective-permute|reduce-scatter)\(", program)) == {"all-reduce"}


@pytest.mark.slow
@LARGE
def test_bfloat16_is_as_near_to_float32_as_xla_is(size, outputs, width, options):
    exact = step(*case(size, 22, outputs, (16, 7, width), jnp.float32, **options))
    given = case(size, 22, outputs, (16, 7, width), jnp.bfloat16, **options)
    theirs, ours = distances(exact, step(*given)), distances(exact, fused_step(*given))
    # Squeeze-excite's gradients are a few numbers, small differences of large ones: rounding may double them.
    assert np.all(ours <= 2 * theirs + 5e-3), np.stack([theirs, ours])
    assert np.median(ours / theirs) < 1.1


@pytest.mark.slow
def test_a_network_with_remat_has_the_same_gradients():
    x = jax.random.normal(jax.random.key(0), (4, 65, 49, 1))
    gradients = {}
    for name, options in {"xla": {}, "pallas": {"remat": "expand"}}.items():
        model = EfficientNet(
            "b0", width=0.1, depth=0.2, kernels=name, depthwise="native", batch_norm_eps=0.1, **options
        )
        variables = model.init(jax.random.key(1), x)

        @jax.jit
        def gradient(params, model=model, rest=variables["batch_stats"]):
            def loss(params):
                given = {"params": params, "batch_stats": rest}
                random = {"dropout": jax.random.key(4)}
                (y, _), updated = model.apply(given, x, train=True, mutable=["batch_stats"], rngs=random)
                return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), updated

            return jax.grad(loss, has_aux=True)(params)

        gradients[name] = gradient(variables["params"])
    # The bias before another block's normalisation has no gradient but rounding.
    assert max(distances(gradients["xla"], gradients["pallas"], floor=1e-3)) < 1e-3


def test_what_the_kernels_do_not_take_is_left_to_xla():
    x = jnp.zeros((2, 4, 4, 8))
    spec = BlockSpec(3, 3, 1, 8, 48, 2, 8)
    first = spec._replace(expanded=8)
    for changed, padding, channels in (
        ({"spec": spec._replace(squeezed=0)}, pads(3), 8),
        ({"place": Place(rows="space")}, pads(3), 8),
        ({}, ((0, 3), (0, 1)), 8),
        ({"spec": first._replace(stride=2)}, pads(3), 8),
        ({"spec": first._replace(size=5)}, pads(5), 8),
        ({"spec": first, "place": Place(columns=32)}, pads(3), 8 * 32),
        ({"spec": first}, ((0, 1), (0, 1)), 8),
    ):
        block = Block(**{"spec": spec, "dtype": jnp.float32, "formulation": None, "kernels": "pallas"} | changed)
        assert not kernels.mbconv_fits(block, jnp.zeros((*x.shape[:3], channels)), padding)
        assert kernels.mbconv_fits(block.clone(spec=spec, place=Place()), x, pads(3))
    with pytest.raises(UserError, match="pallas"):
        EfficientNet("b0", kernels="palas")
