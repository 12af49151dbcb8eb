import numpy as np
import pytest

from mammoclip_jax.data.pixels import geometry
from mammoclip_jax.data.pixels.published import vindr_box

SIZE, CROP, CANVAS = (3518, 2800), (5, 5, 3513, 1805), (1520, 912)


def published_vindr_box(box, image_size, crop, canvas):
    """On a canvas (height, width), as preprocess_VinDr_detector.py computes it."""
    x0, y0, x1, y1 = vindr_box(box, image_size)
    top, left, bottom, right = crop
    down, across = canvas[0] / (bottom - top), canvas[1] / (right - left)
    return [(x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down]


@pytest.mark.parametrize("box", [[600, 2700, 900, 3050], [2, 1, 400, 300], [700, 2000, 1700, 2790]])
def test_the_ordinary_transform_gives_the_published_box(box):
    transform = geometry.stretch(SIZE, CROP, CANVAS)
    original = vindr_box(box, SIZE)
    np.testing.assert_allclose(transform.boxes([original])[0], published_vindr_box(box, SIZE, CROP, CANVAS), atol=1e-9)


def test_the_documented_fault():
    """A box low in a tall image loses its lower part: y is limited by the width less the border."""
    x0, y0, x1, y1 = published_vindr_box([600, 2700, 900, 3050], SIZE, CROP, CANVAS)
    across, down = 912 / 1800, 1520 / 3508
    np.testing.assert_allclose([x0, y0, x1], [595 * across, 2695 * down, 895 * across])
    np.testing.assert_allclose(y1, 2790 * down)  # and not 3045 * down
    assert vindr_box([600, 2700, 900, 3050], SIZE) == [600, 2700, 900, 2795]
    y = vindr_box([600, 2900, 900, 3050], SIZE)
    assert y[1] > y[3]  # upside down, as published


def test_within_both_limits_only_the_lower_clamp_shows():
    assert vindr_box([100, 200, 300, 400], SIZE) == [100, 200, 300, 400]
    assert vindr_box([2, 200, 300, 400], SIZE) == [5, 200, 300, 400]
