"""What is ModernBERT's own: windows, rotations, Mammo-FM's states, its config; the rest is in test_text_encoders.py."""

import jax
import numpy as np
import pytest
from text_contract import FORMS, GOLDEN, part, states, to_jax

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.modernbert import ModernBertConfig, attention, local_attention, make_rotation

SMALL = FORMS["modernbert"]


def test_states_of_mammo_fm_are_those_before_the_final_norm():
    """As in the stored reference, whose states are LayerNorm(ours): the norm and its parameter are gone."""
    stored = dict(np.load(GOLDEN / "modernbert.npz"))
    params = to_jax(part(stored, "params:"))
    scale = params.pop("final_norm")["scale"]
    ids, mask = SMALL.text()
    x = np.asarray(states(SMALL.model(final_norm=False), params, ids, mask))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(normed[mask], stored["states:15"][mask], atol=2e-5)
    assert abs(x[mask] - stored["states:15"][mask]).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("length", [1, 300])
def test_published_window_and_thetas_equal_transformers(length):
    """The published windows and rotations: at 300 tokens, past the 64 that a token sees on either side."""
    changes = dict(local_attention=128, max_position_embeddings=512)
    torch, model = SMALL.torch_model(**changes)
    ids = np.random.default_rng(0).integers(1, 60, (2, length))
    mask = np.arange(length) < np.array([[length], [length // 2 + 1]])
    theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state.detach().numpy()
    params = to_jax({name: p.detach().numpy() for name, p in model.named_parameters()})
    ours = np.asarray(states(SMALL.model(**changes), params, ids, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=5e-5)


@pytest.mark.parity
@pytest.mark.parametrize("layers, theta", [("full_attention", 160000.0), ("sliding_attention", 10000.0)])
def test_published_rotations_equal_transformers_at_every_position(layers, theta):
    """A frequency that is off by its last bit is 2e-4 off here."""
    torch, model = SMALL.torch_model(hidden_size=128)
    theirs = model.rotary_emb(torch.zeros(1), torch.arange(8192)[None], layers)
    for ours, expected in zip(jax.jit(lambda: make_rotation(8192, 64, theta))(), theirs, strict=True):
        np.testing.assert_allclose(ours, expected[0, :, :32], atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1, 3, 4, 9])
def test_blocks_equal_a_band_over_the_whole_matrix(reach):
    rng = np.random.default_rng(reach)
    query, key, value = rng.standard_normal((3, 2, 2, 21, 4), np.float32)
    mask = np.arange(21) < np.array([[21], [10]])
    band = abs(np.arange(21)[:, None] - np.arange(21)) <= reach
    whole = jax.jit(lambda: attention(query, key, value, mask[:, None, None, :] & band, lambda x: x))()
    blocks = jax.jit(lambda: local_attention(query, key, value, mask, reach, lambda x: x))()
    for i in range(2):
        np.testing.assert_allclose(blocks[i][:, mask[i]], whole[i][:, mask[i]], atol=1e-6)
    assert np.isfinite(blocks).all()


def test_initial_values_are_those_of_transformers():
    model, (ids, mask) = SMALL.model(hidden_size=64, intermediate_size=96), SMALL.text()
    params = jax.jit(lambda: model.init(jax.random.key(0), ids, mask, train=False)["params"])()
    kernel, out = params["layers_1"]["attn"]["Wqkv"]["kernel"], params["layers_1"]["mlp"]["Wo"]["kernel"]
    assert abs(kernel).max() <= 0.04 and abs(out).max() <= 0.04 / 8**0.5
    np.testing.assert_allclose([kernel.std() / 0.88, out.std() / 0.88], [0.02, 0.02 / 8**0.5], rtol=0.03)


HUB = {
    "model_type": "modernbert",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "unknown": 1,
}


def test_config_from_hugging_face():
    config = ModernBertConfig.from_hf(HUB)
    assert config == ModernBertConfig(hidden_size=32, num_attention_heads=4, global_attn_every_n_layers=2)
    assert ModernBertConfig.from_hf({**HUB, "local_rope_theta": None}).local_rope_theta == 160000.0
    newer = {
        "num_hidden_layers": 4,
        "layer_types": ["full_attention", *3 * ["sliding_attention"]],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        },
    }
    config = ModernBertConfig.from_hf(newer)
    assert (config.global_attn_every_n_layers, config.global_rope_theta, config.local_rope_theta) == (4, 5.0, 7.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "bert"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "full_attention at"),
        (
            {"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]},
            "full_attention at",
        ),
        ({"hidden_activation": "swish"}, "swish"),
        ({"num_attention_heads": 32}, "multiple"),
        ({"global_attn_every_n_layers": 0}, "at least 1"),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ModernBertConfig.from_hf({**HUB, **change})


@pytest.mark.parity
def test_config_of_transformers_itself_is_read():
    transformers = pytest.importorskip("transformers")
    assert ModernBertConfig.from_hf(transformers.ModernBertConfig().to_dict()) == ModernBertConfig()
