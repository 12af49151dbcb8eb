"""GPT-2 against transformers' PyTorch implementation (live where torch is, else a stored output), and its invariants.

Regenerate the stored output, where torch is installed, with `python -m tests.models.test_gpt2`.
"""

import functools
import math
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.gpt2 import Gpt2, Gpt2Config, from_options, positions
from mammoclip_jax.models.pooling import pool
from mammoclip_jax.training import mesh as meshes

GOLDEN = Path(__file__).parent.parent / "golden" / "gpt2.npz"
SMALL = dict(vocab_size=97, n_positions=20, n_embd=16, n_layer=2, n_head=2)
BIOMEDLM = dict(vocab_size=28896, n_embd=2560, n_layer=32, n_head=20, scale_attn_by_inverse_layer_idx=True)
SEP = 3
RIGHT = np.array([[2, 5, 17, 3, 40, 3, 0, 0], [2, 40, 41, 3, 43, 44, 3, 96], [2, 3, 0, 0, 0, 0, 0, 0]])
LEFT = np.array([[0, 0, 2, 5, 17, 3, 40, 3], [2, 40, 41, 3, 43, 44, 3, 96], [0, 0, 0, 0, 0, 0, 2, 3]])
MASK = RIGHT != 0


def _config(**changes) -> Gpt2Config:
    return Gpt2Config(**{**SMALL, **changes})


def _to_jax(state: dict[str, np.ndarray]) -> dict:
    """Hugging Face names to ours, by rule alone; `Conv1D` weights have our layout already."""
    flat = {}
    for name, value in state.items():
        path = name.replace("h.", "h_", 1).split(".") if name.startswith("h.") else name.split(".")
        leaf = path[-1]
        if leaf == "weight":
            leaf = "embedding" if path[-2] in ("wte", "wpe") else "scale" if path[-2].startswith("ln_") else "kernel"
        flat[(*path[:-1], leaf)] = np.asarray(value)
    return flax.traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "remat"))
def _apply(config: Gpt2Config, params, ids, mask, dtype=jnp.float32, remat="none"):
    return Gpt2(config, dtype, remat).apply({"params": params}, ids, mask, train=False)


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def _gradients(config: Gpt2Config, params, ids, remat="none"):
    """Of the sum of squares of the real tokens' states."""
    real = (ids != 0)[..., None]
    return jax.grad(lambda p: (jnp.where(real, _apply(config, p, ids, ids != 0, remat=remat), 0) ** 2).sum())(params)


def _states(config: Gpt2Config, params, ids=RIGHT, mask=None, dtype=jnp.float32):
    return np.asarray(_apply(config, params, ids, ids != 0 if mask is None else mask, dtype))


def _shapes(config: Gpt2Config, dtype=jnp.float32):
    return jax.eval_shape(lambda: Gpt2(config, dtype).init(jax.random.key(0), RIGHT, MASK, train=False)["params"])


def _random_params(config: Gpt2Config, scale: float = 0.3):
    """Larger than GPT-2's initial values, so that the attention is far from uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (rng.standard_normal(s.shape) * scale).astype(np.float32), _shapes(config))


def _torch_model(**changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(**{**SMALL, **changes}, bos_token_id=2, eos_token_id=3)
    model = transformers.GPT2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return torch, model


def _torch_reference(ids=RIGHT, **changes) -> tuple[dict, np.ndarray, dict]:
    """State dict, states, and gradients of the sum of squares of the real tokens' states."""
    torch, model = _torch_model(**changes)
    mask = torch.tensor(ids != 0)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    states = model(torch.tensor(ids), attention_mask=mask.long(), position_ids=places).last_hidden_state
    (states[mask] ** 2).sum().backward()
    named = dict(model.named_parameters())
    return ({k: v.detach().numpy() for k, v in named.items()}, states.detach().numpy(),
            {k: v.grad.numpy() for k, v in named.items()})


