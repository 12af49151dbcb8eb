"""The maps of a stage against finite differences by every number of it, in float64."""

import jax
import numpy as np
import pytest
from tiny_subject import RESNET, VIT, images, model_of, subject_of

from mammoclip_jax.explain import cam

STAGE = "stage1"


@pytest.fixture(scope="module")
def differences():
    """(features [h w c], the score's central differences by each of them, {method: map})."""
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        features = np.asarray(jax.jit(subject.encode)(pixels)[1][STAGE])

        @jax.jit
        def scores(offsets):
            return jax.lax.map(
                lambda x: subject.encode(pixels, {STAGE: x[None]})[0][0] @ direction, offsets, batch_size=64
            )

        steps = 1e-5 * np.eye(features[0].size).reshape(-1, *features.shape[1:])
        gradient = np.asarray(scores(steps) - scores(-steps)).reshape(features.shape[1:]) / 2e-5
        methods = {name: getattr(cam, name) for name in ("grad_cam", "hires_cam", "grad_cam_pp")}
        maps = jax.jit(lambda: {name: method(subject, pixels, direction, STAGE) for name, method in methods.items()})()
    maps = {name: np.asarray(found) for name, found in maps.items()}
    return features[0], gradient, maps


def test_grad_cam_and_hires_cam_are_their_formulas(differences):
    features, gradient, maps = differences
    assert features.shape == (12, 8, 4) and np.abs(gradient).max() > 1e-3
    expected = (features * gradient.mean((0, 1))).sum(-1)
    np.testing.assert_allclose(maps["grad_cam"], expected, atol=1e-7 * np.abs(expected).max())
    expected = (features * gradient).sum(-1)
    np.testing.assert_allclose(maps["hires_cam"], expected, atol=1e-7 * np.abs(expected).max())


def test_grad_cam_pp_has_the_weights_of_squares_and_cubes(differences):
    """Equation 19 of the paper, number by number."""
    features, gradient, maps = differences
    expected = np.zeros(features.shape[:2])
    for c in range(features.shape[2]):
        below = 2 * gradient[..., c] ** 2 + features[..., c].sum() * gradient[..., c] ** 3
        alpha = np.divide(gradient[..., c] ** 2, below, out=np.zeros_like(below), where=below != 0)
        expected += (alpha * np.maximum(gradient[..., c], 0)).sum() * features[..., c]
    np.testing.assert_allclose(maps["grad_cam_pp"], expected, atol=1e-6 * np.abs(expected).max())


def test_what_cancels_is_no_map_of_its_rounding():
    """Before the last block of a transformer that pools its class token a LayerNorm hides the scale of every patch."""
    model = model_of(VIT)
    assert model.map_stage("hires_cam") == "block2"
    assert not model.saliency(images(2), ["a mass"] * 2, method="hires_cam").any()
    assert model.saliency(images(2), ["a mass"] * 2, method="hires_cam", stage="block1").max() == pytest.approx(1)
