"""Brightness against a loop over pixels and weights of its own."""

import jax
import numpy as np
import pytest
from tiny_subject import HEIGHT, RESNET, WIDTH, images, model_of, subject_of

from mammoclip_jax.explain.brightness import brightness


@pytest.mark.parametrize("sigma", [None, 1.5])
def test_it_is_the_blurred_grey_value(sigma):
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        found = np.asarray(brightness(subject, pixels, direction, "", sigma=sigma))
    deviation, image = sigma or WIDTH / 64, images(1)[0] / 255
    rows, columns = np.indices(image.shape)
    for y, x in ((0, 0), (20, 7), (HEIGHT - 1, 31)):
        weights = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2 / deviation**2)
        assert found[y, x] == pytest.approx((weights * image).sum() / weights.sum(), rel=1e-9)


def test_the_text_has_no_part_in_it():
    model = model_of(RESNET)
    found = model.saliency(images(2)[[0, 0]], ["a mass", "no mass"], method="brightness")
    np.testing.assert_array_equal(*found)
    assert found.min() > 0 and found.max() == pytest.approx(1)
