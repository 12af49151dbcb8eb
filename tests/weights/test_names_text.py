"""Text encoders of transformers read and written back: same states, same arrays, nothing missing, nothing unused."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import names
from mammoclip_jax.weights.names.text import strip
from mammoclip_jax.weights.naming import abstract, read, write

# Small models of each kind: naming, class in transformers, its config without the vocabulary, and ours.
SMALL = {
    "bert": (
        "BertModel",
        dict(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
        ),
    ),
    "modernbert": (
        "ModernBertModel",
        dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, pad_token_id=0),
    ),
    "gpt2": ("GPT2Model", dict(n_embd=128, n_layer=2, n_head=2, n_inner=24, n_positions=20)),
    "clip_text": (
        "CLIPTextModel",
        dict(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=20,
        ),
    ),
}
PREFIXES = {"bert": "bert.", "modernbert": "model.", "gpt2": "transformer.", "clip_text": "text_model."}
VOCABULARY = 71


def _random_state(name: str) -> dict[str, np.ndarray]:
    """A state dict of the small model, made by `write` from random variables."""
    naming = names.naming(name)
    options = {k: v for k, v in SMALL[name.partition("/")[0]][1].items() if k != "pad_token_id"}
    options |= {"vocab_size": VOCABULARY} | ({"final_norm": False} if name == "modernbert/mammo_fm" else {})
    random = np.random.default_rng(0)
    variables = {
        path: random.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in abstract(naming, options, 0).items()
    }
    return write(naming, unflatten_dict(variables, sep="/"), options)


def _states(tower, ids, mask):
    encoder = models.text_encoder(tower.options, VOCABULARY)
    return np.asarray(jax.jit(lambda v: encoder.apply(v, ids, mask, train=False))(tower.variables))


@pytest.mark.parity
@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_states_equal_transformers(name, with_config):
    """Relative to their largest value, 1e-4: float32 rounding; at two lengths, with padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind, options = SMALL[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(
        getattr(transformers, kind.replace("Model", "Config"))(vocab_size=VOCABULARY, **options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    assert names.detect(state) == name
    tower = read(names.naming(name), state, model.config.to_dict() if with_config else None)
    for length in (7, 19):
        ids = np.random.default_rng(length).integers(3, VOCABULARY, (3, length))
        mask = np.arange(length) < np.array([[length], [length - 3], [2]])
        with torch.no_grad():
            theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
        difference = abs(_states(tower, ids, mask) - theirs)[mask].max() / abs(theirs).max()
        assert difference < 1e-4, (length, difference)
    written = {
        key: torch.tensor(value) for key, value in write(names.naming(name), tower.variables, tower.options).items()
    }
    for key, value in written.items():
        if not key.startswith("pooler"):
            np.testing.assert_array_equal(value, state[key], err_msg=key)
    model.load_state_dict(written, strict=True)


@pytest.mark.parametrize("name", [*SMALL, "modernbert/mammo_fm"])
def test_written_is_read_again_bit_by_bit(name):
    state = _random_state(name)
    tower = read(names.naming(name), state)
    again = write(names.naming(name), tower.variables, tower.options)
    assert set(again) == set(state)
    for key in state:
        np.testing.assert_array_equal(again[key], state[key], err_msg=key)
    assert len(flatten_dict(tower.variables)) == len(state) - len(tower.unused)


@pytest.mark.parametrize("name", SMALL)
def test_heads_and_prefixes_are_taken_off(name):
    state = _random_state(name)
    wrapped = {PREFIXES[name] + key: value for key, value in state.items()}
    wrapped |= {"lm_head.weight": np.zeros(1)} if name == "gpt2" else {}
    stripped = strip(wrapped)
    assert names.detect(stripped) == name and set(state) <= set(stripped)
    read(names.naming(name), stripped)


def test_layer_norms_of_old_files_are_read():
    state = _random_state("bert")
    old = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }
    assert any("gamma" in key for key in old) and set(strip(old)) == set(state)


def test_mammo_fm_leaves_the_last_norm_out():
    state = _random_state("modernbert")
    tower = read(names.naming("modernbert/mammo_fm"), state)
    assert tower.unused == ["final_norm.weight"] and tower.options["final_norm"] is False
    assert "final_norm" not in tower.variables["params"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state.pop("encoder.layer.1.output.dense.bias"), "missing encoder.layer.1.output.dense.bias"),
        (lambda state: state.update({"extra.weight": np.zeros(2)}), "unused extra.weight"),
        (
            lambda state: state.update({"embeddings.LayerNorm.bias": np.zeros(127)}),
            r"embeddings.LayerNorm.bias.*\(127,\)",
        ),
        (lambda state: state.update({"encoder.layer.0.output.dense.weight": np.zeros(3)}), "has 1 axes"),
        (
            lambda state: state.pop("embeddings.token_type_embeddings.weight"),
            "no embeddings.token_type_embeddings.weight",
        ),
    ],
)
def test_what_does_not_fit_is_named(spoil, message):
    state = _random_state("bert")
    spoil(state)
    with pytest.raises(UserError, match=message):
        read(names.naming("bert"), state)


@pytest.mark.parametrize(
    "shapes, name, options",
    [
        (
            {
                "embeddings.word_embeddings.weight": (30522, 384),
                "embeddings.token_type_embeddings.weight": (2, 384),
                "embeddings.position_embeddings.weight": (512, 384),
                "encoder.layer.0.intermediate.dense.weight": (1536, 384),
            },
            "bert",
            dict(hidden_size=384, intermediate_size=1536, vocab_size=30522, num_hidden_layers=1),
        ),
        (
            {"wte.weight": (28896, 2560), "wpe.weight": (1024, 2560), "h.0.mlp.c_fc.weight": (2560, 10240)},
            "gpt2",
            dict(vocab_size=28896, n_embd=2560, n_head=20, n_layer=1, scale_attn_by_inverse_layer_idx=True),
        ),
    ],
)
def test_heads_of_published_models(shapes, name, options):
    """MiniLM has 12 heads, the default; BioMedLM 20, and its scores are divided by the layer's number."""
    assert names.naming(name).options(shapes, None) == options
