"""Boxes follow the images that training varies."""

import jax
import numpy as np
import pytest

from mammoclip_jax.training import augment


@pytest.mark.parametrize("seed", range(4))
def test_boxes_go_where_the_image_goes(seed):
    """The upright box around the bright pixels of a moved rectangle is the moved box, to a pixel."""
    size, box = (120, 96), np.array([[30.0, 40.0, 58.0, 75.0]])
    image = np.zeros((1, *size), np.float32)
    image[0, 40:75, 30:58] = 1
    options = augment.Preprocess(
        0.0, 1.0, 1, "range", affine_probability=1.0, rotate=15.0, translate=0.08, scale=(0.8, 1.2), shear=10.0
    )
    matrix = augment.random_affine(jax.random.key(seed), (1, *size), options)
    flips = np.array([seed % 2 == 0]), np.array([seed > 1])
    draws = augment.Draws(*flips, matrix, np.zeros(1), np.zeros(1))
    moved = np.asarray(augment.train_images((image * 255).astype(np.uint8), draws, options))[0, :, :, 0]
    boxes, there = augment.boxes(box[None], draws, size, True)
    rows, columns = np.nonzero(moved > 0.5)
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert there.all()
    np.testing.assert_allclose(boxes[0, 0], around, atol=1.5)


@pytest.mark.parametrize("horizontal, vertical", [(False, False), (True, False), (False, True), (True, True)])
def test_mirrored_boxes_lie_around_the_same_pixels(horizontal, vertical):
    image = np.zeros((1, 12, 10), np.uint8)
    image[0, 2:5, 1:7] = 255
    draws = augment.Draws(np.array([horizontal]), np.array([vertical]), np.eye(2, 3)[None], np.zeros(1), np.zeros(1))
    moved = augment.train_images(image, draws, augment.Preprocess(0.0, 1.0, 1, "range"))[0, :, :, 0]
    boxes, _ = augment.boxes(np.array([[[1.0, 2.0, 7.0, 5.0]]]), draws, (12, 10), False)
    rows, columns = np.nonzero(moved)
    np.testing.assert_array_equal(boxes[0, 0], [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_a_box_that_leaves_the_image_is_gone_and_one_at_the_rim_is_cut():
    draws = augment.Draws(
        np.array([False]),
        np.array([False]),
        np.array([[[1.0, 0, 0], [0, 1, 30]]], np.float32),
        np.zeros(1),
        np.zeros(1),
    )  # everything moves 30 pixels to the left
    boxes, there = augment.boxes(
        np.array([[[0.0, 10, 20, 30], [20, 10, 60, 30], [50, 0, 60, 9]]]), draws, (64, 64), True
    )
    np.testing.assert_array_equal(there, [[False, True, True]])
    np.testing.assert_allclose(boxes[0, 1:], [[0, 10, 30, 30], [20, 0, 30, 9]], atol=1e-4)


def test_a_batch_has_its_boxes_already_moved():
    """Two images of two views: each box goes with its own image, and the class of one that is gone is -1."""
    mirrored = np.array([False, False, True, True])
    shift = np.tile(np.eye(2, 3, dtype=np.float32), (4, 1, 1))
    shift[1, 1, 2] = 30.0
    draws = augment.Draws(mirrored, np.zeros(4, bool), shift, np.zeros(4), np.zeros(4))
    batch = {
        "image": np.zeros((2, 2, 64, 64), np.uint8),
        "mask": np.ones(2, bool),
        "boxes": np.tile(np.array([2.0, 4, 20, 8]), (2, 2, 1, 1)),
        "box_classes": np.ones((2, 2, 1), np.int32),
    }
    options = augment.Preprocess(0.0, 1.0, 1, "range", affine_probability=1.0)
    moved = augment.with_moved_boxes(batch, draws, options)
    np.testing.assert_array_equal(moved["box_classes"][..., 0], [[1, -1], [1, 1]])
    np.testing.assert_allclose(moved["boxes"][0, 0, 0], [2, 4, 20, 8], atol=1e-4)
    np.testing.assert_allclose(moved["boxes"][1, :, 0], [[44, 4, 62, 8]] * 2, atol=1e-4)
    assert moved["image"] is batch["image"] and moved["mask"] is batch["mask"]
