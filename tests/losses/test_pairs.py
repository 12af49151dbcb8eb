"""Equal texts get one id."""

import jax
import numpy as np

from mammoclip_jax.losses.pairs import text_ids


def test_equal_texts_share_an_id_and_others_do_not():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30000, size=(40, 2, 16), dtype=np.int32)
    tokens[7, 0] = tokens[3, 0]
    tokens[9, 1] = tokens[3, 0]
    tokens[11, 0] = tokens[12, 0]
    tokens[11, 0, -1] += 1  # one token, by one
    tokens[13, 0] = tokens[14, 0][::-1]  # another order
    ids = jax.device_get(jax.jit(text_ids)(tokens))
    texts = tokens.reshape(80, 16)
    equal = (texts[:, None] == texts).all(-1)
    np.testing.assert_array_equal(ids.reshape(-1)[:, None] == ids.reshape(-1), equal)


def test_many_short_texts_of_few_words_are_told_apart():
    tokens = np.stack(np.meshgrid(*[np.arange(12, dtype=np.int32)] * 4), -1).reshape(-1, 1, 4)
    assert len(np.unique(jax.jit(text_ids)(tokens))) == 12**4
