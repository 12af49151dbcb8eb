"""The map of similarities: each cell is projected as the pooled vector is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_subject import RESNET, VIT, directions, images, model_of, subject_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.similarity import similarity


def test_each_cell_is_projected_and_multiplied():
    with jax.enable_x64(True):
        subject, _, variables, pixels, direction = subject_of(RESNET)
        found = np.asarray(jax.jit(lambda: similarity(subject, pixels, direction, "stage2"))())
        features, direction = np.asarray(jax.jit(subject.encode)(pixels)[1]["stage2"])[0], np.asarray(direction)
        dense = variables["params"]["image_projection"]["dense"]
        for place in np.ndindex(found.shape):
            vector = features[place] @ dense["kernel"] + dense["bias"]
            assert found[place] == pytest.approx(vector @ direction / np.linalg.norm(vector), rel=1e-5)
    assert found.shape == (6, 4) and np.ptp(found) > 1e-3


def test_a_cell_has_the_score_of_an_image_that_is_everywhere_like_it():
    with jax.enable_x64(True):
        subject, _, _, pixels, direction = subject_of(RESNET)
        found = jax.jit(lambda: similarity(subject, pixels, direction, "stage2"))()
        encode = jax.jit(subject.encode)
        features = encode(pixels)[1]["stage2"]
        for place in ((0, 0), (3, 2)):
            everywhere = jnp.broadcast_to(features[0][place], features.shape)
            score = encode(pixels, {"stage2": everywhere - features})[0][0] @ direction
            np.testing.assert_allclose(found[place], score, rtol=1e-5)


def test_the_stage_is_the_one_that_is_pooled_and_others_are_refused():
    model = model_of(RESNET)
    assert model.map_stage("similarity") == model.map_stage("similarity", "stage2") == "stage2"
    with pytest.raises(UserError, match="similarity projects the cells of stage 'stage2'.*not those of 'stage1'"):
        model.saliency(images(1), directions(1), method="similarity", stage="stage1")
    with pytest.raises(UserError, match="similarity needs a stage whose cells.*this VisionTransformer returns none"):
        model_of(VIT | {"pooling": "cls+mean"}).map_stage("similarity")
    assert model_of(VIT | {"pooling": "all"}).map_stage("similarity") == "block3"
    with pytest.raises(UserError, match="this Swin returns none: use grad_cam"):
        model_of({"name": "swin", "width": 8, "depths": (1, 1), "heads": (1, 2), "window": 4}).map_stage("similarity")
