"""RoIAlign against a loop over samples: boxes anywhere, both conventions, its gradient, levels, one program for all batches."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.roi_align import level_of, roi_align, roi_align_levels
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import batch_sharding, make_mesh

N, R, H, W, STRIDE = 2, 11, 6, 9, 8


def bilinear(x, row, column):
    """torchvision's bilinear_interpolate on [h w C]."""
    h, w = x.shape[:2]
    if row < -1 or row > h or column < -1 or column > w:
        return np.zeros(x.shape[2])
    row, column = max(row, 0), max(column, 0)
    top, left = min(int(row), h - 1), min(int(column), w - 1)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    down = row - top if top < h - 1 else 0
    across = column - left if left < w - 1 else 0
    upper = (1 - across) * x[top, left] + across * x[top, right]
    lower = (1 - across) * x[bottom, left] + across * x[bottom, right]
    return (1 - down) * upper + down * lower


def naive(x, box, size, samples, aligned, stride=STRIDE):
    """[p q C] of one box, as csrc/ops/cpu/roi_align_kernel.cpp."""
    left, top, right, bottom = (side / stride - (0.5 if aligned else 0) for side in box)
    height, width = bottom - top, right - left
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    high, wide = height / size[0], width / size[1]
    rows, columns = (samples or math.ceil(side) for side in (high, wide))
    out = np.zeros((*size, x.shape[2]))
    for p in range(size[0]):
        for q in range(size[1]):
            for i in range(rows):
                for j in range(columns):
                    row = top + p * high + (i + 0.5) * high / rows
                    out[p, q] += bilinear(x, row, left + q * wide + (j + 0.5) * wide / columns)
            out[p, q] /= max(rows * columns, 1)
    return out


@pytest.fixture(scope="module")
def data():
    """Maps, and boxes of every kind, in images of 72 x 48 pixels."""
    rng = np.random.default_rng(0)
    kinds = [
        [8, 8, 40, 40],  # on cells
        [13.3, 10.7, 37.9, 29.2],
        [0, 0, 72, 48],  # whole
        [-10, -12, 20, 30],  # past the border
        [50, 30, 90, 77],
        [-900, 3, 1300, 4000],  # far past it
        [-300, -40, -200, -30],  # nowhere near
        [30, 20, 31.5, 21.2],  # tiny
        [20, 10, 20.4, 47],  # a sliver
        [36, 24, 36, 24],  # no area
        [40, 30, 30, 20],  # inside out
    ]
    shift = rng.uniform(-4, 4, (1, R, 1))
    boxes = np.concatenate([np.array([kinds], float), np.array([kinds]) + shift])
    mask = rng.random((N, R)) < 0.8
    mask[0], mask[1, 0] = True, False
    boxes[~mask] = np.nan
    return rng.normal(size=(N, H, W, 3)), boxes, mask


@pytest.mark.parametrize(
    "size, width, samples, aligned",
    [
        ((7, 7), 3, 0, True),
        ((7, 7), 3, 2, False),
        ((2, 3), 20, 0, False),
        ((2, 3), 20, 1, True),
        ((1, 1), 3, 0, True),
        ((1, 1), 3, 3, False),
    ],
)
def test_equals_the_loop_and_so_does_its_gradient(data, size, width, samples, aligned):
    maps, boxes, mask = data
    maps = np.tile(maps, 7)[..., :width]  # from few channels and from many the products are taken in another order
    with jax.enable_x64(True):

        @jax.jit
        def run(maps, upstream):
            pooled, pull = jax.vjp(
                lambda x: roi_align(x, boxes, mask, stride=STRIDE, size=size, samples=samples, aligned=aligned), maps
            )
            return pooled, pull(upstream)[0]

        expected = np.zeros((N, R, *size, width))
        for n, r in zip(*np.nonzero(mask)):
            expected[n, r] = naive(maps[n], boxes[n, r], size, samples, aligned)
        upstream, rng = np.random.default_rng(1).normal(size=expected.shape), np.random.default_rng(2)
        pooled, gradient = jax.device_get(run(maps, upstream))
        np.testing.assert_allclose(pooled, expected, atol=1e-11)
        # Linear in the map, so along any direction the derivative is what the loop makes of that.
        direction = rng.normal(size=maps.shape)
        moved = sum(
            (naive(direction[n], boxes[n, r], size, samples, aligned) * upstream[n, r]).sum()
            for n, r in zip(*np.nonzero(mask))
        )
        np.testing.assert_allclose((gradient * direction).sum(), moved, rtol=1e-9)


