"""ConvNeXt against transformers' `ConvNextModel`, live or through tests/golden/convnext.npz.

The golden file holds what transformers returns for a small network whose weights `random_params` draws from fixed
seeds. To make it again: `python tests/models/test_convnext.py` (needs torch and transformers).
"""

import functools
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.convnext import VARIANTS, ConvNext

GOLDEN = Path(__file__).parent.parent / "golden" / "convnext.npz"
SMALL = {"width": 8, "depths": (1, 2), "drop_path_rate": 0.0}
NATIVE = SMALL | {"depthwise": "native"}  # compiles faster than the CPU's own formulation
SIZE = (2, 75, 106, 3)
# the authors' without their classifier (head)
PARAMETERS = {"tiny": 27_820_128, "small": 49_454_688, "base": 87_566_464, "large": 196_230_336}


def shapes(model, channels=3):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return flatten_dict(variables["params"], sep="/")


def random_params(model, dtype=np.float32, channels=3):
    """Parameters drawn by NumPy, a seed for each name; layer scales near one, so that every block counts."""
    values = {}
    for name, leaf in shapes(model, channels).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[:2] if "dwconv" in name else leaf.shape[:-1])
            value = random.normal(size=leaf.shape) / fan_in**0.5
        elif kind in ("scale", "layer_scale_parameter"):
            value = random.uniform(0.8, 1.2, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * 0.1
        values[name] = value.astype(dtype)
    return unflatten_dict(values, sep="/")


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights_of_pooled(model, x):
    """Fixed weights that turn the pooled features into a scalar."""
    pooled, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x)[0])
    return np.random.default_rng(7).normal(size=pooled.shape).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, x):
    return model.apply({"params": params}, x, train=False)


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})  # to compile fast
def gradients(model, params, x, weights):
    """Gradient of sum(weights * pooled features) in training mode by every parameter."""
    return jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x, train=True)[0] * weights))(params)


def close(ours, theirs, tolerance=1e-4, absolute=0.0):
    """Largest difference relative to the largest value, beside an absolute part."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max() + absolute


def close_gradients(ours, theirs, tolerance):
    """Every parameter's gradient by name, in float64."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in ours.items():
        assert value.dtype == np.float64
        close(value, theirs[name], tolerance, 1e-12 * largest)


# --- against torch ----------------------------------------------------------------------------------------------------


