"""Loss terms against a naive NumPy loop, and the same on 1 and 8 devices in every form."""

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.types import Embeddings

B, D = 16, 8
# Those that need nothing beside the global vectors.
GLOBAL = [name for name in losses.LOSSES if not losses.build({name: {}})[0].needs]
OPTIONS = {name: {"duplicates": "positive"} for name in GLOBAL} | {"soft_targets": {}}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(B, 2, D))).astype(np.float32) for _ in range(2))
    return Embeddings(image=image, text=text, logit_scale=np.float32(7.3), logit_bias=np.float32(-2.5))


@pytest.fixture
def batch():
    """Few different texts; labels, some unknown; two rows that only fill up."""
    rng = np.random.default_rng(1)
    token_ids = rng.integers(0, 5, size=(B, 2, 1), dtype=np.int32).repeat(3, axis=2)
    known = rng.random((B, 3)) < 0.8
    target = np.where(known, rng.integers(0, 2, (B, 3)), 0).astype(np.float32)
    return {"token_ids": token_ids, "target": target, "known": known, "mask": np.arange(B) < B - 2}


def naive_cross_entropy(queries, keys, scale, smoothing=0.0):
    every_row = np.ones(len(queries), bool)
    return naive.info_nce(queries.astype(np.float64), keys.astype(np.float64), scale, every_row, smoothing=smoothing)[0]


def naive_mammo_clip(e, smoothing=0.0):
    i, t, s = [e.image[:, 0], e.image[:, 1]], [e.text[:, 0], e.text[:, 1]], float(e.logit_scale)
    i2t = np.mean([naive_cross_entropy(a, b, s, smoothing) for a in i for b in t])
    t2i = np.mean([naive_cross_entropy(b, a, s, smoothing) for a in i for b in t])
    icl = (naive_cross_entropy(i[0], i[1], s) + naive_cross_entropy(i[1], i[0], s)) / 2
    tcl = (naive_cross_entropy(t[0], t[1], s) + naive_cross_entropy(t[1], t[0], s)) / 2
    return (i2t + t2i) / 2 + 1.0 * icl + 0.5 * tcl


def term(name, **options):
    (term,) = losses.build({name: options})
    return lambda e: term.function(e, {}, None)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mammo_clip_equals_the_naive_loop(embeddings, smoothing):
    ours = term("mammo_clip", label_smoothing=smoothing)(embeddings)
    np.testing.assert_allclose(ours, naive_mammo_clip(embeddings, smoothing), rtol=1e-6)


def test_clip_equals_the_naive_loop(embeddings):
    image, text, scale = embeddings.image[:, 0], embeddings.text[:, 0], float(embeddings.logit_scale)
    naive = (naive_cross_entropy(image, text, scale) + naive_cross_entropy(text, image, scale)) / 2
    np.testing.assert_allclose(term("clip")(embeddings), naive, rtol=1e-6)


