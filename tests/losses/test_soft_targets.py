"""Soft targets against loops over pairs: similarities, every form, rows without labels or partner, the limits."""

import functools

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.contrastive import info_nce
from mammoclip_jax.losses.soft_targets import Labels, cosine, dot, fields, soft_info_nce
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.types import Embeddings

B, D, F = 16, 6, 4
WEIGHTS, RANGES = (1.0, 0.5, 2.0, 0.7), (3.0, 0.0, 0.0, 2.0)
by_fields = functools.partial(fields, weights=WEIGHTS, ranges=RANGES)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def data():
    """Vectors; labels of both sides, of which image 3 and text 5 have none; images 1, 3 and texts 2, 6 are not there;
    text 4 and texts 5 (no labels) and 8 are not their rows' own."""
    rng = np.random.default_rng(0)
    vectors = *unit(rng.normal(size=(2, B, D))), np.float64(7.3)
    labels = [Labels(rng.integers(0, 4, (B, F)).astype(float), rng.random((B, F)) < 0.6) for _ in range(2)]
    labels[0].known[3] = labels[1].known[5] = False
    masks = tuple(~np.isin(np.arange(B), rows) for rows in ((1, 3), (2, 6), (4, 5, 8)))
    return vectors, labels, masks


def naive_similarity(kind, a, b):
    """Of two rows of labels, (values, known) each."""
    if kind == "fields":
        both = [f for f in range(F) if a[1][f] and b[1][f]]
        alike = {f: 1 - abs(a[0][f] - b[0][f]) / RANGES[f] if RANGES[f] else float(a[0][f] == b[0][f]) for f in both}
        return sum(WEIGHTS[f] * alike[f] for f in both) / sum(WEIGHTS[f] for f in both) if both else 0.0
    x, y = ([value if known else 0.0 for value, known in zip(*row)] for row in (a, b))
    product, norms = np.dot(x, y), np.linalg.norm(x) * np.linalg.norm(y)
    return product if kind == "dot" else product / norms if norms else 0.0


def naive_loss(vectors, labels, masks, kind, temperature, pair, unlabelled_pair):
    """(rows, columns). Masks are of images, of texts, and of rows whose text is their own."""
    queries, keys, scale = vectors
    of_query, of_key = (list(zip(*x)) for x in labels)

    def mean(direction):
        found = []
        for i in range(B):
            there = [
                j for j in range(B) if (masks[0][i] and masks[1][j] if direction == 0 else masks[0][j] and masks[1][i])
            ]
            if not there:
                continue
            if direction == 0:
                logits = {j: scale * queries[i] @ keys[j] for j in there}
                alike = {j: naive_similarity(kind, of_query[i], of_key[j]) / temperature for j in there}
                nothing = not naive_similarity(kind, of_query[i], of_query[i])
            else:
                logits = {j: scale * queries[j] @ keys[i] for j in there}
                alike = {j: naive_similarity(kind, of_query[j], of_key[i]) / temperature for j in there}
                nothing = not naive_similarity(kind, of_key[i], of_key[i])
            share = 1.0 if nothing and unlabelled_pair else pair
            if i not in there or not masks[2][i]:
                if share == 1:
                    continue
                share = 0.0
            total = sum(np.exp(x) for x in alike.values())
            log_sum = np.log(sum(np.exp(x) for x in logits.values()))
            target = {j: share * (i == j) + (1 - share) * np.exp(alike[j]) / total for j in there}
            found.append(-sum(target[j] * (logits[j] - log_sum) for j in there))
        return sum(found) / max(len(found), 1)

    return mean(0), mean(1)


