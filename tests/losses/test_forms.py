"""The plain, gathered and ring forms of both losses: values of a naive loop, one gradient, on any mesh."""

import functools
from typing import NamedTuple

import jax
import naive
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import forms
from mammoclip_jax.losses.contrastive import info_nce, sigmoid_loss
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated

B, D = 32, 6
EVERY_FORM = ("plain", "gathered", "ring")
MESHES = {
    "1": {"data": 1},
    "2": {"data": 2},
    "8": {"data": 8},
    "4x2": {"data": 4, "fsdp": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "space": 2},
}


class Case(NamedTuple):
    """What a loss is asked for beside the vectors."""

    mask: bool = False
    ids: int = 0  # ids of a row
    labels: bool = False
    duplicates: str = "negative"
    smoothing: float = 0.0
    chunk: int = 512


CASES = {
    "pairs": Case(),
    "smoothed": Case(mask=True, smoothing=0.1, chunk=1),
    "positives": Case(mask=True, ids=1, duplicates="positive", smoothing=0.2, chunk=3),
    "ignored": Case(mask=True, ids=2, duplicates="ignore", chunk=3),
    "labels": Case(mask=True, labels=True, smoothing=0.1, chunk=3),
}
MASKS = {
    "some rows": np.arange(B) % 5 != 2,
    "two devices": ~np.isin(np.arange(B) // 4, (2, 5)),
    "all but one": np.arange(B) == 9,
    "all": np.zeros(B, bool),
}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    queries, keys = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, B, D)))
    return {
        "vectors": (queries, keys, np.float64(7.3), np.float64(-2.1)),
        "ids": rng.integers(0, 12, size=(B, 2)),
        "labels": rng.choice([-1, 0, 0, 0, 0.3, 1], size=(B, B)),
    }


def extras(data, case, mask):
    """mask, ids and labels of a case."""
    return {
        "mask": mask if case.mask else None,
        "ids": data["ids"][:, : case.ids] if case.ids else None,
        "labels": data["labels"] if case.labels else None,
    }


def naive_loss(name, vectors, case, mask, ids, labels):
    """The figures that `loss` gives as one number, which tells the two directions apart."""
    mask = np.ones(B, bool) if mask is None else mask
    options = ids, labels, case.duplicates, case.smoothing
    if name == "sigmoid":
        return naive.sigmoid_loss(*vectors, mask, *options)
    rows, columns = naive.info_nce(*vectors[:3], mask, *options)
    return rows + 0.7 * columns


@functools.cache
def program(name, case, form, mesh):
    """Jitted `(vectors, mask, ids, labels) -> ((loss, accuracy), gradients)`."""

    def loss(vectors, mask, ids, labels):
        options = dict(
            mask=mask,
            ids=ids,
            labels=labels,
            duplicates=case.duplicates,
            label_smoothing=case.smoothing,
            form=form,
            mesh=mesh,
            chunk=case.chunk,
        )
        if name == "sigmoid":
            return sigmoid_loss(*vectors, **options)
        contrast = info_nce(*vectors[:3], **options)
        return contrast.forward + 0.7 * contrast.backward, contrast.accuracy

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def on_mesh(mesh, dtype, vectors, mask, ids, labels):
    """The arguments of a program, placed; the mesh says how."""
    rows = batch_sharding(mesh)
    vectors = tuple(jax.device_put(np.asarray(x, dtype), rows if x.ndim else replicated(mesh)) for x in vectors)
    return vectors, *(x if x is None else jax.device_put(x, rows) for x in (mask, ids, labels))


def mesh_of(name):
    shape = MESHES[name]
    return make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", ("info_nce", "sigmoid"))
def test_every_form_gives_the_value_of_the_loop_and_its_gradient(data, name, case):
    with jax.enable_x64(True):
        mesh = mesh_of("4x2")
        programs = {form: program(name, case, form, mesh) for form in EVERY_FORM}
        for mask in MASKS.values() if case.mask else [None]:
            given = extras(data, case, mask)
            found = {
                form: jax.device_get(run(*on_mesh(mesh, np.float64, data["vectors"], **given)))
                for form, run in programs.items()
            }
            (_, accuracy), gradient = found["plain"]
            for (loss, accurate), other in found.values():
                np.testing.assert_allclose(loss, naive_loss(name, data["vectors"], case, **given), rtol=1e-12)
                assert accurate == accuracy
                jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), other, gradient)
            if mask is None or mask is MASKS["some rows"]:
                check_by_finite_differences(gradient, name, data, case, given)
            every_row = np.ones(B, bool) if mask is None else mask
            assert accuracy == pytest.approx(
                naive.accuracy(*data["vectors"][:2], every_row, given["ids"], given["labels"], case.duplicates)
            )


