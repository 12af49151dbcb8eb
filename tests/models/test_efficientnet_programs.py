"""Loops, recomputation and layouts of EfficientNet change the program and no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.models.efficientnet import EfficientNet

MIXED = "block,block,expand,conv,conv,none,none"
# Of the stages with a loop of MIXED two recompute and one does not; recomputation alone is in test_image_encoders.py.
OPTIONS = [
    dict(scan=True, remat="block"),
    dict(scan=True, remat=MIXED),
    dict(lanes=True),
    dict(lanes=True, scan=True, remat="expand"),
]


def small(**options):
    """Stages of two and three equal blocks, channels that want 2, 4 and 8 columns in a cell."""
    return EfficientNet(variant="b0", width=0.3, depth=0.8, dtype=jnp.float64, depthwise="native", **options)


def results(options, variables, x):
    """(pooled, stage maps, batch statistics, gradients) in training mode."""
    module = small(**options)

    def loss(params):
        (pooled, stages), updated = module.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        )
        return jnp.sum(jnp.sin(pooled)), (pooled, stages, updated["batch_stats"])

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, found), gradients = run(variables["params"])
    return *found, gradients


@pytest.fixture(scope="module")
def reference():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 48, 64, 1), jnp.float64)
        variables = jax.jit(lambda key: small().init(key, x, train=False))(jax.random.key(1))
        variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)
        return variables, x, results({}, variables, x)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_are_the_same(reference, options):
    """To rounding in float64."""
    variables, x, expected = reference
    with jax.enable_x64(True):
        found = results(options, variables, x)
    for one, other in zip(found, expected, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        size = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(other)))
        difference = np.sqrt(
            sum(np.sum(np.square(np.subtract(a, b))) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))
        )
        assert difference < 1e-9 * size


def test_the_programs_differ():
    """What is compared above is not the same program."""
    x = jnp.zeros((2, 48, 64, 1))
    variables = jax.eval_shape(lambda: small().init(jax.random.key(0), x, train=False))

    def text(**options):
        def run(variables, x):
            return small(**options).apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            )

        return str(jax.make_jaxpr(run)(variables, x))

    plain = text()
    assert " scan[" not in plain and " remat" not in plain and " checkpoint[" not in plain
    assert text(scan=True).count(" scan[") == 3
    assert "remat" in text(remat="block") or "checkpoint" in text(remat="block")
    assert "[2,24,4,128]" in text(lanes=True) and "[2,24,4,128]" not in plain  # 16 channels, 8 columns in a cell