@functools.cache
def program(kind, temperature, pair, unlabelled_pair, form, mesh, chunk=3):
    similarity = {"dot": dot, "cosine": cosine, "fields": by_fields}[kind]

    def loss(vectors, labels, masks):
        contrast = soft_info_nce(
            *vectors,
            *labels,
            similarity=similarity,
            temperature=temperature,
            pair=pair,
            unlabelled_pair=unlabelled_pair,
            query_mask=masks[0],
            key_mask=masks[1],
            paired=masks[2],
            form=form,
            mesh=mesh,
            chunk=chunk,
        )
        return contrast.forward + 0.7 * contrast.backward, contrast

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
    "kind, pair, unlabelled_pair", [("cosine", 0.0, False), ("dot", 0.3, True), ("fields", 0.5, True)]
)
def test_every_form_gives_the_value_of_the_loop_and_its_gradient(data, kind, pair, unlabelled_pair):
    vectors, labels, masks = data
    options = kind, 0.4, pair, unlabelled_pair
    mesh, alone = (make_mesh({"data": -1}, jax.devices()[:n]) for n in (8, 1))
    with jax.enable_x64(True):
        found = {}
        for form, where in (("plain", alone), ("plain", mesh), ("gathered", mesh), ("ring", mesh)):
            rows = batch_sharding(where)
            placed = (*jax.device_put(vectors[:2], rows), jax.device_put(vectors[2], replicated(where)))
            run = program(*options, form, where)
            found[form, where] = jax.device_get(run(placed, *jax.device_put((labels, masks), rows)))
        _, expected = found["plain", alone]
        for (_, contrast), gradient in found.values():
            np.testing.assert_allclose(
                (contrast.forward, contrast.backward), naive_loss(vectors, labels, masks, *options), rtol=1e-10
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), gradient, expected)

    rng = np.random.default_rng(1)
    for vary in range(3):  # queries, keys, scale
        direction = [rng.normal(size=x.shape) * (i == vary) for i, x in enumerate(vectors)]

        def shifted(by):
            moved = [x + by * d for x, d in zip(vectors, direction)]
            forward, backward = naive_loss(moved, labels, masks, *options)
            return forward + 0.7 * backward

        numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert sum((g * d).sum() for g, d in zip(expected, direction)) == pytest.approx(numeric, rel=1e-6)


def test_rows_of_one_device_alone_are_another_number(data):
    vectors, labels, masks = data
    whole = program("fields", 0.4, 0.5, True, "plain", None)(vectors, labels, masks)[0][0]
    run = program("fields", 0.4, 0.5, True, "plain", None)
    cut = [jax.tree.map(lambda x, i=i: x[i : i + 2], (vectors[:2], labels, masks)) for i in range(0, B, 2)]
    assert abs(np.mean([run((*v, vectors[2]), *more)[0][0] for v, *more in cut]) - whole) > 0.1


def test_at_temperature_0_with_distinct_labels_and_with_the_pair_alone_it_is_info_nce(data):
    vectors, labels, _ = data
    everywhere = np.ones(B, bool)
    expected = naive.info_nce(*vectors, everywhere)
    distinct = [Labels(np.arange(B, dtype=float)[:, None] + np.zeros(F), np.ones((B, F), bool))] * 2
    with jax.enable_x64(True):
        for given, temperature, pair in ((distinct, 1e-3, 0.0), (distinct, 1e-30, 0.0), (labels, 0.2, 1.0)):
            found = jax.jit(
                lambda vectors, labels, temperature=temperature, pair=pair: soft_info_nce(
                    *vectors, *labels, similarity=fields, temperature=temperature, pair=pair
                )
            )(vectors, given)
            np.testing.assert_allclose((found.forward, found.backward), expected, rtol=1e-6)
            assert found.accuracy == naive.accuracy(*vectors[:2], everywhere)


def test_medclips_loss_is_info_nce_with_exponentials_for_labels(data):
    vectors, labels, _ = data
    with jax.enable_x64(True):
        found = soft_info_nce(*vectors, *labels, similarity=dot, temperature=1.0, unlabelled_pair=False)
        expected = info_nce(*vectors, labels=jnp.exp(dot(*labels)))
        np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-12)


@pytest.mark.parametrize("kind", ["fields", "cosine"])
def test_what_is_not_known_changes_nothing(data, kind):
    vectors, labels, masks = data
    run = program(kind, 0.4, 0.5, True, "plain", None)
    expected = run(vectors, labels, masks)
    other = [Labels(np.where(known, values, 77.0), known) for values, known in labels]
    jax.tree.map(np.testing.assert_array_equal, run(vectors, other, masks), expected)
    wider = [
        Labels(np.pad(values, ((0, 0), (0, 1)), constant_values=3), np.pad(known, ((0, 0), (0, 1))))
        for values, known in labels
    ]
    similarity = (
        functools.partial(fields, weights=(*WEIGHTS, 9.0), ranges=(*RANGES, 0.0)) if kind == "fields" else cosine
    )
    narrow = by_fields if kind == "fields" else cosine
    np.testing.assert_allclose(similarity(*wider), narrow(*labels), rtol=1e-6)


def test_cosines_are_free_of_the_scale_of_labels(data):
    _, labels, _ = data
    tripled = [Labels(3 * values, known) for values, known in labels]
    np.testing.assert_allclose(cosine(*tripled), cosine(*labels), atol=1e-6)


