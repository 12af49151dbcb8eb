"""EfficientNet against `efficientnet_pytorch`, live or through tests/golden/efficientnet.npz.

The golden file holds what `efficientnet_pytorch` 0.7.1 returns for a small network whose weights `random_variables`
draws from fixed seeds; efficientnet_lite.npz the same of `efficientnet_lite_pytorch` 0.1.0. To make them again:
`python tests/models/test_efficientnet.py` (needs torch).
"""

import functools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import layers
from mammoclip_jax.models.efficientnet import VARIANTS, EfficientNet, block_specs, pads, same_pad

GOLDEN = Path(__file__).parent.parent / "golden"
SMALL = {"variant": "b0", "width": 0.25, "depth": 0.2}
SMALL_SIZE = (2, 75, 106, 3)
FIXED = {"drop_rate": 0.0, "drop_connect_rate": 0.0}
SMALL_LITE = SMALL | {"variant": "lite0"}
SMALL_NETWORKS = {"efficientnet": SMALL, "efficientnet_lite": SMALL_LITE}      # by the name of their golden file
# efficientnet_pytorch 0.7.1 and efficientnet_lite_pytorch 0.1.0 without the classifier (_fc)
PARAMETERS = {
    "b0": 4_007_548, "b1": 6_513_184, "b2": 7_700_994, "b3": 10_696_232,
    "b4": 17_548_616, "b5": 28_340_784, "b6": 40_735_704, "b7": 63_786_960,
    "lite0": 3_371_008, "lite1": 4_135_680, "lite2": 4_811_072, "lite3": 6_916_096, "lite4": 11_725_568,
}


def shapes(model, channels=3):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return flatten_dict(variables, sep="/")


def random_variables(model, dtype=np.float32):
    """Variables drawn by NumPy, a seed for each name; kernels keep the size of activations about the same."""
    values = {}
    for name, leaf in shapes(model).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[:2] if "depthwise" in name else leaf.shape[:-1])
            value = random.normal(size=leaf.shape) * (2 / fan_in) ** 0.5
        elif kind in ("scale", "var"):
            value = random.uniform(0.8, 1.2, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * 0.1
        values[name] = value.astype(dtype)
    return unflatten_dict(values, sep="/")


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights_of_head(model, variables, x):
    """Fixed weights that turn the head map into a scalar with a gradient everywhere."""
    (_, stages), _ = jax.eval_shape(functools.partial(model.apply, mutable=["batch_stats"]), variables, x)
    return np.random.default_rng(7).normal(size=stages["head"].shape).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, train):
    (pooled, stages), new = model.apply(variables, x, train=train, mutable=["batch_stats"])
    return pooled, stages, new["batch_stats"]


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})  # to compile fast
def gradients(model, variables, x, weights):
    """Gradient of sum(weights * head map) in training mode by every parameter, and what the forward pass returns."""
    def objective(params):
        (pooled, stages), new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(stages["head"] * weights), (pooled, stages, new["batch_stats"])

    return jax.grad(objective, has_aux=True)(variables["params"])


def close(ours, theirs, tolerance=1e-4, absolute=0.0):
    """Largest difference relative to the largest value, beside an absolute part."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max() + absolute


def close_gradients(ours, theirs, tolerance):
    """Every parameter's gradient by name, in float64: some are zero but for rounding (a bias before a batch norm)."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in ours.items():
        assert value.dtype == np.float64
        close(value, theirs[name], tolerance, 1e-12 * largest)


# --- against torch ----------------------------------------------------------------------------------------------------


def torch_name(name):
    """efficientnet_pytorch's name of one of our variables ("params/block03/se/reduce/kernel", ...)."""
    collection, *path, kind = name.split("/")
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[kind]
    top = {"stem": "_conv_stem", "stem_bn": "_bn0", "head": "_conv_head", "head_bn": "_bn1"}
    inner = {
        "expand": "_expand_conv", "expand_bn": "_bn0", "depthwise": "_depthwise_conv", "depthwise_bn": "_bn1",
        "se/reduce": "_se_reduce", "se/expand": "_se_expand", "project": "_project_conv", "project_bn": "_bn2",
    }
    if path[0] in top:
        return f"{top[path[0]]}.{kind}"
    return f"_blocks.{int(path[0].removeprefix('block'))}.{inner['/'.join(path[1:])]}.{kind}"


