"""BERT against transformers' PyTorch implementation (live where torch is, else a stored output), and its invariants.

Regenerate the stored output, where torch is installed, with `python -m tests.models.test_bert`.
"""

from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.bert import Bert, BertConfig, from_options

GOLDEN = Path(__file__).parent.parent / "golden" / "bert.npz"
SMALL = dict(vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             max_position_embeddings=20, type_vocab_size=2, layer_norm_eps=1e-6)
IDS = np.array([[2, 5, 17, 96, 3, 0, 0], [2, 40, 41, 42, 43, 44, 3], [2, 3, 0, 0, 0, 0, 0]])
MASK = IDS != 0


def _config(**changes) -> BertConfig:
    return BertConfig(**{**SMALL, **changes})


def _to_jax(state: dict[str, np.ndarray]) -> dict:
    """Hugging Face names and layouts to ours, by rule alone."""
    flat = {}
    for name, value in state.items():
        if name.startswith("pooler") or "position_ids" in name:
            continue
        path = name.replace("encoder.layer.", "encoder.layer_").split(".")
        table = path[-2].endswith("_embeddings")
        norm = path[-2] == "LayerNorm"
        leaf = "embedding" if table else {"weight": "scale" if norm else "kernel", "bias": "bias"}[path[-1]]
        flat[(*path[:-1], leaf)] = np.asarray(value).T if leaf == "kernel" else np.asarray(value)
    return flax.traverse_util.unflatten_dict(flat)


def _states(config: BertConfig, params, ids=IDS, mask=MASK, dtype=jnp.float32):
    return jax.jit(lambda p: Bert(config, dtype).apply({"params": p}, ids, mask, train=False))(params)


def _random_params(config: BertConfig, scale: float = 0.3):
    """Larger than BERT's initial values, so that the attention is far from uniform."""
    shapes = jax.eval_shape(lambda: Bert(config).init(jax.random.key(0), IDS, MASK, train=False)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (rng.standard_normal(s.shape) * scale).astype(np.float32), shapes)


def _torch_model(**changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SMALL, **changes})
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return torch, model


def _torch_reference(**changes) -> tuple[dict, np.ndarray, dict]:
    """State dict, states, and gradients of the sum of squares of the real tokens' states."""
    torch, model = _torch_model(**changes)
    states = model(torch.tensor(IDS), attention_mask=torch.tensor(MASK).long()).last_hidden_state
    (states[torch.tensor(MASK)] ** 2).sum().backward()
    named = dict(model.named_parameters())
    return ({k: v.detach().numpy() for k, v in named.items()}, states.detach().numpy(),
            {k: v.grad.numpy() for k, v in named.items()})


def _compare(state: dict, states: np.ndarray, grads: dict, **changes) -> None:
    config, params = _config(**changes), _to_jax(state)
    expected = jax.eval_shape(lambda: Bert(config).init(jax.random.key(0), IDS, MASK, train=False)["params"])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, expected)
    np.testing.assert_allclose(_states(config, params)[MASK], states[MASK], rtol=1e-5, atol=1e-5)
    ours = jax.jit(jax.grad(lambda p: (_states(config, p)[MASK] ** 2).sum()))(params)
    for path, ours_, theirs in zip(*_pairs(ours, _to_jax(grads)), strict=True):
        scale = np.abs(theirs).max() + 1.0                 # the key bias has no gradient, only rounding
        np.testing.assert_allclose(ours_ / scale, theirs / scale, rtol=1e-4, atol=2e-5, err_msg="/".join(path))


def _pairs(a: dict, b: dict):
    a, b = (flax.traverse_util.flatten_dict(x) for x in (a, b))
    return list(a), list(a.values()), [b[path] for path in a]


@pytest.mark.parity
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
def test_states_and_gradients_equal_transformers(hidden_act):
    _compare(*_torch_reference(hidden_act=hidden_act), hidden_act=hidden_act)


def test_states_and_gradients_equal_stored_ones():
    stored = np.load(GOLDEN)
    part = {kind: {k.removeprefix(kind): v for k, v in stored.items() if k.startswith(kind)}
            for kind in ("params:", "grads:")}
    _compare(part["params:"], stored["states"], part["grads:"])


def test_every_parameter_is_named_as_in_a_checkpoint():
    paths = set(flax.traverse_util.flatten_dict(_random_params(_config()), sep="/"))
    assert {"embeddings/word_embeddings/embedding", "embeddings/LayerNorm/scale",
            "encoder/layer_1/attention/self/query/kernel", "encoder/layer_0/attention/output/LayerNorm/bias",
            "encoder/layer_1/intermediate/dense/bias", "encoder/layer_1/output/dense/kernel"} <= paths
    assert len(paths) == 5 + 2 * 16


