"""Swin against transformers' `SwinModel`, live or through tests/golden/swin.npz.

The golden file holds what transformers returns for a small network whose weights `random_params` draws from fixed
seeds. To make it again: `python tests/models/test_swin.py` (needs torch and transformers).
"""

import functools
import re
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.swin import VARIANTS, Block, Swin, from_windows, position_index, regions, to_windows

GOLDEN = Path(__file__).parent.parent / "golden" / "swin.npz"
SMALL = {"width": 8, "depths": (2, 2), "heads": (2, 4), "drop_path_rate": 0.0}
SIZE = (2, 75, 106, 3)   # divided by nothing: zeros fill patches, windows and merged maps; both stages are shifted
EVEN = (2, 56, 112, 3)   # divided by all; the second stage's map is as high as a window, and not shifted
# timm's and the authors' without their classifier (head)
PARAMETERS = {"tiny": 27_519_354, "small": 48_837_258, "base": 86_743_224, "large": 194_995_476}


def shapes(model, channels=3):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32))
    return flatten_dict(variables["params"], sep="/")


def random_params(model, dtype=np.float32, channels=3):
    """Parameters drawn by NumPy, a seed for each name; biases of positions near one, so that they count."""
    values = {}
    for name, leaf in shapes(model, channels).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            value = random.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        elif kind == "scale":
            value = random.uniform(0.8, 1.2, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * (1.0 if kind.endswith("table") else 0.1)
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
    """Every parameter's gradient by name, in float64; that of the keys' biases is nearly zero."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in ours.items():
        assert value.dtype == np.float64
        close(value, theirs[name], tolerance, 1e-12 * largest)


# --- against torch ----------------------------------------------------------------------------------------------------


# Modules of transformers 5, whose names differ from its published files.
MODULES = {
    r"attention\.self\.(query|key|value)": lambda match: f"attention.{match[1][0]}_proj",
    r"attention\.self\.relative": "attention.relative_position_bias.relative",
    r"attention\.output\.dense": "attention.o_proj", r"intermediate\.dense": "mlp.fc1", r"output\.dense": "mlp.fc2",
}


def torch_name(name):
    """transformers' name of one of our parameters ("encoder/layers_1/blocks_0/intermediate/dense/kernel", ...)."""
    name = re.sub("_([0-9]+)(?=/)", r".\1", name).replace("/", ".")
    for ours, theirs in MODULES.items():
        name = re.sub(ours, theirs, name)
    return re.sub(r"\.(kernel|scale)$", ".weight", name)


def torch_layout(name, value):
    if not name.endswith("kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def torch_model(model, params):
    """The same network in transformers with the same parameters.

    One for each size: `SwinLayer` keeps the window and the shift that a small map has made it take.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    width, depths, heads = model.sizes
    flat = flatten_dict(params, sep="/")
    theirs = transformers.SwinModel(transformers.SwinConfig(
        embed_dim=width, depths=list(depths), num_heads=list(heads), window_size=model.window, drop_path_rate=0.0,
        num_channels=flat["embeddings/patch_embeddings/projection/kernel"].shape[2],
        layer_norm_eps=model.layer_norm_eps))
    state = {torch_name(name): torch.tensor(torch_layout(name, value)) for name, value in flat.items()}
    theirs = theirs.to(state["layernorm.weight"].dtype)
    theirs.load_state_dict(state, strict=True)
    return theirs


def torch_run(theirs, x, weights=None, **options):
    """Stage maps and pooled features, and with `weights` the gradients."""
    import torch

    outputs = theirs.train()(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True,
                             output_hidden_states_before_downsampling=True, **options)
    maps = {f"stage{i}" if i else "stem": value.detach().numpy().transpose(0, 2, 3, 1)
            for i, value in enumerate(outputs.reshaped_hidden_states)}
    maps["pooled"] = outputs.pooler_output.detach().numpy()
    if weights is not None:
        (outputs.pooler_output * torch.tensor(weights)).sum().backward()
    return maps, {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}


def features_equal(model, params, x, maps):
    pooled, stages = run(model, params, x)
    ours = {**stages, "pooled": pooled}
    assert ours.keys() == maps.keys()
    for name, expected in maps.items():
        close(ours[name], expected)


@pytest.mark.parity
@pytest.mark.parametrize("options", [
    SMALL, {"width": 4, "depths": (1, 2, 1, 3), "heads": (1, 2, 1, 4), "window": 2, "layer_norm_eps": 1e-3},
    pytest.param({"variant": "tiny"}, marks=pytest.mark.slow)], ids=str)
def test_features_equal_torch(options):
    """float32 rounding; tiny at its own 224 x 224, where the last stage is one window, and at an odd size."""
    model = Swin(**options)
    params = random_params(model)
    for size in [(1, 224, 224, 3), (1, 230, 333, 3)] if "variant" in options else [EVEN, SIZE]:
        x = image(size)
        features_equal(model, params, x, torch_run(torch_model(model, params), x)[0])


@pytest.mark.parity
@pytest.mark.parametrize("size", [(2, 64, 48, 1), (1, 9, 130, 1), (1, 3, 2, 1)], ids=str)
def test_maps_smaller_than_a_window(size):
    """transformers fails on them, as its bias fits whole windows alone, unless it always fills the windows.

    It then shifts them as well; that is switched off here, as it does itself for maps of one window.
    """
    pytest.importorskip("torch")
    model = Swin(**SMALL)
    params, x = random_params(model, channels=1), image(size)
    with pytest.raises(RuntimeError, match="size|shape"):
        torch_run(torch_model(model, params), x)
    theirs = torch_model(model, params)
    for i, stage in enumerate(theirs.encoder.layers):
        if min(-(-length // (4 * 2**i)) for length in size[1:3]) <= 7:
            for block in stage.blocks:
                block.shift_size = 0
    features_equal(model, params, x, torch_run(theirs, x, always_partition=True)[0])


@pytest.mark.parity
def test_gradients_equal_torch():
    with jax.enable_x64(True):
        model = Swin(dtype=jnp.float64, **SMALL)
        params, x = random_params(model, np.float64), image(SIZE, dtype=np.float64)
        weights = weights_of_pooled(model, x)
        ours = flatten_dict(gradients(model, params, x, weights), sep="/")
    theirs = torch_run(torch_model(model, params), x, weights)[1]
    ours = {torch_name(name): torch_layout(name, np.asarray(value)) for name, value in ours.items()}
    close_gradients(ours, theirs, 1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_of_the_originals(variant):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    width, depths, heads = VARIANTS[variant]
    with torch.device("meta"):
        theirs = transformers.SwinModel(transformers.SwinConfig(
            embed_dim=width, depths=list(depths), num_heads=list(heads)))
        other = timm.create_model(f"swin_{variant}_patch4_window7_224", num_classes=0)
    for network in (theirs, other):
        assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    ours = {torch_name(name): torch_layout(name, np.broadcast_to(np.float32(0), leaf.shape)).shape
            for name, leaf in shapes(Swin(variant=variant)).items()}
    assert ours == expected


def write_golden():
    """Maps averaged over pixels and norms of the gradients, in float64."""
    with jax.enable_x64(True):
        model = Swin(dtype=jnp.float64, **SMALL)
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
        model = Swin(dtype=jnp.float64, **SMALL)
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
    leaves = shapes(Swin(variant=variant))
    assert sum(leaf.size for leaf in leaves.values()) == PARAMETERS[variant]
    assert {"embeddings/patch_embeddings/projection/kernel", "embeddings/norm/scale", "layernorm/bias",
            "encoder/layers_0/downsample/reduction/kernel", "encoder/layers_2/downsample/norm/bias",
            "encoder/layers_2/blocks_5/attention/self/relative_position_bias_table",
            "encoder/layers_3/blocks_1/attention/output/dense/bias", "encoder/layers_0/blocks_1/layernorm_after/scale",
            "encoder/layers_1/blocks_0/intermediate/dense/kernel"} <= set(leaves)


def test_map_of_the_published_size():
    x = jax.ShapeDtypeStruct((1, 1520, 912, 3), jnp.float32)
    model = Swin()
    (pooled, stages), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert pooled.shape == (1, 768) and stages["stage1"].shape == (1, 380, 228, 96)
    assert stages["stage4"].shape == (1, 48, 29, 768) and set(stages) == set(model.stage_names)


def test_stage_grids_say_where_a_cell_looks():
    """Without attention, a change in row p reaches the cells that hold it: the mean of a cell's rows is its centre."""
    model = Swin(**SMALL)
    params = jax.tree_util.tree_map_with_path(
        lambda path, value: value * ("attention" not in str(path)), random_params(model, channels=1))
    x = np.zeros((129, 128, 40, 1), np.float32) + image((1, 128, 40, 1))
    x[np.arange(128), np.arange(128)] += 1
    _, stages = run(model, params, x)
    for name, i in (("stem", 6), ("stage1", 9), ("stage2", 7)):
        stride, centre = model.stage_grids(128, 40)[name]
        rows = np.flatnonzero((stages[name][:-1, i] != stages[name][-1, i]).any((1, 2)))
        assert len(rows) == stride and rows.mean() + 0.5 == stride * i + centre[0]


def test_any_number_of_channels_and_any_size():
    for channels in (1, 3, 4):
        leaf = shapes(Swin(**SMALL), channels)["embeddings/patch_embeddings/projection/kernel"]
        assert leaf.shape == (4, 4, channels, 8)
    model = Swin(**SMALL)
    pooled, stages = run(model, random_params(model, channels=1), image((2, 33, 1, 1)))
    assert pooled.shape == (2, 16) and np.isfinite(pooled).all()
    assert stages["stage1"].shape == (2, 9, 1, 8) and stages["stage2"].shape == (2, 5, 1, 16)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_by_hand():
    x = jnp.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows.shape == (2, 6, 4, 1) and windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert np.array_equal(from_windows(windows, 2, 4, 6), x)
    # A window of 2 x 2 has 9 relative positions: of each with itself the middle one; up, left are the first.
    assert position_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    # Rolled by one, the last row and column are the former first ones: only the last windows have several regions.
    assert regions(4, 4, 2, 1).tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 2, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("shifted, width, seen", [
    (False, 12, range(4, 8)), (True, 12, range(2, 6)), (True, 4, range(0, 4)), (True, 3, range(0, 3))])
def test_a_token_sees_its_window(shifted, width, seen):
    """Columns of a map, with windows of 4 x 4, that reach the token in column 5 (or the last), by its gradient."""
    block = Block(1, 4, shifted, 0.0, 1e-5, jnp.float32)
    x = jnp.asarray(image((1, 12, width, 4)))
    params = jax.jit(block.init, static_argnums=2)(jax.random.key(0), x, False)
    slope = jax.jit(jax.grad(lambda x: block.apply(params, x, False)[0, 5, min(5, width - 1)].sum()))(x)
    assert np.flatnonzero(np.abs(slope[0]).max((0, 2)) > 1e-7).tolist() == list(seen)


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_gradients_on_eight_devices_equal_one():
    """Every parameter, with weights large enough that the attention's gradients are not lost beside the others."""
    with jax.enable_x64(True):
        model = Swin(dtype=jnp.float64, **SMALL | {"depths": (2, 1)})
        params, x = random_params(model, np.float64), image((8, 40, 72, 3), dtype=np.float64)
        weights = weights_of_pooled(model, x)
        alone = gradients(model, params, x, weights)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        x, weights = jax.device_put((x, weights), batch)
        together = gradients(model, jax.device_put(params, copied), x, weights)
    close_gradients(flatten_dict(together, sep="/"), flatten_dict(alone, sep="/"), 1e-7)


def test_offsets_are_added_and_give_the_gradient_of_a_stage():
    with jax.enable_x64(True):
        model = Swin(dtype=jnp.float64, **SMALL)
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
        shift = 1e-6 * image(stages["stage1"].shape, 1, np.float64)
        (after, moved), _ = objective({**zeros, "stage1": shift})
        close(moved["stage1"], stages["stage1"] + shift, 1e-10)
        assert np.isclose(after - before, np.sum(slopes["stage1"] * shift), rtol=1e-3)
    with pytest.raises(UserError, match="stage9"):
        model.apply({"params": params}, x, offsets={"stage9": 0})


def test_recomputation_changes_no_gradient():
    with jax.enable_x64(True):
        plain, again = (Swin(remat=kind, dtype=jnp.float64, **SMALL) for kind in ("none", "block"))
        params, x = random_params(plain, np.float64), image(SIZE, dtype=np.float64)
        assert shapes(plain).keys() == shapes(again).keys()
        weights = weights_of_pooled(plain, x)
        assert "remat" in str(gradients.trace(again, params, x, weights).jaxpr)
        expected, actual = (flatten_dict(gradients(model, params, x, weights), sep="/") for model in (plain, again))
    close_gradients(actual, expected, 1e-7)


def test_training_drops_whole_paths_more_often_in_later_blocks():
    model = Swin(**SMALL | {"depths": (1, 2), "drop_path_rate": 0.9})
    params, x = random_params(model), image((8, 64, 32, 3))
    apply = jax.jit(lambda key: model.apply({"params": params}, x, train=True, rngs={"dropout": key}))
    (first, stages), (again, _), (other, stages_other) = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(stages["stage1"], stages_other["stage1"])  # the first block's rate is 0
    assert not np.allclose(stages["stage2"], stages_other["stage2"])


def test_attention_and_mlp_are_dropped_apart():
    """Of 64 samples, some are left as they were, and the others are one of three things."""
    block = Block(1, 2, False, 0.5, 1e-5, jnp.float32)
    x = jnp.broadcast_to(image((1, 4, 4, 4)), (64, 4, 4, 4))
    params = jax.jit(block.init, static_argnums=2)(jax.random.key(0), x, False)
    y = np.asarray(jax.jit(lambda key: block.apply(params, x, True, rngs={"dropout": key}))(jax.random.key(1)))
    assert len(np.unique(y.reshape(64, -1).round(4), axis=0)) == 4 and (y == x).all((1, 2, 3)).any()


def test_low_precision_keeps_float32_parameters_and_pooled():
    exact, low = (Swin(**SMALL, dtype=dtype) for dtype in (jnp.float32, jnp.dtype("bfloat16")))
    params, x = random_params(exact), image(SIZE)
    assert {leaf.dtype for leaf in shapes(low).values()} == {jnp.dtype(jnp.float32)}
    pooled, stages = run(low, params, x)
    assert pooled.dtype == jnp.float32 and stages["stem"].dtype == stages["stage2"].dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(pooled), np.ravel(run(exact, params, x)[0]))[0, 1] > 0.98


@pytest.mark.parametrize("options, message", [
    ({"variant": "tyny"}, "Did you mean 'tiny'"), ({"remat": "all"}, "remat 'all'"),
    ({"depths": (2, 1)}, "2 stages and heads=.* for 4"), ({"width": 100}, "stage 1 has 100 channels.* 3 heads"),
    ({"window": 0}, "window=0")])
def test_wrong_options_name_the_right_ones(options, message):
    with pytest.raises(UserError, match=message):
        Swin(**options)


if __name__ == "__main__":
    sys.path.insert(0, str(GOLDEN.parent.parent))
    from live import declare_operators

    declare_operators()
    write_golden()