def torch_layout(name, value):
    if not name.endswith("kernel"):
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.transpose(2, 0, 1)[:, None] if value.ndim == 3 else value.T[:, :, None, None]


def torch_model(model, variables):
    """The same network in efficientnet_pytorch with the same variables, without drop-connect."""
    torch = pytest.importorskip("torch")
    lite = "lite_" if VARIANTS[model.variant].lite else ""
    package = pytest.importorskip(f"efficientnet_{lite}pytorch")
    if model.width:
        build = package.utils.efficientnet_lite if lite else package.utils.efficientnet
        blocks, options = build(model.width, model.depth, image_size=VARIANTS[model.variant].size)
        theirs = package.EfficientNet(blocks, options)
    else:
        theirs = package.EfficientNet.from_name(f"efficientnet-{model.variant}")
    theirs._global_params = theirs._global_params._replace(drop_connect_rate=0.0)
    for block in theirs._blocks:  # a stage's first stride is [1], which they compare with 1: no shortcut in narrow ones
        block._block_args = block._block_args._replace(stride=int(np.max(block._block_args.stride)))
    flat = flatten_dict(variables, sep="/")
    state = {torch_name(name): torch.tensor(torch_layout(name, value)) for name, value in flat.items()}
    theirs = theirs.to(state["_conv_stem.weight"].dtype)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("_fc.") or key.endswith("num_batches_tracked") for key in missing)
    return theirs


