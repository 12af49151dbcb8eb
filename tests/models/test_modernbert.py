"""ModernBERT against transformers' PyTorch implementation (live where torch is, else stored outputs), and invariants.

Regenerate the stored outputs, where torch is installed, with `python -m tests.models.test_modernbert`.
"""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.modernbert import (ModernBert, ModernBertConfig, attention, from_options, local_attention,
                                             make_rotation)

GOLDEN = Path(__file__).parent.parent / "golden" / "modernbert.npz"
# A window of 2 tokens on either side: the long texts go through it in blocks, the short ones in one piece.
SMALL = dict(vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=20,
             max_position_embeddings=32, local_attention=4, global_attn_every_n_layers=3, norm_eps=1e-5)
LARGE = dict(hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624)
LENGTHS = {5: (5, 2, 3), 15: (15, 9, 4)}                               # tokens of each text, by the padded length


def _texts(length: int) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(length) < np.array(LENGTHS[length])[:, None]
    return np.where(mask, np.random.default_rng(length).integers(1, 60, mask.shape), 60), mask


def _config(**changes) -> ModernBertConfig:
    return ModernBertConfig(**{**SMALL, **changes})


def _to_jax(state: dict[str, np.ndarray]) -> dict:
    """Hugging Face names and layouts to ours, by rule alone."""
    flat = {}
    for name, value in state.items():
        path = name.replace("layers.", "layers_").split(".")
        norm = path[-2].endswith("norm")
        leaf = {"weight": "scale" if norm else "embedding" if path[-2] == "tok_embeddings" else "kernel",
                "bias": "bias"}[path[-1]]
        flat[(*path[:-1], leaf)] = np.asarray(value).T if leaf == "kernel" else np.asarray(value)
    return flax.traverse_util.unflatten_dict(flat)


def _states(config: ModernBertConfig, params, ids, mask, dtype=jnp.float32):
    model = ModernBert(config, dtype)
    return jax.jit(lambda p, i, m: model.apply({"params": p}, i, m, train=False))(params, ids, mask)


def _shapes(config: ModernBertConfig, dtype=jnp.float32):
    ids, mask = _texts(5)
    return jax.eval_shape(lambda: ModernBert(config, dtype).init(jax.random.key(0), ids, mask, train=False)["params"])


def _random_params(config: ModernBertConfig, scale: float = 0.3):
    """Larger than ModernBERT's initial values, so that the attention is far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (rng.standard_normal(s.shape) * scale).astype(np.float32), _shapes(config))


def _torch_model(final_norm: bool = True, **changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**{**SMALL, **changes}, attn_implementation="eager",
                                           **dict.fromkeys(["pad_token_id", "eos_token_id", "bos_token_id",
                                                            "cls_token_id", "sep_token_id"], 60))
    model = transformers.ModernBertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm.weight" in name), 0.3)
    if not final_norm:                        # what hidden_states[-1] of transformers 4.48 is
        model.final_norm = torch.nn.Identity()
    return torch, model


def _torch_reference(**changes) -> dict[str, np.ndarray]:
    """Parameters, states at both lengths, and gradients of the sum of squares of the real tokens' long states."""
    torch, model = _torch_model(**changes)
    stored = {f"params:{name}": p.detach().numpy() for name, p in model.named_parameters()}
    for length in LENGTHS:
        ids, mask = _texts(length)
        states = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state
        stored[f"states:{length}"] = states.detach().numpy()
    (states[torch.tensor(mask)] ** 2).sum().backward()
    return stored | {f"grads:{name}": p.grad.numpy() for name, p in model.named_parameters()}


def _part(stored, kind: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(kind): v for k, v in stored.items() if k.startswith(kind)}


def _compare(stored, **changes) -> None:
    """States are compared at feature scale 1, gradients relative to the greatest of their parameter."""
    config, params = _config(**changes), _to_jax(_part(stored, "params:"))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, _shapes(config))
    differences = {}
    for length in LENGTHS:
        ids, mask = _texts(length)
        ours, theirs = np.asarray(_states(config, params, ids, mask))[mask], stored[f"states:{length}"][mask]
        differences[f"states:{length}"] = abs(ours - theirs).max() / max(1, theirs.std())
    ours = jax.jit(jax.grad(lambda p: (_states(config, p, ids, mask)[mask] ** 2).sum()))(params)
    theirs = _to_jax(_part(stored, "grads:"))
    differences["grads"] = max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max() / (abs(b).max() + 1.0),
                                                            ours, theirs)))
    assert max(differences.values()) < 2e-5, differences


