"""What is EfficientNet's own: pads, strides, eps, Lite blocks, dropout; the rest is in test_image_encoders.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from flax.traverse_util import flatten_dict, unflatten_dict
from image_contract import FORMS, evaluated, exact, image, run, shapes

from mammoclip_jax.models import layers
from mammoclip_jax.models.efficientnet import VARIANTS, EfficientNet, block_specs, pads, same_pad

SMALL = FORMS["efficientnet"]


@pytest.mark.parity
@pytest.mark.parametrize("output_stride, late", [(16, (6,)), (8, (4, 6))])
def test_late_stages_without_their_stride_equal_torch(output_stride, late):
    """The same network with the strides of its late stages taken out, and pads to match."""
    torch = pytest.importorskip("torch")
    model, variables, x = SMALL.model(output_stride=output_stride), SMALL.variables(), image(SMALL.size)
    theirs = SMALL.theirs.model(model, variables)
    specs = block_specs(SMALL.options["width"], SMALL.options["depth"])
    for i, spec in enumerate(specs):
        if spec.stage in late and spec.stride == 2:
            convolution = theirs._blocks[i]._depthwise_conv
            convolution.stride, convolution.static_padding = (1, 1), torch.nn.ZeroPad2d(spec.size // 2)
    outputs, _ = run(model, variables, x)
    with torch.no_grad():
        head = theirs.eval().extract_features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    close(outputs["head"], head)
    grids = model.stage_grids(*SMALL.size[1:3])
    assert grids["head"][0] == output_stride and grids["stage3"] == SMALL.model().stage_grids(75, 106)["stage3"]


# --- pads -------------------------------------------------------------------------------------------------------------


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
        "stem": (0, 1),
        "block03": (0, 1),
        "block08": (1, 2),
        "block13": (1, 1),
        "block27": (2, 2),
    }
    assert strided("b2", "nominal") == {
        "stem": (0, 1),
        "block02": (0, 1),
        "block05": (2, 2),
        "block08": (1, 1),
        "block16": (2, 2),
    }
    assert strided("b5", "detector") == {
        "stem": (0, 1),
        "block03": (0, 1),
        "block08": (1, 2),
        "block13": (0, 1),
        "block27": (1, 2),
    }
    assert strided("b2", "detector") == {
        "stem": (0, 1),
        "block02": (0, 1),
        "block05": (1, 2),
        "block08": (0, 1),
        "block16": (1, 2),
    }


def test_same_pads_follow_the_real_size():
    """SAME equals the nominal pads of B0 at B0's size 224, and not elsewhere."""
    specs = block_specs(1.0, 1.0)
    length = 224
    for name, size, stride in [("stem", 3, 2)] + [(f"block{i:02d}", s.size, s.stride) for i, s in enumerate(specs)]:
        assert same_pad(length, size, stride) == pads("b0")[name][0]
        length = -(-length // stride)
    outputs, _ = run(SMALL.model(pads="same"), SMALL.variables(), image(SMALL.size))
    expected = evaluated(SMALL)["pooled"]
    assert outputs["head"].shape[1:3] == (3, 4)  # rounded up; the nominal pads give 2 x 3
    assert np.abs(outputs["pooled"] - expected).max() > 1e-2 * np.abs(expected).max()


def test_symmetric_pads():
    assert strided("b5", "symmetric") == {
        "stem": (1, 1),
        "block03": (1, 1),
        "block08": (2, 2),
        "block13": (1, 1),
        "block27": (2, 2),
    }
    variables, x = SMALL.variables(), image((1, 64, 64, 3))
    outputs, _ = run(SMALL.model(pads="symmetric"), variables, x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, stem = variables["params"]["stem"]["kernel"], variables["params"]["stem_bn"]
    stats = variables["batch_stats"]["stem_bn"]
    corner = np.einsum("abi,abio->o", padded[0, :3, :3], kernel)  # the top left cell, by hand
    z = (corner - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * stem["scale"] + stem["bias"]
    np.testing.assert_allclose(outputs["stem"][0, 0, 0], z / (1 + np.exp(-z)), rtol=1e-4, atol=1e-5)


# --- the options of other people's weights ----------------------------------------------------------------------------


def test_eps_is_added_to_every_variance():
    """eps 2e-2 with the variances v equals eps 1e-3 with v + 1.9e-2, in evaluation; training uses it too."""
    plain, variables, x, _ = exact(SMALL)
    with jax.enable_x64(True):
        other = SMALL.model(jnp.float64, batch_norm_eps=2e-2)
        flat = flatten_dict(variables, sep="/")
        more = unflatten_dict({k: v + 1.9e-2 if k.endswith("/var") else v for k, v in flat.items()}, sep="/")
        ours, theirs = run(other, variables, x)[0], run(plain, more, x)[0]
        close(ours["pooled"], theirs["pooled"], 1e-10)
        trained, expected = (run(model, variables, x, True)[0]["stem"] for model in (other, plain))
    assert np.abs(trained - expected).max() > 1e-3


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
        ours, expected = (
            jax.grad(lambda *a: jnp.sum(f(*a) * weights), (0, 1, 2))(x, scale, bias)
            for f in (lambda *a: layers.batch_norm_act(*a, 1e-3, "relu6")[0], plain)
        )
    jax.tree.map(functools.partial(close, tolerance=1e-10), ours, expected)


def test_training_drops_pooled_features():
    model, variables, x = SMALL.model(drop_rate=None), SMALL.variables(), image((4, 32, 32, 3))
    apply = jax.jit(
        lambda key: model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]
    )
    (first, stages), (again, _), (other, _) = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 0.1 < np.mean(first == 0) < 0.3  # B0's dropout is 0.2
    assert not np.any(stages["head"].mean((1, 2)) == 0)


@pytest.mark.parametrize(
    "kind, output_stride",
    [
        *(("nominal", 32), ("detector", 32)),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in (("nominal", 8), ("symmetric", 32), ("same", 32))),
    ],
)
def test_stage_grids_say_where_a_cell_looks(kind, output_stride):
    """The pixels that a cell of an averaging network depends on are centred there."""
    model = EfficientNet(variant="b0", width=0.25, depth=0.3, pads=kind, output_stride=output_stride)
    height, width = 192, 208
    grids = model.stage_grids(height, width)
    image = np.ones((1, height, width, 1), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))

    def averaging(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/se/" in name or name.endswith(("bias", "mean")):
            return np.zeros(leaf.shape, np.float32)  # squeeze-excite without weights has no global path
        return np.full(leaf.shape, 1 / np.prod(leaf.shape[:-1]) if name.endswith("kernel") else 1, np.float32)

    variables = jax.tree_util.tree_map_with_path(averaging, shapes)
    stages = ("stem", "stage2", "stage3", "stage5")
    maps = jax.eval_shape(lambda: model.apply(variables, image, train=False)[1])
    middle = {stage: tuple(length // 2 for length in maps[stage].shape[1:3]) for stage in stages}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def seen(image, chosen):
        def cells(image):
            _, maps = model.apply(variables, image, train=False)
            return jnp.stack([maps[stage][0, *middle[stage]].sum() for stage in stages]) @ chosen

        return jax.grad(cells)(image)[0, :, :, 0]

    for stage, slope in zip(stages, seen(image, np.eye(len(stages), dtype=np.float32)), strict=True):
        (stride, centre), (i, j) = grids[stage], middle[stage]
        weight = np.abs(np.asarray(slope, np.float64))
        row = (weight.sum(1) * (np.arange(height) + 0.5)).sum() / weight.sum()
        column = (weight.sum(0) * (np.arange(width) + 0.5)).sum() / weight.sum()
        np.testing.assert_allclose((row, column), (stride * i + centre[0], stride * j + centre[1]), atol=0.3)