def _compare(state: dict, states: np.ndarray, grads: dict, ids=RIGHT, **changes) -> None:
    config, params, real = _config(**changes), _to_jax(state), ids != 0
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, _shapes(config))
    np.testing.assert_allclose(_states(config, params, ids)[real], states[real], rtol=1e-5, atol=1e-5)
    ours = _gradients(config, params, ids)
    theirs = flax.traverse_util.flatten_dict(_to_jax(grads), sep="/")
    for path, mine in flax.traverse_util.flatten_dict(ours, sep="/").items():
        scale = np.abs(theirs[path]).max() + 1.0            # the key's third of a bias has no gradient, only rounding
        np.testing.assert_allclose(mine / scale, theirs[path] / scale, rtol=1e-4, atol=2e-5, err_msg=path)


@pytest.mark.parity
@pytest.mark.parametrize("ids, changes", [
    (RIGHT, {}),
    (LEFT, {}),
    (RIGHT[:, :5], dict(n_layer=3, scale_attn_by_inverse_layer_idx=True)),
    (LEFT, dict(scale_attn_weights=False, n_inner=40, activation_function="relu", layer_norm_epsilon=1e-3)),
])
def test_states_and_gradients_equal_transformers(ids, changes):
    _compare(*_torch_reference(ids, **changes), ids, **changes)


@pytest.mark.parity
def test_texts_padded_on_the_right_need_no_position_ids_in_transformers():
    torch, model = _torch_model()
    with torch.no_grad():
        theirs = model(torch.tensor(RIGHT), attention_mask=torch.tensor(MASK).long()).last_hidden_state.numpy()
    params = _to_jax({k: v.detach().numpy() for k, v in model.named_parameters()})
    np.testing.assert_allclose(_states(_config(), params)[MASK], theirs[MASK], rtol=1e-5, atol=1e-5)


def test_states_and_gradients_equal_stored_ones():
    stored = np.load(GOLDEN)
    part = {kind: {k.removeprefix(kind): v for k, v in stored.items() if k.startswith(kind)}
            for kind in ("params:", "grads:")}
    _compare(part["params:"], stored["states"], part["grads:"], LEFT, scale_attn_by_inverse_layer_idx=True)


@pytest.mark.parametrize("options, count", [
    ({}, 124_439_808),
    (dict(n_embd=1024, n_layer=24, n_head=16), 354_823_168),
    (BIOMEDLM, 2_594_247_680),
])
def test_published_parameter_counts(options, count):
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(_shapes(Gpt2Config(**options)))) == count


def test_every_parameter_is_named_as_in_a_checkpoint():
    paths = set(flax.traverse_util.flatten_dict(_shapes(_config()), sep="/"))
    assert {"wte/embedding", "wpe/embedding", "h_0/ln_1/scale", "h_1/attn/c_attn/kernel", "h_1/attn/c_proj/bias",
            "h_0/ln_2/bias", "h_0/mlp/c_fc/kernel", "h_1/mlp/c_proj/kernel", "ln_f/bias"} <= paths
    assert len(paths) == 4 + 2 * 12


def test_padding_never_changes_real_tokens():
    config = _config()
    params = _random_params(config)
    states = _states(config, params)
    junk = np.where(MASK, RIGHT, 77)                                   # other ids behind the mask
    np.testing.assert_array_equal(states[MASK], _states(config, params, junk, MASK)[MASK])
    for before, after in ((0, 9), (9, 0), (4, 5)):
        wide = np.pad(RIGHT, ((0, 0), (before, after)))
        np.testing.assert_allclose(_states(config, params, wide)[wide != 0], states[MASK], atol=2e-6)
    np.testing.assert_allclose(_states(config, params, LEFT)[LEFT != 0], states[MASK], atol=2e-6)
    np.testing.assert_allclose(_states(config, params, RIGHT[:1, :6])[0], states[0, :6], atol=2e-6)


def test_a_token_sees_only_what_stands_before_it():
    config = _config()
    params = _random_params(config)
    other = np.where(np.arange(8) > 4, 55, RIGHT)
    a, b = _states(config, params), _states(config, params, other, MASK)
    np.testing.assert_array_equal(a[:, :5][MASK[:, :5]], b[:, :5][MASK[:, :5]])
    assert not np.allclose(a[1, 5:], b[1, 5:])


