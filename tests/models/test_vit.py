"""What is the vision transformers' own: poolings, positions, attention; the rest is in test_image_encoders.py.

tests/golden/vit.npz holds what ViTModel, Dinov2Model and Dinov2WithRegistersModel of transformers 5.23 return for the
small forms there. To make it again (needs torch): `PYTHONPATH=tests python tests/models/test_vit.py`.
"""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, close_gradients
from image_contract import FORMS, GOLDEN, exact, gradients, image, run, shapes
from jax.experimental.pallas import tpu as pltpu
from torch_images import tokens

from mammoclip_jax.models.attention import attention, cudnn_takes, flash, fused, kernels_for
from mammoclip_jax.models.cubic import cubic_matrix
from mammoclip_jax.models.vit import POOLING, dinov2
from mammoclip_jax.training.mesh import make_mesh

# By their names in the golden file.
KINDS = {
    "vit": FORMS["vit"],
    "dinov2": FORMS["dinov2_plain"],
    "dinov2_swiglu": FORMS["dinov2_swiglu"],
    "registers": FORMS["dinov2"],
}
SMALL = FORMS["dinov2"]
SIZES = [(20, 20), (12, 32)]  # the nominal one, and one that shrinks the rows and stretches the columns
STORED = ("block1", "last", "cls+mean", "all")


def expected(kind, x):
    """What our outputs must be: {name: array}, from transformers."""
    torch = pytest.importorskip("torch")
    form = KINDS[kind]
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    theirs = form.theirs.model(form.model(), form.variables()).eval()
    with torch.no_grad():
        outputs = tokens(theirs, torch.tensor(x.transpose(0, 3, 1, 2)), **options)
    return {name: value.numpy() for name, value in outputs.items()}


def ours(kind, x):
    """Our outputs by name; every pooling for one kind, to compile less."""
    out, variables = {}, KINDS[kind].variables()
    for pooling in POOLING if kind == "registers" else ("cls+mean",):
        model = KINDS[kind].model(pooling=pooling)
        stages, _ = run(model, variables, x)
        out[pooling] = stages.pop("pooled")
        assert out[pooling].shape == (len(x), model.dim) and out[pooling].dtype == jnp.float32
        assert tuple(sorted(stages)) == model.stage_names == ("block1", "block2", "last")
    return out | stages


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_output_equals_transformers(kind, size):
    x = image((2, *size, 3))
    theirs = expected(kind, x)
    for name, value in ours(kind, x).items():
        close(value, theirs[name], 1e-5)


def write_golden(folder=GOLDEN):
    arrays = {}
    for kind in KINDS:
        for size in SIZES:
            for name, value in expected(kind, image((2, *size, 3))).items():
                if name in STORED:
                    arrays[f"{kind}/{size[0]}x{size[1]}/{name}"] = value[:1].astype(np.float32)
    np.savez_compressed(folder / "vit.npz", **arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_equal_stored_ones(kind):
    golden = {name: value for name, value in np.load(GOLDEN / "vit.npz").items() if name.startswith(f"{kind}/")}
    for size in SIZES:
        out = ours(kind, image((2, *size, 3)))
        assert {"block1", "last", "cls+mean"} <= set(out)
        for name in set(STORED) & set(out):
            close(out[name][:1], golden[f"{kind}/{size[0]}x{size[1]}/{name}"], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("old, new", [(37, 16), (37, 37), (16, 37), (37, 108), (5, 3), (4, 1), (14, 95)])
def test_resampling_equals_torch(old, new, antialias):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.interpolate(
        torch.eye(old, dtype=torch.float64)[None, :, :, None].expand(1, old, old, 8),
        size=(new, 8),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )[0, :, :, 4].T.numpy()
    np.testing.assert_allclose(cubic_matrix(old, new, antialias), theirs, atol=1e-6)


def test_dinov2_base_with_registers_at_its_size():
    """MaMA's: 1,374 tokens at 518, 86.58 M parameters (transformers: 86,583,552 with the mask token)."""
    model = dinov2("base", registers=4, pooling="all", remat="block", dtype=jnp.dtype("bfloat16"))
    leaves = shapes(model)
    assert sum(leaf.size for leaf in leaves.values()) + 768 == 86_583_552
    assert leaves["params/embeddings/position_embeddings"].shape == (1, 1370, 768)
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype(jnp.float32)}
    x = jax.ShapeDtypeStruct((2, 518, 518, 3), jnp.float32)
    pooled, stages = jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0]
    assert pooled.shape == (2, 768) and pooled.dtype == jnp.float32
    assert model.stage_names == ("block3", "block6", "block9", "block12", "last")
    assert set(stages) == set(model.stage_names)
    assert {(stage.shape, stage.dtype) for stage in stages.values()} == {((2, 37, 37, 768), jnp.dtype("bfloat16"))}
    assert model.stage_grids(518, 518)["block6"] == (14, (7.0, 7.0))