@pytest.mark.parametrize("form", ["plain", "ring"])
def test_exact_copies_and_sharp_targets_are_finite_in_float32(data, form):
    mesh = make_mesh({"data": -1}, jax.devices())
    vectors, labels, masks = data
    same = np.float32(vectors[0])
    for temperature in (0.2, 1e-6):
        for keys in (same, np.float32(vectors[1]), np.repeat(same[:1], B, 0)):
            run = program("fields", temperature, 0.5, True, form, mesh)
            found = jax.device_get(run((same, keys, np.float32(100)), labels, masks))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def term_on(data, labels, **options):
    """Value of the term over (images [B V D], texts [B T D], scale); the last two rows are not there."""
    image, text, scale = map(np.float32, data)
    batch = {"target": np.float32(np.where(labels.known, labels.values, 0)), "known": labels.known}
    batch["mask"] = np.arange(B) < B - 2
    given = {"weights": WEIGHTS, "temperature": 0.3, "pair": 0.4} | options
    (term,) = losses.build({"soft_targets": given}, ranges=RANGES)
    return jax.jit(lambda embeddings, batch: term.function(embeddings, batch, None)[0])(
        Embeddings(image, text, scale), batch
    )


def naive_term(vectors, labels):
    return np.mean(naive_loss(vectors, labels, (np.arange(B) < B - 2,) * 3, "fields", 0.3, 0.4, True))


def test_the_term_reads_the_labels_of_the_batch(data):
    (image, text, scale), (labels, _), _ = data
    found = term_on((image[:, None], text[:, None], scale), labels)
    np.testing.assert_allclose(found, naive_term((image, text, scale), (labels, labels)), rtol=1e-5)


def test_views_of_different_breasts_have_labels_of_their_own(data):
    """The text of each view those of its breast; where there is but one text, it is of the first view's."""
    (image, text, scale), (first, second), _ = data
    labels = Labels(*(np.stack(x, axis=1) for x in zip(first, second)))
    images = np.stack([np.roll(image, 1, axis=0), image], axis=1)
    both, single = np.stack([np.roll(text, 1, axis=0), text], axis=1), text[:, None]
    for texts, of_text in ((both, second), (single, first)):
        found = term_on((images, texts, scale), labels, view=1)
        np.testing.assert_allclose(found, naive_term((image, text, scale), (second, of_text)), rtol=1e-5)


def test_a_text_of_its_own_has_its_own_labels_and_no_pair(data):
    (image, text, scale), (of_image, of_text), (_, has_text, paired) = data
    batch = {"target": of_image.values, "known": of_image.known, "mask": np.arange(B) < B - 2}
    batch |= {"text_target": of_text.values[:, None], "text_known": of_text.known[:, None]}
    batch |= {"paired": paired & has_text, "has_text": has_text}
    (term,) = losses.build({"soft_targets": dict(weights=WEIGHTS, temperature=0.3, pair=0.4)}, ranges=RANGES)
    with jax.enable_x64(True):
        found, metrics = term.function(Embeddings(image[:, None], text[:, None], scale), batch, None)
    there = batch["mask"], batch["mask"] & has_text, paired
    expected = naive_loss((image, text, scale), (of_image, of_text), there, "fields", 0.3, 0.4, True)
    np.testing.assert_allclose((metrics["image_to_text"], metrics["text_to_image"]), expected, rtol=1e-9)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-9)


def test_ranges_of_the_data_are_for_terms_that_have_and_lack_them():
    own, given, other = losses.build(
        {"soft_targets": {"ranges": (1.0,)}, "given": {"kind": "soft_targets"}, "clip": {}}, ranges=(2.0,)
    )
    assert [term.function.keywords for term in (own, given, other)] == [{"ranges": (1.0,)}, {"ranges": (2.0,)}, {}]
    assert own.reads == ("target", "known") and other.reads == ()


def test_what_cannot_be_done_is_explained(data):
    (image, text, scale), (labels, _), _ = data

    def run(batch=None, **options):
        (term,) = losses.build({"soft_targets": options})
        batch = {"target": labels.values, "known": labels.known} if batch is None else batch
        return term.function(Embeddings(image[:, None], text[:, None], scale), batch, None)

    with pytest.raises(UserError, match="soft_targets compares labels, and the batches of this task hold none"):
        run({})
    with pytest.raises(UserError, match="no similarity of labels 'cosin'. Did you mean 'cosine'"):
        run(similarity="cosin")
    with pytest.raises(UserError, match="reads weights and ranges with similarity=\"fields\" alone, not 'cosine'"):
        run(similarity="cosine", weights=WEIGHTS)
    with pytest.raises(UserError, match=r"4 fields and ranges=\(1.0, 2.0\): give one number"):
        run(ranges=(1.0, 2.0))
    with pytest.raises(UserError, match="temperature=0 and pair=0.5"):
        run(temperature=0)
    with pytest.raises(UserError, match="pair=1.5"):
        run(pair=1.5)