def test_one_program_serves_all_boxes_and_float16_maps_stay_so(data):
    maps, boxes, mask = data
    traces = []

    @jax.jit
    def run(maps, boxes, mask):
        traces.append(None)
        return roi_align(maps, boxes, mask, stride=STRIDE)

    small = jnp.asarray(maps, jnp.bfloat16)
    for shift in (0, 5, 700):
        found = run(small, np.nan_to_num(boxes) * 1.3 + shift, mask)
    assert len(traces) == 1 and found.dtype == jnp.bfloat16 and np.isfinite(np.float32(found)).all()


def test_same_value_and_gradient_on_one_and_eight_devices(data):
    maps, boxes, mask = (np.concatenate([x] * 4) for x in data)
    maps = np.float32(maps + np.arange(8)[:, None, None, None])
    found = []
    for devices in (1, 8):
        mesh = make_mesh({"data": -1}, jax.devices()[:devices])

        @jax.jit
        def run(weights, maps, boxes, mask):
            def loss(weights):
                return (roi_align(maps @ weights, boxes, mask, stride=STRIDE, size=(2, 2)) ** 2).sum()

            return jax.value_and_grad(loss)(weights)

        placed = jax.device_put((maps, np.float32(boxes), mask), batch_sharding(mesh))
        found.append(jax.device_get(run(np.ones((3, 2), np.float32), *placed)))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=1e-5), *found)


def test_a_planted_square_keeps_its_value_after_flip_affine_and_crop():
    """Where the boxes go with the image, the mean in a box is that of the square, to 2 %; elsewhere it is not."""
    size, box, value = (120, 100), np.array([[[25.0, 30.0, 85.0, 95.0]]], np.float32), 0.8
    image = np.zeros((1, 1, *size), np.uint8)
    image[..., 30:95, 25:85] = round(255 * value)
    options = augment.Preprocess(
        0.0, 1.0, 1, "range", affine_probability=1.0, translate=0.05, scale=(0.8, 1.0), crop=(0.7, 0.9)
    )

    @jax.jit
    def run(key, flips):
        batch = {"image": image, "boxes": box[None], "box_classes": np.zeros((1, 1, 1), np.int32)} | flips
        draws = augment.draw(batch, key, options)
        found = augment.train_images(image[:, 0], draws, options)
        moved = augment.with_moved_boxes(batch, draws, options)["boxes"][:, 0]
        return [roi_align(found, x, np.ones((1, 1), bool), stride=1).mean() for x in (moved, box)]

    for seed, flips in enumerate(([False, True], [True, False], [True, True])):
        named = {f"flip_{axis}": np.array([flip]) for axis, flip in zip(("horizontal", "vertical"), flips)}
        pooled, unmoved = run(jax.random.key(seed), named)
        assert pooled == pytest.approx(value, rel=0.02) and abs(unmoved - value) > 0.05 * value


def test_each_box_is_of_the_level_of_its_size(data):
    sides = np.array([1, 55, 56, 111, 112, 223.9, 224, 448, 5000])
    boxes = np.stack([0 * sides, 0 * sides, sides / 2, sides * 2], -1)
    pyramid = [int(np.clip(math.floor(4 + math.log2(side / 224)), 2, 5)) - 2 for side in sides]
    np.testing.assert_array_equal(level_of(boxes, (4, 8, 16, 32)), pyramid)
    assert level_of(np.zeros(4), (4, 8)) == 0

    maps, boxes, mask = data
    strides, options = (8, 24), {"size": (2, 2), "samples": 2}
    levels = np.float32(maps), np.float32(maps[:, ::3, ::3])

    @jax.jit
    def run(levels):
        found = roi_align_levels(levels, boxes, mask, strides=strides, cells=1.5, **options)
        return found, [roi_align(x, boxes, mask, stride=stride, **options) for x, stride in zip(levels, strides)]

    found, each = run(levels)
    level = np.asarray(level_of(np.nan_to_num(boxes), strides, 1.5))
    np.testing.assert_allclose(found, np.where(level[..., None, None, None] == 1, each[1], each[0]), atol=1e-6)
    assert {0, 1} <= set(level[mask])


def test_what_cannot_be_done_is_explained(data):
    pool = functools.partial(roi_align, *data, stride=STRIDE)
    with pytest.raises(UserError, match=r"size=\(0, 7\) and samples=0: it needs bins"):
        pool(size=(0, 7))
    with pytest.raises(UserError, match="samples=-1"):
        pool(samples=-1)
    with pytest.raises(UserError, match="2 maps have the strides"):
        roi_align_levels((data[0],) * 2, *data[1:], strides=(8, 4))
