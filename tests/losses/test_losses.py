"""Loss terms against a naive NumPy loop, and the same on 1 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.errors import UserError
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.types import Embeddings

B, D = 16, 8


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(B, 2, D))).astype(np.float32) for _ in range(2))
    return Embeddings(image=image, text=text, logit_scale=np.float32(7.3))


def naive_cross_entropy(queries, keys, scale, smoothing=0.0):
    """Row by row in float64, as torch.nn.functional.cross_entropy defines it."""
    total = 0.0
    for i, query in enumerate(queries.astype(np.float64)):
        logits = [scale * float(query @ key) for key in keys.astype(np.float64)]
        log_sum = np.log(sum(np.exp(logit - max(logits)) for logit in logits)) + max(logits)
        target = [(1 - smoothing) * (j == i) + smoothing / len(keys) for j in range(len(keys))]
        total -= sum(t * (logit - log_sum) for t, logit in zip(target, logits))
    return total / len(queries)


def naive_mammo_clip(e, smoothing=0.0):
    i, t, s = [e.image[:, 0], e.image[:, 1]], [e.text[:, 0], e.text[:, 1]], float(e.logit_scale)
    i2t = np.mean([naive_cross_entropy(a, b, s, smoothing) for a in i for b in t])
    t2i = np.mean([naive_cross_entropy(b, a, s, smoothing) for a in i for b in t])
    icl = (naive_cross_entropy(i[0], i[1], s) + naive_cross_entropy(i[1], i[0], s)) / 2
    tcl = (naive_cross_entropy(t[0], t[1], s) + naive_cross_entropy(t[1], t[0], s)) / 2
    return (i2t + t2i) / 2 + 1.0 * icl + 0.5 * tcl


def term(name, **options):
    ((_, function, _, _),) = losses.build({name: options})
    return lambda e: function(e, {}, None)[0]


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
            values = {name: np.array(getattr(embeddings, name), np.float64) for name in ("image", "text", "logit_scale")}
            values[field][position] += by
            return naive_mammo_clip(Embeddings(**values))
        numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose(getattr(gradient, field)[position], numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_same_value_and_gradient_on_one_and_eight_devices(embeddings, name):
    loss = term(name)
    values = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh({"data": -1}, devices)
        sharding = Embeddings(batch_sharding(mesh), batch_sharding(mesh), replicated(mesh), {}, None)
        placed = jax.device_put(embeddings, sharding)
        values.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(placed)))
    assert len(jax.devices()) == 8
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=2e-5, atol=1e-6), *values)


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
