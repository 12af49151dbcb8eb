"""What is CLIP's own: later tokens, the end-of-text token and its config; the rest is in test_text_encoders.py."""

import numpy as np
import pytest
from text_contract import FORMS, compare, states

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.clip_text import ClipTextConfig

SMALL = FORMS["clip_text"]


@pytest.mark.parity
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_of_older_configs_the_highest_id_ends_a_text(hidden_act):
    """They say 2, which stands in no text's end."""
    compare(SMALL, SMALL.torch_reference(eos_token_id=2, hidden_act=hidden_act), eot=None, hidden_act=hidden_act)


@pytest.mark.parametrize("key", SMALL.texts)
def test_later_tokens_never_change_a_token(key):
    model, params, (ids, mask) = SMALL.model(), SMALL.params(), SMALL.texts[key]
    start = states(model, params, ids[:, :2], mask[:, :2])
    np.testing.assert_allclose(start, states(model, params, ids, mask)[:, :2], atol=1e-6)


def test_config_from_hugging_face():
    whole = {
        "model_type": "clip",
        "text_config": {"hidden_size": 32, "unknown": 1},
        "text_config_dict": {"hidden_act": "gelu"},
        "vision_config": {"hidden_size": 64},
    }
    assert ClipTextConfig.from_hf(whole) == ClipTextConfig(hidden_size=32, hidden_act="gelu")
    assert ClipTextConfig.from_hf({"model_type": "clip_text_model", "hidden_size": 32}).hidden_size == 32
    with pytest.raises(UserError, match="siglip"):
        ClipTextConfig.from_hf({"model_type": "siglip"})
    with pytest.raises(UserError, match="swish"):
        SMALL.model(hidden_act="swish")
    with pytest.raises(UserError, match="multiple"):
        SMALL.model(num_attention_heads=3)