def torch_run(theirs, x, train, weights=None):
    """Head map, map after each stage that has its own stride, running statistics, gradients; in our names."""
    import torch

    theirs.train(train)
    theirs.zero_grad()
    inputs = torch.tensor(x.transpose(0, 3, 1, 2))
    if hasattr(theirs, "extract_endpoints"):
        points = theirs.extract_endpoints(inputs)
    else:
        points = {"reduction_6": theirs.extract_features(inputs)}
    head = points["reduction_6"]
    names = ["stage1", "stage2", "stage3", "stage5", "stage7", "head"]
    maps = {name: points[f"reduction_{i}"].detach().numpy().transpose(0, 2, 3, 1)
            for i, name in enumerate(names, 1) if f"reduction_{i}" in points}
    if weights is not None:
        (head * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    return maps, {name: b.numpy().copy() for name, b in theirs.named_buffers()}, grads


@pytest.mark.parity
@pytest.mark.parametrize("variant, size, train_size", [("b0", (96, 64), (75, 106)), ("b2", (64, 96), (101, 75))])
def test_features_equal_torch(variant, size, train_size):
    """In evaluation, and at another size in training with the running statistics that it leaves."""
    model = EfficientNet(variant=variant, **FIXED)
    variables = random_variables(model)
    theirs = torch_model(model, variables)
    x = image((2, *size, 3))
    pooled, stages, _ = run(model, variables, x, False)
    maps, _, _ = torch_run(theirs, x, False)
    for name, expected in maps.items():
        close(stages[name], expected)
    close(pooled, maps["head"].mean((1, 2)))
    x = image((2, *train_size, 3))
    _, stages, stats = run(model, variables, x, True)
    maps, buffers, _ = torch_run(theirs, x, True)
    for name, expected in maps.items():
        close(stages[name], expected)
    for name, ours in flatten_dict({"batch_stats": stats}, sep="/").items():
        close(ours, buffers[torch_name(name)], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("output_stride, late", [(16, (6,)), (8, (4, 6))])
def test_late_stages_without_their_stride_equal_torch(output_stride, late):
    """The same network with the strides of its late stages taken out, and pads to match."""
    torch = pytest.importorskip("torch")
    model = EfficientNet(output_stride=output_stride, **SMALL, **FIXED)
    variables, x = random_variables(EfficientNet(**SMALL, **FIXED)), image(SMALL_SIZE)
    theirs = torch_model(model, variables)
    specs = block_specs(SMALL["width"], SMALL["depth"])
    for i, spec in enumerate(specs):
        if spec.stage in late and spec.stride == 2:
            convolution = theirs._blocks[i]._depthwise_conv
            convolution.stride, convolution.static_padding = (1, 1), torch.nn.ZeroPad2d(spec.size // 2)
    _, stages, _ = run(model, variables, x, False)
    with torch.no_grad():
        head = theirs.eval().extract_features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    close(stages["head"], head)
    grids = model.stage_grids(*SMALL_SIZE[1:3])
    assert grids["head"][0] == output_stride and grids["stage3"] == EfficientNet(**SMALL).stage_grids(75, 106)["stage3"]


@pytest.mark.parity
@pytest.mark.parametrize(
    "options", [SMALL, SMALL_LITE, pytest.param({"variant": "b0"}, marks=pytest.mark.slow)], ids=str)
def test_gradients_equal_torch(options):
    with jax.enable_x64(True):
        model = EfficientNet(dtype=jnp.float64, **options, **FIXED)
        variables, x = random_variables(model, np.float64), image(SMALL_SIZE, dtype=np.float64)
        weights = weights_of_head(model, variables, x)
        ours = flatten_dict({"params": gradients(model, variables, x, weights)[0]}, sep="/")
    theirs = torch_run(torch_model(model, variables), x, True, weights)[2]
    ours = {torch_name(name): torch_layout(name, np.asarray(value)) for name, value in ours.items()}
    close_gradients(ours, theirs, 1e-7)


def write_golden(network, options):
    """Maps averaged over pixels in both modes, running statistics, norms of the gradients; all in float64."""
    with jax.enable_x64(True):
        model = EfficientNet(dtype=jnp.float64, **options, **FIXED)
        variables, x = random_variables(model, np.float64), image(SMALL_SIZE, dtype=np.float64)
        weights = weights_of_head(model, variables, x)
    evaluated, _, _ = torch_run(torch_model(model, variables), x, False)
    trained, buffers, grads = torch_run(torch_model(model, variables), x, True, weights)
    arrays = {f"evaluated/{name}": value.mean((1, 2)) for name, value in evaluated.items()}
    arrays |= {f"trained/{name}": value.mean((1, 2)) for name, value in trained.items()}
    for name in flatten_dict(variables, sep="/"):
        if name.startswith("batch_stats/"):
            arrays[name] = buffers[torch_name(name)]
        else:
            arrays[f"gradient_norm/{name}"] = np.linalg.norm(grads[torch_name(name)])
    np.savez_compressed(GOLDEN / f"{network}.npz", **{name: np.float32(value) for name, value in arrays.items()})


@pytest.mark.parametrize("network", SMALL_NETWORKS)
def test_small_network_equals_golden(network):
    golden, options = np.load(GOLDEN / f"{network}.npz"), SMALL_NETWORKS[network]
    with jax.enable_x64(True):
        model = EfficientNet(dtype=jnp.float64, **options, **FIXED)
        variables, x = random_variables(model, np.float64), image(SMALL_SIZE, dtype=np.float64)
        _, evaluated, _ = run(model, variables, x, False)
        grads, (_, trained, stats) = gradients(model, variables, x, weights_of_head(model, variables, x))
        ours = {f"evaluated/{name}": value.mean((1, 2)) for name, value in evaluated.items()}
        ours |= {f"trained/{name}": value.mean((1, 2)) for name, value in trained.items()}
        ours |= flatten_dict({"batch_stats": stats}, sep="/")
    for name, value in flatten_dict({"params": grads}, sep="/").items():
        ours[f"gradient_norm/{name}"] = np.linalg.norm(value)
    assert set(golden) <= set(ours)
    largest = max(value for name, value in golden.items() if name.startswith("gradient_norm"))
    for name, expected in golden.items():
        close(ours[name], expected, 1e-6, 1e-9 * largest if name.startswith("gradient_norm") else 0)


# --- pads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_and_names(variant):
    model = EfficientNet(variant=variant)
    leaves = shapes(model)
    assert sum(leaf.size for name, leaf in leaves.items() if name.startswith("params/")) == PARAMETERS[variant]
    for name in ("stem/kernel", "stem_bn/scale", "block05/expand/kernel", "block00/depthwise/kernel",
                 "block00/project_bn/bias", "head/kernel"):
        assert f"params/{name}" in leaves
    for name in ("block00/se/reduce/kernel", "block00/se/expand/bias"):
        assert (f"params/{name}" in leaves) != VARIANTS[variant].lite
    assert "batch_stats/head_bn/var" in leaves


def strided(variant, kind):
    """(before, after) of the convolutions with stride 2."""
    specs = block_specs(1.0, VARIANTS[variant].depth)
    table = pads(variant, kind)
    assert all(vertical == horizontal for vertical, horizontal in table.values())
    for i, spec in enumerate(specs):
        if spec.stride == 1:
            assert table[f"block{i:02d}"][0] == (spec.size // 2,) * 2
    names = ["stem"] + [f"block{i:02d}" for i, spec in enumerate(specs) if spec.stride == 2]
    return {name: table[name][0] for name in names}


def test_pads_of_the_published_checkpoints():
    assert strided("b5", "nominal") == {
        "stem": (0, 1), "block03": (0, 1), "block08": (1, 2), "block13": (1, 1), "block27": (2, 2)}
    assert strided("b2", "nominal") == {
        "stem": (0, 1), "block02": (0, 1), "block05": (2, 2), "block08": (1, 1), "block16": (2, 2)}
    assert strided("b5", "detector") == {
        "stem": (0, 1), "block03": (0, 1), "block08": (1, 2), "block13": (0, 1), "block27": (1, 2)}
    assert strided("b2", "detector") == {
        "stem": (0, 1), "block02": (0, 1), "block05": (1, 2), "block08": (0, 1), "block16": (1, 2)}


@pytest.mark.parametrize("variant, channels", [("b5", 2048), ("b2", 1408)])
def test_map_of_the_published_size(variant, channels):
    model = EfficientNet(variant=variant)
    x = jax.ShapeDtypeStruct((1, 1520, 912, 3), jnp.float32)
    (pooled, stages), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert pooled.shape == (1, channels) and stages["head"].shape == (1, 48, 29, channels)
    assert set(stages) == set(model.stage_names) == {"stem", *(f"stage{i}" for i in range(1, 8)), "head"}


def test_same_pads_follow_the_real_size():
    """SAME equals the nominal pads of B0 at B0's size 224, and not elsewhere."""
    specs = block_specs(1.0, 1.0)
    length = 224
    for name, size, stride in [("stem", 3, 2)] + [(f"block{i:02d}", s.size, s.stride) for i, s in enumerate(specs)]:
        assert same_pad(length, size, stride) == pads("b0")[name][0]
        length = -(-length // stride)
    nominal, same = (EfficientNet(pads=kind, **SMALL, **FIXED) for kind in ("nominal", "same"))
    variables, x = random_variables(nominal), image(SMALL_SIZE)
    (expected, _, _), (pooled, stages, _) = (run(model, variables, x, False) for model in (nominal, same))
    assert stages["head"].shape[1:3] == (3, 4)  # rounded up; the nominal pads give 2 x 3
    assert np.abs(pooled - expected).max() > 1e-2 * np.abs(expected).max()


def test_symmetric_pads():
    assert strided("b5", "symmetric") == {
        "stem": (1, 1), "block03": (1, 1), "block08": (2, 2), "block13": (1, 1), "block27": (2, 2)}
    model = EfficientNet(pads="symmetric", **SMALL, **FIXED)
    variables, x = random_variables(model), image((1, 64, 64, 3))
    _, stages, _ = run(model, variables, x, False)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, stem = variables["params"]["stem"]["kernel"], variables["params"]["stem_bn"]
    stats = variables["batch_stats"]["stem_bn"]
    corner = np.einsum("abi,abio->o", padded[0, :3, :3], kernel)        # the top left cell, by hand
    z = (corner - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * stem["scale"] + stem["bias"]
    np.testing.assert_allclose(stages["stem"][0, 0, 0], z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-5)


# --- the options of other people's weights ----------------------------------------------------------------------------


def test_eps_is_added_to_every_variance():
    """eps 2e-2 with the variances v equals eps 1e-3 with v + 1.9e-2, in evaluation; training uses it too."""
    with jax.enable_x64(True):
        plain, other = (EfficientNet(dtype=jnp.float64, batch_norm_eps=eps, **SMALL, **FIXED) for eps in (1e-3, 2e-2))
        variables, x = random_variables(plain, np.float64), image(SMALL_SIZE, dtype=np.float64)
        flat = flatten_dict(variables, sep="/")
        more = unflatten_dict({k: v + 1.9e-2 if k.endswith("/var") else v for k, v in flat.items()}, sep="/")
        close(run(other, variables, x, False)[0], run(plain, more, x, False)[0], 1e-10)
        trained, expected = run(other, variables, x, True)[1], run(plain, variables, x, True)[1]
    assert np.abs(trained["stem"] - expected["stem"]).max() > 1e-3


def test_lite_blocks():
    """Stem, first stage's input and head are not scaled; first and last stage have one block."""
    specs = block_specs(1.4, 1.8, lite=True)
    assert [sum(spec.stage == stage for spec in specs) for stage in range(1, 8)] == [1, 4, 4, 6, 6, 8, 1]
    assert (specs[0].inputs, specs[0].outputs, specs[-1].outputs) == (32, 24, 448)
    leaves = shapes(EfficientNet(variant="lite4"))
    assert leaves["params/stem/kernel"].shape == (3, 3, 3, 32) and leaves["params/head/kernel"].shape == (448, 1280)


def test_relu6_backward_equals_automatic_differentiation():
    """Of batch normalisation and activation, in float64, with values on all three sides of the kinks."""
    with jax.enable_x64(True):
        x, weights = image((2, 4, 5, 3), 1, np.float64), image((2, 4, 5, 3), 2, np.float64)
        scale, bias = np.array([4.0, -3.0, 2.0]), np.array([3.0, 2.0, -0.5])

        def plain(x, scale, bias):
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            return jnp.minimum(jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-3) * scale + bias), 6.0)

        y = plain(x, scale, bias)
        assert all(np.mean(part) > 0.05 for part in (y == 0, y == 6, (y > 0) & (y < 6)))
        np.testing.assert_allclose(layers.batch_norm_act(x, scale, bias, 1e-3, "relu6")[0], y, atol=1e-12)
        ours, expected = (jax.grad(lambda *a: jnp.sum(f(*a) * weights), (0, 1, 2))(x, scale, bias) for f in (
            lambda *a: layers.batch_norm_act(*a, 1e-3, "relu6")[0], plain))
    jax.tree.map(functools.partial(close, tolerance=1e-10), ours, expected)


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["shifted", "native"])
def test_gradients_on_eight_devices_equal_one(formulation):
    """Every parameter: the partitioner multiplies depthwise gradients when the batch is not over all mesh axes."""
    with jax.enable_x64(True):
        model = EfficientNet(depthwise=formulation, dtype=jnp.float64, **SMALL, **FIXED)
        variables, x = random_variables(model, np.float64), image((8, 64, 32, 3), dtype=np.float64)
        weights = weights_of_head(model, variables, x)
        alone, (_, _, stats_alone) = gradients(model, variables, x, weights)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        x, weights = jax.device_put((x, weights), batch)
        together, (_, _, stats_together) = gradients(model, jax.device_put(variables, copied), x, weights)
    close_gradients(flatten_dict(together, sep="/"), flatten_dict(alone, sep="/"), 1e-7)
    jax.tree.map(functools.partial(close, tolerance=1e-10), stats_together, stats_alone)


def test_offsets_are_added_and_give_the_gradient_of_a_stage():
    with jax.enable_x64(True):
        model = EfficientNet(dtype=jnp.float64, **SMALL, **FIXED)
        variables, x = random_variables(model, np.float64), image(SMALL_SIZE, dtype=np.float64)
        pooled, stages, _ = run(model, variables, x, False)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def energy(offsets):
            pooled, stages = model.apply(variables, x, train=False, offsets=offsets)
            return jnp.sum(pooled**2), stages

        zeros = {name: jnp.zeros_like(value) for name, value in stages.items()}
        (before, _), slopes = energy(zeros)
        assert set(slopes) == set(model.stage_names)
        assert all(np.abs(slope).max() > 0 for slope in slopes.values())
        head = stages["head"]
        expected = 2 * pooled[:, None, None] / (head.shape[1] * head.shape[2])
        close(slopes["head"], np.broadcast_to(expected, head.shape), 1e-5)
        shift = 1e-4 * image(stages["stage5"].shape, 1, np.float64)
        (after, moved), _ = energy({**zeros, "stage5": shift})
        close(moved["stage5"], stages["stage5"] + shift, 1e-5)
        assert np.isclose(after - before, np.sum(slopes["stage5"] * shift), rtol=1e-3)
    with pytest.raises(UserError, match="stage9"):
        model.apply(variables, x, offsets={"stage9": 0})


@pytest.mark.parametrize("remat", ["block", "conv"])
def test_recomputation_changes_no_gradient(remat):
    with jax.enable_x64(True):
        plain, again = (EfficientNet(remat=kind, dtype=jnp.float64, **SMALL, **FIXED) for kind in ("none", remat))
        variables, x = random_variables(plain, np.float64), image(SMALL_SIZE, dtype=np.float64)
        assert shapes(plain).keys() == shapes(again).keys()
        weights = weights_of_head(plain, variables, x)
        assert "remat" in str(gradients.trace(again, variables, x, weights).jaxpr)
        assert "remat" not in str(gradients.trace(plain, variables, x, weights).jaxpr)
        expected, actual = (
            flatten_dict(gradients(model, variables, x, weights)[0], sep="/") for model in (plain, again))
    close_gradients(actual, expected, 1e-7)


def test_training_draws_dropout_and_drop_connect():
    model = EfficientNet(drop_connect_rate=0.9, **SMALL | {"depth": 0.4})  # depth for blocks with a shortcut
    variables, x = random_variables(model), image((4, 32, 32, 3))
    apply = jax.jit(lambda key: model.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0])
    (first, stages), (again, _), (other, stages_other) = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 0.1 < np.mean(first == 0) < 0.3  # B0's dropout is 0.2
    assert not np.any(stages["head"].mean((1, 2)) == 0)
    assert np.array_equal(stages["stage1"], stages_other["stage1"])  # no shortcut, nothing to drop
    assert not np.allclose(stages["stage6"], stages_other["stage6"])


def test_low_precision_keeps_float32_parameters_and_pooled():
    exact, low = EfficientNet(**SMALL, **FIXED), EfficientNet(dtype=jnp.dtype("bfloat16"), **SMALL, **FIXED)
    variables, x = random_variables(exact), image(SMALL_SIZE)
    assert {leaf.dtype for leaf in shapes(low).values()} == {jnp.dtype(jnp.float32)}
    pooled, stages, stats = run(low, variables, x, True)
    assert pooled.dtype == jnp.float32 and stages["stage3"].dtype == stages["head"].dtype == jnp.bfloat16
    expected, _, expected_stats = run(exact, variables, x, True)
    close(stats["stem_bn"]["mean"], expected_stats["stem_bn"]["mean"], 1e-2)
    assert np.corrcoef(np.ravel(pooled), np.ravel(expected))[0, 1] > 0.98


def test_any_number_of_channels():
    for channels in (1, 3, 4):
        assert shapes(EfficientNet(**SMALL), channels)["params/stem/kernel"].shape == (3, 3, channels, 8)


@pytest.mark.parametrize("options, message", [
    ({"variant": "b9"}, "variant 'b9'.*b0"), ({"pads": "nominl"}, "Did you mean 'nominal'"),
    ({"remat": "all"}, "remat='all' must be one of"), ({"remat": "block,block"}, "one a stage"),
    ({"pooling": "mean"}, "pooling 'mean'"), ({"output_stride": 4}, "output_stride=4 must be one of 8, 16, 32"),
])
def test_wrong_options_name_the_right_ones(options, message):
    with pytest.raises(UserError, match=message):
        EfficientNet(**options)


if __name__ == "__main__":
    for item in SMALL_NETWORKS.items():
        write_golden(*item)


@pytest.mark.parametrize("kind, output_stride", [
    ("nominal", 32), ("nominal", 8), ("detector", 32), ("symmetric", 32), ("same", 32)])
def test_stage_grids_say_where_a_cell_looks(kind, output_stride):
    """The pixels that a cell of an averaging network depends on are centred there."""
    model = EfficientNet(variant="b0", width=0.25, depth=0.3, pads=kind, output_stride=output_stride)
    height, width = 192, 208
    grids = model.stage_grids(height, width)
    image = jnp.ones((1, height, width, 1))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def averaging(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/se/" in name or name.endswith(("bias", "mean")):
            return jnp.zeros(leaf.shape)        # squeeze-excite without weights has no global path
        return jnp.ones(leaf.shape) / (np.prod(leaf.shape[:-1]) if name.endswith("kernel") else 1)

    variables = jax.tree_util.tree_map_with_path(averaging, shapes)
    for stage in ("stem", "stage2", "stage3", "stage5"):
        stride, centre = grids[stage]
        map_shape = jax.eval_shape(lambda x: model.apply(variables, x, train=False)[1][stage], image).shape
        i, j = map_shape[1] // 2, map_shape[2] // 2
        seen = jax.grad(lambda x: model.apply(variables, x, train=False)[1][stage][0, i, j].sum())(image)[0, :, :, 0]
        weight = np.abs(np.asarray(seen, np.float64))
        row = (weight.sum(1) * (np.arange(height) + 0.5)).sum() / weight.sum()
        column = (weight.sum(0) * (np.arange(width) + 0.5)).sum() / weight.sum()
        np.testing.assert_allclose((row, column), (stride * i + centre[0], stride * j + centre[1]), atol=0.3)
