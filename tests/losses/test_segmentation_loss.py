"""Cross-entropy and Dice equal a naive loop, value and gradient; what is not known changes nothing; devices agree."""

import jax
import numpy as np
import pytest
from comparison import close, one_and_eight

from mammoclip_jax.losses.segmentation import SMOOTHING, cross_entropy_and_dice

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 3, 4, 3)) * 2
MASKS = (RNG.random((8, 3, 4, 3)) < 0.4).astype(np.uint8)
KNOWN = RNG.random((8, 3)) < 0.6
KNOWN[:, 2] = False  # of no image
WEIGHT = np.array([3.0, 0.5, 7.0])


@jax.jit
def loss(logits, masks, known):
    options = dict(dice_weight=0.7, pos_weight=WEIGHT)
    return jax.value_and_grad(lambda x: cross_entropy_and_dice(x, masks, known, **options)[0])(logits)


def naive(logits, masks, known, dice_weight=0.7):
    """(value, gradient) by loops, with the derivatives written out."""
    probability, gradient = 1 / (1 + np.exp(-logits)), np.zeros_like(logits)
    pairs = [(n, k) for n, k in np.ndindex(known.shape) if known[n, k]]
    value, pixels = 0.0, logits[0, :, :, 0].size
    for n, k in pairs:
        p, g = probability[n, :, :, k], masks[n, :, :, k]
        weight = np.where(g, WEIGHT[k], 1)
        value -= np.mean(weight * np.log(np.where(g, p, 1 - p))) / len(pairs)
        gradient[n, :, :, k] += weight * (p - g) / pixels / len(pairs)
    channels = [k for k in range(known.shape[1]) if known[:, k].any()]
    for k in channels:
        images = [n for n in range(len(known)) if known[n, k]]
        both = sum((probability[n, :, :, k] * masks[n, :, :, k]).sum() for n in images)
        either = sum((probability[n, :, :, k] + masks[n, :, :, k]).sum() for n in images)
        value += dice_weight * (1 - (2 * both + SMOOTHING) / (either + SMOOTHING)) / len(channels)
        for n in images:
            p, g = probability[n, :, :, k], masks[n, :, :, k]
            slope = 2 * g / (either + SMOOTHING) - (2 * both + SMOOTHING) / (either + SMOOTHING) ** 2
            gradient[n, :, :, k] -= dice_weight * slope * p * (1 - p) / len(channels)
    return value, gradient


def test_it_equals_a_naive_loop():
    with jax.enable_x64(True):
        value, gradient = jax.device_get(loss(LOGITS, MASKS, KNOWN))
    expected = naive(LOGITS, MASKS, KNOWN)
    close(value, expected[0], 1e-12)
    close(gradient, expected[1], 1e-10)


def test_what_is_not_known_changes_nothing():
    """Not even where it is infinite; and without anything that is known there is no loss."""
    logits, masks = LOGITS.astype(np.float32), MASKS.copy()
    hidden = np.broadcast_to(~KNOWN[:, None, None], logits.shape)
    value, gradient = jax.device_get(loss(logits, masks, KNOWN))
    logits[hidden], masks[hidden] = np.inf, 1 - masks[hidden]
    again, slopes = jax.device_get(loss(logits, masks, KNOWN))
    assert again == value and not gradient[hidden].any() and not slopes[hidden].any()
    np.testing.assert_array_equal(slopes, gradient)
    value, gradient = loss(LOGITS.astype(np.float32), MASKS, np.zeros_like(KNOWN))
    assert value == 0 and not np.any(gradient)


def test_eight_devices_give_what_one_gives():
    with jax.enable_x64(True):
        one, eight = one_and_eight(lambda _, *split: loss(*split), np.zeros(1), LOGITS, MASKS, KNOWN)
    close(eight[0], one[0], 1e-12)
    close(eight[1], one[1], 1e-12)
    halves = [naive(*(x[part] for x in (LOGITS, MASKS, KNOWN)))[0] for part in (slice(0, 4), slice(4, 8))]
    assert abs(np.mean(halves) - one[0]) > 1e-3  # Dice is of the whole batch


@pytest.mark.parametrize("sure, expected", [(40.0, 0.0), (-40.0, 41.0)])
def test_sure_and_right_costs_nothing_and_sure_and_wrong_is_finite(sure, expected):
    masks = np.ones((1, 4, 4, 1), np.uint8)
    value, metrics = cross_entropy_and_dice(np.full(masks.shape, sure, np.float32), masks, np.ones((1, 1), bool))
    np.testing.assert_allclose(value, expected, atol=0.1)
    assert metrics["dice"] == pytest.approx(float(sure > 0), abs=0.1)
