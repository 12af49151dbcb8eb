"""Mammo-FActOR's heat map: channels weighted by their scores; at one stage or added up over several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_subject import RESNET, SCORED, directions, images, model_of, scores_of, subject_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain import stage_of
from mammoclip_jax.explain.factor import factor
from mammoclip_jax.explain.maps import Grid, Subject, over_image


@pytest.fixture(scope="module")
def model():
    return model_of(SCORED, batch_size=2, devices=1)


def test_each_channel_counts_by_its_share_and_with_its_sign():
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        subject = subject._replace(channel_scores=scores_of)
        found = np.asarray(jax.jit(lambda: factor(subject, pixels, direction, "stage2"))())
        features = np.asarray(jax.jit(subject.encode)(pixels)[1]["stage2"])[0]
        scores = np.asarray(scores_of(features, "stage2", direction))
    wanted = sum(score * features[..., c] for c, score in enumerate(scores)) / np.sqrt((scores**2).sum())
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert scores.min() < 0 < scores.max() and np.ptp(found) > 1e-3


def test_scores_of_zero_give_an_empty_map():
    features = jnp.ones((1, 2, 3, 4))
    subject = Subject(lambda pixels: (None, {"a": features}), *[None] * 5, lambda *_: jnp.zeros(4))
    assert not factor(subject, None, None, "a").any()


def test_several_stages_are_laid_over_the_image_and_added_up(model):
    shown, towards = images(2), directions(2)
    options = {"method": "factor", "raw": True}
    both = model.saliency(shown, towards, **options)
    one, two = (model.saliency(shown, towards, stage=stage, **options) for stage in model.attribute_stages)
    np.testing.assert_allclose(both, one + two, rtol=1e-4, atol=1e-5 * np.abs(both).max())
    assert both.min() < 0 < both.max() and np.abs(one).max() > 1e-3 < np.abs(two).max()
    cut = model.saliency(shown, towards, method="factor", stage="stage1+stage2")
    wanted = np.maximum(both, 0) / np.maximum(both, 0).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(cut, wanted, atol=1e-5)


def test_a_signed_map_has_no_zeros_beyond_its_cells():
    """A row or column of zeros would be the hottest part of a map that is negative everywhere."""
    cells = -1 - jax.random.uniform(jax.random.key(0), (4, 3))
    laid = np.asarray(over_image(cells, Grid(8, 0.5, 0.5), (32, 24), signed=True))
    assert laid.max() <= cells.max() and laid[31, 23] == pytest.approx(cells[3, 2])
    inner = np.asarray(over_image(cells, Grid(8, 0.5, 0.5), (32, 24)))[:28, :20]
    np.testing.assert_allclose(laid[:28, :20], inner, rtol=1e-5)
    even = over_image(cells, Grid(8, 4.0, 4.0), (32, 24), signed=True)
    np.testing.assert_allclose(even, over_image(cells, Grid(8, 4.0, 4.0), (32, 24)), rtol=1e-5)


def test_the_stages_are_those_with_scores(model):
    assert model.map_stage("factor") == "stage1+stage2" and model.map_stage("factor", "stage1") == "stage1"
    assert model.map_stage("hires_cam") == "stage1"  # on which all scores depend
    with pytest.raises(UserError, match="stage of the attributes"):
        model.map_stage("factor", "stage9")
    with pytest.raises(UserError, match="names one twice"):
        model.map_stage("factor", "stage1+stage1")
    stages = ("stage1", "stage2", "stage3")
    assert stage_of("grad_cam", None, None, stages, attributes=("stage3", "stage2")) == "stage2"


def test_a_model_without_attributes_says_so():
    with pytest.raises(UserError, match="factor weighs the channels.*this model has none: train"):
        model_of(RESNET).saliency(images(1), directions(1), method="factor")