def test_positions_count_real_tokens():
    np.testing.assert_array_equal(positions(LEFT != 0)[0], [0, 0, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(positions(MASK)[2], [0, 1, 1, 1, 1, 1, 1, 1])


def test_a_text_of_padding_alone_stays_finite():
    config = _config()
    nothing = np.zeros_like(MASK)

    def loss(p):
        states = _apply(config, p, RIGHT, nothing)
        return sum(pool(states, RIGHT, nothing, how, SEP).sum() for how in ("eos", "mean", "sep")) + states.sum()

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.jit(jax.grad(loss))(_random_params(config))))


def test_bfloat16_is_close_and_parameters_stay_float32():
    config = _config()
    params = _random_params(config, 0.1)
    states = _states(config, params, dtype=jnp.bfloat16)
    assert states.dtype == jnp.bfloat16
    np.testing.assert_allclose(states.astype(np.float32)[MASK], _states(config, params)[MASK], atol=0.03)
    assert {x.dtype for x in jax.tree.leaves(_shapes(config, jnp.bfloat16))} == {jnp.dtype("float32")}


def test_layers_computed_again_change_nothing():
    config = _config()
    params = _random_params(config)
    kept, again = (_gradients(config, params, RIGHT, remat) for remat in ("none", "block"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), kept, again)


def test_every_gradient_is_the_same_on_eight_devices():
    config = _config()
    params = _random_params(config)
    ids = np.resize(np.concatenate([LEFT, RIGHT]), (16, 8))

    def loss(p, ids):
        return (pool(Gpt2(config).apply({"params": p}, ids, ids != 0, train=False), ids, ids != 0, "eos") ** 2).mean()

    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = meshes.make_mesh({"data": -1}, devices)
        results.append(jax.device_get(jax.jit(jax.grad(loss))(
            jax.device_put(params, meshes.replicated(mesh)), jax.device_put(ids, meshes.batch_sharding(mesh)))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_dropout_is_on_in_training_only():
    config = _config()
    params = _random_params(config)
    apply = jax.jit(lambda p, key: Gpt2(config).apply({"params": p}, RIGHT, MASK, train=True, rngs={"dropout": key}))
    one, again, two = (apply(params, jax.random.key(seed)) for seed in (0, 0, 1))
    assert not np.allclose(one, two)
    np.testing.assert_array_equal(one, again)
    still = _config(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    quiet = jax.jit(lambda p: Gpt2(still).apply({"params": p}, RIGHT, MASK, train=True))(params)
    np.testing.assert_allclose(quiet, _states(config, params), atol=1e-6)


def test_config_from_hugging_face():
    config = Gpt2Config.from_hf({"model_type": "gpt2", **BIOMEDLM, "n_inner": None, "n_ctx": 1024})
    assert config == Gpt2Config(**BIOMEDLM)
    with pytest.raises(UserError, match="bert"):
        Gpt2Config.from_hf({"model_type": "bert"})
    with pytest.raises(UserError, match="cross"):
        Gpt2Config.from_hf({"add_cross_attention": True})
    with pytest.raises(UserError, match="swish"):
        _config(activation_function="swish")
    with pytest.raises(UserError, match="multiple"):
        _config(n_head=3)


def test_from_options():
    model = from_options(50, jnp.bfloat16, remat="block", n_embd=8, n_head=2)
    assert model == Gpt2(Gpt2Config(vocab_size=50, n_embd=8, n_head=2), jnp.bfloat16, remat="block")
    with pytest.raises(UserError, match="Did you mean 'n_layer'"):
        from_options(50, n_layers=8)


def test_text_longer_than_the_positions_is_refused():
    with pytest.raises(UserError, match="text_length"):
        _shapes(_config(n_positions=6))


def regenerate_golden() -> None:
    """Write tests/golden/gpt2.npz from transformers' GPT2Model with random weights, on texts padded on the left."""
    params, states, grads = _torch_reference(LEFT, scale_attn_by_inverse_layer_idx=True)
    np.savez_compressed(GOLDEN, states=states, **{f"params:{k}": v for k, v in params.items()},
                        **{f"grads:{k}": v for k, v in grads.items()})


if __name__ == "__main__":
    regenerate_golden()
