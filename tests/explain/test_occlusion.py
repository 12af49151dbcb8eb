"""Against a loop over the squares, and the pixels of each."""

import jax
import numpy as np
import pytest
from tiny_subject import HEIGHT, MEAN, RESNET, STD, WIDTH, images, model_of, subject_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.occlusion import covers, occlusion


@pytest.mark.parametrize("window, stride, fill, chunk", [(16, 12, 0.0, 4), (20, 20, 0.4, 7)])
def test_it_is_the_mean_drop_of_the_squares_over_a_pixel(window, stride, fill, chunk):
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        found = jax.jit(
            lambda: occlusion(subject, pixels, direction, "", window=window, stride=stride, fill=fill, chunk=chunk)
        )()
        score = jax.jit(lambda x: subject.encode(x)[0][0] @ direction)
        total, count = np.zeros((2, HEIGHT, WIDTH))
        tops, lefts = ([*range(0, size - window, stride), size - window] for size in (HEIGHT, WIDTH))
        for top in tops:
            for left in lefts:
                covered = np.array(pixels)
                covered[:, top : top + window, left : left + window] = (fill - MEAN) / STD
                total[top : top + window, left : left + window] += score(pixels) - score(covered)
                count[top : top + window, left : left + window] += 1
    assert count.min() >= 1 and np.abs(total).max() > 1e-3
    np.testing.assert_allclose(found, total / count, atol=1e-6 * np.abs(total).max())  # counted in float32


def test_the_squares_cover_a_side_and_end_at_its_border():
    assert covers(10, 4, 3).astype(int).tolist() == [[1] * 4 + [0] * 6, [0] * 3 + [1] * 4 + [0] * 3, [0] * 6 + [1] * 4]
    assert covers(9, 4, 4).sum(1).tolist() == [4, 4, 4] and covers(9, 4, 4)[-1, 5:].all()
    assert covers(5, 9, 3).tolist() == [[True] * 5]


def test_gaps_are_refused():
    with pytest.raises(UserError, match="stride=9 must be at least 1 and at most window=8"):
        model_of(RESNET).saliency(images(1), ["a mass"], method="occlusion", window=8, stride=9)
