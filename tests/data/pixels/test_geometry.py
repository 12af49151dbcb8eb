import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammoclip_jax.data.pixels import geometry
from mammoclip_jax.data.pixels.geometry import Transform


def random_transforms(count: int, seed: int = 0) -> list[Transform]:
    """Both builders, with crops and canvases that shrink, grow, and do one along each axis."""
    generator = np.random.default_rng(seed)
    transforms = []
    for index in range(count):
        height, width = generator.integers(20, 300, 2)
        y0, x0 = generator.integers(0, height - 10), generator.integers(0, width - 10)
        y1, x1 = generator.integers(y0 + 8, height + 1), generator.integers(x0 + 8, width + 1)
        original, crop = (int(height), int(width)), (int(y0), int(x0), int(y1), int(x1))
        canvas = tuple(int(v) for v in generator.integers(10, 250, 2))
        if index % 3 == 0:
            transforms.append(geometry.stretch(original, crop, canvas))
        else:
            side = ("left", "right")[index % 2]
            transforms.append(geometry.fit(original, crop, canvas, side, ("L", "R", "")[index % 7 % 3]))
        transforms[-1] = dataclasses.replace(transforms[-1], flip_vertical=index % 5 == 0)
    return transforms


def step(transform: Transform, xy: tuple[float, float]) -> tuple[float, float]:
    """One point by the definition: crop, mirror, scale, offset; written apart from the code under test."""
    y0, x0, y1, x1 = transform.crop
    x, y = xy[0] - x0, xy[1] - y0
    if transform.flip_horizontal:
        x = (x1 - x0) - x
    if transform.flip_vertical:
        y = (y1 - y0) - y
    return x * transform.scale[1] + transform.offset[1], y * transform.scale[0] + transform.offset[0]


@pytest.mark.parametrize("transform", random_transforms(60))
def test_points_and_boxes_there_and_back(transform):
    generator = np.random.default_rng(1)
    height, width = transform.original
    points = generator.uniform(0, [width, height], (50, 2))
    there = transform.points(points)
    np.testing.assert_allclose(there, [step(transform, point) for point in points], atol=1e-9)
    np.testing.assert_allclose(transform.points_inverse(there), points, atol=1e-6)

    corners = np.sort(generator.uniform(0, [width, height], (50, 2, 2)), axis=1).reshape(50, 4)
    boxes = transform.boxes(corners)
    assert (boxes[:, 0] <= boxes[:, 2]).all() and (boxes[:, 1] <= boxes[:, 3]).all()
    np.testing.assert_allclose(transform.boxes_inverse(boxes), corners, atol=1e-6)


@pytest.mark.parametrize("transform", random_transforms(40, seed=2))
def test_content_lies_in_the_canvas(transform):
    top, left, bottom, right = transform.content
    assert 0 <= top < bottom <= transform.canvas[0]
    assert 0 <= left < right <= transform.canvas[1]
    y0, x0, y1, x1 = transform.crop
    box = transform.boxes([[x0, y0, x1, y1]])[0]
    np.testing.assert_allclose(box, [left, top, right, bottom], atol=1e-6)


