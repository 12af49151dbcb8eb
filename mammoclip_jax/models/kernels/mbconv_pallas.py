"""A stride-1 MBConv block in training, from its input to the project product, with the wide maps in kernels.

The mathematics around the kernels (mbconv_forward.py and
mbconv_backward.py): batch normalisation's moments and their gradients, squeeze-excite,
and what has to be summed over devices. BN of the expand product needs no map of it: z = x w has mean(z) = mean(x) w and
var(z) = w^T cov(x) w, so one pass over the narrow x is enough (`product_moments`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mammoclip_jax.models.kernels import mbconv_backward, mbconv_forward, mosaic


def fits(block, x: Float[Array, "N H W in"], padding) -> bool:
    """Whether the kernels take this block: expanded, with squeeze-excite, stride 1 and symmetric pads, whole images."""
    spec, place, devices = block.spec, block.place, max(jax.sharding.get_abstract_mesh().size, 1)
    pads = ((spec.size // 2,) * 2,) * 2
    expanded = spec.expanded != spec.inputs and spec.squeezed and spec.stride == 1
    return bool(expanded) and padding == pads and not place.rows and place.columns == 1 and len(x) % devices == 0


def wide_part(block, x: Float[Array, "N H W in"]) -> Float[Array, "N H W out"]:
    """A block (efficientnet.Block) up to its project product; updates the running statistics of two normalisations."""
    params = block.variables["params"]
    turned = jnp.transpose(x.astype(block.dtype), (1, 2, 0, 3))
    count = turned.size // turned.shape[-1]
    expand, expand_bn, last_bn, se = (params[name] for name in ("expand", "expand_bn", "depthwise_bn", "se"))
    mean, var = product_moments(turned, expand["kernel"])
    factor = expand_bn["scale"] * lax.rsqrt(var + block.eps)
    weights = Weights(
        expand["kernel"],
        factor,
        expand_bn["bias"] - mean * factor,
        params["depthwise"]["kernel"],
        last_bn["scale"],
        last_bn["bias"],
        tuple(se[layer][name] for layer in ("reduce", "expand") for name in ("kernel", "bias")),
        params["project"]["kernel"],
    )
    out, *moments = narrow_to_narrow(turned, weights, block.eps)
    for name, (mean, var) in {"expand_bn": (mean, var), "depthwise_bn": moments}.items():
        running = block.variables["batch_stats"][name]
        seen = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        updated = {key: block.momentum * running[key] + (1 - block.momentum) * seen[key] for key in running}
        block.put_variable("batch_stats", name, updated)
    return block.place.put(jnp.transpose(out, (2, 0, 1, 3)))


class Weights(NamedTuple):
    """Of one block, float32; of batch normalisation after the depthwise convolution too."""

    expand: Array  # [in, C]
    factor: Array  # [C]: the BN after the expand product is z * factor + offset
    offset: Array  # [C]
    taps: Array  # [k, k, C]
    scale: Array  # [C]
    bias: Array  # [C]
    squeeze: tuple[Array, Array, Array, Array]  # [C, s], [s], [s, C], [C]
    project: Array  # [C, out]


def _affine(x, kernel, bias):
    return jnp.dot(x, kernel) + bias


def _gate(means, squeeze):
    reduce_kernel, reduce_bias, expand_kernel, expand_bias = squeeze
    return jax.nn.sigmoid(_affine(jax.nn.silu(_affine(means, reduce_kernel, reduce_bias)), expand_kernel, expand_bias))


@jax.custom_vjp
def product_moments(
    x: Float[Array, "H W N in"], kernel: Float[Array, "in C"]
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Mean and biased variance over all but the channels of x @ kernel, float32, without the product."""
    return _product_moments(x, kernel)[0]


def _product_moments(x, kernel):
    wide = kernel.astype(x.dtype).astype(jnp.float32)
    flat = x.reshape(-1, x.shape[-1])
    count, narrow = len(flat), x.dtype.itemsize < 4
    mean = checkpoint_name(jnp.sum(flat, axis=0, dtype=jnp.float32) / count, "moments")
    flat = flat if narrow else flat - mean  # in 16 bits the products are exact, and x has lost more than the sums do
    covariance = lax.dot_general(flat, flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32) / count
    if narrow:
        covariance = covariance - mean[:, None] * mean
    covariance = checkpoint_name(covariance, "moments")
    turned = jnp.dot(covariance, wide, precision="highest")
    var = jnp.maximum(jnp.sum(wide * turned, axis=0), 0)
    return (jnp.dot(mean, wide, precision="highest"), var), (x, wide, mean, turned)


