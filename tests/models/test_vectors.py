"""Heads of vectors: sentences by naive loops and whatever the padding, masked statistics, patches of the breast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import heads_of
from mammoclip_jax.models.vectors import Local, MaskedBatchNorm, NormalisedMLP, SimCLR, sentence_vectors

N, L, C = 4, 12, 3
LENGTHS = (64, 144, 256)


@pytest.fixture(scope="module")
def texts():
    """A cap before and after, sentences of 1 to 4 tokens; text 1 has one sentence, text 2 none."""
    rng = np.random.default_rng(0)
    sentence = np.array(
        [
            [-1, 0, 0, 1, 2, 2, 2, 3, 3, -1, -1, -1],
            [-1, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1],
            [-1, -1] + [-1] * 10,
            [-1, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, -1],
        ],
        np.int32,
    )
    mask = np.arange(L) < np.array([[10], [6], [2], [12]])
    return rng.normal(size=(N, L, C)).astype(np.float32), sentence, mask


@pytest.mark.parametrize("how", ["separator", "mean"])
def test_sentence_vectors_equal_the_naive_loop(texts, how):
    states, sentence, mask = texts
    vectors, found = sentence_vectors(*texts, 4, how)
    for n in range(N):
        for s in range(4):
            tokens = [states[n, i] for i in range(L) if sentence[n, i] == s and mask[n, i]]
            assert found[n, s] == bool(tokens)
            expected = (tokens[-1] if how == "separator" else np.mean(tokens, axis=0)) if tokens else 0
            np.testing.assert_allclose(vectors[n, s], expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="no vector of a sentence 'separater'. Did you mean 'separator'"):
        sentence_vectors(*texts, 4, "separater")


def inputs(texts, length=L, mask=True):
    """What a head sees of four breasts with two views, whose texts are padded to `length`."""
    rng = np.random.default_rng(1)
    maps, lit = rng.normal(size=(N, 2, 2, 3, C)).astype(np.float32), rng.random((N, 2, 7, 6)) < 0.5
    states, sentence, token_mask = texts
    more = length - L
    filled = np.concatenate([states, np.full((N, more, C), 7.0, np.float32)], axis=1)
    return {
        "image/last": maps,
        "image/pooled": maps.mean(axis=(2, 3)),
        "image/lit": lit,
        "text/states": filled[:, None],
        "sentence": np.pad(sentence, ((0, 0), (0, more)), constant_values=-1)[:, None],
        "token_mask": np.pad(token_mask, ((0, 0), (0, more)))[:, None],
        "mask": np.arange(N) < N - (not mask),
        "view_mask": np.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool),
    }


@pytest.mark.parametrize("sentence", ["separator", "mean"])
def test_padding_changes_nothing(texts, sentence):
    """Vectors, statistics, and the gradients of parameters and states, in float64: a bias before a norm has none."""
    head = Local("last", hidden=5, dim=4, sentences=5, sentence=sentence, dtype=jnp.float64)
    wide = lambda tree: jax.tree.map(lambda x: np.float64(x) if np.asarray(x).dtype == np.float32 else x, tree)
    with jax.enable_x64(True):
        variables = wide(jax.device_get(head.init(jax.random.key(0), inputs(texts), False)))

    def run(length):
        given = wide(inputs(texts, length))

        def loss(params, states):
            found, updated = head.apply(
                {**variables, "params": params}, given | {"text/states": states}, True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(found["sentences"])), (found, updated)

        (_, found), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            variables["params"], jnp.asarray(given["text/states"])
        )
        assert not gradients[1][:, :, L:].any()
        return found, gradients[0], gradients[1][:, :, :L]

    with jax.enable_x64(True):
        expected = run(L)
        for length in LENGTHS:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), run(length), expected)


def test_masked_statistics_are_those_of_the_positions_that_exist():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, size=(5, 4, 3)).astype(np.float32), rng.random((5, 4)) < 0.6
    norm = MaskedBatchNorm(affine=False)
    variables = norm.init(jax.random.key(0), x, mask, False)
    y, updated = norm.apply(variables, x, mask, True, mutable=["batch_stats"])
    packed = x[mask].astype(np.float64)
    np.testing.assert_allclose(y[mask], (packed - packed.mean(0)) / np.sqrt(packed.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * packed.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * packed.var(0, ddof=1), rtol=1e-5)  # torch: n - 1
    np.testing.assert_allclose(
        norm.apply(updated, x, mask, False), (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), rtol=1e-4, atol=1e-5
    )
    # A batch in which nothing exists is no batch.
    y, after = norm.apply(updated, x, np.zeros_like(mask), True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, after, updated)
    assert np.isfinite(y).all()


def test_positions_outside_the_mask_are_zero_and_take_no_part():
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6) < 4
    head = NormalisedMLP(4, 2)
    variables = head.init(jax.random.key(0), x, mask, False)
    found, stats = head.apply(variables, x, mask, True, mutable=["batch_stats"])
    shorter, shorter_stats = head.apply(variables, x[:4], mask[:4], True, mutable=["batch_stats"])
    np.testing.assert_allclose(found[:4], shorter, atol=1e-6)
    assert not found[4:].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), stats, shorter_stats)


def test_what_the_local_head_gives(texts):
    """Of slots 0 and 1, where breast 1 has one view and breast 3 only fills up; patches by the share that is lit."""
    given = inputs(texts, mask=False)
    head = Local("last", hidden=5, dim=4, sentences=2, slots=(0, 1), lit=0.5)
    assert head.needs == ("image/last", "text/states", "image/lit")
    found, _ = head.init_with_output(jax.random.key(0), given, False)
    there = given["view_mask"] & given["mask"][:, None]
    lit = np.pad(given["image/lit"], ((0, 0), (0, 0), (0, 1), (0, 0)))  # cells of 4 x 2 pixels
    for b, v in np.ndindex(N, 2):
        cells = [lit[b, v, 4 * i : 4 * i + 4, 2 * j : 2 * j + 2].mean() >= 0.5 for i in range(2) for j in range(3)]
        np.testing.assert_array_equal(found["patch_mask"][b, v], np.array(cells) & there[b, v])
        sentences = [(given["sentence"][b, 0] == s).any() for s in range(2)]
        np.testing.assert_array_equal(found["sentence_mask"][b, v], np.array(sentences) & there[b, v])
    assert not found["patches"][~found["patch_mask"]].any() and found["patches"].shape == (N, 2, 6, 4)
    np.testing.assert_allclose(found["logit_scale"], 1 / 0.07, rtol=1e-6)
    del given["sentence"]
    with pytest.raises(UserError, match="which sentence each token belongs to"):
        head.init(jax.random.key(0), given, False)


def test_the_views_of_simclr_share_their_statistics(texts):
    given = inputs(texts)
    (found, variables) = SimCLR(dim=4).init_with_output(jax.random.key(0), given, False)
    assert found["vectors"].shape == (N, 2, 4) and variables["params"]["projection"]["hidden"]["kernel"].shape == (C, C)
    assert "bias" not in variables["params"]["projection"]["hidden"]
    np.testing.assert_array_equal(found["there"], given["view_mask"])
    found, _ = SimCLR(dim=4).apply(variables, given, True, mutable=["batch_stats"])
    rows = found["vectors"][given["view_mask"]]
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.std(axis=0), 1, rtol=1e-2)


def test_heads_by_name():
    heads = heads_of({"near": {"kind": "local", "stage": "block1", "slots": [0, 1]}, "simclr": {}})
    assert heads.needs("near") == ("image/block1", "text/states") and heads.needs("simclr") == ("image/pooled",)
    assert heads_of({}) is None
