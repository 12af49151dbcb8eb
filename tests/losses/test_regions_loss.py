"""Regions and concepts against loops: the log of the sum over positives, distillation, what a teacher may say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.losses.contrastive import info_nce, mil_nce
from mammoclip_jax.losses.regions import distil, pseudo_labels, region_contrast
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.types import Embeddings

B, R, C, D = 8, 3, 5, 6
N = B * R
TAU = 0.1


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def data():
    """What heads and a teacher give, raw; image 2 allows no concept, some regions are not there."""
    rng = np.random.default_rng(0)
    allowed = rng.random((B, R, C)) < 0.8
    allowed[2] = False
    return {
        "regions/vectors": rng.normal(size=(B, R, D)),
        "regions/mask": rng.random((B, R)) < 0.8,
        "concept/vectors": rng.normal(size=(C, D)),
        "region_cosines": rng.uniform(-1, 1, (B, R, C)),
        "region_allowed": allowed,
    }


def naive_probabilities(data, temperature):
    """{(image, region): {concept: probability}} of the regions that are there and may be anything."""
    found = {}
    for b, r in zip(*np.nonzero(data["regions/mask"])):
        scores = {
            c: np.exp(data["region_cosines"][b, r, c] / temperature)
            for c in range(C)
            if data["region_allowed"][b, r, c]
        }
        if scores:
            found[b, r] = {c: score / sum(scores.values()) for c, score in scores.items()}
    return found


def naive_terms(data, temperature=TAU, teacher_temperature=TAU, threshold=0.5):
    """(distillation, rows, columns, number of regions)."""
    sure = {
        at: seen
        for at, seen in naive_probabilities(data, teacher_temperature).items()
        if max(seen.values()) > threshold
    }
    label = {at: max(seen, key=seen.get) for at, seen in sure.items()}
    concepts = unit(data["concept/vectors"])
    logits = {at: unit(data["regions/vectors"][at]) @ concepts.T / temperature for at in sure}
    divergence = []
    for at, seen in sure.items():
        student = np.exp(logits[at]) / np.exp(logits[at]).sum()
        divergence.append(sum(q * np.log(q / student[c]) for c, q in seen.items()))

    def mean(scores):
        return -np.mean(
            [
                np.log(sum(scores(i, k) for k in sure if label[k] == label[i]) / sum(scores(i, k) for k in sure))
                for i in sure
            ]
        )

    rows = mean(lambda i, k: np.exp(logits[i][label[k]]))
    columns = mean(lambda i, k: np.exp(logits[k][label[i]]))
    return np.mean(divergence), rows, columns, len(sure)


def term(name, **options):
    (built,) = losses.build({name: {"temperature": TAU, "teacher_temperature": TAU, "threshold": 0.5} | options})
    return built


def run(name, data, mesh=None, **options):
    return term(name, **options).function(Embeddings(None, None, None, None, data), data, mesh)


def test_terms_equal_the_loops_and_say_what_they_need(data):
    divergence, rows, columns, count = naive_terms(data)
    (loss, metrics), both, (one_sided, _) = jax.jit(
        lambda data: (
            run("distillation", data),
            run("region_concept", data),
            run("region_concept", data, symmetric=False),
        )
    )(data)
    np.testing.assert_allclose((loss, metrics["regions"]), (divergence, count), rtol=1e-5)
    loss, metrics = both
    np.testing.assert_allclose(loss, (rows + columns) / 2, rtol=1e-5)
    np.testing.assert_allclose((metrics["region_to_concept"], metrics["concept_to_region"]), (rows, columns), rtol=1e-5)
    np.testing.assert_allclose(one_sided, rows, rtol=1e-5)
    assert metrics["regions"] == count
    for name in ("distillation", "region_concept"):
        assert {*term(name).needs, *term(name).reads} == set(data)
    assert "rois/mask" in term("region_concept", regions="rois").needs


@pytest.mark.parametrize(
    "name, form", [("distillation", ""), *(("region_concept", x) for x in ("plain", "gathered", "ring"))]
)
def test_same_value_and_gradient_on_one_and_eight_devices_and_that_of_the_loop(data, name, form):
    options = {"form": form} if form else {}
    found = []
    with jax.enable_x64(True):
        for devices, how in ((1, {"form": "plain"} if form else {}), (8, options)):
            mesh = make_mesh({"data": -1}, jax.devices()[:devices])
            everywhere = replicated(mesh)
            placed = {
                key: jax.device_put(x, everywhere if key == "concept/vectors" else batch_sharding(mesh))
                for key, x in data.items()
            }

            def loss(vectors, concepts, rest, mesh=mesh, how=how):
                return run(name, rest | {"regions/vectors": vectors, "concept/vectors": concepts}, mesh, **how)[0]

            gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
            found.append(jax.device_get(gradient(placed["regions/vectors"], placed["concept/vectors"], placed)))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(one, eight, rtol=1e-9, atol=1e-13), *found)

    rng = np.random.default_rng(1)
    for part, gradient in zip(("regions/vectors", "concept/vectors"), found[0][1]):
        direction = rng.normal(size=data[part].shape)

        def shifted(by, part=part, direction=direction):
            divergence, rows, columns, _ = naive_terms(data | {part: data[part] + by * direction})
            return divergence if name == "distillation" else (rows + columns) / 2

        numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert (gradient * direction).sum() == pytest.approx(numeric, rel=1e-6)


def test_regions_of_one_image_alone_are_another_number(data):
    found = jax.jit(functools.partial(run, "region_concept"))
    whole, _ = found(data)
    each = [found({key: x if key == "concept/vectors" else x[b : b + 1] for key, x in data.items()}) for b in range(B)]
    assert abs(np.mean([loss for loss, _ in each]) - whole) > 0.1


def test_the_sum_stands_inside_the_logarithm(data):
    """Not SupCon's form; the cross-entropy over the distinct concepts, each with the logarithm of its count."""
    regions, concepts = (np.float32(unit(data[f"{x}/vectors"])).reshape(-1, D) for x in ("regions", "concept"))
    labels = np.random.default_rng(3).integers(0, C - 1, N)
    found = region_contrast(regions, concepts, labels, temperature=TAU)
    keys, scale = concepts[labels], jnp.float32(1 / TAU)
    outside = info_nce(regions, keys, scale, ids=labels, duplicates="positive")
    assert abs(found.forward - outside.forward) > 0.3 and abs(found.backward - outside.backward) > 0.3
    counts = np.bincount(labels, minlength=C)
    with np.errstate(divide="ignore"):
        logits = regions @ concepts.T / TAU + np.log(counts)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(N), labels])
    np.testing.assert_allclose(found.forward, expected, rtol=1e-5)
    apart = mil_nce(regions, keys, scale, np.arange(N))
    same = info_nce(regions, keys, scale)
    np.testing.assert_allclose(apart, same, rtol=1e-5)


