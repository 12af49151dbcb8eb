"""The contrast of attributes equals a naive loop, value and gradient; the negatives are those of the whole batch; nothing
overflows; what is not known changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, one_and_eight

from mammoclip_jax.losses.attributes import attribute_contrast

RNG = np.random.default_rng(0)
COSINES = RNG.uniform(-1, 1, (16, 3))
TARGET = (RNG.random((16, 3)) < 0.4).astype(np.float32)
KNOWN = RNG.random((16, 3)) < 0.7


@functools.partial(jax.jit, static_argnums=3)
def loss(cosines, target, known, temperature=0.07):
    return jax.value_and_grad(lambda x: attribute_contrast(x, target, known, temperature=temperature)[0])(cosines)


def naive(cosines, target, known, temperature=0.07):
    """(value, gradient), each positive by itself."""
    scores, gradient, total = cosines / temperature, np.zeros_like(cosines), 0.0
    pairs = [(i, k) for i, k in np.ndindex(cosines.shape) if known[i, k] and target[i, k]]
    for i, k in pairs:
        others = [j for j in range(len(cosines)) if known[j, k] and not target[j, k]]
        exponentials = np.exp(scores[[i, *others], k])
        shares = exponentials / exponentials.sum()
        total -= np.log(shares[0]) / len(pairs)
        gradient[[i, *others], k] += (shares - np.eye(len(shares))[0]) / len(pairs) / temperature
    return total, gradient


def test_it_equals_a_naive_loop():
    with jax.enable_x64(True):
        value, gradient = jax.device_get(loss(COSINES, TARGET, KNOWN))
    expected = naive(COSINES, TARGET, KNOWN)
    close(value, expected[0], 1e-12)
    close(gradient, expected[1], 1e-10)


def test_eight_devices_count_the_negatives_of_all():
    one, eight = one_and_eight(
        jax.jit(lambda _, *rows: loss(*rows)), np.zeros(1), COSINES.astype(np.float32), TARGET, KNOWN
    )
    close(eight[0], one[0], 1e-5)
    close(eight[1], one[1], 1e-5)
    alone = np.mean([loss(COSINES[i : i + 2], TARGET[i : i + 2], KNOWN[i : i + 2])[0] for i in range(0, 16, 2)])
    assert abs(alone - one[0]) > 1e-2  # each device among its own two rows


def test_what_is_not_known_changes_nothing():
    cosines, target = COSINES.astype(np.float32), TARGET.copy()
    value, gradient = jax.device_get(loss(cosines, target, KNOWN))
    cosines[~KNOWN], target[~KNOWN] = np.inf, 1 - target[~KNOWN]
    again, slopes = jax.device_get(loss(cosines, target, KNOWN))
    assert again == value and not gradient[~KNOWN].any()
    np.testing.assert_array_equal(slopes, gradient)


@pytest.mark.parametrize("positive", [-1.0, 1.0])
def test_nothing_overflows_at_the_papers_temperature(positive):
    """exp(cosine / .007) is infinite in fp32 above .62, and so what was released NaN."""
    cosines = np.array([[positive], [-positive], [0.0]], np.float32)
    target, known = np.array([[1.0], [0.0], [0.0]], np.float32), np.ones((3, 1), bool)
    value, gradient = jax.device_get(loss(cosines, target, known, 0.007))
    assert np.isfinite(gradient).all()
    close(value, np.logaddexp(0, np.logaddexp(-positive / 0.007, 0) - positive / 0.007), 1e-5, 1e-30)


def test_without_positives_or_negatives_there_is_nothing_to_learn():
    known = np.ones((4, 1), bool)
    for target in (np.zeros((4, 1), np.float32), np.ones((4, 1), np.float32)):
        value, gradient = jax.device_get(loss(COSINES[:4, :1].astype(np.float32), target, known))
        assert value == 0 and not gradient.any()


def test_accuracy_is_the_share_of_positives_above_every_negative():
    cosines = jnp.asarray([[0.9, 0.1], [0.5, 0.2], [0.4, 0.3], [0.6, -1.0]])
    target = jnp.asarray([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    known = jnp.ones((4, 2), bool).at[3, 1].set(False)
    # .9 beats .6, .5 does not; .1 does not beat .3; -1 is not known.
    assert attribute_contrast(cosines, target, known)[1]["accuracy"] == pytest.approx(1 / 3)
