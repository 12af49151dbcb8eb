"""Random crops never lose a box, and boxes follow them; blur; what was drawn before they came stays as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import augment
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import make_gradient_fn
from mammoclip_jax.types import TrainState

DRAWS = 10_000
PLAIN = augment.Preprocess(0.0, 1.0, 1, "range")
CROP = PLAIN._replace(crop=(0.1, 1.0))
draw = jax.jit(augment.draw, static_argnums=2)


def _batch(n, size, boxes=3, seed=0):
    """`n` images with up to so many boxes each, of any size; a third has none."""
    rng, (height, width) = np.random.default_rng(seed), size
    corners = np.sort(rng.uniform(0, 1, (n, 1, boxes, 2, 2)), axis=-2) * (width, height)
    return {
        "image": np.zeros((n, 1, height, width), np.uint8),
        "boxes": corners.reshape(n, 1, boxes, 4).astype(np.float32),
        "box_classes": np.where(rng.random((n, 1, boxes)) < 0.3, 0, -1).astype(np.int32),
        "flip_horizontal": rng.random(n) < 0.5,
        "flip_vertical": rng.random(n) < 0.5,
        "mask": np.ones(n, bool),
    }


def test_ten_thousand_crops_lose_no_lesion():
    height, width = size = 24, 16
    batch = _batch(DRAWS, size)
    draws = draw(batch, jax.random.key(0), CROP)
    moved = augment.with_moved_boxes(batch, draws, CROP)
    had = batch["box_classes"] >= 0
    np.testing.assert_array_equal(np.asarray(moved["box_classes"]) >= 0, had)  # 0 lost, 0 come from nowhere
    crop = np.asarray(draws.crop)
    assert (crop[:, :2] >= -1e-4).all() and (crop[:, 2:] <= np.array([width, height]) + 1e-4).all()
    # Whole: as large as it was, times the scale of the crop.
    scale = np.array([width, height]) / (crop[:, 2:] - crop[:, :2])
    sizes = [boxes[..., 2:] - boxes[..., :2] for boxes in (batch["boxes"], np.asarray(moved["boxes"]))]
    np.testing.assert_allclose(sizes[1][had], (sizes[0] * scale[:, None, None])[had], atol=2e-2)
    metrics = augment.crop_metrics(batch, moved, draws)
    assert metrics["augment/boxes_kept"] == 1
    free = draw({k: x for k, x in batch.items() if "box" not in k}, jax.random.key(0), CROP)
    changed = (np.asarray(free.crop) != crop).any(-1)
    assert not changed[~had.any((1, 2))].any()
    assert 0.3 < metrics["augment/crops_moved"] <= changed.mean() and not free.moved.any()
    # What was drawn without boxes would have cut one.
    lost = augment.with_moved_boxes(batch, free, CROP)
    assert augment.crop_metrics(batch, lost, free)["augment/boxes_kept"] < 0.8


def test_a_crop_is_moved_where_it_would_have_cut_a_box():
    batch = _batch(500, (24, 16))
    draws = draw(batch, jax.random.key(1), CROP)
    free = np.asarray(draw({k: x for k, x in batch.items() if "box" not in k}, jax.random.key(1), CROP).crop)
    for i in range(500):
        left, top, right, bottom = np.moveaxis(batch["boxes"][i, 0], -1, 0)
        left, right = (16 - right, 16 - left) if batch["flip_horizontal"][i] else (left, right)
        top, bottom = (24 - bottom, 24 - top) if batch["flip_vertical"][i] else (top, bottom)
        cut = (left < free[i, 0]) | (top < free[i, 1]) | (right > free[i, 2]) | (bottom > free[i, 3])
        assert bool(draws.moved[i]) == bool((cut & (batch["box_classes"][i, 0] >= 0)).any())


def test_crops_are_torchvisions_where_none_is_cut():
    """Area and shape of 10,000 crops beside a naive loop, and their places uniform; also those that hold a box."""
    options = PLAIN._replace(crop=(0.2, 0.5), crop_ratio=(3 / 4, 4 / 3))
    crop, _ = augment.random_crop(jax.random.key(0), (DRAWS, 60, 40), options)
    width, height = np.asarray(crop[:, 2] - crop[:, 0]) / 40, np.asarray(crop[:, 3] - crop[:, 1]) / 60
    rng = np.random.default_rng(0)
    naive = []
    for _ in range(DRAWS):
        area, ratio = rng.uniform(0.2, 0.5), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        naive.append((np.sqrt(area * ratio), np.sqrt(area / ratio)))
    quantiles = np.linspace(0, 1, 11)
    for ours, theirs in zip((width, height), np.transpose(naive)):
        np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(theirs, quantiles), atol=0.01)
    np.testing.assert_allclose(np.quantile(crop[:, 0] / (40 - 40 * width), quantiles), quantiles, atol=0.02)
    box = jnp.tile(jnp.array([10.0, 20, 18, 26]), (DRAWS, 1))
    held, _ = augment.random_crop(jax.random.key(0), (DRAWS, 60, 40), options, box)
    lowest, highest = np.maximum(26 - 60 * height, 0), np.minimum(20, 60 - 60 * height)
    np.testing.assert_allclose(np.quantile((held[:, 1] - lowest) / (highest - lowest), quantiles), quantiles, atol=0.02)


def test_a_crop_is_cut_to_the_image_and_a_box_of_the_whole_image_leaves_all():
    options = PLAIN._replace(crop=(0.9, 1.0), crop_ratio=(0.25, 4.0))
    crop, _ = augment.random_crop(jax.random.key(0), (1000, 20, 10), options)
    assert (crop[:, :2] >= 0).all() and (crop[:, 2:] <= np.array([10, 20])).all()
    whole = jnp.tile(jnp.array([0.0, 0, 10, 20]), (1000, 1))
    held, moved = augment.random_crop(jax.random.key(0), (1000, 20, 10), CROP, whole)
    np.testing.assert_array_equal(held, whole)
    assert moved.all()


def _naive(image, crop):
    """Bilinear, pixel by pixel; beyond the outermost centres the outermost pixel."""
    height, width = image.shape
    left, top, right, bottom = map(float, crop)
    made = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y = min(max(top + (i + 0.5) * (bottom - top) / height - 0.5, 0), height - 1)
            x = min(max(left + (j + 0.5) * (right - left) / width - 0.5, 0), width - 1)
            y0, x0 = min(int(y), height - 2), min(int(x), width - 2)
            rows = image[y0] * (y0 + 1 - y) + image[y0 + 1] * (y - y0)
            made[i, j] = rows[x0] * (x0 + 1 - x) + rows[x0 + 1] * (x - x0)
    return made


def test_enlarging_is_bilinear():
    image = np.random.default_rng(0).random((12, 9)).astype(np.float32)
    for crop in ([0, 0, 9, 12], [2.3, 1.7, 7.1, 8.4], [4, 6, 9, 12]):
        found = augment.enlarged(jnp.asarray(image), jnp.array(crop, jnp.float32))
        np.testing.assert_allclose(found, _naive(image, crop), atol=1e-5)
    np.testing.assert_array_equal(augment.enlarged(jnp.asarray(image), jnp.array([0.0, 0, 9, 12])), image)


def _edges(profile):
    """Where a profile rises to half of its height, and falls again, in continuous coordinates."""
    over = np.flatnonzero(profile > 0.5)
    first, last = over[0], over[-1]
    rise = first + 0.5 - (profile[first] - 0.5) / (profile[first] - profile[first - 1]) if first else 0.0
    if last == len(profile) - 1:
        return rise, float(len(profile))
    return rise, last + 0.5 + (profile[last] - 0.5) / (profile[last] - profile[last + 1])


def test_a_planted_square_lies_where_its_box_says():
    """To half a pixel, in 300 crops and flips (and to a fifth in most)."""
    n, (height, width) = 300, (64, 48)
    batch = _batch(n, (height, width), boxes=1)
    rng = np.random.default_rng(1)
    batch["box_classes"][:] = 0
    for i in range(n):
        x, y = rng.integers(0, width - 8), rng.integers(0, height - 8)
        right, bottom = x + rng.integers(5, 9), y + rng.integers(5, 9)
        batch["boxes"][i, 0, 0] = x, y, right, bottom
        batch["image"][i, 0, y:bottom, x:right] = 255
    draws = draw(batch, jax.random.key(2), CROP)
    images = np.asarray(jax.jit(augment.train_images, static_argnums=2)(batch["image"][:, 0], draws, CROP))[..., 0]
    boxes = np.asarray(augment.with_moved_boxes(batch, draws, CROP)["boxes"])[:, 0, 0]
    found = []
    for image in images:
        (left, right), (top, bottom) = _edges(image.max(0)), _edges(image.max(1))
        found.append([left, top, right, bottom])
    off = np.abs(np.array(found) - boxes)
    assert off.max() < 0.5 and np.mean(off < 0.2) > 0.95, (off.max(), np.mean(off < 0.2))


def test_boxes_go_through_the_affine_map_before_the_crop():
    options = CROP._replace(affine_probability=1.0, rotate=8.0, translate=0.05, scale=(0.9, 1.1), shear=4.0)
    batch = _batch(400, (64, 48), boxes=1)
    batch["box_classes"][:] = 0
    batch["boxes"][:] = [20.0, 24, 28, 34]
    batch["image"][:, 0, 24:34, 20:28] = 255
    draws = draw(batch, jax.random.key(3), options)
    moved = augment.with_moved_boxes(batch, draws, options)
    assert (np.asarray(moved["box_classes"]) == 0).all()
    images = jax.jit(augment.train_images, static_argnums=2)(batch["image"][:, 0], draws, options)[..., 0]
    for image, (left, top, right, bottom) in zip(np.asarray(images), np.asarray(moved["boxes"])[:, 0, 0]):
        rows, columns = np.nonzero(image > 0.5)
        assert left - 1 <= columns.min() and columns.max() + 1 <= right + 1
        assert top - 1 <= rows.min() and rows.max() + 1 <= bottom + 1


def test_blur_is_a_gaussian_of_seven_taps_mirrored_at_the_rims():
    rng = np.random.default_rng(0)
    image = rng.random((3, 9, 8)).astype(np.float32)
    options = PLAIN._replace(blur=1.0, blur_sigma=(0.5, 1.5))
    weights = np.asarray(augment.random_blur(jax.random.key(0), 3, options))
    for row in weights:  # of one sigma, within the range
        sigma = np.sqrt(-0.5 / np.log(row[4] / row[3]))
        assert 0.5 <= sigma <= 1.5
        taps = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
        np.testing.assert_allclose(row, taps / taps.sum(), atol=1e-5)
    found = augment.blurred(jnp.asarray(image), jnp.asarray(weights))
    for n in range(3):
        padded = np.pad(image[n], 3, mode="reflect")
        for i in range(9):
            for j in range(8):
                patch = padded[i : i + 7, j : j + 7]
                np.testing.assert_allclose(found[n, i, j], weights[n] @ patch @ weights[n], atol=1e-5)


def test_blur_comes_with_its_probability():
    options = PLAIN._replace(blur=0.4)
    weights = np.asarray(augment.random_blur(jax.random.key(0), DRAWS, options))
    still = weights[:, 3] == 1
    assert abs(np.mean(~still) - 0.4) < 3 * np.sqrt(0.4 * 0.6 / DRAWS)
    image = np.random.default_rng(0).random((DRAWS // 100, 9, 8)).astype(np.float32)
    found = np.asarray(augment.blurred(jnp.asarray(image), jnp.asarray(weights[: len(image)])))
    np.testing.assert_array_equal(found[still[: len(image)]], image[still[: len(image)]])


def test_eight_devices_draw_what_one_draws():
    batch = _batch(16, (24, 16))
    options = CROP._replace(blur=0.5)
    alone = draw(batch, jax.random.key(0), options)
    spread = draw(meshes.put_batch(batch, meshes.make_mesh({"data": -1})), jax.random.key(0), options)
    for one, other in zip(alone, spread, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_was_drawn_before_stays_as_it_was():
    batch = _batch(16, (24, 16))
    old = PLAIN._replace(affine_probability=0.5, rotate=10.0, contrast=0.2, brightness=0.1)
    before = draw(batch, jax.random.key(0), old)
    after = draw(batch, jax.random.key(0), old._replace(crop=(0.5, 1.0), blur=0.5))
    assert before[5:] == (None, None, None) and all(part is not None for part in after)
    for one, other in zip(before[:5], after):
        np.testing.assert_array_equal(one, other)


def test_contrast_and_brightness_vary_with_a_probability():
    """Of 10,000 images four fifths, as before; the others not at all, and no flip or crop is another one."""
    batch = _batch(DRAWS, (24, 16))
    always = CROP._replace(contrast=0.8, brightness=0.2)
    before, after = (draw(batch, jax.random.key(0), o) for o in (always, always._replace(jitter_probability=0.8)))
    gain, lift = np.asarray(after.gain), np.asarray(after.lift)
    varied = gain != 0
    np.testing.assert_array_equal(varied, lift != 0)
    np.testing.assert_array_equal(gain, np.where(varied, before.gain, 0))
    np.testing.assert_array_equal(lift, np.where(varied, before.lift, 0))
    assert abs(varied.mean() - 0.8) < 3 * np.sqrt(0.8 * 0.2 / DRAWS)
    for one, other in zip(before._replace(gain=0, lift=0), after._replace(gain=0, lift=0)):
        np.testing.assert_array_equal(one, other)
    image = np.random.default_rng(0).integers(1, 255, (DRAWS // 100, 9, 8)).astype(np.uint8)
    some = jax.tree.map(lambda x: x[: len(image)], after._replace(crop=None, moved=None))
    some = some._replace(flip_horizontal=np.zeros(len(image), bool), flip_vertical=np.zeros(len(image), bool))
    shown = np.asarray(augment.train_images(image, some, always))[..., 0]
    for found, original, one, other in zip(shown, image / 255, gain, lift):
        np.testing.assert_allclose(found, np.clip(original * (1 + one) + other, 0, 1), atol=1e-6)


def test_each_view_may_have_flips_of_its_own():
    """As two rows of one view each: images, boxes and what crops hold."""
    n, rng = 12, np.random.default_rng(4)
    rows = _batch(2 * n, (24, 16))
    rows["image"] = rng.integers(0, 255, rows["image"].shape).astype(np.uint8)
    pairs = {name: x.reshape(n, 2, *x.shape[2:]) for name, x in rows.items() if name not in ("mask",)}
    draws = [draw(batch, jax.random.key(0), CROP) for batch in (rows, pairs)]
    for one, other in zip(*draws):
        np.testing.assert_array_equal(one, other)
    boxes = [augment.with_moved_boxes(batch, draws[0], CROP)["boxes"] for batch in (rows, pairs)]
    np.testing.assert_array_equal(boxes[0].reshape(boxes[1].shape), boxes[1])


def test_the_log_says_what_becomes_of_the_boxes():
    """Those that an affine map loses count, and nothing is said where there are no crops."""
    batch = _batch(64, (24, 16))
    state = TrainState(0, {"a": jnp.ones(())}, {}, None, None, jax.random.key(0))

    def loss(variables, batch, draws, key, step):
        return variables["params"]["a"] ** 2, {"some": step}, {}

    def metrics(options, batch=batch):
        return jax.jit(make_gradient_fn(loss, options))(state, batch)[1]

    assert metrics(CROP)["augment/boxes_kept"] == 1 and 0 < metrics(CROP)["augment/crops_moved"] < 1
    away = CROP._replace(affine_probability=1.0, translate=0.9)
    assert 0 < metrics(away)["augment/boxes_kept"] < 0.9
    assert set(metrics(PLAIN)) == set(metrics(CROP, {k: x for k, x in batch.items() if "box" not in k})) == {"some"}
    none = batch | {"box_classes": np.full_like(batch["box_classes"], -1)}
    assert metrics(CROP, none) == {"some": 0, "augment/boxes_kept": 1, "augment/crops_moved": 0}


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(crop=(0.0, 1.0)), "config.augment.crop=.*above 0 and at most 1"),
        (dict(crop=(0.9, 0.5)), "config.augment.crop="),
        (dict(crop=(0.5, 1.5)), "config.augment.crop="),
        (dict(crop_ratio=(2.0, 0.5)), "config.augment.crop_ratio="),
        (dict(blur_sigma=(0.0, 1.0)), "config.augment.blur_sigma="),
        (dict(blur=1.5), "config.augment.blur=1.5"),
        (dict(jitter_probability=-0.1), "config.augment.jitter_probability=-0.1"),
    ],
)
def test_ranges_that_cannot_be_are_errors(fields, message):
    config = defaults()
    augment.preprocess_options(config)
    config.augment.update(fields)
    with pytest.raises(UserError, match=message):
        augment.preprocess_options(config)
