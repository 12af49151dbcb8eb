"""What is BERT's own: averaged layers and its config; the rest is in test_text_encoders.py."""

import numpy as np
import pytest
from text_contract import FORMS, states

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.bert import BertConfig

SMALL = FORMS["bert"]


@pytest.mark.parametrize("layers", [(1, 2, -1), (0,), (-1,)])
def test_averaged_layers_are_hidden_states(layers):
    """Counted as transformers' `hidden_states`; an encoder cut behind layer i ends with the i-th of them."""
    (ids, mask), params = SMALL.text(), SMALL.params(num_hidden_layers=3)
    averaged = states(SMALL.model(num_hidden_layers=3, average_layers=layers), params, ids, mask)
    hidden = [states(SMALL.model(num_hidden_layers=i), params, ids, mask) for i in range(4)]
    np.testing.assert_allclose(averaged, np.mean([hidden[i] for i in layers], axis=0), atol=2e-6)
    with pytest.raises(UserError, match="average_layers"):
        SMALL.model(num_hidden_layers=3, average_layers=(4,))


def test_config_from_hugging_face():
    config = BertConfig.from_hf({"model_type": "bert", "hidden_size": 384, "num_attention_heads": 12, "unknown": 1})
    assert (config.hidden_size, config.intermediate_size) == (384, 3072)
    with pytest.raises(UserError, match="roberta"):
        BertConfig.from_hf({"model_type": "roberta"})
    with pytest.raises(UserError, match="relative_key"):
        BertConfig.from_hf({"position_embedding_type": "relative_key"})
    with pytest.raises(UserError, match="swish"):
        SMALL.model(hidden_act="swish")
    with pytest.raises(UserError, match="multiple"):
        SMALL.model(num_attention_heads=3)