def check_by_finite_differences(gradient, name, data, case, given):
    """Along a random direction of each vector and number."""
    rng = np.random.default_rng(1)
    for vary in range(4 if name == "sigmoid" else 3):  # queries, keys, scale, bias
        direction = [rng.normal(size=x.shape) * (i == vary) for i, x in enumerate(data["vectors"])]

        def shifted(by):
            moved = [x + by * d for x, d in zip(data["vectors"], direction)]
            return naive_loss(name, moved, case, **given)

        numeric = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        assert sum((g * d).sum() for g, d in zip(gradient, direction)) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("mesh_name", MESHES)
@pytest.mark.parametrize("name, case", [("info_nce", "positives"), ("sigmoid", "ignored")])
def test_float32_on_every_mesh_agrees_with_one_device(data, name, case, mesh_name):
    case = CASES[case]
    given = extras(data, case, MASKS["two devices"])
    alone = jax.device_get(
        program(name, case, "plain", None)(*on_mesh(mesh_of("1"), np.float32, data["vectors"], **given))
    )
    mesh = mesh_of(mesh_name)
    for form in ("gathered", "ring"):
        found = jax.device_get(program(name, case, form, mesh)(*on_mesh(mesh, np.float32, data["vectors"], **given)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, alone)


@pytest.mark.parametrize("form", ("gathered", "ring"))
def test_rows_may_be_on_all_devices_of_the_last_axes(data, form):
    """As where rows of images lie over the axis space: 4 breasts on 2x2x2 devices."""
    mesh = mesh_of("2x2x2")
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    vectors = [np.float32(x[:4] if x.ndim else x) for x in data["vectors"][:3]]

    def loss(form, *vectors):
        contrast = info_nce(*vectors, form=form, mesh=mesh)
        return contrast.forward + 0.7 * contrast.backward

    placed = [jax.device_put(x, rows if x.ndim else replicated(mesh)) for x in vectors]
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(1, 2, 3)), static_argnums=0)
    expected, found = gradient("plain", *vectors), gradient(form, *placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_bfloat16_vectors_are_compared_in_float32(data):
    queries, keys = (x.astype(jax.numpy.bfloat16) for x in data["vectors"][:2])
    mesh = mesh_of("8")
    expected, _ = naive.info_nce(np.float64(queries), np.float64(keys), 7.3, np.ones(B, bool))
    for form in EVERY_FORM:
        run = jax.jit(functools.partial(info_nce, form=form, mesh=mesh))
        loss = run(queries, keys, np.float32(7.3)).forward
        assert loss.dtype == np.float32
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_ring_keeps_no_block_of_logits_for_the_backward_pass():
    mesh, rows, dim, chunk = mesh_of("8"), 512, 8, 16

    def temporaries(form):
        def loss(queries, keys, scale):
            return info_nce(queries, keys, scale, form=form, mesh=mesh, chunk=chunk).forward

        vectors = jax.ShapeDtypeStruct((rows, dim), np.float32, sharding=batch_sharding(mesh))
        scale = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(mesh))
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return gradient.lower(vectors, vectors, scale).compile().memory_analysis().temp_size_in_bytes

    logits_of_a_device = rows // 8 * rows * 4
    assert temporaries("plain") > logits_of_a_device > 2 * temporaries("ring")


def test_auto_takes_the_ring_where_logits_grow_large():
    mesh = mesh_of("8")
    assert forms.choose("auto", 8192, mesh) == "plain" and forms.choose("auto", 16384, mesh) == "ring"
    assert forms.choose("auto", 4096, mesh_of("1")) == "plain" and forms.choose("auto", 8192, mesh_of("1")) == "ring"
    assert forms.choose("auto", 2**20, None) == "plain"


def test_what_cannot_be_done_is_explained(data):
    queries, keys, scale, _ = data["vectors"]
    with pytest.raises(UserError, match="Did you mean 'ring'"):
        info_nce(queries, keys, scale, form="rings")
    with pytest.raises(UserError, match="no treatment of duplicates 'positives'. Did you mean 'positive'"):
        info_nce(queries, keys, scale, duplicates="positives")
    with pytest.raises(UserError, match="'ring' of a contrastive loss needs a mesh"):
        info_nce(queries, keys, scale, form="ring")
    with pytest.raises(UserError, match="3 rows do not split evenly"):
        info_nce(queries[:3], keys[:3], scale, form="ring", mesh=mesh_of("8"))