def test_gradient_equals_finite_differences(embeddings):
    loss = term("mammo_clip")
    gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, embeddings))
    for field, position in (("image", (3, 1, 2)), ("text", (5, 0, 4)), ("logit_scale", ())):

        def shifted(by):
            values = {
                name: np.array(getattr(embeddings, name), np.float64) for name in ("image", "text", "logit_scale")
            }
            values[field][position] += by
            return naive_mammo_clip(Embeddings(**values))

        numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose(getattr(gradient, field)[position], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("duplicates", ["negative", "positive", "ignore"])
def test_terms_leave_out_filling_rows_and_treat_equal_texts_as_told(embeddings, batch, duplicates):
    image, text, scale = np.float64(embeddings.image), np.float64(embeddings.text), float(embeddings.logit_scale)
    ids, mask = batch["token_ids"][..., 0], batch["mask"]

    def both(queries, keys, ids):
        return naive.info_nce(queries, keys, scale, mask, ids, None, duplicates, 0.1)

    def found(name):
        (term,) = losses.build({name: {"label_smoothing": 0.1, "duplicates": duplicates}})
        return term.function(embeddings, batch, None)

    loss, metrics = found("clip")
    assert loss == pytest.approx(np.mean(both(image[:, 0], text[:, 0], ids[:, :1])), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(
        naive.accuracy(image[:, 0], text[:, 0], mask, ids[:, :1], None, duplicates)
    )
    loss, _ = found("sigmoid")
    assert loss == pytest.approx(
        naive.sigmoid_loss(image[:, 0], text[:, 0], scale, -2.5, mask, ids[:, :1], None, duplicates, 0.1), rel=1e-5
    )
    loss, metrics = found("mammo_clip")
    pairs = np.mean([both(image[:, v], text[:, t], ids[:, t : t + 1]) for v in range(2) for t in range(2)])
    images = np.mean(naive.info_nce(image[:, 0], image[:, 1], scale, mask))
    texts = np.mean(naive.info_nce(text[:, 0], text[:, 1], scale, mask, ids, None, duplicates))
    assert metrics["text_to_text"] == pytest.approx(texts, rel=1e-5)
    assert loss == pytest.approx(pairs + images + 0.5 * texts, rel=1e-5)


@pytest.mark.parametrize("form", ["plain", "gathered", "ring"])
@pytest.mark.parametrize("name", GLOBAL)
def test_same_value_and_gradient_on_one_and_eight_devices(embeddings, batch, name, form):
    assert len(jax.devices()) == 8
    batch |= {"paired": np.arange(B) % 5 > 0, "has_text": np.arange(B) % 10 > 0}
    values = []
    for devices, form in ((jax.devices()[:1], "plain"), (jax.devices(), form)):
        mesh = make_mesh({"data": -1}, devices)
        rows, everywhere = batch_sharding(mesh), replicated(mesh)
        placed = jax.device_put(embeddings, Embeddings(rows, rows, everywhere, everywhere))
        (term,) = losses.build({name: {"form": form, **OPTIONS[name]}})

        def loss(embeddings, batch, term=term, mesh=mesh):
            return term.function(embeddings, batch, mesh)[0]

        gradient = jax.jit(jax.value_and_grad(loss))
        values.append(jax.device_get(gradient(placed, jax.device_put(batch, rows))))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=2e-5, atol=1e-6), *values)


def test_rows_whose_text_is_not_their_own_are_no_pairs_and_no_negatives(embeddings, batch):
    """As if they only filled up; the two views of such a row are a pair all the same."""
    paired = np.arange(B) % 5 > 0
    less, whole = batch | {"mask": batch["mask"] & paired}, batch | {"paired": paired}
    for name in ("clip", "sigmoid", "view_text", "mammo_clip"):
        (term,) = losses.build({name: {}})
        (expected, of_less), (found, of_whole) = (term.function(embeddings, b, None) for b in (less, whole))
        if name == "mammo_clip":
            np.testing.assert_allclose(
                of_whole["image_to_image"], term.function(embeddings, batch, None)[1]["image_to_image"]
            )
            assert of_whole["text_to_text"] == of_less["text_to_text"]
            found -= of_whole["image_to_image"] - of_less["image_to_image"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert abs(expected - term.function(embeddings, batch, None)[0]) > 0.01


def test_a_batch_of_filling_rows_alone_costs_nothing(embeddings, batch):
    nothing = batch | {"mask": np.zeros(B, bool)}
    for name in GLOBAL:
        (term,) = losses.build({name: {}})
        gradient_fn = jax.value_and_grad(lambda e, term=term: term.function(e, nothing, None)[0])
        loss, gradient = gradient_fn(jax.tree.map(jnp.asarray, embeddings))
        assert loss == 0 and all((g == 0).all() for g in jax.tree.leaves(gradient))


def test_perfect_alignment_costs_little_and_chance_costs_log_b():
    aligned = np.eye(B, dtype=np.float32)
    perfect = Embeddings(aligned[:, None].repeat(2, 1), aligned[:, None].repeat(2, 1), np.float32(50))
    same = Embeddings(np.ones((B, 2, 1), np.float32), np.ones((B, 2, 1), np.float32), np.float32(50))
    assert term("clip")(perfect) < 1e-6
    np.testing.assert_allclose(term("clip")(same), np.log(B), rtol=1e-6)


def test_unknown_names_and_wrong_shapes_are_explained(embeddings):
    with pytest.raises(UserError, match="Did you mean 'mammo_clip'"):
        losses.build({"mamo_clip": {}})
    with pytest.raises(UserError, match="has no option 'label_smooting'.*label_smoothing"):
        losses.build({"clip": {"label_smooting": 0.1}})
    with pytest.raises(UserError, match="needs 2 views and 2 texts"):
        term("mammo_clip")(embeddings._replace(text=embeddings.text[:, :1]))
    with pytest.raises(UserError, match="needs a model with a logit bias: set config.model.logit_bias"):
        term("sigmoid")(embeddings._replace(logit_bias=None))
