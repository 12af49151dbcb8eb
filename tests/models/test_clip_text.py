"""CLIP's text tower against transformers' PyTorch implementation (live where torch is, else stored outputs).

Regenerate the stored outputs, where torch is installed, with `python -m tests.models.test_clip_text`.
"""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.clip_text import ClipText, ClipTextConfig, eot_token_id, from_options
from mammoclip_jax.models.pooling import pool

GOLDEN = Path(__file__).parent.parent / "golden" / "clip_text.npz"
EOT = 60
SMALL = dict(vocab_size=61, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
             max_position_embeddings=20, layer_norm_eps=1e-5)
LARGE = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
LENGTHS = {6: (6, 2, 3), 13: (13, 9, 4)}                               # tokens of each text, by the padded length


def _texts(length: int, pad: int = EOT) -> tuple[np.ndarray, np.ndarray]:
    """Texts that end with the end-of-text token, padded with it as CLIP's tokenizer does."""
    counts = np.array(LENGTHS[length])[:, None]
    mask = np.arange(length) < counts
    ids = np.random.default_rng(length).integers(1, 59, mask.shape)
    return np.where(np.arange(length) == counts - 1, EOT, np.where(mask, ids, pad)), mask


def _config(**changes) -> ClipTextConfig:
    return ClipTextConfig(**{**SMALL, **changes})


def _to_jax(state: dict[str, np.ndarray]) -> dict:
    """Hugging Face names and layouts to ours, by rule alone."""
    flat = {}
    for name, value in state.items():
        path = name.removeprefix("text_model.").replace("layers.", "layers_").split(".")
        leaf = "bias" if path[-1] == "bias" else ("scale" if "layer_norm" in path[-2] else
                                                  "embedding" if path[-2].endswith("_embedding") else "kernel")
        flat[(*path[:-1], leaf)] = np.asarray(value).T if leaf == "kernel" else np.asarray(value)
    return flax.traverse_util.unflatten_dict(flat)


def _states(config: ClipTextConfig, params, ids, mask, dtype=jnp.float32):
    model = ClipText(config, dtype)
    return jax.jit(lambda p, i, m: model.apply({"params": p}, i, m, train=False))(params, ids, mask)


def _shapes(config: ClipTextConfig, dtype=jnp.float32):
    ids, mask = _texts(6)
    return jax.eval_shape(lambda: ClipText(config, dtype).init(jax.random.key(0), ids, mask, train=False)["params"])


def _random_params(config: ClipTextConfig, scale: float = 0.3):
    """Larger than CLIP's initial values, so that the attention is far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (rng.standard_normal(s.shape) * scale).astype(np.float32), _shapes(config))


def _torch_reference(eos_token_id: int = EOT, **changes) -> dict[str, np.ndarray]:
    """Parameters, states and pooled vectors at both lengths, gradients of the sum of squares of the long pooled."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**{**SMALL, **changes}, eos_token_id=eos_token_id, bos_token_id=59,
                                         attn_implementation="eager")
    model = transformers.CLIPTextModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "weight" in name), 0.3)
    stored = {f"params:{name}": p.detach().numpy() for name, p in model.named_parameters()}
    for length in LENGTHS:
        ids, mask = _texts(length)
        output = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long())
        stored[f"states:{length}"] = output.last_hidden_state.detach().numpy()
        stored[f"pooled:{length}"] = output.pooler_output.detach().numpy()
    (output.pooler_output ** 2).sum().backward()
    return stored | {f"grads:{name}": p.grad.numpy() for name, p in model.named_parameters()}


def _part(stored, kind: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(kind): v for k, v in stored.items() if k.startswith(kind)}


def _compare(stored, eot: int | None, **changes) -> None:
    """States and pooled vectors are compared as they are, gradients relative to the greatest of their parameter."""
    config, params = _config(**changes), _to_jax(_part(stored, "params:"))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, _shapes(config))
    differences = {}
    for length in LENGTHS:
        ids, mask = _texts(length)
        states = _states(config, params, ids, mask)
        differences[f"states:{length}"] = abs(states - stored[f"states:{length}"])[mask].max()
        pooled = pool(states, ids, mask, "eot", eot)
        differences[f"pooled:{length}"] = abs(pooled - stored[f"pooled:{length}"]).max()
        np.testing.assert_array_equal(pooled, pool(states, ids, mask, "eos"))
    ours = jax.jit(jax.grad(lambda p: (pool(_states(config, p, ids, mask), ids, mask, "eot", eot) ** 2).sum()))(params)
    theirs = _to_jax(_part(stored, "grads:"))
    differences["grads"] = max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max() / (abs(b).max() + 1.0),
                                                            ours, theirs)))
    assert max(differences.values()) < 2e-5, differences


@pytest.mark.parity
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos_token_id", [2, EOT])
def test_states_and_gradients_equal_transformers(hidden_act, eos_token_id):
    eot = eot_token_id({"model_type": "clip_text_model", "eos_token_id": eos_token_id})
    _compare(_torch_reference(eos_token_id, hidden_act=hidden_act), eot, hidden_act=hidden_act)


def test_states_and_gradients_equal_stored_ones():
    _compare(np.load(GOLDEN), EOT)


@pytest.mark.parametrize("changes, published", [({}, 63_165_952), (LARGE, 123_060_480)])
def test_parameter_counts(changes, published):
    """The text towers of openai/clip-vit-base-patch32 and -large-patch14, without text_projection."""
    shapes = _shapes(ClipTextConfig(**changes))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == published


