"""Vision transformers against transformers' ViTModel, Dinov2Model and Dinov2WithRegistersModel, live or stored.

tests/golden/vit.npz holds what transformers 5.23 returns for the small networks of `CASES`, whose weights
`random_variables` draws from fixed seeds. To make it again: `python tests/models/test_vit.py` (needs torch).
"""

import functools
import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attention import attention, flash
from mammoclip_jax.models.cubic import cubic_matrix
from mammoclip_jax.models.vit import DINOV2, POOLING, VIT, dinov2, vit
from mammoclip_jax.training.mesh import make_mesh

GOLDEN = Path(__file__).parent.parent / "golden" / "vit.npz"
TINY = {"width": 32, "depth": 2, "heads": 4, "patch": 4, "size": 20}
CASES = {
    "vit": lambda **options: vit("tiny", **TINY | options),
    "dinov2": lambda **options: dinov2("small", **TINY | options),
    "dinov2_swiglu": lambda **options: dinov2("giant", **TINY | options),
    "registers": lambda **options: dinov2("base", registers=4, **TINY | options),
}
SIZES = [(20, 20), (12, 32)]  # the nominal one, and one that shrinks the rows and stretches the columns
STORED = ("block1", "last", "cls+mean", "all")
# transformers without the pooler; the mask token, which only pretraining uses, is left out as well
PARAMETERS = {
    ("vit", "tiny"): 5_524_416, ("vit", "small"): 21_665_664, ("vit", "base"): 85_798_656,
    ("vit", "large"): 303_301_632, ("vit", "huge"): 630_764_800,
    ("dinov2", "small"): 22_056_576, ("dinov2", "base"): 86_580_480, ("dinov2", "large"): 304_368_640,
    ("dinov2", "giant"): 1_136_480_768,
}


def shapes(model, channels=3):
    x = jax.ShapeDtypeStruct((1, 2 * model.patch, 2 * model.patch, channels), jnp.float32)
    return flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x), sep="/")


def random_variables(model, dtype=np.float32):
    """Variables drawn by NumPy, a seed for each name; large enough that attention is far from uniform."""
    values = {}
    for name, leaf in shapes(model).items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            value = random.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        elif kind in ("scale", "lambda1"):
            value = random.uniform(0.6, 1.4, leaf.shape)
        else:
            value = random.normal(size=leaf.shape) * 0.3
        values[name] = value.astype(dtype)
    return unflatten_dict(values, sep="/")


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def run(model, variables, x):
    return model.apply(variables, x)


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})  # to compile fast
def gradients(model, variables, x):
    """Of a sum over the last stage and the pooled vector, by every parameter."""
    def objective(params):
        pooled, stages = model.apply({"params": params}, x, train=True)
        return jnp.sum(jnp.sin(stages["last"])) + jnp.sum(jnp.sin(pooled))

    return jax.grad(objective)(variables["params"])


def close(ours, theirs, tolerance):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


def close_gradients(ours, theirs, tolerance):
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.isfinite(value).all() and (np.abs(value).max() > 0 or name.endswith("key/bias")), name
        close(value, theirs[name], tolerance)


# --- against torch ----------------------------------------------------------------------------------------------------


