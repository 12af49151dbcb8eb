"""ResNet against transformers' `ResNetModel`, live or through tests/golden/resnet.npz.

The golden file holds what transformers returns for two small networks whose weights `random_variables` draws from
fixed seeds. To make it again: `python tests/models/test_resnet.py` (needs torch and transformers).
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
from mammoclip_jax.models.resnet import VARIANTS, ResNet

GOLDEN = Path(__file__).parent.parent / "golden" / "resnet.npz"
SMALL = {
    "basic": {"variant": "18", "width": 8, "depths": (1, 2, 1, 1)},
    "bottleneck": {"variant": "50", "width": 8, "depths": (2, 1, 1, 1)},
}
SIZE = (2, 70, 101, 3)
# torchvision's without their classifier (fc)
PARAMETERS = {"18": 11_176_512, "34": 21_284_672, "50": 23_508_032, "101": 42_500_160, "152": 58_143_808}


def shapes(model, channels=3):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return flatten_dict(variables, sep="/")


def random_variables(model, dtype=np.float32, channels=3):
    """Variables drawn by NumPy, a seed for each name; kernels keep the size of activations about the same."""
    values = {}
    for name, leaf in shapes(model, channels).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            value = random.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        elif kind in ("scale", "var"):
            value = random.uniform(0.8, 1.2, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * 0.1
        values[name] = value.astype(dtype)
    return unflatten_dict(values, sep="/")


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights_of_last(model, variables, x):
    """Fixed weights that turn the last map into a scalar with a gradient everywhere."""
    (_, stages), _ = jax.eval_shape(functools.partial(model.apply, mutable=["batch_stats"]), variables, x)
    return np.random.default_rng(7).normal(size=stages["stage4"].shape).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, x, train):
    (pooled, stages), new = model.apply(variables, x, train=train, mutable=["batch_stats"])
    return pooled, stages, new["batch_stats"]


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})  # to compile fast
def gradients(model, variables, x, weights):
    """Gradient of sum(weights * last map) in training mode by every parameter, and what the forward pass returns."""
    def objective(params):
        (pooled, stages), new = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(stages["stage4"] * weights), (pooled, stages, new["batch_stats"])

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
    """transformers' name of one of our variables, which follow torchvision ("params/layer1_0/conv1/kernel", ...)."""
    _, *path, kind = name.split("/")
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[kind]
    part = "convolution" if path[-1].startswith("conv") or path[-1] == "downsample_0" else "normalization"
    if len(path) == 1:
        return f"embedder.embedder.{part}.{kind}"
    stage, block = path[0].removeprefix("layer").split("_")
    inner = "shortcut" if path[1].startswith("downsample") else f"layer.{int(path[1][-1]) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{inner}.{part}.{kind}"