def test_names_are_those_of_the_hub():
    leaves = shapes(FORMS["dinov2_swiglu"].model(registers=2), channels=1)
    for name in (
        "embeddings/cls_token",
        "embeddings/register_tokens",
        "embeddings/patch_embeddings/projection/kernel",
        "encoder/layer_0/attention/attention/query/kernel",
        "encoder/layer_1/attention/output/dense/bias",
        "encoder/layer_0/norm1/scale",
        "encoder/layer_0/layer_scale2/lambda1",
        "encoder/layer_1/mlp/weights_in/kernel",
        "encoder/layer_1/mlp/weights_out/bias",
        "layernorm/bias",
    ):
        assert f"params/{name}" in leaves
    assert leaves["params/embeddings/patch_embeddings/projection/kernel"].shape == (4, 4, 1, 32)


def test_sizes_that_no_patch_divides_are_filled_with_zeros():
    model, variables, x = SMALL.model(), SMALL.variables(), image((1, 17, 22, 3))
    outputs, _ = run(model, variables, x)
    filled, _ = run(model, variables, np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0))))
    assert outputs["last"].shape == (1, 5, 6, 32)
    close(outputs["pooled"], filled["pooled"], 1e-6)


# --- behaviour --------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(3, 4))
def attend(query, key, value, how, chunk):
    def objective(arrays):
        out = attention(*arrays, how, chunk)
        return jnp.sum(jnp.sin(out)), out

    return jax.grad(objective, has_aux=True)((query, key, value))


def attend_with(how, arrays):
    """Result and gradients; "flash" is the kernel itself, wherever it runs."""

    def objective(arrays):
        out = flash(*arrays) if how == "flash" else attention(*arrays, how)
        return jnp.sum(jnp.sin(out)), out

    return jax.jit(jax.grad(objective, has_aux=True))(arrays)


@pytest.mark.parametrize("queries, keys", [(130, 130), (900, 50)])
def test_the_kernel_for_tpus_equals_plain(queries, keys):
    """Interpreted on CPU: lengths that fill no block, and two blocks of queries."""
    arrays = tuple(2 * image((2, 1, length, 16), seed) for seed, length in enumerate((queries, keys, keys)))
    with pltpu.force_tpu_interpret_mode():
        fused = attend_with("flash", arrays)
    jax.tree.map(functools.partial(close, tolerance=1e-5), fused, attend_with("plain", arrays))
    np.testing.assert_array_equal(attention(*arrays, "flash"), attention(*arrays, "chunked"))  # on CPU


@pytest.mark.parametrize("queries, keys, d", [(37, 29, 8), (30, 30, 12)])
def test_what_cudnn_is_asked_for_is_attention(queries, keys, d):
    """By the same call with jax's own implementation: layout, scale, and heads that are filled up to a multiple of 8."""
    arrays = tuple(2 * image((2, 3, length, d), seed) for seed, length in enumerate((queries, keys, keys)))

    def objective(arrays):
        out = fused(*arrays, "xla")
        return jnp.sum(jnp.sin(out)), out

    ours = jax.jit(jax.grad(objective, has_aux=True))(arrays)
    jax.tree.map(functools.partial(close, tolerance=1e-5), ours, attend_with("plain", arrays))


def a_gpu(monkeypatch, capability="9.0"):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])


def heads(dtype=jnp.bfloat16, d=64):
    return (jax.ShapeDtypeStruct((2, 2, 600, d), dtype),) * 3


