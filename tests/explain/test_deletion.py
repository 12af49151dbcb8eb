"""Insertion and deletion against a loop that changes pixels one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_subject import HEIGHT, MEAN, RESNET, STD, WIDTH, directions, images, model_of, subject_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.deletion import blurred_image, curves


def naive_blur(image, deviation):
    """Of [H, W], pixel by pixel."""
    rows, columns = np.indices(image.shape)
    out = np.zeros(image.shape)
    for y, x in np.ndindex(image.shape):
        weights = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * deviation**2))
        out[y, x] = (weights * image).sum() / weights.sum()
    return out


@pytest.mark.parametrize("fill", ["black", "blur"])
def test_the_hottest_pixels_of_the_breast_go_first(fill):
    rng = np.random.default_rng(3)
    heat = np.round(rng.random((HEIGHT, WIDTH)), 2)  # with ties
    tissue = np.zeros((HEIGHT, WIDTH), bool)
    tissue[5:41, :20] = True
    order = sorted(np.argwhere(tissue).tolist(), key=lambda place: -heat[tuple(place)])  # stable: row by row
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        found = np.asarray(jax.jit(lambda: curves(subject, pixels, direction, heat, tissue, 7, blur=0.1, fill=fill))())
        image = np.asarray(pixels)[0, :, :, 0]
        blurred = naive_blur(image, 0.1 * WIDTH)
        score = jax.jit(lambda x: subject.encode(x[None, :, :, None])[0][0] @ direction)
        for step in range(8):
            inserted, deleted = np.where(tissue, blurred, image), image.copy()
            for y, x in order[: round(step / 7 * len(order))]:
                inserted[y, x] = image[y, x]
                deleted[y, x] = blurred[y, x] if fill == "blur" else -MEAN / STD
            np.testing.assert_allclose(found[:, step], [score(inserted), score(deleted)], atol=1e-6)
    assert found[0, -1] == pytest.approx(found[1, 0]) and np.ptp(found) > 1e-3


def test_a_blur_keeps_what_is_even_and_blurs_channels_alike():
    image = np.random.default_rng(0).random((9, 7, 2)).astype(np.float32)
    found = blurred_image(jnp.asarray(image), 1.5)
    for c in (0, 1):
        np.testing.assert_allclose(found[..., c], naive_blur(image[..., c], 1.5), rtol=1e-5)
    np.testing.assert_allclose(blurred_image(jnp.ones((9, 7, 1)), 3.0), 1, rtol=1e-6)


def test_a_models_curves_start_and_end_at_its_scores():
    model, pictures, towards = model_of(RESNET), images(3), directions(3)
    pictures[:, 0, :2] = 0, 255
    tissue = np.ones(pictures.shape, bool)
    found = model.deletion_curves(pictures, towards, pictures / 255, tissue, steps=4)
    assert found.shape == (3, 2, 5)
    scores = (model.embed_image(pictures) * towards).sum(1)
    np.testing.assert_allclose(found[:, 0, -1], scores, atol=1e-5)
    np.testing.assert_allclose(found[:, 1, 0], scores, atol=1e-5)
    with pytest.raises(UserError, match="no fill of deleted pixels 'grey'"):
        model.deletion_curves(pictures, towards, pictures, tissue, fill="grey")
    with pytest.raises(UserError, match="steps=0"):
        model.deletion_curves(pictures, towards, pictures, tissue, steps=0)