def test_a_teacher_says_nothing_that_is_denied_and_nothing_where_nothing_is_known(data):
    cosines, allowed = (data[f"region_{name}"].reshape(N, C) for name in ("cosines", "allowed"))
    seen = jax.jit(functools.partial(pseudo_labels, temperature=0.01, threshold=0.0))(cosines, allowed)
    named = np.asarray(seen.labels)
    np.testing.assert_array_equal(named >= 0, allowed.any(axis=1))
    assert allowed[np.arange(N), named][named >= 0].all()
    # Without the rule some would have said what is denied.
    assert not allowed[np.arange(N), cosines.argmax(1)].all()
    np.testing.assert_allclose(np.exp(seen.log_probabilities).sum(1), allowed.any(axis=1), atol=1e-6)
    # One concept that is known: the label, whatever the teacher sees.
    only = np.eye(C, dtype=bool)[np.arange(N) % C]
    np.testing.assert_array_equal(pseudo_labels(cosines, only, threshold=0.99).labels, np.arange(N) % C)
    # Nobody passes: no region, and no loss.
    assert run("distillation", data, threshold=1.0)[0] == run("region_concept", data, threshold=1.0)[0] == 0


@pytest.mark.parametrize("form", ["plain", "ring"])
def test_random_vectors_and_exact_copies_are_finite_in_float32_at_a_temperature_of_a_hundredth(data, form):
    mesh = make_mesh({"data": -1}, jax.devices())
    rng = np.random.default_rng(4)
    random = {key: np.float32(x) if x.dtype == float else x for key, x in data.items()}
    concepts = np.float32(unit(rng.normal(size=(C, D))))
    concepts[1] = -concepts[0]
    copies = concepts[rng.integers(0, 2, (B, R))]
    nothing = np.zeros((B, R, D), np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(vectors, concepts, rest, cosines):
        named = rest | {"regions/vectors": vectors, "concept/vectors": concepts, "region_cosines": cosines}
        options = {"temperature": 0.01, "teacher_temperature": 0.01, "threshold": 0.1}
        values = (
            run("distillation", named, mesh, **options)[0],
            run("region_concept", named, mesh, form=form, **options)[0],
        )
        return sum(values), values

    for vectors in (random["regions/vectors"], copies, np.broadcast_to(copies[:1, :1], copies.shape), nothing):
        for teacher in (random["regions/vectors"], copies):
            found = jax.device_get(loss(vectors, concepts, random, unit(teacher) @ concepts.T))
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    # Where the teacher is the student nothing is to be learnt, and the released form is NaN.
    cosines = copies.reshape(N, D) @ concepts.T
    seen, everywhere = pseudo_labels(cosines, np.ones((N, C), bool)), np.ones(N, bool)
    assert abs(distil(copies.reshape(N, D), concepts, seen.log_probabilities, everywhere)) < 1e-5
    released = jax.nn.softmax(cosines / np.float32(0.01), axis=1)
    assert np.isnan((released * (jnp.log(released) - jnp.log(released))).sum())
