"""Poolings of token states against loops over texts, with padding on either side."""

import jax
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.pooling import POOLINGS, pool

SEP, PAD = 60, 0
TEXTS = ([5, 8, SEP, 61, SEP], [5, SEP], [5, 8, 7, 6], [SEP], [9] * 8)
STATES = np.random.default_rng(0).standard_normal((len(TEXTS), 8, 3)).astype(np.float32)

# What each pooling reads of a text's real tokens and their states.
EXPECTED = {
    "eos": lambda ids, states: states[-1],
    "bos": lambda ids, states: states[0],
    "mean": lambda ids, states: states.mean(axis=0),
    "eot": lambda ids, states: states[ids.index(SEP)] if SEP in ids else states[-1],
    "sep": lambda ids, states: np.mean([s for i, s in zip(ids, states) if i == SEP] or states[-1:], axis=0),
}


def _padded(side: str, length: int):
    """ids and mask [N, length], and states whose real tokens are the first of STATES; padding holds junk."""
    ids = np.full((len(TEXTS), length), SEP)  # padded with the separator: it must not count
    mask = np.zeros(ids.shape, bool)
    states = np.full((*ids.shape, 3), 99, np.float32)
    for i, text in enumerate(TEXTS):
        place = slice(0, len(text)) if side == "right" else slice(length - len(text), length)
        ids[i, place], mask[i, place], states[i, place] = text, True, STATES[i, : len(text)]
    return ids, mask, states


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("side, length", [("right", 8), ("right", 13), ("left", 8), ("left", 11)])
def test_every_pooling_equals_a_loop(how, side, length):
    ids, mask, states = _padded(side, length)
    ours = jax.jit(pool, static_argnums=(3, 4))(states, ids, mask, how, SEP)
    expected = [EXPECTED[how](text, STATES[i, : len(text)]) for i, text in enumerate(TEXTS)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_end_of_text_by_the_greatest_id():
    ids, mask, states = _padded("right", 8)
    expected = [STATES[i, int(np.argmax(text))] for i, text in enumerate(TEXTS)]  # an added token, 61, misleads it
    np.testing.assert_array_equal(pool(states, ids, mask, "eot"), expected)


@pytest.mark.parametrize("how", POOLINGS)
def test_a_text_of_padding_alone_stays_finite(how):
    ids, mask, states = _padded("right", 8)
    gradient = jax.grad(lambda s: (pool(s, ids, np.zeros_like(mask), how, SEP) ** 2).sum())(states)
    assert np.isfinite(pool(states, ids, np.zeros_like(mask), how, SEP)).all() and np.isfinite(gradient).all()


def test_what_is_refused():
    ids, mask, states = _padded("right", 8)
    with pytest.raises(UserError, match="max.*eos"):
        pool(states, ids, mask, "max")
    with pytest.raises(UserError, match="pooling_token"):
        pool(states, ids, mask, "sep")