def torch_name(name):
    """transformers' name of one of our parameters ("encoder/stages_1/layers_0/dwconv/kernel", ...)."""
    name = re.sub("_([0-9]+)(?=/)", r".\1", name).replace("/", ".")
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def torch_layout(name, value):
    if not name.endswith("kernel"):
        return value
    if value.ndim == 3:
        return value.transpose(2, 0, 1)[:, None]
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def torch_model(model, params):
    """The same network in transformers with the same parameters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    width, depths = model.width or VARIANTS[model.variant].width, model.depths or VARIANTS[model.variant].depths
    theirs = transformers.ConvNextModel(transformers.ConvNextConfig(
        hidden_sizes=[width * 2**i for i in range(len(depths))], depths=list(depths), num_stages=len(depths),
        layer_norm_eps=model.layer_norm_eps))
    flat = flatten_dict(params, sep="/")
    state = {torch_name(name): torch.tensor(torch_layout(name, value)) for name, value in flat.items()}
    theirs = theirs.to(state["layernorm.weight"].dtype)
    theirs.load_state_dict(state)
    return theirs


def torch_run(theirs, x, weights=None):
    """Stage maps and pooled features, and with `weights` the gradients."""
    import torch

    maps = {}

    def keep(name):
        return lambda module, inputs, output: maps.update({name: output.detach().numpy().transpose(0, 2, 3, 1)})

    modules = [theirs.embeddings, *theirs.encoder.stages]
    hooks = [module.register_forward_hook(keep("stem" if i == 0 else f"stage{i}")) for i, module in enumerate(modules)]
    outputs = theirs.train()(torch.tensor(x.transpose(0, 3, 1, 2)))
    for hook in hooks:
        hook.remove()
    maps["pooled"] = outputs.pooler_output.detach().numpy()
    if weights is not None:
        (outputs.pooler_output * torch.tensor(weights)).sum().backward()
    return maps, {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}


@pytest.mark.parity
@pytest.mark.parametrize("options", [
    SMALL, {"width": 4, "depths": (1, 1, 1, 1), "layer_norm_eps": 1e-12},
    pytest.param({"variant": "tiny"}, marks=pytest.mark.slow)], ids=str)
def test_features_equal_torch(options):
    model = ConvNext(**options)
    params = random_params(model)
    theirs = torch_model(model, params)
    for size in [(2, 96, 64, 3), SIZE]:
        x = image(size)
        pooled, stages = run(model, params, x)
        maps, _ = torch_run(theirs, x)
        ours = {**stages, "pooled": pooled}
        assert ours.keys() == maps.keys()
        for name, expected in maps.items():
            close(ours[name], expected)


@pytest.mark.parity
def test_gradients_equal_torch():
    with jax.enable_x64(True):
        model = ConvNext(dtype=jnp.float64, **SMALL)
        params, x = random_params(model, np.float64), image(SIZE, dtype=np.float64)
        weights = weights_of_pooled(model, x)
        ours = flatten_dict(gradients(model, params, x, weights), sep="/")
    theirs = torch_run(torch_model(model, params), x, weights)[1]
    ours = {torch_name(name): torch_layout(name, np.asarray(value)) for name, value in ours.items()}
    close_gradients(ours, theirs, 1e-7)


def write_golden():
    """Maps averaged over pixels and norms of the gradients, in float64."""
    with jax.enable_x64(True):
        model = ConvNext(dtype=jnp.float64, **SMALL)
        params, x = random_params(model, np.float64), image(SIZE, dtype=np.float64)
        weights = weights_of_pooled(model, x)
    maps, grads = torch_run(torch_model(model, params), x, weights)
    arrays = {name: _mean(value) for name, value in maps.items()}
    for name in flatten_dict(params, sep="/"):
        arrays[f"gradient_norm/{name}"] = np.linalg.norm(grads[torch_name(name)])
    np.savez_compressed(GOLDEN, **{name: np.float32(value) for name, value in arrays.items()})


def _mean(value):
    return value.mean((1, 2)) if value.ndim == 4 else value


def test_small_network_equals_golden():
    golden = np.load(GOLDEN)
    with jax.enable_x64(True):
        model = ConvNext(dtype=jnp.float64, **SMALL)
        params, x = random_params(model, np.float64), image(SIZE, dtype=np.float64)
        pooled, stages = run(model, params, x)
        grads = gradients(model, params, x, weights_of_pooled(model, x))
        ours = {name: _mean(value) for name, value in {**stages, "pooled": pooled}.items()}
    for name, value in flatten_dict(grads, sep="/").items():
        ours[f"gradient_norm/{name}"] = np.linalg.norm(value)
    assert set(golden) == set(ours)
    for name, expected in golden.items():
        close(ours[name], expected, 1e-6, 1e-9)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts_and_names(variant):
    leaves = shapes(ConvNext(variant=variant))
    assert sum(leaf.size for leaf in leaves.values()) == PARAMETERS[variant]
    assert {"embeddings/patch_embeddings/kernel", "embeddings/layernorm/scale", "layernorm/bias",
            "encoder/stages_1/downsampling_layer_1/bias", "encoder/stages_2/layers_8/dwconv/kernel",
            "encoder/stages_0/layers_2/layer_scale_parameter", "encoder/stages_3/layers_0/pwconv2/bias"} <= set(leaves)


def test_map_of_the_published_size():
    model = ConvNext()
    x = jax.ShapeDtypeStruct((1, 1520, 912, 3), jnp.float32)
    (pooled, stages), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert pooled.shape == (1, 768) and stages["stage4"].shape == (1, 47, 28, 768)
    assert set(stages) == set(model.stage_names)


def test_stage_grids_say_where_a_cell_looks():
    """A NaN in row p reaches the cells that see row p: the mean of a cell's rows is its centre."""
    model = ConvNext(**NATIVE | {"width": 2, "depths": (1, 1)})
    params = random_params(model, channels=1)
    x = np.zeros((128, 128, 32, 1), np.float32)
    x[np.arange(128), np.arange(128)] = np.nan
    _, stages = run(model, params, x)
    for name, i in (("stem", 6), ("stage1", 9), ("stage2", 7)):
        stride, centre = model.stage_grids(128, 32)[name]
        rows = np.flatnonzero(np.isnan(stages[name][:, i]).any((1, 2)))
        assert rows[0] > 0 and rows[-1] < 127 and rows.mean() + 0.5 == stride * i + centre[0]