def test_every_parameter_is_named_as_in_a_checkpoint():
    paths = set(flax.traverse_util.flatten_dict(_random_params(_config()), sep="/"))
    assert {"embeddings/token_embedding/embedding", "embeddings/position_embedding/embedding",
            "encoder/layers_0/layer_norm1/scale", "encoder/layers_2/self_attn/out_proj/bias",
            "encoder/layers_1/mlp/fc2/kernel", "final_layer_norm/bias"} <= paths
    assert len(paths) == 4 + 3 * 16


@pytest.mark.parametrize("length", LENGTHS)
def test_padding_and_later_tokens_never_change_a_token(length):
    config = _config()
    params = _random_params(config)
    ids, mask = _texts(length)
    states = np.asarray(_states(config, params, ids, mask))
    junk = np.where(mask, ids, 7)                                      # other ids behind the mask
    np.testing.assert_array_equal(states[mask], np.asarray(_states(config, params, junk, mask))[mask])
    wide = _states(config, params, np.pad(ids, ((0, 0), (0, 5))), np.pad(mask, ((0, 0), (0, 5))))
    np.testing.assert_allclose(wide[:, :length][mask], states[mask], atol=1e-6)
    start = _states(config, params, ids[:, :2], mask[:, :2])
    np.testing.assert_allclose(start, states[:, :2], atol=1e-6)


def test_end_of_text_token_of_a_config():
    assert eot_token_id({"model_type": "clip", "text_config": {"eos_token_id": 2}}) is None
    assert eot_token_id({"model_type": "clip_text_model", "eos_token_id": 49407}) == 49407
    assert eot_token_id({"model_type": "clip", "text_config": {}}) == 49407


def test_gradients_of_a_text_of_padding_alone_are_finite():
    config = _config()
    ids, mask = _texts(6)
    empty = mask & np.array([[True], [False], [True]])
    grads = jax.jit(jax.grad(lambda p: (_states(config, p, ids, empty) ** 2).sum()))(_random_params(config))
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


def test_every_gradient_is_the_same_on_eight_devices():
    config = _config()
    params = _random_params(config)
    ids, mask = (np.repeat(x, 8, axis=0) for x in _texts(13))
    ids = np.where(ids == EOT, EOT, (ids * np.arange(1, 25)[:, None]) % 59)

    @jax.jit
    def gradients(p, i, m):
        return jax.grad(lambda q: (pool(ClipText(config).apply({"params": q}, i, m, train=False), i, m, "eot", EOT)
                                   ** 2).mean())(p)

    mesh = Mesh(np.array(jax.devices()), "data")
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    eight = gradients(jax.device_put(params, whole), *jax.device_put((ids, mask), split))
    scale = max(abs(g).max() for g in jax.tree.leaves(eight))          # the key bias has no gradient, only rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * scale),
                 gradients(params, ids, mask), eight)


def test_bfloat16_is_close_and_parameters_stay_float32():
    config = _config()
    params = _random_params(config, 0.1)
    ids, mask = _texts(13)
    states = _states(config, params, ids, mask, jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    exact = _states(config, params, ids, mask)[mask]
    np.testing.assert_allclose(states.astype(np.float32)[mask], exact, atol=0.02 * abs(exact).max())
    assert {x.dtype for x in jax.tree.leaves(_shapes(config, jnp.bfloat16))} == {jnp.dtype("float32")}


def test_dropout_is_on_in_training_only():
    config = _config(attention_dropout=0.2)
    params = _random_params(config)
    ids, mask = _texts(13)
    apply = jax.jit(lambda p, key: ClipText(config).apply({"params": p}, ids, mask, train=True, rngs={"dropout": key}))
    first = apply(params, jax.random.key(0))
    assert not np.allclose(first, apply(params, jax.random.key(1)))
    np.testing.assert_array_equal(first, apply(params, jax.random.key(0)))
    quiet = jax.jit(lambda p: ClipText(_config()).apply({"params": p}, ids, mask, train=True))(params)
    np.testing.assert_allclose(quiet, _states(config, params, ids, mask), atol=1e-6)


def test_config_from_hugging_face():
    whole = {"model_type": "clip", "text_config": {"hidden_size": 32, "unknown": 1},
             "text_config_dict": {"hidden_act": "gelu"}, "vision_config": {"hidden_size": 64}}
    assert ClipTextConfig.from_hf(whole) == ClipTextConfig(hidden_size=32, hidden_act="gelu")
    assert ClipTextConfig.from_hf({"model_type": "clip_text_model", "hidden_size": 32}).hidden_size == 32
    with pytest.raises(UserError, match="siglip"):
        ClipTextConfig.from_hf({"model_type": "siglip"})
    with pytest.raises(UserError, match="swish"):
        _config(hidden_act="swish")
    with pytest.raises(UserError, match="multiple"):
        _config(num_attention_heads=3)


def test_from_options():
    model = from_options(50, jnp.bfloat16, hidden_size=8, num_attention_heads=2)
    assert model == ClipText(ClipTextConfig(vocab_size=50, hidden_size=8, num_attention_heads=2), jnp.bfloat16)
    with pytest.raises(UserError, match="Did you mean 'hidden_size'"):
        from_options(50, hiden_size=8)


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="text_length"):
        _shapes(_config(max_position_embeddings=4))


def regenerate_golden() -> None:
    """Write tests/golden/clip_text.npz from transformers' CLIPTextModel with random weights."""
    np.savez_compressed(GOLDEN, **_torch_reference())


if __name__ == "__main__":
    regenerate_golden()
