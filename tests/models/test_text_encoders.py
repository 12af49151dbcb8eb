"""What every text encoder must do: equal transformers, live or stored, mind its padding, and what models/__init__ says.

A new encoder gets its form in text_contract.py and its lines here; what is its own is tested in its own file. The
golden files hold what transformers returns for the small forms with random weights. To make them again (needs torch
and transformers): `PYTHONPATH=tests python tests/models/test_text_encoders.py`.
"""

import functools
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close_gradients, one_and_eight
from text_contract import EOT, FORMS, GOLDEN, LEFT, RIGHT, SEP, compare, gradients, shapes, squares, states

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.pooling import pool

forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def paths(model):
    return set(flax.traverse_util.flatten_dict(shapes(model), sep="/"))


def test_every_encoder_is_here():
    assert set(FORMS) == set(models.TEXT_ENCODERS)


# --- against transformers ---------------------------------------------------------------------------------------------


def cut(texts, length):
    return {"": tuple(array[:, :length] for array in texts)}


@pytest.mark.parity
@pytest.mark.parametrize(
    "name, texts, changes",
    [
        *(("bert", None, dict(hidden_act=act)) for act in ("gelu", "gelu_new", "relu")),
        ("gpt2", None, {}),
        ("gpt2", {"": LEFT}, {}),
        ("gpt2", cut(RIGHT, 5), dict(n_layer=3, scale_attn_by_inverse_layer_idx=True)),
        (
            "gpt2",
            {"": LEFT},
            dict(scale_attn_weights=False, n_inner=40, activation_function="relu", layer_norm_epsilon=1e-3),
        ),
        ("modernbert", None, {}),
        ("modernbert", None, dict(final_norm=False, global_attn_every_n_layers=2, local_attention=7)),
        ("modernbert", None, dict(norm_bias=True, attention_bias=True, mlp_bias=True, hidden_activation="relu")),
        *(("clip_text", None, dict(hidden_act=act)) for act in ("quick_gelu", "gelu")),
    ],
)
def test_states_and_gradients_equal_transformers(name, texts, changes):
    form = FORMS[name]
    compare(form, form.torch_reference(texts, **changes), texts, **changes)


@forms
def test_states_and_gradients_equal_stored_ones(form):
    texts, changes = form.stored or (None, {})
    compare(form, dict(np.load(GOLDEN / f"{form.golden}.npz")), texts, **changes)


def write_golden(folder=GOLDEN):
    for form in FORMS.values():
        texts, changes = form.stored or (None, {})
        np.savez_compressed(folder / f"{form.golden}.npz", **form.torch_reference(texts, **changes))


# --- shapes -----------------------------------------------------------------------------------------------------------


def slow(*values):
    """Larger ones differ in numbers alone, and take long to trace."""
    return pytest.param(*values, marks=pytest.mark.slow)


BIOMEDLM = dict(vocab_size=28896, n_embd=2560, n_layer=32, n_head=20, scale_attn_by_inverse_layer_idx=True)