def test_padding_never_changes_real_tokens():
    config = _config()
    params = _random_params(config)
    states = _states(config, params)
    junk = np.where(MASK, IDS, 77)                                     # other ids behind the mask
    np.testing.assert_array_equal(np.asarray(states)[MASK], np.asarray(_states(config, params, junk))[MASK])
    wide = np.pad(IDS, ((0, 0), (0, 9)))
    np.testing.assert_allclose(_states(config, params, wide, wide != 0)[:, :7][MASK], states[MASK], atol=1e-6)
    alone = _states(config, params, IDS[:1, :5], MASK[:1, :5])
    np.testing.assert_allclose(alone[0], states[0, :5], atol=1e-6)


def test_a_text_of_padding_alone_stays_finite():
    config = _config()
    params = _random_params(config)
    grads = jax.jit(jax.grad(lambda p: _states(config, p, IDS, np.zeros_like(MASK)).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_is_close_and_parameters_stay_float32():
    config = _config()
    params = _random_params(config, 0.1)
    states = _states(config, params, dtype=jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    np.testing.assert_allclose(states.astype(np.float32)[MASK], _states(config, params)[MASK], atol=0.06)
    init = jax.eval_shape(lambda: Bert(config, jnp.bfloat16).init(jax.random.key(0), IDS, MASK, train=False))
    assert {x.dtype for x in jax.tree.leaves(init)} == {jnp.dtype("float32")}


def test_dropout_is_on_in_training_only():
    config = _config()
    params = _random_params(config)

    def train(seed):
        return apply(params, jax.random.key(seed))

    apply = jax.jit(lambda p, key: Bert(config).apply({"params": p}, IDS, MASK, train=True, rngs={"dropout": key}))
    assert not np.allclose(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    still = _config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    quiet = jax.jit(lambda p: Bert(still).apply({"params": p}, IDS, MASK, train=True))(params)
    np.testing.assert_allclose(quiet, _states(config, params), atol=1e-6)


@pytest.mark.parametrize("layers", [(1, 2, -1), (0,), (-1,)])
def test_averaged_layers_are_hidden_states(layers):
    """Counted as transformers' `hidden_states`; an encoder cut behind layer i ends with the i-th of them."""
    config = _config(num_hidden_layers=3)
    params = _random_params(config)
    model = Bert(config, average_layers=layers)
    averaged = jax.jit(lambda p: model.apply({"params": p}, IDS, MASK, train=False))(params)
    hidden = [_states(_config(num_hidden_layers=i), params) for i in range(4)]
    np.testing.assert_allclose(averaged, np.mean([hidden[i] for i in layers], axis=0), atol=2e-6)
    with pytest.raises(UserError, match="average_layers"):
        Bert(config, average_layers=(4,))


def test_layers_computed_again_change_nothing():
    config = _config()
    params = _random_params(config)

    def gradients(remat):
        model = from_options(remat=remat, **SMALL)
        return jax.jit(jax.grad(lambda p: (model.apply({"params": p}, IDS, MASK, train=True, rngs={
            "dropout": jax.random.key(0)}) ** 2).mean()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
                 gradients("none"), gradients("block"))
    with pytest.raises(UserError, match="remat"):
        from_options(100, remat="all")


def test_config_from_hugging_face():
    config = BertConfig.from_hf({"model_type": "bert", "hidden_size": 384, "num_attention_heads": 12, "unknown": 1})
    assert (config.hidden_size, config.intermediate_size) == (384, 3072)
    with pytest.raises(UserError, match="roberta"):
        BertConfig.from_hf({"model_type": "roberta"})
    with pytest.raises(UserError, match="relative_key"):
        BertConfig.from_hf({"position_embedding_type": "relative_key"})
    with pytest.raises(UserError, match="swish"):
        _config(hidden_act="swish")
    with pytest.raises(UserError, match="multiple"):
        _config(num_attention_heads=3)


def test_from_options():
    model = from_options(50, jnp.bfloat16, hidden_size=8, num_attention_heads=2)
    assert model == Bert(BertConfig(vocab_size=50, hidden_size=8, num_attention_heads=2), jnp.bfloat16)
    with pytest.raises(UserError, match="Did you mean 'hidden_size'"):
        from_options(50, hiden_size=8)


def test_text_longer_than_the_positions_is_refused():
    config = _config(max_position_embeddings=6)
    with pytest.raises(UserError, match="text_length"):
        jax.eval_shape(lambda: Bert(config).init(jax.random.key(0), IDS, MASK, train=False))


def regenerate_golden() -> None:
    """Write tests/golden/bert.npz from transformers' BertModel with random weights."""
    params, states, grads = _torch_reference()
    np.savez_compressed(GOLDEN, states=states, **{f"params:{k}": v for k, v in params.items()},
                        **{f"grads:{k}": v for k, v in grads.items()})


if __name__ == "__main__":
    regenerate_golden()
