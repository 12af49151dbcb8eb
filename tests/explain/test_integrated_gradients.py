"""Completeness, and the closed form of what is linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_subject import MEAN, STD, VIT, directions, images, model_of, subject_of

from mammoclip_jax.explain.integrated_gradients import integrated_gradients
from mammoclip_jax.explain.maps import Subject


@pytest.mark.parametrize("baseline, steps", [(0.0, 128), (0.5, 32)])
def test_the_attributions_sum_to_the_difference_of_the_scores(baseline, steps):
    """Near an even image the norms of a transformer make the way steep: it takes more steps."""
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(VIT)
        found = jax.jit(lambda: integrated_gradients(subject, pixels, direction, "", steps=steps, baseline=baseline))()
        even = jnp.full_like(pixels, (baseline - MEAN) / STD)
        scores = np.asarray(jax.jit(subject.scores)(jnp.concatenate([pixels, even]), direction))
        found = np.asarray(found)
    assert abs(scores[0] - scores[1]) > 1e-2
    np.testing.assert_allclose(found.sum(), scores[0] - scores[1], rtol=1e-6)


def test_a_linear_score_has_the_products_of_its_weights():
    weights = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)  # of two numbers
    subject = Subject(
        lambda x, offsets={}: (jnp.einsum("nhwc,dhwc->nd", x, weights), {}),
        None,
        None,
        None,
        None,
        lambda value: value - 0.25,
    )
    pixels, direction = weights[1:] * 3 + 1, np.array([2.0, -1.0], np.float32)
    found = integrated_gradients(subject, pixels, direction, "", steps=3, baseline=0.5)
    expected = ((pixels[0] - 0.25) * (2 * weights[0] - weights[1])).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_models_map_is_complete_at_its_own_resolution():
    """The way of a user: uint8 in, raw attributions out, against the embeddings of the image and of a black one."""
    model, pictures = model_of(VIT), images(1)
    pictures[0, 0, :2] = 0, 255  # the whole range: the stretch of grey values changes nothing
    direction = directions(1)
    found = model.saliency(pictures, direction, method="integrated_gradients", raw=True, steps=128)
    black = jax.jit(model._encode)(model._variables, jnp.full((1, *pictures.shape[1:], 1), -MEAN / STD))[0]
    expected = (model.embed_image(pictures) - np.asarray(black)) @ direction[0]
    assert found.shape == pictures.shape and found.min() < 0 < found.max()
    np.testing.assert_allclose(found.sum(), expected[0], atol=1e-4)
