"""The pectoral muscle's edge, on drawn wedges and on phantoms."""

import functools

import numpy as np
import pytest

from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels import breast, pectoral

SMALL = Parameters(seed=11, height=256, width=208)


@functools.cache
def searched(number: int, side: str, view: str):
    """(grey as uint8 [h, w] with the chest wall at the left, its borders) of a phantom."""
    exam = exams.draw(SMALL, number)
    density = exams.render(exam, side, view).density
    density = density if side == "L" else density[:, ::-1]
    return (np.clip(density, 0, 1) * 255).astype(np.uint8), exam.outline(side, view)


def found(image: np.ndarray) -> pectoral.Line | None:
    return pectoral.find(image, breast.find(image).mask)


def wedge(angle: float, distance: float, shape=(300, 220)) -> np.ndarray:
    """A grey breast, half an ellipse, with a bright wedge behind the line."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.where((x / 190) ** 2 + ((y - 150) / 150) ** 2 < 1, 90.0, 0.0)
    image += np.where(image > 0, np.random.default_rng(0).normal(0, 4, shape), 0)
    turn = np.radians(angle)
    return (
        np.where((image > 0) & (x * np.cos(turn) + y * np.sin(turn) < distance), image + 60, image)
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.mark.parametrize("angle, distance", [(15, 60), (25, 80), (38, 95)])
def test_the_line_of_a_wedge(angle, distance):
    line = found(wedge(angle, distance))
    assert abs(line.angle - angle) <= 1.5 and abs(line.distance - distance) <= 3
    assert line.confidence > 0.5


def test_no_line_without_a_muscle():
    assert found(wedge(20, 0)) is None
    assert pectoral.find(np.zeros((60, 50), np.uint8), np.zeros((60, 50), bool)) is None
    assert pectoral.likeliest(np.full((60, 50), 9, np.uint8), np.pad(np.ones((3, 3), bool), 20)) is None


def test_nine_in_ten_phantoms_within_five_degrees_and_hardly_a_line_in_cc():
    near, lines_in_cc, views = 0, 0, [(number, side) for number in range(12) for side in "LR"]
    for number, side in views:
        image, borders = searched(number, side, "MLO")
        line, (angle, distance) = found(image), borders.muscle()
        near += line is not None and abs(line.angle - angle) <= 5
        assert line is None or abs(line.angle - angle) > 5 or abs(line.distance - distance) < 0.05 * image.shape[0]
        lines_in_cc += found(searched(number, side, "CC")[0]) is not None
    assert near >= 0.9 * len(views)
    assert lines_in_cc <= 0.2 * len(views)
