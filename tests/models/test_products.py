"""Products in the precision that jax's setting names: rounding, its bound, and that every linear layer follows."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.models import efficientnet, products

ROUNDING = 2.0**-9  # of one number to bfloat16, relative


@pytest.fixture(params=[(24, 40), (40, 24)], ids=["wider", "narrower"])
def operands(request):
    rng, (inputs, outputs) = np.random.default_rng(0), request.param
    return tuple(
        rng.normal(size=shape).astype(np.float32) for shape in ((96, inputs), (inputs, outputs), (96, outputs))
    )


def results(x, kernel, gradient, precision):
    """Value and both gradients."""
    with jax.default_matmul_precision(precision):
        value, backward = jax.vjp(products.product, x, kernel)
        return value, *backward(gradient)


def test_rounded_products_are_within_their_bound_of_the_exact_ones(operands):
    """Each number is off by 2^-9 at most, so a sum of products by (2 * 2^-9 + 2^-18) of the sum of their sizes."""
    found = results(*operands, "bfloat16")
    x, kernel, gradient = (np.float64(operand) for operand in operands)
    bound = 2 * ROUNDING + ROUNDING**2 + 1e-5  # sums in float32
    for got, a, b in zip(found, (x, gradient, x.T), (kernel, kernel.T, gradient), strict=True):
        assert got.dtype == jnp.float32
        error = np.abs(got - a @ b)
        assert np.all(error <= bound * (np.abs(a) @ np.abs(b))) and error.max() > 1e-4


def test_sums_are_not_rounded():
    """Of 4096 ones a sum in bfloat16 would stop at 256."""
    found = results(
        np.ones((2, 4096), np.float32), np.ones((4096, 1), np.float32), np.ones((2, 1), np.float32), "bfloat16"
    )
    assert np.all(found[0] == 4096) and np.all(found[2] == 2)


@pytest.mark.parametrize("precision", [None, "float32", "tensorfloat32"])
def test_a_cpu_rounds_nothing_else(operands, precision):
    for got, want in zip(results(*operands, precision), results(*operands, "float32"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_only_float32_is_rounded():
    x = jnp.linspace(0, 1, 64, dtype=jnp.bfloat16).reshape(8, 8)
    with jax.default_matmul_precision("bfloat16"):
        assert products.product(x, x).dtype == jnp.bfloat16
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"):
        assert products.product(jnp.full((1, 1), 1 + 1e-9), jnp.ones((1, 1)))[0, 0] == 1 + 1e-9


def test_eight_devices_give_the_same_as_one(operands):
    mesh = Mesh(np.array(jax.devices()[:8]), "data")
    split, same = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    one = results(*operands, "bfloat16")
    with jax.default_matmul_precision("bfloat16"):
        run = jax.jit(lambda x, k, g: (lambda y, vjp: (y, *vjp(g)))(*jax.vjp(products.product, x, k)))
        eight = run(*jax.device_put(operands, (split, same, split)))
    for a, b in zip(eight, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_block_of_efficientnet_stays_near():
    """Values and gradients through batch norm, swish, depthwise convolution and squeeze-excite."""
    spec = efficientnet.BlockSpec(stage=2, size=3, stride=1, inputs=8, expanded=48, squeezed=2, outputs=8)
    block = efficientnet.Block(spec, jnp.float32, "native")
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 8))
    padding = ((1, 1), (1, 1))
    variables = jax.jit(lambda: block.init(jax.random.key(1), x, False, padding))()

    def run(params, x):
        y, _ = block.apply(variables | {"params": params}, x, True, padding, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), y

    found = []
    for precision in ("bfloat16", "float32"):
        with jax.default_matmul_precision(precision):
            (_, y), gradients = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(variables["params"], x)
        found.append([y, gradients[1], gradients[0]["expand"]["kernel"], gradients[0]["project"]["kernel"]])
    for near, exact in zip(*found, strict=True):
        error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
        assert 1e-4 < error < 2e-2


def test_every_linear_layer_follows():
    """A layer of flax alone would stay in float32 on a CPU, and nobody would see it."""
    for path in Path(models.__file__).parent.glob("*.py"):
        assert path.name == "products.py" or not re.search(r"nn\.Dense\(", path.read_text()), path
    layer, x = products.Dense(4, name="layer"), jax.random.normal(jax.random.key(0), (3, 5, 8))
    variables = layer.init(jax.random.key(1), x)
    exact = nn.Dense(4).apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x), exact)
    with jax.default_matmul_precision("bfloat16"):
        near = layer.apply(variables, x)
    assert near.shape == exact.shape and 0 < np.abs(near - exact).max() < 0.05
