"""Model FLOPs against closed forms, whatever the program is wrapped in."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.aot import flops
from mammoclip_jax.config import defaults
from mammoclip_jax.models.depthwise import depthwise_conv
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training.mesh import make_mesh

SQUARE = jax.ShapeDtypeStruct((4, 4), jnp.float32)
ONE = 2 * 4**3  # of the product of two squares


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, stride=1, groups=1, **options):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


def test_a_product_is_two_for_each_multiply_add():
    assert flops.model_flops(jnp.matmul, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7
    assert (
        flops.model_flops(lambda q, k: jnp.einsum("nqhd,nkhd->nhqk", q, k), array(2, 3, 4, 5), array(2, 6, 4, 5))
        == 2 * 2 * 4 * 3 * 6 * 5
    )


def test_convolutions_count_the_channels_of_their_group():
    assert flops.model_flops(conv, array(2, 8, 6, 4), array(3, 3, 4, 10)) == 2 * (2 * 8 * 6 * 10) * 9 * 4
    strided = flops.model_flops(lambda x, k: conv(x, k, stride=2), array(2, 8, 6, 4), array(3, 3, 4, 10))
    assert strided == 2 * (2 * 4 * 3 * 10) * 9 * 4
    assert (
        flops.model_flops(lambda x, k: conv(x, k, groups=2), array(2, 8, 6, 4), array(3, 3, 2, 10))
        == 2 * (2 * 8 * 6 * 10) * 9 * 2
    )
    assert (
        flops.model_flops(lambda x, k: conv(x, k, groups=4), array(2, 8, 6, 4), array(3, 3, 1, 4))
        == 2 * (2 * 8 * 6 * 4) * 9
    )


def test_the_zeros_between_dilated_inputs_are_no_work():
    def transposed(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    out = transposed(jnp.zeros((1, 4, 4, 3)), jnp.zeros((2, 2, 3, 5))).size
    assert flops.model_flops(transposed, array(1, 4, 4, 3), array(2, 2, 3, 5)) == 2 * out * 4 * 3 // 4


def test_a_depthwise_convolution_counts_as_one_though_the_cpu_has_shifted_sums():
    def run(x, kernel):
        return depthwise_conv(x, kernel, 2, ((1, 1), (1, 1)))

    assert flops.model_flops(run, array(2, 8, 6, 4), array(3, 3, 4)) == 2 * (2 * 4 * 3 * 4) * 9


@jax.custom_vjp
def product(x):
    return x @ x


product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


@pytest.mark.parametrize(
    "function, passes",
    [
        (jax.jit(lambda x: x @ x), 1),
        (jax.checkpoint(lambda x: x @ x), 1),
        (product, 1),
        (lambda x: jax.nn.relu(x @ x), 1),
        (lambda x: lax.scan(lambda c, _: (c @ c, c), x, length=7)[0], 7),
        (lambda x: lax.scan(lambda c, _: (jax.checkpoint(lambda y: y @ y)(c), None), x, length=7)[0], 7),
        (lambda x: lax.fori_loop(0, 5, lambda i, c: c @ c, x), 5),
        (lambda x: lax.while_loop(lambda c: c[0] < 6, lambda c: (c[0] + 1, c[1] @ c[1]), (2, x))[1], 4),
        (lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y @ y @ y, x), 2),
        (lambda x: lax.platform_dependent(x, cpu=lambda y: y * 2, default=lambda y: y @ y), 1),
        (lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), 0),
    ],
)
def test_nested_programs_count_as_often_as_they_run(function, passes):
    assert flops.model_flops(function, SQUARE) == passes * ONE


def test_what_each_device_does_counts_for_all():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    function = jax.shard_map(
        lambda x, y: x @ y,
        mesh=mesh,
        in_specs=(PartitionSpec(("data", "fsdp")), PartitionSpec()),
        out_specs=PartitionSpec(("data", "fsdp")),
    )
    assert flops.model_flops(function, array(16, 4), array(4, 4)) == 2 * 16 * 4 * 4


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="not known before it runs"):
        flops.model_flops(lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x), SQUARE)


@pytest.mark.parametrize("variant, gigaflops", [("b2", 36.7), pytest.param("b5", 131.2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"scan": True, "remat": "block"}, {"lanes": True}], ids=" ".join)
def test_efficientnet_at_full_resolution(variant, gigaflops, options):
    encoder = flops.without_cells(models.image_encoder({"name": "efficientnet", "variant": variant} | options))
    variables = jax.eval_shape(lambda x: encoder.init(jax.random.key(0), x, train=False), array(1, 64, 64, 3))

    def forward(variables, image):
        return encoder.apply(variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})

    counted = flops.model_flops(forward, variables, array(1, 1520, 912, 3))
    assert round(counted / 1e9, 1) == gigaflops


def bert_flops(texts, length, layers, width, inner):
    """12 L N d^2 of Kaplan et al. 2020 with the feed-forward's own width, and both products with the scores."""
    return 2 * texts * layers * (length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width)


@pytest.fixture
def config():
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    config.model.text.update(
        name="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.model.dim, config.data.text_length, config.train.batch_size = 16, 16, 4
    config.losses.mammo_clip = dict(weight=1.0)
    return config


def test_a_step_is_three_forward_passes_and_one_of_a_frozen_tower(config):
    def step(**model):
        config.model.update(model)
        return flops.training_flops(make_trainer(config, 50, {"height": 64, "width": 48, "bits": 8}, mesh), config)

    mesh = make_mesh({}, jax.devices()[:1])
    both, texts_frozen, all_frozen = step(), step(frozen=("text",)), step(frozen=("image", "text"))
    text = bert_flops(8, 16, 1, 32, 64) + 2 * 8 * 32 * 16  # and the projection
    assert both - texts_frozen == 2 * text
    assert both == 3 * all_frozen


def test_utilisation_needs_a_peak():
    assert flops.peak("cpu") is None and flops.mfu(1e12, 1.0, 1, "cpu") is None
    assert flops.mfu(197e12, 2.0, 4, "TPU v5 lite") == pytest.approx(1 / 8)


def test_peaks_are_of_dense_products():
    """Half of what the data sheets say with sparsity; no device has more than 600 operations a byte of its memory."""
    assert flops.peak("NVIDIA H200")[:2] == (989e12, 4.8e12) and flops.peak("cpu") is None
    assert flops.peak("NVIDIA H200").flops == flops.peak("NVIDIA H100 80GB HBM3").flops
    assert all(40 < peak.flops / peak.bandwidth < 600 for peak in flops.PEAKS.values())
    assert flops.mfu(989e12, 2.0, 1, "NVIDIA H200") == 0.5