def test_cudnn_is_asked_where_it_can(monkeypatch):
    assert kernels_for("auto", *heads()[:2]) == {} and set(kernels_for("flash", *heads()[:2])) == {"tpu"}
    a_gpu(monkeypatch)
    assert set(kernels_for("auto", *heads()[:2])) == {"cuda"}
    assert set(kernels_for("flash", *heads()[:2])) == {"tpu", "cuda"}
    assert not kernels_for("chunked", *heads()[:2])
    assert not cudnn_takes(*heads(jnp.float32)[:2]) and not cudnn_takes(*heads(d=136)[:2])
    for too_old in ("7.5", "gfx942"):
        a_gpu(monkeypatch, too_old)
        assert not cudnn_takes(*heads()[:2])


@pytest.mark.parametrize("platform, calls", [("cuda", 2), ("cpu", 0)])
def test_a_program_for_a_gpu_calls_cudnn(platform, calls, monkeypatch):
    """Forward and backward, by the lowered program; nothing runs."""
    a_gpu(monkeypatch)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91100)

    def loss(arrays):
        return jnp.sum(attention(*arrays).astype(jnp.float32) ** 2)

    text = jax.jit(jax.grad(loss)).trace(heads()).lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmha", text)) == calls
    assert ("stablehlo.while" in text) == (platform == "cpu")


@pytest.mark.parametrize("rows", [8, 4, 3])
def test_each_device_runs_the_kernel_on_its_rows(rows, monkeypatch):
    """The interpreter cannot run on several devices at once; here a plain attention stands for the kernel."""
    arrays = tuple(image((rows, 2, 5, 8), seed) for seed in range(3))
    seen = []

    def kernel(query, key, value):
        seen.append(len(query))
        return attention(query, key, value, "plain")

    monkeypatch.setattr("mammoclip_jax.models.attention._kernel", kernel)
    with jax.set_mesh(make_mesh({"data": 4, "fsdp": 2})):
        split = attend_with("flash", arrays)
    jax.tree.map(functools.partial(close, tolerance=1e-6), split, attend_with("plain", arrays))
    assert set(seen) == {{8: 1, 4: 1, 3: 3}[rows]}


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_chunked_attention_equals_plain(chunk):
    query, key, value = (2 * image((2, 3, 37, 8), seed) for seed in range(3))
    key = key[:, :, :29]
    value = value[:, :, :29]
    plain, chunked = (attend(query, key, value, how, chunk) for how in ("plain", "chunked"))
    jax.tree.map(functools.partial(close, tolerance=1e-5), chunked, plain)


def test_long_attention_saves_memory_by_itself():
    arrays = (jax.ShapeDtypeStruct((2, 4, 1374, 16), jnp.float32),) * 3
    temporary = {
        how: attend.lower(*arrays, how, 128).compile().memory_analysis().temp_size_in_bytes for how in ("plain", "auto")
    }
    assert temporary["auto"] < temporary["plain"] / 4


def test_chunks_change_no_gradient():
    plain, variables, x, weights = exact(SMALL)
    with jax.enable_x64(True):
        theirs, *_ = gradients(plain, variables, x, weights)
        ours, *_ = gradients(SMALL.model(jnp.float64, attention="chunked"), variables, x, weights)
    assert all(np.abs(value).max() > 0 or name.endswith("key/bias") for name, value in ours.items())
    close_gradients(ours, theirs, 1e-9)


def test_the_last_patches_do_not_reach_the_class_token():
    """As the docstring warns for Grad-CAM: under "cls" the gradient at the last block is zero."""
    model = SMALL.model(stages=[1, 2], pooling="cls")
    variables, x = SMALL.variables(), image((1, 12, 16, 3))
    stages, _ = run(model, variables, x)
    del stages["pooled"]
    slopes = jax.jit(jax.grad(lambda offsets: jnp.sum(model.apply(variables, x, offsets=offsets)[0] ** 2)))(
        jax.tree.map(jnp.zeros_like, stages)
    )
    assert {name for name, slope in slopes.items() if np.abs(slope).max() > 0} == {"block1"}


if __name__ == "__main__":
    write_golden()