@pytest.mark.parity
@pytest.mark.parametrize("changes", [
    {}, dict(final_norm=False, global_attn_every_n_layers=2, local_attention=7),
    dict(norm_bias=True, attention_bias=True, mlp_bias=True, hidden_activation="relu"),
])
def test_states_and_gradients_equal_transformers(changes):
    _compare(_torch_reference(**changes), **changes)


def test_states_and_gradients_equal_stored_ones():
    _compare(np.load(GOLDEN))


def test_states_of_mammo_fm_are_those_before_the_final_norm():
    """As in the stored reference, whose states are LayerNorm(ours): the norm and its parameter are gone."""
    stored = np.load(GOLDEN)
    params = _to_jax(_part(stored, "params:"))
    scale = params.pop("final_norm")["scale"]
    ids, mask = _texts(15)
    x = np.asarray(_states(_config(final_norm=False), params, ids, mask))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(normed[mask], stored["states:15"][mask], atol=2e-5)
    assert abs(x[mask] - stored["states:15"][mask]).max() > 0.1


@pytest.mark.parity
@pytest.mark.parametrize("length", [1, 300])
def test_published_window_and_thetas_equal_transformers(length):
    """The published windows and rotations: at 300 tokens, past the 64 that a token sees on either side."""
    changes = dict(local_attention=128, max_position_embeddings=512)
    torch, model = _torch_model(**changes)
    ids = np.random.default_rng(0).integers(1, 60, (2, length))
    mask = np.arange(length) < np.array([[length], [length // 2 + 1]])
    theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long()).last_hidden_state.detach().numpy()
    params = _to_jax({name: p.detach().numpy() for name, p in model.named_parameters()})
    ours = np.asarray(_states(_config(**changes), params, ids, mask))
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=5e-5)


@pytest.mark.parity
@pytest.mark.parametrize("layers, theta", [("full_attention", 160000.0), ("sliding_attention", 10000.0)])
def test_published_rotations_equal_transformers_at_every_position(layers, theta):
    """A frequency that is off by its last bit is 2e-4 off here."""
    torch, model = _torch_model(hidden_size=128)
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


@pytest.mark.parametrize("changes, published", [({}, 149_014_272), (LARGE, 394_781_696)])
def test_parameter_counts(changes, published):
    """The encoders of answerdotai/ModernBERT-base and -large (149 and 395 million), without the heads."""
    shapes = _shapes(ModernBertConfig(**changes))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == published


def test_every_parameter_is_named_as_in_a_checkpoint():
    paths = set(flax.traverse_util.flatten_dict(_random_params(_config()), sep="/"))
    assert {"embeddings/tok_embeddings/embedding", "embeddings/norm/scale", "layers_1/attn_norm/scale",
            "layers_0/attn/Wqkv/kernel", "layers_3/attn/Wo/kernel", "layers_0/mlp_norm/scale",
            "layers_1/mlp/Wi/kernel", "layers_2/mlp/Wo/kernel", "final_norm/scale"} <= paths
    assert len(paths) == 3 + 4 * 6 - 1 and "layers_0/attn_norm/scale" not in paths


@pytest.mark.parametrize("length", LENGTHS)
def test_padding_never_changes_real_tokens(length):
    config = _config()
    params = _random_params(config)
    ids, mask = _texts(length)
    states = np.asarray(_states(config, params, ids, mask))
    junk = np.where(mask, ids, 7)                                      # other ids behind the mask
    np.testing.assert_array_equal(states[mask], np.asarray(_states(config, params, junk, mask))[mask])
    more = ((0, 0), (0, 9))
    wide = _states(config, params, np.pad(ids, more), np.pad(mask, more))
    np.testing.assert_allclose(wide[:, :length][mask], states[mask], atol=2e-6)
    n = LENGTHS[length][1]
    alone = _states(config, params, ids[1:2, :n], mask[1:2, :n])
    np.testing.assert_allclose(alone[0], states[1, :n], atol=2e-6)


def test_gradients_of_a_text_of_padding_alone_are_finite():
    config = _config()
    ids, mask = _texts(15)
    empty = mask & np.array([[True], [False], [True]])
    grads = jax.jit(jax.grad(lambda p: (_states(config, p, ids, empty) ** 2).sum()))(_random_params(config))
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


def test_every_gradient_is_the_same_on_eight_devices():
    config = _config()
    params = _random_params(config)
    ids, mask = (np.repeat(x, 8, axis=0) for x in _texts(15))
    ids = (ids * np.arange(1, 25)[:, None]) % 60

    @jax.jit
    def gradients(p, i, m):
        states = ModernBert(config).apply({"params": p}, i, m, train=False)
        return jax.grad(lambda q: (ModernBert(config).apply({"params": q}, i, m, train=False) ** 2
                                   * m[..., None]).mean())(p), states

    mesh = Mesh(np.array(jax.devices()), "data")
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    one, states = gradients(params, ids, mask)
    eight, states8 = gradients(jax.device_put(params, whole), *jax.device_put((ids, mask), split))
    np.testing.assert_allclose(states8[mask], states[mask], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * abs(a).max()), one, eight)