def _product_moments_backward(saved, gradients):
    """d var / d z = 2 (z - mean) / count, d mean / d z = 1 / count, with z = x w."""
    x, wide, mean, turned = saved
    to_mean, to_var = gradients
    count = x.size // x.shape[-1]
    mix = jnp.dot(wide * (2 / count * to_var), wide.T, precision="highest")
    shift = jnp.dot(wide, to_mean, precision="highest") / count - jnp.dot(mean, mix, precision="highest")
    to_x = lax.dot_general(x, mix.astype(x.dtype), (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return (to_x + shift).astype(x.dtype), 2 * turned * to_var + mean[:, None] * to_mean


product_moments.defvjp(_product_moments, _product_moments_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def narrow_to_narrow(
    x: Float[Array, "H W N in"], weights: Weights, eps: float
) -> tuple[Float[Array, "H W N out"], Float[Array, " C"], Float[Array, " C"]]:
    """Expand product to project product; with it mean and biased variance of the depthwise convolution's output.

    The statistics are those of the global batch: N is split over all axes of the mesh of `jax.set_mesh`. No gradient
    flows through the returned moments, nor through those that `weights.factor` and `offset` come from: that is
    `product_moments`' part. The backward pass keeps x, the depthwise convolution's output and what is small.
    """
    return _forward(x, weights, eps)[0]


def _forward(x, weights, eps):
    height, width, images, _ = x.shape
    count = height * width * images
    affine = _rows(weights.factor / 2, weights.offset / 2)

    def first(x, w_expand, affine, taps):
        d, sums = mbconv_forward.expand_depthwise(_flat(x), w_expand, affine, taps, x.shape[2])
        return d.reshape(*x.shape[:3], -1), sums

    d, sums = _on_devices(first, (2, None, None, None), (2, 2))(
        x, _blocks(weights.expand).astype(x.dtype), affine, _taps(weights.taps)
    )
    d = checkpoint_name(d, "conv")
    c = len(weights.scale)
    if x.dtype.itemsize < 4:
        mean, square = (_channels(part, c) / count for part in jnp.moveaxis(jnp.sum(sums, axis=2), 1, 0))
        var = jnp.maximum(square - mean * mean, 0)
    else:  # E[x^2] - E[x]^2 loses digits
        whole = mosaic.floats(d)[..., :c]
        mean = jnp.mean(whole, axis=(0, 1, 2))
        var = jnp.mean(jnp.square(whole - mean), axis=(0, 1, 2))
    mean, var = checkpoint_name(mean, "moments"), checkpoint_name(var, "moments")
    affine = _normalising(weights, mean, var, eps)
    squeeze = _on_devices(lambda d, affine: mbconv_forward.squeeze(_flat(d), affine, d.shape[2]), (2, None), 1)
    means = checkpoint_name(_matrix(squeeze(d, affine), c) / (height * width), "moments")

    def last(d, affine, gate, w_project):
        return mbconv_forward.project(_flat(d), affine, gate, w_project).reshape(*d.shape[:3], -1)

    gate = _blocks(_gate(means, weights.squeeze))
    out = _on_devices(last, (2, None, 1, None), 2)(d, affine, gate, _project_blocks(weights).astype(x.dtype))
    return (checkpoint_name(out, "conv"), mean, var), (x, weights, d, mean, var, means)


def _backward(eps, saved, gradients):
    x, weights, d, mean, var, means = saved
    height, width, images, inputs = x.shape
    count, c = height * width * images, len(mean)
    gate, squeeze_backward = jax.vjp(_gate, means, weights.squeeze)
    w_project = jnp.swapaxes(_project_blocks(weights), 1, 2).astype(x.dtype)
    affine = _normalising(weights, mean, var, eps)

    def sums_of(d, gradient, affine, gate, w_project):
        sums, to_w = mbconv_backward.project_sums(_flat(d), _flat(gradient), affine, gate, w_project)
        return sums, to_w[None]

    sums, to_project = _on_devices(sums_of, (2, 2, None, 1, None), (2, 0))(
        d, gradients[0], affine, _blocks(gate), w_project
    )
    to_gate, *sums = (_matrix(part, c) for part in jnp.moveaxis(sums, 1, 0))
    to_means, to_squeeze = squeeze_backward(to_gate)
    added = to_means / (height * width)
    slope_gradient, slope, slope_gradient_d, slope_d = (part / 2 for part in sums)
    to_bias = jnp.sum(gate * slope_gradient + added * slope, axis=0)
    deviation = lax.rsqrt(var + eps)
    to_scale = deviation * (jnp.sum(gate * slope_gradient_d + added * slope_d, axis=0) - mean * to_bias)
    factor = weights.scale * deviation
    of_d = factor * deviation * to_scale / count
    constant = mean * of_d - factor * to_bias / count
    rows = _rows(factor, -of_d, constant, weights.factor / 2, weights.offset / 2)
    affine = jnp.concatenate([affine, rows], axis=1)

    def inputs_of(d, gradient, x, *rest):
        to_x, to_w, sums, to_taps = mbconv_backward.depthwise_expand(_flat(d), _flat(gradient), _flat(x), *rest)
        return to_x.reshape(x.shape), to_w[None], sums, to_taps

    w_expand = weights.expand.astype(x.dtype)
    back = jnp.swapaxes(_blocks(weights.expand * weights.factor), 1, 2).astype(x.dtype)
    by_image = jnp.stack([_blocks(gate / 2), _blocks(added / 2)], axis=1)
    to_x, to_expand, to_offset, to_taps = _on_devices(inputs_of, (2, 2, 2, None, 2, *(None,) * 4), (2, 0, 1, 2))(
        d, gradients[0], x, affine, by_image, w_project, _blocks(w_expand), back, _taps(weights.taps)
    )
    to_expand = _matrix(jnp.sum(to_expand, axis=0), c)
    to_weights = Weights(
        to_expand * weights.factor,
        jnp.sum(to_expand * w_expand, axis=0),
        _channels(jnp.sum(to_offset, axis=1), c),
        _matrix(jnp.sum(to_taps, axis=2), c).reshape(weights.taps.shape),
        to_scale,
        to_bias,
        to_squeeze,
        _matrix(jnp.sum(to_project, axis=0), c).T,
    )
    return to_x, to_weights


narrow_to_narrow.defvjp(_forward, _backward)


def _on_devices(function, given, returned):
    """`function` on every device's images, under `jax.set_mesh`.

    `given` and `returned` say which axis of an array holds what is each device's own; None: all have the same.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def split(axis):
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, tuple(mesh.axis_names))

    in_specs = tuple(split(axis) for axis in given)
    out_specs = tuple(split(axis) for axis in returned) if isinstance(returned, tuple) else split(returned)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _flat(x):
    """[H, W, N, C] as the kernels take it, [H, W*N, C]: the same memory."""
    return x.reshape(x.shape[0], -1, x.shape[3])


def _normalising(weights, mean, var, eps):
    factor = weights.scale * lax.rsqrt(var + eps)
    return _rows(factor / 2, (weights.bias - mean * factor) / 2)


def _filled(x, axis):
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, -x.shape[axis] % mosaic.LANES)
    return jnp.pad(x, pads)


def _blocks(x):
    """[rows, C] -> [blocks, rows, 128]."""
    return jnp.swapaxes(_filled(x, 1).reshape(len(x), -1, mosaic.LANES), 0, 1)


def _matrix(blocks, channels):
    """[blocks, rows, 128] -> [rows, C]."""
    return jnp.swapaxes(blocks, 0, 1).reshape(blocks.shape[1], -1)[:, :channels]


def _rows(*vectors):
    return _blocks(jnp.stack(vectors))


def _channels(blocks, channels):
    """[blocks, 128] -> [C]."""
    return blocks.reshape(-1)[:channels]


def _taps(kernel):
    """[k, k, C] -> [blocks, k*k, 128]."""
    return _blocks(kernel.reshape(-1, kernel.shape[-1]))


def _project_blocks(weights):
    """[C, out] -> [blocks, 128, out]."""
    return _filled(weights.project, 0).reshape(-1, mosaic.LANES, weights.project.shape[1])
