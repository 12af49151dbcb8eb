"""Local alignment: a naive loop, ragged and missing sentences, memory; the same on 1 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.losses import local_alignment as module
from mammoclip_jax.losses.local_alignment import local_scores
from mammoclip_jax.training.mesh import batch_sharding, make_mesh
from mammoclip_jax.types import Embeddings

B, P, S, D = 16, 5, 3, 4


@pytest.fixture(scope="module")
def local():
    """Patches and sentences as a head gives them; caption 3 has no sentence, image 5 no patch, row 7 fills up."""
    rng = np.random.default_rng(0)
    patch_mask, sentence_mask = rng.random((B, 1, P)) < 0.7, np.arange(S) < rng.integers(1, S + 1, (B, 1, 1))
    patch_mask[:, :, 0] = True
    sentence_mask[3], patch_mask[5] = False, False
    sentence_mask[7] = patch_mask[7] = False
    return {
        "patches": rng.normal(size=(B, 1, P, D)),
        "patch_mask": patch_mask,
        "sentences": rng.normal(size=(B, 1, S, D)),
        "sentence_mask": sentence_mask,
        "logit_scale": np.float64(3.0),
    }


def embeddings(local):
    return Embeddings(None, None, None, None, {f"local/{name}": value for name, value in local.items()})


def loss(local, mesh=None, **options):
    (term,) = losses.build({"local_alignment": options})
    return term.function(embeddings(local), {}, mesh)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def naive_scores(local):
    """[caption][image] of (A, B), None where either does not count."""

    def of(m, n):
        sentences = [q for q, there in zip(local["sentences"][m, 0], local["sentence_mask"][m, 0]) if there]
        patches = [p for p, there in zip(local["patches"][n, 0], local["patch_mask"][n, 0]) if there]
        if not sentences or not patches:
            return None
        return (
            np.mean([max(cosine(p, q) for p in patches) for q in sentences]),
            np.mean([max(cosine(p, q) for q in sentences) for p in patches]),
        )

    return [[of(m, n) for n in range(B)] for m in range(B)]


def naive_loss(local):
    scores = naive_scores(local)
    rows = [i for i in range(B) if scores[i][i] is not None]
    total = 0.0
    for part in range(2):
        for i in rows:
            for one in ([scores[i][n][part] for n in rows], [scores[m][i][part] for m in rows]):
                logits = float(local["logit_scale"]) * np.array(one)
                total += (np.log(np.exp(logits).sum()) - logits[rows.index(i)]) / len(rows)
    return total


def test_scores_and_loss_equal_the_naive_loop(local):
    arrays = [jnp.float32(x[:, 0]) if x.dtype == float else x[:, 0] for x in list(local.values())[:4]]
    found = np.stack(local_scores(*arrays), axis=-1)
    for m, row in enumerate(naive_scores(local)):
        for n, pair in enumerate(row):
            np.testing.assert_allclose(found[m, n], pair or (0, 0), atol=1e-6)
    ours, metrics = loss(local)
    np.testing.assert_allclose(ours, naive_loss(local), rtol=1e-6)
    halves = float(metrics["sentences_to_patches"]), float(metrics["patches_to_sentences"])
    np.testing.assert_allclose(2 * sum(halves), ours, rtol=1e-6)
    np.testing.assert_allclose(loss(local, patches_to_sentences=False)[0], 2 * halves[0], rtol=1e-6)


def test_a_caption_without_sentences_is_in_no_term_and_no_denominator(local):
    """Whether its row is there or not."""
    whole = loss(local)[0]
    counts = np.ones(B, bool)
    counts[[3, 5, 7]] = False
    kept = {name: x[counts] if x.ndim else x for name, x in local.items()}
    np.testing.assert_allclose(loss(kept)[0], whole, rtol=1e-6)
    assert loss(local | {"sentence_mask": np.zeros((B, 1, S), bool)})[0] == 0
    twice = {name: np.concatenate([x, x], axis=1) if x.ndim else x for name, x in local.items()}
    np.testing.assert_allclose(loss(twice)[0], whole, rtol=1e-6)  # slots are averaged


def test_one_sentence_and_a_planted_match(local):
    one = local | {"sentence_mask": local["sentence_mask"] & (np.arange(S) == 0)}
    np.testing.assert_allclose(loss(one)[0], naive_loss(one), rtol=1e-6)
    planted = np.array(local["patches"], np.float32)
    planted[2, 0, 0] = 5 * local["sentences"][2, 0, 0]
    a, _ = local_scores(
        planted[:, 0],
        local["patch_mask"][:, 0],
        np.float32(local["sentences"][:, 0]),
        (local["sentence_mask"] & (np.arange(S) == 0))[:, 0],
    )
    np.testing.assert_allclose(a[2, 2], 1, rtol=1e-6)


@pytest.mark.parametrize("captions", [256, 3])
def test_same_value_and_gradient_on_one_and_eight_devices(local, captions, monkeypatch):
    monkeypatch.setattr(module, "CAPTIONS", captions)
    found = []
    for devices in (1, 8):
        mesh = make_mesh({"data": -1}, jax.devices()[:devices])
        arrays = {
            name: jax.device_put(np.float32(x) if x.dtype == float else x, batch_sharding(mesh))
            for name, x in local.items()
            if x.ndim
        }

        @jax.jit
        def run(vectors, masks, scale, mesh=mesh):
            return loss(vectors | masks | {"logit_scale": scale}, mesh)[0]

        vectors, masks = (
            {name: arrays[name] for name in arrays if name.endswith("mask") == masked} for masked in (False, True)
        )
        found.append(jax.device_get(jax.value_and_grad(run, argnums=(0, 2))(vectors, masks, jnp.float32(3))))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-7), *found)
    np.testing.assert_allclose(found[0][0], naive_loss(local), rtol=1e-6)
    assert not found[0][1][0]["sentences"][3].any() and not found[0][1][0]["patches"][5].any()


def temporaries(batch, patches=1369, sentences=10, dim=512):
    """Bytes of the compiled value and gradient on one device; nothing is run."""
    shapes = {"patches": (batch, patches, dim), "sentences": (batch, sentences, dim)}
    vectors = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    masks = {
        "patch_mask": jax.ShapeDtypeStruct(shapes["patches"][:2], bool),
        "sentence_mask": jax.ShapeDtypeStruct(shapes["sentences"][:2], bool),
    }

    def run(vectors, masks, scale):
        return loss({name: x[:, None] for name, x in (vectors | masks).items()} | {"logit_scale": scale})[0]

    gradient = jax.jit(jax.value_and_grad(run, argnums=(0, 2)))
    compiled = gradient.lower(vectors, masks, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("batch, megabytes", [(64, 200), (256, 500)])
def test_memory_of_1369_patches(batch, megabytes):
    """[B, B, P, S] alone would be 224 MB, and 3.6 GB of 256."""
    assert temporaries(batch) < megabytes * 1e6