def test_bfloat16_is_close_and_parameters_stay_float32():
    config = _config(final_norm=False)
    params = _random_params(config, 0.1)
    ids, mask = _texts(15)
    states = _states(config, params, ids, mask, jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    exact = _states(config, params, ids, mask)[mask]
    np.testing.assert_allclose(states.astype(np.float32)[mask], exact, atol=0.02 * abs(exact).max())
    assert {x.dtype for x in jax.tree.leaves(_shapes(config, jnp.bfloat16))} == {jnp.dtype("float32")}


def test_dropout_is_on_in_training_only():
    config = _config(embedding_dropout=0.1, attention_dropout=0.1, mlp_dropout=0.1)
    params = _random_params(config)
    ids, mask = _texts(15)
    apply = jax.jit(lambda p, key: ModernBert(config).apply({"params": p}, ids, mask, train=True,
                                                            rngs={"dropout": key}))
    first = apply(params, jax.random.key(0))
    assert not np.allclose(first, apply(params, jax.random.key(1)))
    np.testing.assert_array_equal(first, apply(params, jax.random.key(0)))
    quiet = jax.jit(lambda p: ModernBert(_config()).apply({"params": p}, ids, mask, train=True))(params)
    np.testing.assert_allclose(quiet, _states(config, params, ids, mask), atol=1e-6)


def test_initial_values_are_those_of_transformers():
    config = _config(hidden_size=64, intermediate_size=96)
    ids, mask = _texts(5)
    params = jax.jit(lambda: ModernBert(config).init(jax.random.key(0), ids, mask, train=False)["params"])()
    kernel, out = params["layers_1"]["attn"]["Wqkv"]["kernel"], params["layers_1"]["mlp"]["Wo"]["kernel"]
    assert abs(kernel).max() <= 0.04 and abs(out).max() <= 0.04 / 8 ** 0.5
    np.testing.assert_allclose([kernel.std() / 0.88, out.std() / 0.88], [0.02, 0.02 / 8 ** 0.5], rtol=0.03)


HUB = {"model_type": "modernbert", "hidden_size": 32, "num_attention_heads": 4, "global_attn_every_n_layers": 2,
       "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "unknown": 1}


def test_config_from_hugging_face():
    config = ModernBertConfig.from_hf(HUB)
    assert config == ModernBertConfig(hidden_size=32, num_attention_heads=4, global_attn_every_n_layers=2)
    assert ModernBertConfig.from_hf({**HUB, "local_rope_theta": None}).local_rope_theta == 160000.0
    newer = {"num_hidden_layers": 4, "layer_types": ["full_attention", *3 * ["sliding_attention"]],
             "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5.0},
                                 "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}}
    config = ModernBertConfig.from_hf(newer)
    assert (config.global_attn_every_n_layers, config.global_rope_theta, config.local_rope_theta) == (4, 5.0, 7.0)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "bert"}, "bert"), ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "full_attention at"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]}, "full_attention at"),
    ({"hidden_activation": "swish"}, "swish"), ({"num_attention_heads": 32}, "multiple"),
    ({"global_attn_every_n_layers": 0}, "at least 1"),
])
def test_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        ModernBertConfig.from_hf({**HUB, **change})


@pytest.mark.parity
def test_config_of_transformers_itself_is_read():
    transformers = pytest.importorskip("transformers")
    assert ModernBertConfig.from_hf(transformers.ModernBertConfig().to_dict()) == ModernBertConfig()


def test_from_options():
    model = from_options(50, jnp.bfloat16, hidden_size=8, num_attention_heads=2, final_norm=False)
    expected = ModernBertConfig(vocab_size=50, hidden_size=8, num_attention_heads=2, final_norm=False)
    assert model == ModernBert(expected, jnp.bfloat16)
    with pytest.raises(UserError, match="Did you mean 'final_norm'"):
        from_options(50, finalnorm=False)


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="text_length"):
        _shapes(_config(max_position_embeddings=4))


def regenerate_golden() -> None:
    """Write tests/golden/modernbert.npz from transformers' ModernBertModel with random weights."""
    np.savez_compressed(GOLDEN, **_torch_reference())


if __name__ == "__main__":
    regenerate_golden()