def test_any_number_of_channels():
    for channels in (1, 3, 4):
        assert shapes(ConvNext(**SMALL), channels)["embeddings/patch_embeddings/kernel"].shape == (4, 4, channels, 8)


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["shifted", "native"])
def test_gradients_on_eight_devices_equal_one(formulation):
    """Every parameter: the partitioner multiplies depthwise gradients when the batch is not over all mesh axes."""
    with jax.enable_x64(True):
        model = ConvNext(depthwise=formulation, dtype=jnp.float64, **SMALL)
        params, x = random_params(model, np.float64), image((8, 32, 24, 3), dtype=np.float64)
        weights = weights_of_pooled(model, x)
        alone = gradients(model, params, x, weights)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        x, weights = jax.device_put((x, weights), batch)
        together = gradients(model, jax.device_put(params, copied), x, weights)
    close_gradients(flatten_dict(together, sep="/"), flatten_dict(alone, sep="/"), 1e-7)


def test_offsets_are_added_and_give_the_gradient_of_a_stage():
    with jax.enable_x64(True):
        model = ConvNext(dtype=jnp.float64, **NATIVE)
        params, x = random_params(model, np.float64), image(SIZE, dtype=np.float64)
        _, stages = run(model, params, x)
        weights = weights_of_pooled(model, x)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def objective(offsets):
            pooled, stages = model.apply({"params": params}, x, train=False, offsets=offsets)
            return jnp.sum(pooled * weights), stages

        zeros = {name: jnp.zeros_like(value) for name, value in stages.items()}
        (before, _), slopes = objective(zeros)
        assert set(slopes) == set(model.stage_names)
        assert all(np.abs(slope).max() > 0 for slope in slopes.values())
        shift = 1e-6 * image(stages["stage2"].shape, 1, np.float64)
        (after, moved), _ = objective({**zeros, "stage2": shift})
        close(moved["stage2"], stages["stage2"] + shift, 1e-10)
        assert np.isclose(after - before, np.sum(slopes["stage2"] * shift), rtol=1e-3)
    with pytest.raises(UserError, match="stage9"):
        model.apply({"params": params}, x, offsets={"stage9": 0})


def test_recomputation_changes_no_gradient():
    with jax.enable_x64(True):
        plain, again = (ConvNext(remat=kind, dtype=jnp.float64, **NATIVE) for kind in ("none", "block"))
        params, x = random_params(plain, np.float64), image(SIZE, dtype=np.float64)
        assert shapes(plain).keys() == shapes(again).keys()
        weights = weights_of_pooled(plain, x)
        assert "remat" in str(gradients.trace(again, params, x, weights).jaxpr)
        expected, actual = (flatten_dict(gradients(model, params, x, weights), sep="/") for model in (plain, again))
    close_gradients(actual, expected, 1e-7)


def test_training_drops_whole_paths_more_often_in_later_blocks():
    model = ConvNext(**NATIVE | {"drop_path_rate": 0.9})
    params, x = random_params(model), image((8, 64, 32, 3))
    apply = jax.jit(lambda key: model.apply({"params": params}, x, train=True, rngs={"dropout": key}))
    (first, stages), (again, _), (other, stages_other) = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(stages["stage1"], stages_other["stage1"])  # the first block's rate is 0
    assert not np.allclose(stages["stage2"], stages_other["stage2"])


def test_low_precision_keeps_float32_parameters_and_pooled():
    exact, low = (ConvNext(**NATIVE, dtype=dtype) for dtype in (jnp.float32, jnp.dtype("bfloat16")))
    params, x = random_params(exact), image(SIZE)
    assert {leaf.dtype for leaf in shapes(low).values()} == {jnp.dtype(jnp.float32)}
    pooled, stages = run(low, params, x)
    assert pooled.dtype == jnp.float32 and stages["stem"].dtype == stages["stage2"].dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(pooled), np.ravel(run(exact, params, x)[0]))[0, 1] > 0.98


@pytest.mark.parametrize("options, message", [
    ({"variant": "tyny"}, "Did you mean 'tiny'"), ({"remat": "all"}, "remat 'all'")])
def test_wrong_options_name_the_right_ones(options, message):
    with pytest.raises(UserError, match=message):
        ConvNext(**options)


def test_an_image_smaller_than_a_cell_is_refused():
    with pytest.raises(UserError, match="32 x 32"):
        jax.eval_shape(ConvNext().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 31, 3), jnp.float32))


if __name__ == "__main__":
    write_golden()
