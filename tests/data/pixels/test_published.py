import numpy as np
import pytest

from mammoclip_jax.data.pixels import geometry
from mammoclip_jax.data.pixels.published import published_vindr_box, published_vindr_box_original

SIZE, CROP, CANVAS = (3518, 2800), (5, 5, 3513, 1805), (1520, 912)


@pytest.mark.parametrize("box", [[600, 2700, 900, 3050], [2, 1, 400, 300], [700, 2000, 1700, 2790]])
def test_the_ordinary_transform_gives_the_published_box(box):
    transform = geometry.stretch(SIZE, CROP, CANVAS)
    original = published_vindr_box_original(box, SIZE)
    np.testing.assert_allclose(transform.boxes([original])[0], published_vindr_box(box, SIZE, CROP, CANVAS), atol=1e-9)


def test_the_documented_fault():
    """A box low in a tall image loses its lower part: y is limited by the width less the border."""
    x0, y0, x1, y1 = published_vindr_box([600, 2700, 900, 3050], SIZE, CROP, CANVAS)
    across, down = 912 / 1800, 1520 / 3508
    np.testing.assert_allclose([x0, y0, x1], [595 * across, 2695 * down, 895 * across])
    np.testing.assert_allclose(y1, 2790 * down)  # and not 3045 * down
    assert published_vindr_box_original([600, 2700, 900, 3050], SIZE) == [600, 2700, 900, 2795]
    y = published_vindr_box_original([600, 2900, 900, 3050], SIZE)
    assert y[1] > y[3]  # upside down, as published


def test_within_both_limits_only_the_lower_clamp_shows():
    assert published_vindr_box_original([100, 200, 300, 400], SIZE) == [100, 200, 300, 400]
    assert published_vindr_box_original([2, 200, 300, 400], SIZE) == [5, 200, 300, 400]