def sampled(transform: Transform, array: np.ndarray) -> np.ndarray:
    """The canvas by averaging a fine grid of samples in each canvas pixel, drawn through `points_inverse`."""
    fine = 48
    height, width = transform.canvas
    ys, xs = (np.arange(height * fine) + 0.5) / fine, (np.arange(width * fine) + 0.5) / fine
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    source = transform.points_inverse(grid)
    y0, x0, y1, x1 = transform.crop
    inside = (source >= [x0, y0]).all(1) & (source < [x1, y1]).all(1)
    pixel = np.clip(source.astype(int), 0, [array.shape[1] - 1, array.shape[0] - 1])
    values = np.where(inside, array[pixel[:, 1], pixel[:, 0]], 0.0)
    return values.reshape(height, fine, width, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("laterality", ["L", "R"])
@pytest.mark.parametrize("geometry_name", ["stretch", "fit"])
def test_image_equals_area_sampling(geometry_name, laterality):
    generator = np.random.default_rng(3)
    array = generator.uniform(0, 1, (90, 70)).astype(np.float32)
    crop, canvas = (5, 7, 85, 63), (37, 23)
    if geometry_name == "stretch":
        transform = geometry.stretch(array.shape, crop, canvas)
    else:
        transform = geometry.fit(array.shape, crop, canvas, laterality=laterality)
        assert transform.flip_horizontal == (laterality == "R")
    np.testing.assert_allclose(transform.image(array), sampled(transform, array), atol=0.02)


@pytest.mark.parametrize("transform", random_transforms(40, seed=4))
def test_a_blob_lands_where_its_point_does(transform):
    """The pixels and the points agree within half a pixel of the coarser grid, both ways."""
    height, width = transform.original
    y0, x0, y1, x1 = transform.crop
    centre = np.array([(x0 + x1) / 2 + 0.13 * (x1 - x0), (y0 + y1) / 2 - 0.11 * (y1 - y0)])
    ys, xs = np.mgrid[:height, :width] + 0.5
    sigma = min(y1 - y0, x1 - x0) / 12
    blob = np.exp(-((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / (2 * sigma**2)).astype(np.float32)
    canvas = transform.image(blob)
    np.testing.assert_allclose(centroid(canvas), transform.points([centre])[0], atol=0.5)
    back = transform.map_inverse(canvas)
    assert back.shape == transform.original
    pixel = max(1.0, 1 / min(transform.scale))
    np.testing.assert_allclose(centroid(back), centre, atol=0.5 * pixel)


def centroid(image: np.ndarray) -> np.ndarray:
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(image * xs).sum(), (image * ys).sum()]) / image.sum()


def test_json_round_trip():
    for transform in random_transforms(10):
        assert Transform.from_json(transform.to_json()) == transform


def test_fit_keeps_aspect_and_puts_the_chest_wall_left():
    array = np.zeros((400, 200), np.uint8)
    array[100:300, 120:] = 200
    transform = geometry.fit(array.shape, (100, 100, 300, 200), (120, 100), laterality="R")
    canvas = transform.image(array)
    assert transform.scale == (0.6, 0.6)
    assert canvas[60, 0] == 200 and canvas[60, -1] == 0
    right = geometry.fit(array.shape, (100, 100, 300, 200), (120, 100), chest_wall="right", laterality="R").image(array)
    assert right[60, -1] == 200 and right[60, 0] == 0
    centre = geometry.fit(array.shape, (0, 0, 400, 200), (120, 100), chest_wall="centre", laterality="R")
    assert centre.content == (0, 20, 120, 80) and not centre.flip_horizontal


@st.composite
def transforms(draw) -> Transform:
    """Any crop of any image of odd or even size on any canvas, by both builders."""
    height, width = draw(st.integers(12, 160)), draw(st.integers(12, 160))
    y0, x0 = draw(st.integers(0, height - 10)), draw(st.integers(0, width - 10))
    y1, x1 = draw(st.integers(y0 + 8, height)), draw(st.integers(x0 + 8, width))
    canvas = (draw(st.integers(10, 140)), draw(st.integers(10, 140)))
    if draw(st.booleans()):
        made = geometry.stretch((height, width), (y0, x0, y1, x1), canvas)
    else:
        made = geometry.fit(
            (height, width),
            (y0, x0, y1, x1),
            canvas,
            draw(st.sampled_from(["left", "right"])),
            draw(st.sampled_from(["L", "R", ""])),
        )
    return dataclasses.replace(made, flip_vertical=draw(st.booleans()))


EVERYTHING = settings(derandomize=True, deadline=None, max_examples=150)


@EVERYTHING
@given(transforms(), st.floats(-20, 180), st.floats(-20, 180), st.floats(0.5, 40))
def test_points_and_boxes_come_back(transform, x, y, radius):
    centre, box = transform.points([[x, y]]), np.array([[x - radius, y - radius, x + radius, y + radius]])
    np.testing.assert_allclose(transform.points_inverse(centre), [[x, y]], atol=1e-6)
    reach = radius * np.array(transform.scale[::-1])
    around = np.concatenate([centre - reach, centre + reach], axis=1)
    np.testing.assert_allclose(transform.boxes(box), around, atol=1e-6)
    np.testing.assert_allclose(transform.boxes_inverse(around), box, atol=1e-6)
    assert Transform.from_json(transform.to_json()) == transform


@EVERYTHING
@given(transforms(), st.data())
def test_masks_and_maps_come_back_within_half_a_pixel(transform, data):
    """A rectangle's edges, of the coarser of the two grids where the canvas is smaller."""
    y0, x0, y1, x1 = transform.crop
    pixel = np.maximum(1.0, 1 / np.array(transform.scale))
    tall, wide = (int(np.ceil(2 * side)) for side in pixel)
    if y1 - y0 <= tall or x1 - x0 <= wide:
        return
    top = data.draw(st.integers(y0, y1 - tall - 1))
    left = data.draw(st.integers(x0, x1 - wide - 1))
    bottom, right = data.draw(st.integers(top + tall, y1)), data.draw(st.integers(left + wide, x1))
    mask = np.zeros(transform.original, bool)
    mask[top:bottom, left:right] = True
    canvas = transform.image(mask.astype(np.float32)) > 0.5
    back = transform.map_inverse(canvas.astype(np.float32)) > 0.5
    rows, columns = np.flatnonzero(back.any(axis=1)), np.flatnonzero(back.any(axis=0))
    edges = np.array([rows[0] - top, rows[-1] + 1 - bottom, columns[0] - left, columns[-1] + 1 - right])
    # Half a pixel of the coarser grid there, and as much for the rounding to whole original pixels on the way back.
    assert (np.abs(edges) <= np.repeat(0.5 * pixel + 0.5, 2) + 1e-6).all()
    heat = transform.map_inverse(transform.image(mask.astype(np.float32)))
    assert heat.shape == transform.original
    assert heat.min() >= -1e-6 and heat.max() <= 1 + 1e-6
    outside = np.ones(transform.original, bool)
    outside[y0:y1, x0:x1] = False
    assert not heat[outside].any()


@EVERYTHING
@given(transforms())
def test_a_crop_is_placed_as_the_image_is(transform):
    array = np.random.default_rng(0).uniform(0, 1, transform.original).astype(np.float32)
    y0, x0, y1, x1 = transform.crop
    np.testing.assert_array_equal(transform.place(array[y0:y1, x0:x1]), transform.image(array))


def rotated_transforms(count: int) -> list[Transform]:
    """Of every kind, with a crop anywhere in the frame of the rotated original."""
    generator, made = np.random.default_rng(5), []
    for transform in random_transforms(count, seed=5):
        rotation = float(generator.uniform(-60, 60))
        top, left, bottom, right = geometry.frame(transform.original, rotation)
        crop = (top + 3, left + 2, bottom - 1, right - 4)
        sides = (crop[2] - crop[0], crop[3] - crop[1])
        size = [round(side * generator.uniform(0.3, 2)) for side in sides]
        scale = (size[0] / sides[0], size[1] / sides[1])
        made.append(
            dataclasses.replace(
                transform, rotation=rotation, crop=crop, scale=scale, canvas=(size[0] + 7, size[1] + 5), offset=(4, 3)
            )
        )
    return made


def turned(transform: Transform, xy: tuple[float, float]) -> tuple[float, float]:
    """One point by the definition of a rotation about the centre, clockwise as seen with y down."""
    height, width = transform.original
    reach, angle = np.hypot(xy[0] - width / 2, xy[1] - height / 2), np.arctan2(xy[1] - height / 2, xy[0] - width / 2)
    angle += transform.rotation * np.pi / 180
    return width / 2 + reach * np.cos(angle), height / 2 + reach * np.sin(angle)


@pytest.mark.parametrize("transform", rotated_transforms(12))
def test_a_rotation_there_and_back(transform):
    height, width = transform.original
    points = np.random.default_rng(1).uniform(0, [width, height], (30, 2))
    there = transform.points(points)
    np.testing.assert_allclose(there, [step(transform, turned(transform, point)) for point in points], atol=1e-9)
    np.testing.assert_allclose(transform.points_inverse(there), points, atol=1e-9)
    assert Transform.from_json(transform.to_json()) == transform
    box = np.array([[0.2 * width, 0.3 * height, 0.5 * width, 0.8 * height]])
    corners = transform.points([[box[0, x], box[0, y]] for x in (0, 2) for y in (1, 3)])
    np.testing.assert_allclose(transform.boxes(box)[0], [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-9)
    back = transform.boxes_inverse(transform.boxes(box))[0]
    assert (back[:2] <= box[0, :2] + 1e-9).all() and (back[2:] >= box[0, 2:] - 1e-9).all()


@pytest.mark.parametrize("transform", rotated_transforms(6))
def test_pixels_follow_a_rotation_as_points_do(transform):
    array = np.zeros(transform.original, np.float32)
    y, x = (side // 2 - 2 for side in array.shape)
    array[y : y + 5, x : x + 7] = 1
    canvas = transform.image(array)
    pixel = max(1.0, *transform.scale, *(1 / value for value in transform.scale))
    np.testing.assert_allclose(centroid(canvas), transform.points([centroid(array)])[0], atol=0.1 * pixel)
    np.testing.assert_allclose(centroid(transform.map_inverse(canvas)), centroid(array), atol=0.5 * pixel)
    part = transform.cut(array[2:, 3:], at=(2, 3))
    np.testing.assert_allclose(part, transform.cut(array), atol=1e-4)


def test_the_frame_and_the_outline_of_a_rotated_image():
    assert geometry.frame((40, 60), 0) == (0, 0, 40, 60)
    assert geometry.frame((40, 60), 90) == (-10, 10, 50, 50)
    transform = dataclasses.replace(geometry.fit((40, 60), (-10, 10, 50, 50), (60, 40)), rotation=90.0)
    np.testing.assert_allclose(transform.outline, [[0, 40], [0, 0], [60, 0], [60, 40]], atol=1e-9)
    assert (
        "rotation" in transform.to_json() and "rotation" not in dataclasses.replace(transform, rotation=0.0).to_json()
    )


def test_a_bounded_scale():
    free = geometry.fit((100, 80), (0, 0, 100, 80), (50, 50))
    assert free.scale == (0.5, 0.5) and geometry.fitting((0, 0, 100, 80), (50, 50)) == 0.5
    assert geometry.fit((100, 80), (0, 0, 100, 80), (50, 50), largest=0.25).scale == (0.25, 0.25)
    assert geometry.fit((100, 80), (0, 0, 100, 80), (50, 50), largest=3.0) == free
