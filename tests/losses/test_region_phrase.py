"""Regions and phrases against a loop over pairs: positives, denials, rows that are not there, every form and 8 devices."""

import jax
import numpy as np
import pytest

from mammoclip_jax import losses
from mammoclip_jax.training.mesh import batch_sharding, make_mesh
from mammoclip_jax.types import Embeddings

B, V, R, P, L, D = 8, 2, 3, 4, 3, 5
MASS, CALCIFICATION = 1, 2


@pytest.fixture(scope="module")
def data():
    """Vectors of regions and phrases; row 6 only fills up, region (2, 0, 1) is gone, the last phrase of each row denies."""
    rng = np.random.default_rng(0)
    named: dict = {"regions/vectors": rng.normal(size=(B, V, R, D)), "phrase/vectors": rng.normal(size=(B, P, D))}
    named["regions/mask"] = np.ones((B, V, R), bool)
    named["regions/mask"][2, 0, 1] = False
    region = np.stack([rng.integers(0, V, (B, P)), rng.integers(0, R, (B, P))], axis=-1).astype(np.int32)
    region[2, 0] = 0, 1
    region[:, P - 1] = -1
    region[3, 1] = -1  # speaks of no region, and denies nothing
    level = np.ones((B, P), np.int32)
    level[::3, 0], level[5, 2] = 0, -1
    region[5, 2] = -1
    batch = {
        "phrase_ids": rng.integers(0, 2, (B, P, 1), np.int32).repeat(L, axis=2),
        "phrase_region": region,
        "phrase_negated": np.arange(P) == np.full((B, 1), P - 1),
        "phrase_level": level,
        "phrase_findings": rng.integers(1, 4, (B, P)).astype(np.int32),
        "mask": np.arange(B) != 6,
    }
    return named, batch


def naive(named, batch, temperature):
    """(regions, phrases): means over those with a positive."""
    unit = {name: named[name] / np.linalg.norm(named[name], axis=-1, keepdims=True) for name in named if "vec" in name}
    regions, phrases = [], []
    for b in range(B):
        for p in range(P):
            view, place = batch["phrase_region"][b, p]
            fact = dict(
                words=tuple(batch["phrase_ids"][b, p]),
                bits=batch["phrase_findings"][b, p],
                label=batch["phrase_level"][b, p] == 0,
                vector=unit["phrase/vectors"][b, p],
                own=(b, view, place),
                denies=False,
            )
            if not batch["mask"][b] or batch["phrase_level"][b, p] < 0:
                continue
            if batch["phrase_negated"][b, p]:
                phrases.append(fact | dict(denies=True))
            elif view >= 0 and named["regions/mask"][b, view, place]:
                phrases.append(fact)
                regions.append(fact | dict(vector=unit["regions/vectors"][b, view, place]))
    logits = np.full((len(regions), len(phrases)), -np.inf)
    positive = np.zeros(logits.shape, bool)
    for i, region in enumerate(regions):
        for k, phrase in enumerate(phrases):
            shared = bool(region["bits"] & phrase["bits"])
            if phrase["denies"] and not shared:
                continue
            logits[i, k] = region["vector"] @ phrase["vector"] / temperature
            same = region["own"] == phrase["own"] or region["words"] == phrase["words"]
            positive[i, k] = (same or phrase["label"] and shared) and not phrase["denies"]
    found = []
    for z, right in ((logits, positive), (logits.T, positive.T)):
        costs = [
            np.log(np.exp(row[np.isfinite(row)]).sum()) - row[own].mean() for row, own in zip(z, right) if own.any()
        ]
        found.append(np.mean(costs))
    return found


def value(named, batch, mesh=None, **options):
    (term,) = losses.build({"region_phrase": dict(temperature=0.2) | options})
    return term.function(Embeddings(None, None, None, None, named), batch, mesh)


one_device = jax.jit(value)


def test_it_is_the_loop(data):
    named, batch = data
    with jax.enable_x64(True):
        found, metrics = one_device(named, batch)
    expected = naive(named, batch, 0.2)
    np.testing.assert_allclose((metrics["region_to_phrase"], metrics["phrase_to_region"]), expected, rtol=1e-6)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-6)
    spoken = (batch["phrase_region"][..., 0] >= 0) & batch["mask"][:, None]
    assert metrics["phrases"] == spoken.sum() - 1


def test_one_and_eight_devices_and_every_form_agree(data):
    named, batch = data
    found = []
    for devices, form in ((1, "plain"), (8, "plain"), (8, "gathered"), (8, "ring")):
        mesh = make_mesh({"data": -1}, jax.devices()[:devices])
        vectors = {name: np.float32(x) for name, x in named.items() if name.endswith("vectors")}
        placed = jax.device_put((vectors, named["regions/mask"], batch), batch_sharding(mesh))

        def loss(named, mask, batch, mesh=mesh, form=form):
            return value(named | {"regions/mask": mask}, batch, mesh, form=form)[0]

        found.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(*placed)))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found[0], other)
    gradient = found[0][1]
    assert not gradient["regions/vectors"][2, 0, 1].any() and not gradient["phrase/vectors"][[3, 2], [1, 0]].any()
    assert not gradient["phrase/vectors"][6].any() and gradient["phrase/vectors"][0].any(axis=1).all()


def test_denials_repel_what_they_deny_and_nothing_else(data):
    """Of a single mass region: a denial of the mass costs, and one of calcifications is not seen."""
    named, batch = data
    batch = batch | {"phrase_findings": np.full((B, P), MASS, np.int32)}
    region, level = np.full((B, P, 2), -1, np.int32), np.full((B, P), -1, np.int32)
    region[0, 0], level[0, 0], level[0, P - 1] = 0, 1, 1
    alone = batch | {"phrase_region": region, "phrase_level": level}
    costs = []
    for denied in (MASS, CALCIFICATION):
        alone["phrase_findings"] = np.full((B, P), MASS, np.int32)
        alone["phrase_findings"][0, P - 1] = denied
        costs.append(float(one_device(named, alone)[1]["region_to_phrase"]))
    assert costs[0] > 0.01 and abs(costs[1]) < 1e-6
    level[0, P - 1] = -1
    assert abs(one_device(named, alone | {"phrase_level": level})[0]) < 1e-6


def test_a_batch_without_phrases_costs_nothing(data):
    named, batch = data
    nothing = batch | {"phrase_region": np.full((B, P, 2), -1, np.int32)}
    assert one_device(named, nothing)[0] == 0
