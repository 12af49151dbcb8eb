"""The C++ passes of EfficientNet's blocks: equal to the layers that they stand for, on one device and on several."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import kernels
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.mbconv import Block, BlockSpec
from mammoclip_jax.models.native import build, passes

TOLERANCE = 1e-5  # of the largest number of an array, all in float32


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Built for this file alone."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler is here")
    os.environ["MAMMOCLIP_NATIVE"] = str(tmp_path_factory.mktemp("native"))
    passes.register.cache_clear()
    build.build()
    yield build.library()
    del os.environ["MAMMOCLIP_NATIVE"]


def step(size, kernels, mesh=None):
    """Output, statistics and gradients of a block with drop-connect, in training."""
    spec = BlockSpec(stage=3, size=size, stride=1, inputs=8, expanded=48, squeezed=2, outputs=8)
    padding, rng = ((size // 2,) * 2,) * 2, np.random.default_rng(size)
    block = Block(spec, jnp.float32, "native", kernels=kernels)
    x = jnp.asarray(rng.normal(size=(4, 19, 13, 8)), jnp.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False, padding))
    variables = jax.tree.map(lambda a: np.float32(rng.normal(size=a.shape)) * 0.3, shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])

    def run(params, x):
        drop = jnp.float32(0.5), jax.random.key(3)
        y, updated = block.apply(variables | {"params": params}, x, True, padding, drop, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, updated)

    function = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
    if mesh is None:
        return function(variables["params"], x)
    with jax.set_mesh(mesh):
        same, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        return function(jax.device_put(variables["params"], same), jax.device_put(x, split))


def assert_near(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)):
        assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("size", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_a_block_is_the_same(library, size):
    """13 columns: no multiple of what the loops take at once. Values, running statistics, every gradient."""
    expected = step(size, "xla")
    assert_near(step(size, "native"), expected)
    if size == 3:
        mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        assert_near(step(size, "native", mesh), expected)


def test_large_activations_and_flat_maps_stay_finite(library):
    """Behind a swish of 1e4 and of -1e4; a map without variance."""
    ones = jnp.ones(16)
    excite = (jnp.ones((16, 1)), ones[:1]), (jnp.ones((1, 16)), ones)
    params = passes.Params(jnp.eye(16), 1e4 * ones, 0 * ones, jnp.ones((3, 3, 16)), ones, ones, *excite, jnp.eye(16))
    for x in (jax.random.normal(jax.random.key(0), (1, 9, 9, 16)), jnp.ones((1, 9, 9, 16))):
        (y, moments), backward = jax.vjp(lambda x, p: passes.block(x, p, 1e-3), x, params)
        gradients = backward((y, moments))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((y, moments, gradients)))


def test_which_blocks_are_taken():
    spec = BlockSpec(stage=3, size=5, stride=1, inputs=8, expanded=48, squeezed=2, outputs=8)
    around = ((2, 2), (2, 2))

    def fits(spec, padding, name="native"):
        return kernels.mbconv_fits(SimpleNamespace(spec=spec, kernels=name), None, padding)

    assert fits(spec, around)
    for change in ({"stride": 2}, {"stage": 7}, {"stage": 1}, {"squeezed": 0}, {"expanded": 40}, {"size": 7}):
        assert not fits(spec._replace(**change), around)
    assert not fits(spec, around, "xla") and not fits(spec, around, "auto") and not fits(spec, ((1, 2), (2, 2)))


def test_a_network_says_what_it_cannot_have(library, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="kernels.*'nativ'.*native"):
        EfficientNet(kernels="nativ")
    with pytest.raises(UserError, match="take dtype, lanes out"):
        EfficientNet(kernels="native", dtype=jnp.bfloat16, lanes=True)
    mesh = Mesh(np.array(jax.devices()[:2]), "data", axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="3 images do not divide by 2 devices"):
        passes.block(jnp.ones((3, 9, 9, 16)), None, 1e-3)
    monkeypatch.setenv("MAMMOCLIP_NATIVE", str(tmp_path))
    passes.register.cache_clear()
    EfficientNet(kernels="native")  # a trained network is used anywhere
    with pytest.raises(UserError, match="run `python -m mammoclip_jax.models.native.build`"):
        passes.block(jnp.ones((1, 9, 9, 16)), None, 1e-3)
    passes.register.cache_clear()


def test_without_a_compiler_there_is_none(tmp_path):
    command = [sys.executable, "-m", "mammoclip_jax.models.native.build"]
    environment = os.environ | {"MAMMOCLIP_NATIVE": str(tmp_path), "PATH": "/nowhere", "CXX": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == build.NO_COMPILER and "runs without them" in done.stderr


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("MAMMOCLIP_NATIVE", str(tmp_path))
    with pytest.raises(UserError, match="broken.*no room"):
        build.build()
    assert not build.library().exists()
