"""What is GPT-2's own: positions, causal attention and its config; the rest is in test_text_encoders.py."""

import numpy as np
import pytest
from text_contract import FORMS, LEFT, RIGHT, states, to_jax

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.gpt2 import Gpt2Config, positions

SMALL = FORMS["gpt2"]
BIOMEDLM = dict(vocab_size=28896, n_embd=2560, n_layer=32, n_head=20, scale_attn_by_inverse_layer_idx=True)


@pytest.mark.parity
def test_texts_padded_on_the_right_need_no_position_ids_in_transformers():
    torch, model = SMALL.torch_model()
    ids, mask = RIGHT
    with torch.no_grad():
        theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
    params = to_jax({k: v.detach().numpy() for k, v in model.named_parameters()})
    np.testing.assert_allclose(states(SMALL.model(), params, ids, mask)[mask], theirs[mask], rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_never_changes_real_tokens():
    """As on the right, which test_text_encoders.py tries."""
    model, params, (ids, mask) = SMALL.model(), SMALL.params(), RIGHT
    found = np.asarray(states(model, params, ids, mask))[mask]
    for before, after in ((9, 0), (4, 5)):
        wide, real = (np.pad(array, ((0, 0), (before, after))) for array in RIGHT)
        np.testing.assert_allclose(states(model, params, wide, real)[real], found, atol=2e-6)
    np.testing.assert_allclose(states(model, params, *LEFT)[LEFT[1]], found, atol=2e-6)


def test_a_token_sees_only_what_stands_before_it():
    ids, mask = RIGHT
    other = np.where(np.arange(8) > 4, 55, ids)
    a, b = (np.asarray(states(SMALL.model(), SMALL.params(), which, mask)) for which in (ids, other))
    np.testing.assert_array_equal(a[:, :5][mask[:, :5]], b[:, :5][mask[:, :5]])
    assert not np.allclose(a[1, 5:], b[1, 5:])


def test_positions_count_real_tokens():
    np.testing.assert_array_equal(positions(LEFT[1])[0], [0, 0, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(positions(RIGHT[1])[2], [0, 1, 1, 1, 1, 1, 1, 1])


def test_config_from_hugging_face():
    config = Gpt2Config.from_hf({"model_type": "gpt2", **BIOMEDLM, "n_inner": None, "n_ctx": 1024})
    assert config == Gpt2Config(**BIOMEDLM)
    with pytest.raises(UserError, match="bert"):
        Gpt2Config.from_hf({"model_type": "bert"})
    with pytest.raises(UserError, match="cross"):
        Gpt2Config.from_hf({"add_cross_attention": True})
    with pytest.raises(UserError, match="swish"):
        SMALL.model(activation_function="swish")
    with pytest.raises(UserError, match="multiple"):
        SMALL.model(n_head=3)