def torch_layout(name, value):
    if not name.endswith("kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T[:, :, None, None]


def torch_model(model, variables):
    """The same network in transformers with the same variables."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    bottleneck = VARIANTS[model.variant].bottleneck
    theirs = transformers.ResNetModel(transformers.ResNetConfig(
        embedding_size=model.width, hidden_sizes=[model.width * 2**i * (4 if bottleneck else 1) for i in range(4)],
        depths=list(model.depths or VARIANTS[model.variant].depths),
        layer_type="bottleneck" if bottleneck else "basic"))
    flat = flatten_dict(variables, sep="/")
    state = {torch_name(name): torch.tensor(torch_layout(name, value)) for name, value in flat.items()}
    theirs = theirs.to(state["embedder.embedder.convolution.weight"].dtype)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return theirs


def torch_run(theirs, x, train, weights=None):
    """Stage maps and pooled features, buffers after the pass, and with `weights` the gradients."""
    import torch

    theirs.train(train).zero_grad()
    outputs = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True)
    if weights is not None:
        (outputs.last_hidden_state * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    names = ["stem", *(f"stage{i}" for i in range(1, len(outputs.hidden_states)))]
    maps = {name: value.detach().numpy().transpose(0, 2, 3, 1)
            for name, value in zip(names, outputs.hidden_states, strict=True)}
    maps["pooled"] = outputs.pooler_output.detach().numpy()[:, :, 0, 0]
    grads = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    return maps, {name: b.numpy().copy() for name, b in theirs.named_buffers()}, grads


@pytest.mark.parity
@pytest.mark.parametrize("options", [
    *SMALL.values(), pytest.param({"variant": "18"}, marks=pytest.mark.slow)], ids=[*SMALL, "18"])
def test_features_equal_torch(options):
    """In evaluation, and at another size in training with the running statistics that it leaves."""
    model = ResNet(**options)
    variables = random_variables(model)
    theirs = torch_model(model, variables)
    for size, train in [((2, 96, 64, 3), False), (SIZE, True)]:
        x = image(size)
        pooled, stages, stats = run(model, variables, x, train)
        maps, buffers, _ = torch_run(theirs, x, train)
        ours = {**stages, "pooled": pooled}
        assert ours.keys() == maps.keys()
        for name, expected in maps.items():
            close(ours[name], expected)
    for name, value in flatten_dict({"batch_stats": stats}, sep="/").items():
        close(value, buffers[torch_name(name)], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", SMALL)
def test_gradients_equal_torch(kind):
    with jax.enable_x64(True):
        model = ResNet(dtype=jnp.float64, **SMALL[kind])
        variables, x = random_variables(model, np.float64), image(SIZE, dtype=np.float64)
        weights = weights_of_last(model, variables, x)
        ours = flatten_dict({"params": gradients(model, variables, x, weights)[0]}, sep="/")
    theirs = torch_run(torch_model(model, variables), x, True, weights)[2]
    ours = {torch_name(name): torch_layout(name, np.asarray(value)) for name, value in ours.items()}
    close_gradients(ours, theirs, 1e-7)


def write_golden():
    """Maps averaged over pixels in both modes, running statistics, norms of the gradients; all in float64."""
    arrays = {}
    for kind, options in SMALL.items():
        with jax.enable_x64(True):
            model = ResNet(dtype=jnp.float64, **options)
            variables, x = random_variables(model, np.float64), image(SIZE, dtype=np.float64)
            weights = weights_of_last(model, variables, x)
        evaluated, _, _ = torch_run(torch_model(model, variables), x, False)
        trained, buffers, grads = torch_run(torch_model(model, variables), x, True, weights)
        for mode, maps in (("evaluated", evaluated), ("trained", trained)):
            arrays |= {f"{kind}/{mode}/{name}": _mean(value) for name, value in maps.items()}
        for name in flatten_dict(variables, sep="/"):
            if name.startswith("batch_stats/"):
                arrays[f"{kind}/{name}"] = buffers[torch_name(name)]
            else:
                arrays[f"{kind}/gradient_norm/{name}"] = np.linalg.norm(grads[torch_name(name)])
    np.savez_compressed(GOLDEN, **{name: np.float32(value) for name, value in arrays.items()})


def _mean(value):
    return value.mean((1, 2)) if value.ndim == 4 else value


@pytest.mark.parametrize("kind", SMALL)
def test_small_network_equals_golden(kind):
    golden = {name.removeprefix(f"{kind}/"): value for name, value in np.load(GOLDEN).items() if name.startswith(kind)}
    with jax.enable_x64(True):
        model = ResNet(dtype=jnp.float64, **SMALL[kind])
        variables, x = random_variables(model, np.float64), image(SIZE, dtype=np.float64)
        ours = {}
        pooled, stages, _ = run(model, variables, x, False)
        ours |= {f"evaluated/{name}": _mean(value) for name, value in {**stages, "pooled": pooled}.items()}
        grads, (pooled, stages, stats) = gradients(model, variables, x, weights_of_last(model, variables, x))
        ours |= {f"trained/{name}": _mean(value) for name, value in {**stages, "pooled": pooled}.items()}
        ours |= flatten_dict({"batch_stats": stats}, sep="/")
    for name, value in flatten_dict({"params": grads}, sep="/").items():
        ours[f"gradient_norm/{name}"] = np.linalg.norm(value)
    assert set(golden) == set(ours)
    largest = max(value for name, value in golden.items() if name.startswith("gradient_norm"))
    for name, expected in golden.items():
        close(ours[name], expected, 1e-6, 1e-9 * largest if name.startswith("gradient_norm") else 0)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_and_names(variant):
    leaves = shapes(ResNet(variant=variant))
    assert sum(leaf.size for name, leaf in leaves.items() if name.startswith("params/")) == PARAMETERS[variant]
    assert {"params/conv1/kernel", "params/bn1/scale", "params/layer2_0/downsample_0/kernel",
            "params/layer4_1/conv2/kernel", "batch_stats/layer3_0/downsample_1/var"} <= set(leaves)


def test_resnet_50_of_medclip():
    model = ResNet(variant="50", fc=512)
    leaves = shapes(model)
    assert sum(leaf.size for name, leaf in leaves.items() if name.startswith("params/")) == 24_556_608
    assert leaves["params/fc/kernel"].shape == (2048, 512)
    x = jax.ShapeDtypeStruct((1, 1520, 912, 3), jnp.float32)
    (pooled, stages), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert pooled.shape == (1, 512) and stages["stage4"].shape == (1, 48, 29, 2048)
    assert tuple(sorted(stages)) == tuple(sorted(model.stage_names))


def test_stage_grids_say_where_a_cell_looks():
    """A NaN in row p reaches the cells that see row p: the mean of a cell's rows is its centre."""
    model = ResNet(variant="18", width=2, depths=(1, 1, 1, 1))
    variables = random_variables(model, channels=1)
    x = np.zeros((96, 96, 32, 1), np.float32)
    x[np.arange(96), np.arange(96)] = np.nan
    _, stages, _ = run(model, variables, x, False)
    for name, i in (("stem", 6), ("stage1", 6), ("stage2", 6)):
        stride, centre = model.stage_grids(96, 32)[name]
        rows = np.flatnonzero(np.isnan(stages[name][:, i]).any((1, 2)))
        assert rows[0] > 0 and rows[-1] < 95 and rows.mean() + 0.5 == stride * i + centre[0]


def test_any_number_of_channels():
    for channels in (1, 3, 4):
        assert shapes(ResNet(), channels)["params/conv1/kernel"].shape == (7, 7, channels, 64)


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_gradients_on_eight_devices_equal_one():
    with jax.enable_x64(True):
        model = ResNet(dtype=jnp.float64, **SMALL["bottleneck"])
        variables, x = random_variables(model, np.float64), image((8, 40, 32, 3), dtype=np.float64)
        weights = weights_of_last(model, variables, x)
        alone, (_, _, stats_alone) = gradients(model, variables, x, weights)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        x, weights = jax.device_put((x, weights), batch)
        together, (_, _, stats_together) = gradients(model, jax.device_put(variables, copied), x, weights)
    close_gradients(flatten_dict(together, sep="/"), flatten_dict(alone, sep="/"), 1e-7)
    jax.tree.map(functools.partial(close, tolerance=1e-10), stats_together, stats_alone)


def test_offsets_are_added_and_give_the_gradient_of_a_stage():
    with jax.enable_x64(True):
        model = ResNet(dtype=jnp.float64, **SMALL["basic"])
        variables, x = random_variables(model, np.float64), image(SIZE, dtype=np.float64)
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
        last = stages["stage4"]
        expected = 2 * pooled[:, None, None] / (last.shape[1] * last.shape[2])
        close(slopes["stage4"], np.broadcast_to(expected, last.shape), 1e-10)
        shift = 1e-6 * image(stages["stage2"].shape, 1, np.float64)
        (after, moved), _ = energy({**zeros, "stage2": shift})
        close(moved["stage2"], stages["stage2"] + shift, 1e-10)
        assert np.isclose(after - before, np.sum(slopes["stage2"] * shift), rtol=1e-3)
    with pytest.raises(UserError, match="stage9"):
        model.apply(variables, x, offsets={"stage9": 0})


def test_recomputation_changes_no_gradient():
    with jax.enable_x64(True):
        plain, again = (ResNet(remat=kind, dtype=jnp.float64, **SMALL["basic"]) for kind in ("none", "block"))
        variables, x = random_variables(plain, np.float64), image(SIZE, dtype=np.float64)
        assert shapes(plain).keys() == shapes(again).keys()
        weights = weights_of_last(plain, variables, x)
        assert "remat" in str(gradients.trace(again, variables, x, weights).jaxpr)
        expected, actual = (
            flatten_dict(gradients(model, variables, x, weights)[0], sep="/") for model in (plain, again))
    close_gradients(actual, expected, 1e-7)


def test_low_precision_keeps_float32_parameters_and_pooled():
    exact, low = (ResNet(dtype=dtype, **SMALL["bottleneck"]) for dtype in (jnp.float32, jnp.dtype("bfloat16")))
    variables, x = random_variables(exact), image(SIZE)
    assert {leaf.dtype for leaf in shapes(low).values()} == {jnp.dtype(jnp.float32)}
    pooled, stages, _ = run(low, variables, x, True)
    assert pooled.dtype == jnp.float32 and stages["stem"].dtype == stages["stage4"].dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(pooled), np.ravel(run(exact, variables, x, True)[0]))[0, 1] > 0.98


@pytest.mark.parametrize("options, message", [
    ({"variant": "51"}, "variant '51'.*Known: 18"), ({"remat": "blok"}, "'block'")])
def test_wrong_options_name_the_right_ones(options, message):
    with pytest.raises(UserError, match=message):
        ResNet(**options)


if __name__ == "__main__":
    write_golden()
