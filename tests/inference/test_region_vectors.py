"""Vectors of regions without a head for them: what the stage maps hold there, and what is cut out around."""

import jax
import numpy as np
import pytest
import tiny_subject
from tiny_subject import DIM, HEIGHT, RESNET, VIT, WIDTH, model_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.region_vectors import around

WHOLE = np.array([0, 0, WIDTH, HEIGHT], np.float32)


def embedded(model, images):
    return np.asarray(model.embed_image(images))


@pytest.mark.parametrize("image", (RESNET, VIT), ids=("resnet", "vit"))
def test_a_box_about_the_centre_of_a_cell_holds_that_cell(image):
    model = model_of(image, batch_size=2, devices=1)
    images = tiny_subject.images(2)
    maps = jax.jit(model._stage_maps)(model._variables, images)[1]
    stage = model.stages[0]
    grid, wanted = model.stage_grid(stage), np.asarray(maps[stage])
    cells = np.array([[1, 1], [2, 0], [0, 2]])  # row, column
    centres = cells * grid.stride + [grid.row, grid.column]
    boxes = np.concatenate([centres[:, ::-1] - 0.5, centres[:, ::-1] + 0.5], axis=1)
    found = model.region_means(images, np.stack([boxes, boxes[::-1]]), (stage,))
    np.testing.assert_allclose(found[0], wanted[0, cells[:, 0], cells[:, 1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1, cells[::-1, 0], cells[::-1, 1]], rtol=1e-4, atol=1e-5)


def test_all_stages_stand_one_behind_the_other():
    model = model_of(RESNET, batch_size=2, devices=1)
    images, boxes = tiny_subject.images(2), np.tile(np.float32([[4, 6, 20, 30]]), (2, 1, 1))
    whole = model.region_means(images, boxes)
    each = [model.region_means(images, boxes, (stage,)) for stage in model.stages]
    np.testing.assert_allclose(whole, np.concatenate(each, axis=-1), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="no stage of the image encoder 'stage9'"):
        model.region_means(images, boxes, ("stage9",))


def test_a_crop_of_all_is_the_image_and_the_same_tissue_has_one_vector_wherever_it_lies():
    model = model_of(RESNET, batch_size=2, devices=1)
    images = tiny_subject.images(2)
    moved = np.zeros_like(images)
    moved[:, 9:, 5:] = images[:, :-9, :-5]
    box = np.float32([6, 8, 12, 16])
    boxes = np.tile(np.stack([WHOLE, box, box + np.float32([5, 9, 5, 9])]), (2, 1, 1))
    # Of the whole image without context, of the others with twice their sides: each program takes one.
    whole = model.embed_crops(images, boxes, context=1.0)[:, 0]
    np.testing.assert_allclose(whole, embedded(model, images), atol=1e-4)
    own, other = model.embed_crops(images, boxes), model.embed_crops(moved, boxes)
    assert own.shape == (2, 3, DIM)
    np.testing.assert_allclose(np.linalg.norm(own, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(own[:, 1], other[:, 2], atol=1e-4)
    assert np.abs(own[:, 1] - own[:, 2]).max() > 1e-2


def test_a_place_is_projected_as_the_image_is():
    """The mean over all cells of the last stage is what is pooled."""
    model = model_of(RESNET, batch_size=2, devices=1)
    images = tiny_subject.images(2)
    grid = model.stage_grid(model.stages[-1])
    rows, columns = jax.eval_shape(model._stage_maps, model._variables, images)[1][model.stages[-1]].shape[1:3]
    left, top = grid.column - grid.stride / 2, grid.row - grid.stride / 2
    cells = np.float32([left, top, left + columns * grid.stride, top + rows * grid.stride])
    found = model.embed_places(images, np.tile(np.stack([cells, cells / 2]), (2, 1, 1)))
    np.testing.assert_allclose(found[:, 0], embedded(model, images), atol=1e-4)
    assert np.abs(found[:, 1] - found[:, 0]).max() > 1e-3


def test_what_is_cut_out_has_the_images_shape_and_holds_the_box_with_its_context():
    boxes = np.float32([[10, 10, 14, 40], [0, 0, 30, 3], [7, 7, 7, 7]])
    found = np.asarray(around(boxes, (HEIGHT, WIDTH), 2.0))
    sides = found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], WIDTH / HEIGHT, rtol=1e-5)
    np.testing.assert_allclose(found[:, :2] + found[:, 2:], boxes[:, :2] + boxes[:, 2:], atol=1e-3)
    wanted = np.maximum(boxes[:, 2:] - boxes[:, :2], 1) * 2
    assert (sides >= wanted - 1e-3).all() and np.isclose(sides, wanted, rtol=1e-5).any(axis=1).all()