def torch_state(variables, kind):
    """Our parameters in the names and layouts of transformers 5.23, whose modules differ from its published files."""
    state = {}
    for name, value in flatten_dict(variables["params"], sep="/").items():
        if name.endswith("kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = re.sub(r"/(kernel|scale)$", "/weight", name).replace("encoder/layer_", "encoder/layer/")
        name = name.replace("/", ".")
        name = re.sub(r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj", name)
        name = name.replace("attention.output.dense", "attention.o_proj").replace("weights_out", "down_proj")
        if kind == "vit":
            name = name.replace("encoder.layer.", "layers.")
            name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        if "weights_in" in name:
            for part, half in zip(("gate_proj", "up_proj"), np.split(value, 2), strict=True):
                state[name.replace("weights_in", part)] = half
        else:
            state[name] = value
    return state


def torch_model(kind, model, variables, **changes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = dict(hidden_size=model.width, num_hidden_layers=model.depth, num_attention_heads=model.heads,
                   patch_size=model.patch, image_size=model.size, **changes)
    if kind == "vit":
        config = transformers.ViTConfig(intermediate_size=4 * model.width, **options)
        theirs = transformers.ViTModel(config, add_pooling_layer=False)
    elif kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=model.registers, **options)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        config = transformers.Dinov2Config(use_swiglu_ffn=kind == "dinov2_swiglu", **options)
        theirs = transformers.Dinov2Model(config)
    state = {name: torch.tensor(value) for name, value in torch_state(variables, kind).items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"embeddings.mask_token"}
    return theirs.to(next(iter(state.values())).dtype).eval()


def torch_run(kind, model, variables, x):
    """Tokens behind every block, and behind the last norm."""
    torch = pytest.importorskip("torch")
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        out = torch_model(kind, model, variables)(
            torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True, **options)
    return [tokens.numpy() for tokens in out.hidden_states], out.last_hidden_state.numpy()


def expected(kind, model, variables, x):
    """What our outputs must be: {name: array}, from transformers."""
    hidden, last = torch_run(kind, model, variables, x)
    first, grid = 1 + model.registers, (x.shape[1] // model.patch, x.shape[2] // model.patch)
    maps = {f"block{i}": hidden[i] for i in range(1, model.depth + 1)} | {"last": last}
    out = {name: tokens[:, first:].reshape(len(x), *grid, -1) for name, tokens in maps.items()}
    cls, mean = last[:, 0], last[:, first:].mean(1)
    return out | {"cls": cls, "mean": mean, "all": hidden[-1].mean(1), "cls+mean": np.concatenate([cls, mean], -1)}


def ours(kind, x):
    """Our outputs by name, with the weights of the seeds; every pooling for one kind, to compile less."""
    out = {}
    for pooling in POOLING if kind == "registers" else ("cls+mean",):
        model = CASES[kind](pooling=pooling)
        out[pooling], stages = run(model, random_variables(model), x)
        assert out[pooling].shape == (len(x), model.dim) and out[pooling].dtype == jnp.float32
        assert tuple(sorted(stages)) == model.stage_names == ("block1", "block2", "last")
    return out | stages


@pytest.mark.parity
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_every_output_equals_transformers(kind, size):
    model, x = CASES[kind](), image((2, *size, 3))
    theirs = expected(kind, model, random_variables(model), x)
    for name, value in ours(kind, x).items():
        close(value, theirs[name], 1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", CASES)
def test_gradients_equal_transformers(kind):
    torch = pytest.importorskip("torch")
    model = CASES[kind]()
    variables, x = random_variables(model), image((2, *SIZES[1], 3))
    theirs = torch_model(kind, model, variables)
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    last = theirs(torch.tensor(x.transpose(0, 3, 1, 2)), **options).last_hidden_state
    (last[:, 1 + model.registers:].sin().sum() + last[:, 0].sin().sum()).backward()
    slopes = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    mine = torch_state({"params": jax.tree.map(np.asarray, gradients(model, variables, x))}, kind)
    assert slopes.keys() - {"embeddings.mask_token"} == mine.keys()
    for name, value in mine.items():
        close(value, slopes[name], 1e-4)


def write_golden():
    arrays = {}
    for kind, case in CASES.items():
        for size in SIZES:
            model = case()
            for name, value in expected(kind, model, random_variables(model), image((2, *size, 3))).items():
                if name in STORED:
                    arrays[f"{kind}/{size[0]}x{size[1]}/{name}"] = value[:1].astype(np.float32)
    np.savez_compressed(GOLDEN, **arrays)


@pytest.mark.parametrize("kind", CASES)
def test_outputs_equal_stored_ones(kind):
    golden = {name: value for name, value in np.load(GOLDEN).items() if name.startswith(f"{kind}/")}
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
        torch.eye(old, dtype=torch.float64)[None, :, :, None].expand(1, old, old, 8), size=(new, 8), mode="bicubic",
        align_corners=False, antialias=antialias)[0, :, :, 4].T.numpy()
    np.testing.assert_allclose(cubic_matrix(old, new, antialias), theirs, atol=1e-6)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, variant", PARAMETERS, ids="-".join)
def test_parameter_counts(kind, variant):
    build, table = {"vit": (vit, VIT), "dinov2": (dinov2, DINOV2)}[kind]
    assert {name for k, name in PARAMETERS if k == kind} == set(table)
    count = sum(leaf.size for leaf in shapes(build(variant)).values())
    mask_token = table[variant].width if kind == "dinov2" else 0
    assert count + mask_token == PARAMETERS[kind, variant]


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
    leaves = shapes(CASES["dinov2_swiglu"](registers=2), channels=1)
    for name in ("embeddings/cls_token", "embeddings/register_tokens", "embeddings/patch_embeddings/projection/kernel",
                 "encoder/layer_0/attention/attention/query/kernel", "encoder/layer_1/attention/output/dense/bias",
                 "encoder/layer_0/norm1/scale", "encoder/layer_0/layer_scale2/lambda1",
                 "encoder/layer_1/mlp/weights_in/kernel", "encoder/layer_1/mlp/weights_out/bias", "layernorm/bias"):
        assert f"params/{name}" in leaves
    assert leaves["params/embeddings/patch_embeddings/projection/kernel"].shape == (4, 4, 1, 32)


def test_sizes_that_no_patch_divides_are_filled_with_zeros():
    model = CASES["registers"]()
    variables, x = random_variables(model), image((1, 17, 22, 3))
    pooled, stages = run(model, variables, x)
    filled, _ = run(model, variables, np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0))))
    assert stages["last"].shape == (1, 5, 6, 32)
    close(pooled, filled, 1e-6)


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
    np.testing.assert_array_equal(attention(*arrays, "flash"), attention(*arrays, "chunked"))   # on CPU


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
    temporary = {how: attend.lower(*arrays, how, 128).compile().memory_analysis().temp_size_in_bytes
                 for how in ("plain", "auto")}
    assert temporary["auto"] < temporary["plain"] / 4


