"""Depthwise convolution against XLA's own, batch norm against its formula by autodiff, the rest against NumPy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import layers
from mammoclip_jax.models.depthwise import depthwise_conv

CASES = [
    # N, H, W, C, k, stride, pads
    (2, 9, 8, 3, 3, 1, ((1, 1), (1, 1))),
    (3, 7, 10, 2, 5, 1, ((2, 2), (2, 2))),
    (1, 8, 9, 3, 3, 2, ((0, 1), (0, 1))),
    (2, 9, 8, 3, 3, 2, ((1, 1), (1, 1))),
    (2, 10, 7, 3, 5, 2, ((1, 2), (2, 2))),
    (8, 5, 6, 1, 5, 2, ((2, 2), (1, 2))),
    (2, 6, 7, 3, 3, 1, ((0, 0), (0, 2))),
    (2, 3, 2, 2, 5, 1, ((2, 2), (2, 2))),
    (2, 11, 9, 2, 3, 2, ((0, 0), (3, 0))),
    (1, 7, 7, 2, 2, 3, ((0, 0), (1, 1))),
]


def reference_conv(x, kernel, stride, pads):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def normal(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_depthwise_value_and_gradients_equal_xla(case, dtype, tolerance, formulation="shifted"):
    n, h, w, c, k, stride, pads = case

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with jax.enable_x64(dtype is np.float64):
        x, kernel = normal((n, h, w, c), 0, dtype), normal((k, k, c), 1, dtype)
        expected = value_and_gradients(functools.partial(reference_conv, stride=stride, pads=pads), x, kernel)
        ours = functools.partial(depthwise_conv, stride=stride, padding=pads, formulation=formulation)
        for value, reference in zip(value_and_gradients(ours, x, kernel), expected):
            assert value.dtype == dtype and relative(value, reference) < tolerance


@pytest.mark.parametrize("formulation", ["native", None])
def test_other_formulations_equal_xla(formulation):
    test_depthwise_value_and_gradients_equal_xla(CASES[4], np.float32, 2e-5, formulation)


@pytest.mark.parametrize("case", [CASES[i] for i in (1, 4, 5, 8, 9)], ids=str)
def test_sums_for_gpus_equal_xla(case):
    test_depthwise_value_and_gradients_equal_xla(case, np.float32, 2e-5, "sums")


def test_an_unknown_formulation_is_refused():
    with pytest.raises(UserError, match="no formulation 'shift'. Did you mean 'shifted'"):
        depthwise_conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1)), 1, ((1, 1), (1, 1)), "shift")


def test_depthwise_forward_by_hand():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])[..., None]
    y = depthwise_conv(x, kernel, 2, ((0, 1), (0, 1)), "shifted")
    assert y[0, :, :, 0].tolist() == [[285.0]]  # (3 + 1 - 3) // 2 + 1 = 1: sum of i * i for 1 to 9


@pytest.mark.parametrize("formulation", ["shifted", "sums"])
def test_depthwise_of_bfloat16_adds_up_in_float32(formulation):
    x, kernel = normal((2, 12, 10, 4)), normal((5, 5, 4), 1)
    exact = reference_conv(x, kernel, 1, ((2, 2), (2, 2)))
    low = jnp.asarray(x, jnp.bfloat16)
    y = depthwise_conv(low, jnp.asarray(kernel), 1, ((2, 2), (2, 2)), formulation)
    assert y.dtype == jnp.bfloat16 and relative(y, exact) < 1e-2
    total = lambda kernel: depthwise_conv(low, kernel, 1, ((2, 2), (2, 2)), formulation).astype(jnp.float32).sum()
    gradient = jax.grad(total)(jnp.asarray(kernel))
    exact = jax.grad(lambda kernel: reference_conv(low.astype(jnp.float32), kernel, 1, ((2, 2), (2, 2))).sum())(kernel)
    assert gradient.dtype == jnp.float32 and relative(gradient, exact) < 1e-5


@pytest.mark.parametrize("platform, grouped", [("cpu", 0), ("tpu", 3), ("cuda", 2), ("rocm", 2)])
def test_platform_of_the_lowering_picks_the_formulation(platform, grouped):
    def step(x, kernel):
        y, vjp = jax.vjp(lambda *a: depthwise_conv(*a, 2, ((1, 1), (1, 1))), x, kernel)
        return y, vjp(y)

    arguments = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4))
    text = jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == grouped
    assert ("stablehlo.while" in text) == (platform == "cpu")
    assert text.count("dimensions = [1, 2, 3]") == (
        3 if platform in ("cuda", "rocm") else 0
    )  # a reduction a row of taps


def test_no_communication_inside_the_kernel_gradients_loop():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def gradient(x, kernel):
        return jax.grad(lambda k: depthwise_conv(x, k, 1, ((1, 1), (1, 1)), "shifted").sum())(kernel)

    x = jax.device_put(normal((16, 6, 6, 4)), batch)
    text = jax.jit(gradient).lower(x, jnp.ones((3, 3, 4))).compile().as_text()
    computations = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", text)
    assert sum(" while(" in c for c in computations) == 1
    collective = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
    talking = [c for c in computations if collective.search(c)]
    assert len(talking) == 1 and talking[0].startswith("ENTRY")


def test_the_sums_of_all_devices_are_added_up_at_once():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def gradient(x, kernel):
        return jax.grad(lambda k: jnp.sin(depthwise_conv(x, k, 1, ((1, 1), (1, 1)), "sums")).sum())(kernel)

    whole, kernel = normal((16, 6, 6, 4)), jnp.ones((3, 3, 4))
    split = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    program = jax.jit(gradient).lower(split, kernel).compile()
    collectives = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", program.as_text())
    assert collectives == ["all-reduce"]
    assert relative(program(split, kernel), jax.jit(gradient)(whole, kernel)) < 1e-5


def test_depthwise_works_under_vmap_and_checkpoint():
    x, kernel = normal((2, 3, 6, 5, 2)), normal((3, 3, 2), 1)
    conv = functools.partial(depthwise_conv, stride=1, padding=((1, 1), (1, 1)))
    mapped = jax.vmap(conv, in_axes=(0, None))(x, kernel)
    assert relative(mapped[1], conv(x[1], kernel)) < 1e-6
    plain = jax.grad(lambda k: jnp.sum(conv(x[0], k) ** 2))(kernel)
    again = jax.grad(jax.checkpoint(lambda k: jnp.sum(conv(x[0], k) ** 2)))(kernel)
    assert relative(again, plain) < 1e-6


# --- batch norm -------------------------------------------------------------------------------------------------------


def plain_batch_norm(x, scale, bias, act):
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean((x - mean) ** 2, (0, 1, 2))
    z = (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias
    return z / (1 + jnp.exp(-z)) if act == "swish" else z


@pytest.mark.parametrize("act", [None, "swish"])
def test_batch_norm_value_and_gradients_equal_autodiff(act):
    with jax.enable_x64(True):
        x = normal((3, 5, 4, 6), 0, np.float64) * 3 + 2
        scale, bias, gradient = (normal(s, i, np.float64) for i, s in enumerate([(6,), (6,), x.shape], start=1))
        expected, reference_vjp = jax.vjp(functools.partial(plain_batch_norm, act=act), x, scale, bias)
        y, vjp = jax.vjp(lambda *a: layers.batch_norm_act(*a, 1e-3, act)[0], x, scale, bias)
        assert relative(y, expected) < 1e-12
        for ours, theirs in zip(vjp(gradient), reference_vjp(gradient)):
            assert relative(ours, theirs) < 1e-10


def test_batch_norm_is_normal_far_from_zero():
    """Mean 1000 times the deviation: E[x^2] - E[x]^2 in float32 would lose the variance."""
    x = (normal((4, 16, 16, 3)) * 0.3 + np.array([300.0, -300.0, 0.0])).astype(np.float32)
    y, mean, var = layers.batch_norm_act(x, jnp.ones(3), jnp.zeros(3), 1e-3, None)
    exact = x.astype(np.float64)
    assert np.allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5, atol=1e-5)
    assert np.allclose(var, exact.var((0, 1, 2)), rtol=2e-3)
    assert np.allclose(np.std(y, (0, 1, 2)), 1, atol=1e-2)


def test_batch_norm_of_a_constant_is_its_bias():
    x = jnp.full((2, 4, 4, 2), 7.7)
    y, _, var = layers.batch_norm_act(x, jnp.ones(2), jnp.array([0.5, -1.0]), 1e-3, None)
    assert np.allclose(y, [0.5, -1.0], atol=1e-3) and np.all(var >= 0) and np.all(var < 1e-6)
    gradient = jax.grad(lambda x: jnp.sum(layers.batch_norm_act(x, jnp.ones(2), jnp.zeros(2), 1e-3, "swish")[0]))(x)
    assert np.all(np.isfinite(gradient))


def test_running_statistics_as_torch():
    """momentum 0.99 on the old value, unbiased batch variance; evaluation uses them."""
    x = normal((2, 3, 4, 5)) + 1
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, True)
    assert np.all(variables["batch_stats"]["mean"] == 0) and np.all(variables["batch_stats"]["var"] == 1)
    y, new = module.apply(variables, x, True, mutable=["batch_stats"])
    assert np.allclose(new["batch_stats"]["mean"], 0.01 * x.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(new["batch_stats"]["var"], 0.99 + 0.01 * x.var((0, 1, 2), ddof=1), atol=1e-6)
    assert np.allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-5)
    evaluated = module.apply({"params": variables["params"], **new}, x, False)
    stats = new["batch_stats"]
    assert np.allclose(evaluated, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-3), atol=1e-5)


def test_bfloat16_activations_have_float32_statistics():
    x = jnp.asarray(normal((2, 8, 8, 4)) + 1, jnp.bfloat16)
    module = layers.BatchNorm("swish")
    variables = module.init(jax.random.key(0), x, True)
    y, new = module.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves((variables, new))} == {jnp.dtype(jnp.float32)}
    assert np.allclose(new["batch_stats"]["mean"], 0.01 * np.mean(np.asarray(x, np.float32), (0, 1, 2)), atol=1e-6)


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_swish_and_sigmoid():
    x = np.linspace(-30, 30, 101)
    with np.errstate(over="ignore"):
        exact = 1 / (1 + np.exp(-x))
    assert np.allclose(layers.sigmoid(jnp.asarray(x)), exact, atol=1e-7)
    assert np.allclose(layers.swish(jnp.asarray(x)), x * exact, atol=3e-6)


def test_pointwise_is_a_matrix_product_per_pixel():
    x = normal((2, 3, 5, 4))
    module = layers.Pointwise(7)
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (4, 7)
    assert np.allclose(y, np.einsum("nhwc,cd->nhwd", x, variables["params"]["kernel"]), atol=1e-5)


def test_squeeze_excite_by_numpy():
    x = normal((2, 3, 4, 6))
    module = layers.SqueezeExcite(2)
    params = module.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)  # biases start at zero
    squeezed = x.mean((1, 2)) @ params["reduce"]["kernel"] + params["reduce"]["bias"]
    squeezed = squeezed / (1 + np.exp(-squeezed))
    scale = 1 / (1 + np.exp(-(squeezed @ params["expand"]["kernel"] + params["expand"]["bias"])))
    assert np.allclose(module.apply({"params": params}, x), x * scale[:, None, None, :], atol=1e-5)


@pytest.mark.parametrize("kind", layers.POOLING)
def test_global_pool(kind):
    x = np.abs(normal((2, 3, 4, 5)))
    expected = {"avg": x.mean((1, 2)), "max": x.max((1, 2)), "gem": np.cbrt((x**3).mean((1, 2)))}[kind]
    y, variables = layers.GlobalPool(kind).init_with_output(jax.random.key(0), jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.float32 and np.allclose(y, expected, rtol=1e-2)
    assert variables == ({"params": {"exponent": 3.0}} if kind == "gem" else {})


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 1, 3))
    y = np.asarray(layers.drop_path(x, 0.25, jax.random.key(0)))
    per_sample = y.reshape(4000, -1)
    assert np.all(per_sample == per_sample[:, :1])
    assert set(np.unique(per_sample)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.03


def test_initial_deviations_are_those_of_tensorflow():
    """Normal with variance 2 / fan_out, a depthwise kernel counting one output per channel."""
    x = jnp.ones((1, 4, 4, 64))
    pads = ((1, 1), (1, 1))
    for module, arguments, expected in [
        (layers.Conv(96, 3), (x, pads), (2 / (9 * 96)) ** 0.5),
        (layers.Pointwise(96), (x,), (2 / 96) ** 0.5),
        (layers.Depthwise(5), (x, pads), (2 / 25) ** 0.5),
    ]:
        kernel = module.init(jax.random.key(0), *arguments)["params"]["kernel"]
        assert np.isclose(np.std(kernel), expected, rtol=0.06)