@pytest.mark.parametrize(
    "name, options, published",
    [
        ("gpt2", dict(vocab_size=50257), 124_439_808),
        slow("gpt2", dict(vocab_size=50257, n_embd=1024, n_layer=24, n_head=16), 354_823_168),
        slow("gpt2", BIOMEDLM, 2_594_247_680),
        # answerdotai/ModernBERT-base and -large (149 and 395 million), without the heads
        ("modernbert", dict(vocab_size=50368), 149_014_272),
        slow(
            "modernbert",
            dict(
                vocab_size=50368, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624
            ),
            394_781_696,
        ),
        # the text towers of openai/clip-vit-base-patch32 and -large-patch14, without text_projection
        ("clip_text", dict(vocab_size=49408), 63_165_952),
        slow(
            "clip_text",
            dict(vocab_size=49408, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
            123_060_480,
        ),
    ],
)
def test_parameter_counts(name, options, published):
    leaves = jax.tree.leaves(shapes(FORMS[name].build(**options)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == published


@pytest.mark.parametrize(
    "name, some, count",
    [
        (
            "bert",
            {
                "embeddings/word_embeddings/embedding",
                "embeddings/LayerNorm/scale",
                "encoder/layer_1/attention/self/query/kernel",
                "encoder/layer_0/attention/output/LayerNorm/bias",
                "encoder/layer_1/intermediate/dense/bias",
                "encoder/layer_1/output/dense/kernel",
            },
            5 + 2 * 16,
        ),
        (
            "gpt2",
            {
                "wte/embedding",
                "wpe/embedding",
                "h_0/ln_1/scale",
                "h_1/attn/c_attn/kernel",
                "h_1/attn/c_proj/bias",
                "h_0/ln_2/bias",
                "h_0/mlp/c_fc/kernel",
                "h_1/mlp/c_proj/kernel",
                "ln_f/bias",
            },
            4 + 2 * 12,
        ),
        (
            "modernbert",
            {
                "embeddings/tok_embeddings/embedding",
                "embeddings/norm/scale",
                "layers_1/attn_norm/scale",
                "layers_0/attn/Wqkv/kernel",
                "layers_3/attn/Wo/kernel",
                "layers_0/mlp_norm/scale",
                "layers_1/mlp/Wi/kernel",
                "layers_2/mlp/Wo/kernel",
                "final_norm/scale",
            },
            3 + 4 * 6 - 1,
        ),
        (
            "clip_text",
            {
                "embeddings/token_embedding/embedding",
                "embeddings/position_embedding/embedding",
                "encoder/layers_0/layer_norm1/scale",
                "encoder/layers_2/self_attn/out_proj/bias",
                "encoder/layers_1/mlp/fc2/kernel",
                "final_layer_norm/bias",
            },
            4 + 3 * 16,
        ),
    ],
    ids=FORMS,
)
def test_every_parameter_is_named_as_in_a_checkpoint(name, some, count):
    found = paths(FORMS[name].model())
    assert some <= found and len(found) == count
    assert name != "modernbert" or "layers_0/attn_norm/scale" not in found


# --- behaviour --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, key", [(name, key) for name, form in FORMS.items() for key in form.texts])
def test_padding_never_changes_real_tokens(name, key):
    """Other ids behind the mask, more padding, and each text without any."""
    form = FORMS[name]
    model, params, (ids, mask) = form.model(), form.params(), form.texts[key]
    found = np.asarray(states(model, params, ids, mask))
    junk = np.where(mask, ids, 7)
    np.testing.assert_array_equal(found[mask], np.asarray(states(model, params, junk, mask))[mask])
    more = ((0, 0), (0, 9 if name != "clip_text" else 5))
    wide = np.asarray(states(model, params, np.pad(ids, more), np.pad(mask, more)))
    atol = 2e-6 if name in ("gpt2", "modernbert") else 1e-6
    np.testing.assert_allclose(wide[:, : ids.shape[1]][mask], found[mask], atol=atol)
    for row in (0, 1):
        length = mask[row].sum()
        if length < ids.shape[1]:
            alone = states(model, params, ids[row : row + 1, :length], mask[row : row + 1, :length])
            np.testing.assert_allclose(alone[0], found[row, :length], atol=atol)


def everything(states, ids, mask):
    """Squares of all states, and what is pooled of them."""
    pooled = (pool(states, ids, mask, how, SEP) for how in ("eos", "mean", "sep"))
    return (states**2).sum() + sum(vector.sum() for vector in pooled)


@forms
def test_gradients_of_a_text_of_padding_alone_are_finite(form):
    ids, mask = form.text()
    for empty in (mask & np.array([[True], [False], [True]]), np.zeros_like(mask)):
        slopes = gradients(form.model(), everything, form.params(), ids, empty)
        assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
        assert all(np.any(slope) for slope in jax.tree.leaves(slopes)) or not empty.any()


def exact(form, remat="none"):
    """(jitted gradients of the parameters, ids and mask; the first) in float64."""
    return functools.partial(gradients, form.model(jnp.float64, remat), squares), form.params(dtype=np.float64)


@forms
def test_gradients_on_eight_devices_equal_one(form):
    """To float32 rounding, in which norms and softmax are; that of a key's bias is nothing else."""
    ids, mask = (np.repeat(array, 8, axis=0) for array in form.text())
    ids = np.where(ids == EOT, EOT, (ids * np.arange(1, 25)[:, None]) % 59)
    with jax.enable_x64(True):
        one, eight = one_and_eight(*exact(form), ids, mask)
    close_gradients(eight, one, 1e-5, 1e-6)


@pytest.mark.slow
@forms
def test_recomputation_changes_no_gradient(form):
    ids, mask = form.text()
    with jax.enable_x64(True):
        (plain, params), (again, _) = (exact(form, remat) for remat in ("none", "block"))
        traced = [str(gradients.trace(*program.args, params, ids, mask).jaxpr) for program in (plain, again)]
        assert ["remat" in program for program in traced] == [False, True]
        close_gradients(again(params, ids, mask), plain(params, ids, mask), 1e-9)
    with pytest.raises(UserError, match="remat"):
        form.model(remat="all")


@pytest.mark.parametrize(
    "name, changes, atol",
    [("bert", {}, 0.06), ("gpt2", {}, 0.03), ("modernbert", dict(final_norm=False), None), ("clip_text", {}, None)],
)
def test_bfloat16_is_close_and_parameters_stay_float32(name, changes, atol):
    """Without `atol`, within 2 % of the greatest."""
    form = FORMS[name]
    (ids, mask), params = form.text(), form.params(0.1, **changes)
    low = form.model(jnp.bfloat16, **changes)
    found = states(low, params, ids, mask)
    assert found.dtype == jnp.bfloat16
    expected = np.asarray(states(form.model(**changes), params, ids, mask))[mask]
    np.testing.assert_allclose(found.astype(np.float32)[mask], expected, atol=atol or 0.02 * abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(low))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "name, rates",
    [
        ("bert", dict(hidden_dropout_prob=1 + 2 * 2, attention_probs_dropout_prob=2)),
        ("gpt2", dict(embd_pdrop=1, attn_pdrop=2, resid_pdrop=2 * 2)),
        ("modernbert", dict(embedding_dropout=1, attention_dropout=4 * 2, mlp_dropout=4)),
        ("clip_text", dict(attention_dropout=3)),
    ],
    ids=FORMS,
)
def test_dropout_is_on_in_training_only(name, rates):
    """At as many places as `rates` say."""
    form = FORMS[name]
    (ids, mask), params = form.text(), form.params()

    @functools.partial(jax.jit, static_argnums=0)
    def train(model, key):
        return model.apply({"params": params}, ids, mask, train=True, rngs={"dropout": key})

    off = dict.fromkeys(rates, 0.0)
    model, still = form.model(**dict.fromkeys(rates, 0.1)), form.model(**off)
    first, again, other = (train(model, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    quiet = jax.jit(lambda: still.apply({"params": params}, ids, mask, train=True))()  # needs no generator
    np.testing.assert_allclose(quiet, states(model, params, ids, mask), atol=1e-6)
    for rate, places in rates.items():
        program = str(train.trace(form.model(**off | {rate: 0.1}), jax.random.key(0)).jaxpr)
        assert program.count(" random_bits[") == places, rate


@pytest.mark.parametrize(
    "name, options, wrong, meant",
    [
        ("bert", dict(hidden_size=8, num_attention_heads=2), "hiden_size", "hidden_size"),
        ("gpt2", dict(n_embd=8, n_head=2), "n_layers", "n_layer"),
        ("modernbert", dict(hidden_size=8, num_attention_heads=2, final_norm=False), "finalnorm", "final_norm"),
        ("clip_text", dict(hidden_size=8, num_attention_heads=2), "hiden_size", "hidden_size"),
    ],
    ids=FORMS,
)
def test_from_options(name, options, wrong, meant):
    build = FORMS[name].build
    model = build(50, jnp.bfloat16, remat="block", **options)
    config = type(model.config)(vocab_size=50, **options)
    assert model == type(model)(config, jnp.bfloat16, remat="block")
    with pytest.raises(UserError, match=f"Did you mean '{meant}'"):
        build(50, **{wrong: 8})


@pytest.mark.parametrize(
    "name, option",
    [
        ("bert", "max_position_embeddings"),
        ("gpt2", "n_positions"),
        ("modernbert", "max_position_embeddings"),
        ("clip_text", "max_position_embeddings"),
    ],
)
def test_text_longer_than_the_positions_is_refused(name, option):
    with pytest.raises(UserError, match="text_length"):
        shapes(FORMS[name].model(**{option: 4}))


if __name__ == "__main__":
    write_golden()