def test_recomputation_and_chunks_change_no_gradient():
    with jax.enable_x64(True):
        plain, remat, chunked = (
            CASES["registers"](dtype=jnp.float64, **options)
            for options in ({}, {"remat": "block"}, {"attention": "chunked"}))
        variables, x = random_variables(plain, np.float64), image((2, 12, 16, 3), dtype=np.float64)
        assert shapes(plain).keys() == shapes(remat).keys()
        assert "remat" in str(gradients.trace(remat, variables, x).jaxpr)
        assert "remat" not in str(gradients.trace(plain, variables, x).jaxpr)
        theirs = gradients(plain, variables, x)
        for model in (remat, chunked):
            close_gradients(gradients(model, variables, x), theirs, 1e-9)


def test_gradients_on_eight_devices_equal_one():
    with jax.enable_x64(True):
        model = CASES["registers"](dtype=jnp.float64, attention="chunked", pooling="cls+mean")
        variables, x = random_variables(model, np.float64), image((8, 12, 16, 3), dtype=np.float64)
        alone = gradients(model, variables, x)
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch, copied = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
        together = gradients(model, jax.device_put(variables, copied), jax.device_put(x, batch))
    close_gradients(together, alone, 1e-9)


def test_offsets_are_added_and_give_the_gradient_of_a_stage():
    with jax.enable_x64(True):
        model = CASES["registers"](dtype=jnp.float64, pooling="cls+mean")
        variables, x = random_variables(model, np.float64), image((2, 12, 16, 3), dtype=np.float64)
        pooled, stages = run(model, variables, x)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def energy(offsets):
            pooled, stages = model.apply(variables, x, offsets=offsets)
            return jnp.sum(pooled**2), stages

        zeros = {name: jnp.zeros_like(value) for name, value in stages.items()}
        (before, _), slopes = energy(zeros)
        assert all(np.abs(slope).max() > 0 for slope in slopes.values())
        mean = np.broadcast_to(2 * pooled[:, None, None, 32:] / 12, stages["last"].shape)
        close(slopes["last"], mean, 1e-9)
        shift = 1e-5 * image(stages["block1"].shape, 1, np.float64)
        (after, moved), _ = energy(zeros | {"block1": shift})
        close(moved["block1"], stages["block1"] + shift, 1e-12)
        assert np.isclose(after - before, np.sum(slopes["block1"] * shift), rtol=1e-3)
    with pytest.raises(UserError, match="block9"):
        model.apply(variables, x, offsets={"block9": 0})


def test_drop_path_is_drawn_in_training_only():
    model = CASES["dinov2"](drop_path=0.9)
    variables, x = random_variables(model), image((6, 12, 12, 3))
    apply = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    (first, stages), (again, _), (other, others) = (apply(jax.random.key(i)) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    np.testing.assert_array_equal(stages["block1"], others["block1"])  # its rate is zero
    close(run(model, variables, x)[0], run(CASES["dinov2"](), variables, x)[0], 1e-6)


def test_low_precision_is_close():
    exact, low = (CASES["registers"](dtype=jnp.dtype(kind)) for kind in ("float32", "bfloat16"))
    variables, x = random_variables(exact), image((2, 12, 32, 3))
    (expected_, _), (pooled, stages) = (run(model, variables, x) for model in (exact, low))
    assert pooled.dtype == jnp.float32 and stages["last"].dtype == jnp.bfloat16
    assert np.corrcoef(np.ravel(pooled), np.ravel(expected_))[0, 1] > 0.999


def test_the_last_patches_do_not_reach_the_class_token():
    """As the docstring warns for Grad-CAM: under "cls" the gradient at the last block is zero."""
    model = CASES["registers"](stages=[1, 2])
    variables, x = random_variables(model), image((1, 12, 16, 3))
    _, stages = run(model, variables, x)
    slopes = jax.jit(jax.grad(lambda offsets: jnp.sum(model.apply(variables, x, offsets=offsets)[0] ** 2)))(
        jax.tree.map(jnp.zeros_like, stages))
    assert {name for name, slope in slopes.items() if np.abs(slope).max() > 0} == {"block1"}


@pytest.mark.parametrize("build, options, message", [
    (vit, {"variant": "bse"}, "Did you mean 'base'"), (dinov2, {"variant": "huge"}, "variant 'huge'.*giant"),
    (vit, {"pooling": "max"}, "pooling 'max'"), (vit, {"remat": "blok"}, "Did you mean 'block'"),
    (dinov2, {"register": 4}, "Did you mean 'registers'"), (vit, {"stages": (13,)}, "block 13"),
    (vit, {"heads": 5}, "multiple of heads"), (vit, {"attention": "flsh"}, "attention 'flsh'"),
])
def test_wrong_options_name_the_right_ones(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


if __name__ == "__main__":
    write_golden()
