"""Dice and IoU by hand; the cheapest masks find what they can: a planted grey value, a planted place."""

import numpy as np
import pytest

from mammoclip_jax.evaluation.metrics import mask_overlap

PATIENTS = [f"p{i // 2}" for i in range(24)]


def drawn(seed=0):
    """Images of grey noise whose brightest part is the mask, in two of three of them."""
    rng = np.random.default_rng(seed)
    true = np.zeros((24, 16, 12), bool)
    images = rng.integers(0, 120, true.shape)
    for i in range(24):
        if i % 3:
            row, column = rng.integers(0, 8, 2)
            true[i, row : row + 6, column : column + 4] = True
    images[true] = rng.integers(150, 200, true.sum())
    images[:, 0, 0], images[:, 15, 11] = 0, 200
    true[:, 15, 11] = True
    true[::3] = False
    images[::3, 15, 11] = 120
    images[::3, 8, 8] = 200  # the brightest pixel of those without it
    return images.astype(np.uint8), true


def test_counts_are_those_of_a_naive_loop():
    rng = np.random.default_rng(1)
    found, true = rng.random((2, 5, 6, 7)) < 0.5
    found[3] = true[3] = False
    own = mask_overlap.counts(found, true)
    for i in (0, 1, 2, 4):
        a, b = ({tuple(p) for p in np.argwhere(x[i])} for x in (found, true))
        assert own.dice[i] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
        assert own.iou[i] == pytest.approx(len(a & b) / len(a | b))
    assert np.isnan(own.dice[3]) and np.isnan(own.iou[3])


def test_images_without_it_are_no_part_of_dice_but_of_the_pooled_one():
    found, true = np.zeros((2, 24, 4, 4), bool)
    true[::2, :2] = True
    found[::2, :1] = True  # half of it
    found[1, 0, 0] = True  # and a pixel in one of those without it
    entries = mask_overlap.entries(mask_overlap.counts(found, true), PATIENTS, resamples=200)
    assert entries["dice"]["value"] == pytest.approx(2 / 3) and entries["dice"]["n"] == 12
    assert entries["iou"]["value"] == pytest.approx(0.5)
    assert (
        entries["dice_pooled"]["value"] == pytest.approx(2 * 48 / (48 + 1 + 96)) and entries["dice_pooled"]["n"] == 24
    )
    assert entries["clean"]["value"] == pytest.approx(11 / 12) and entries["clean"]["low"] < 11 / 12
    always = mask_overlap.entries(mask_overlap.counts(found[::2], true[::2]), PATIENTS[::2], resamples=0)
    assert set(always) == {"dice", "iou"}


def test_brightness_finds_a_grey_value():
    images, true = drawn()
    fitted = mask_overlap.fit_brightness(images, true)
    assert fitted.blur == 0 and 120 / 200 < fitted.level <= 150 / 200
    others, truth = drawn(1)
    own = mask_overlap.counts(fitted(others), truth)
    assert np.nanmin(own.dice[truth.any((1, 2))]) > 0.97
    worse = mask_overlap.counts(np.zeros_like(truth), truth)
    assert mask_overlap.gained(own, worse, PATIENTS, resamples=0)["value"] > 0.97


def test_place_finds_a_place_whatever_the_images_show():
    true = np.zeros((6, 8, 8), bool)
    true[:4, 2:5, 2:5] = True
    true[2, 5:7, 2:5] = True  # now and then
    fitted = mask_overlap.fit_place(true)
    assert np.argwhere(fitted(np.zeros((1, 8, 8)))[0]).tolist() == np.argwhere(true[0]).tolist()


def test_a_fitted_threshold_is_the_best_of_all():
    rng = np.random.default_rng(2)
    values, true = rng.random((3, 9, 9)), rng.random((3, 9, 9)) < 0.3
    dice, level = mask_overlap._best(values, true)
    every = [
        np.mean(mask_overlap.counts(values >= step / mask_overlap.LEVELS, true).dice)
        for step in range(mask_overlap.LEVELS)
    ]
    assert dice == pytest.approx(max(every)) and level == np.argmax(every) / mask_overlap.LEVELS
