"""An MBConv block in training, from its input to the project product, with the wide maps in kernels.

The mathematics around the kernels (mbconv_forward.py, mbconv_backward.py and, for blocks without expansion,
mbconv_first.py): batch normalisation's moments and their gradients, squeeze-excite,
and what has to be summed over devices. BN of the expand product needs no map of it: z = x w has mean(z) = mean(x) w and
var(z) = w^T cov(x) w, so one pass over the narrow x is enough (`_product_moments`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mammoclip_jax.models import packed
from mammoclip_jax.models.kernels import mbconv_backward, mbconv_first, mbconv_forward, mosaic


def fits(block, x: Float[Array, "N H W in"], padding) -> bool:
    """Whether the kernels take this block: with squeeze-excite, whole images, pads below the kernel's size.

    Without expansion: 3 x 3, stride 1, symmetric pads, and no more channels in a cell (packed.py) than lanes.
    """
    spec, place, devices = block.spec, block.place, max(jax.sharding.get_abstract_mesh().size, 1)
    if not spec.squeezed or place.rows or len(x) % devices:
        return False
    if spec.expanded == spec.inputs:
        return (spec.size, spec.stride, padding) == (3, 1, ((1, 1),) * 2) and x.shape[3] <= mosaic.LANES
    return all(pad < spec.size for pads in padding for pad in pads)


def wide_part(block, x: Float[Array, "N H W in"], padding) -> Float[Array, "N h w out"]:
    """A block (mbconv.Block) up to its project product; updates the running statistics of its normalisations before."""
    params, spec, columns = block.variables["params"], block.spec, block.place.columns
    cells = columns
    if "expand" in params and columns != spec.stride:
        x, cells = packed.repack(x, columns, 1), 1
    turned = jnp.transpose(x.astype(block.dtype), (1, 2, 0, 3))
    sides = len(turned), turned.shape[1] * (cells if "expand" in params else 1)  # without expansion cells stay
    window = mosaic.Window(
        *(spec.size, spec.stride, padding[0][0], padding[1][0]),
        *((n + sum(around) - spec.size) // spec.stride + 1 for n, around in zip(sides, padding)),
    )
    last_bn, se = params["depthwise_bn"], params["se"]
    counts, expand = {"depthwise_bn": window.rows * window.columns * len(x)}, (None,) * 3
    if "expand" in params:
        expand = params["expand"]["kernel"], params["expand_bn"]["scale"], params["expand_bn"]["bias"]
        counts["expand_bn"] = turned.size // spec.inputs
    else:
        counts["depthwise_bn"] *= columns
    weights = Weights(
        *expand,
        params["depthwise"]["kernel"],
        last_bn["scale"],
        last_bn["bias"],
        tuple(se[layer][name] for layer in ("reduce", "expand") for name in ("kernel", "bias")),
        params["project"]["kernel"],
    )
    out, *moments = narrow_to_narrow(turned, weights, block.eps, window)
    for (name, count), (mean, var) in zip(counts.items(), moments):
        running = block.variables["batch_stats"][name]
        seen = {"mean": mean, "var": var * (count / max(count - 1, 1))}
        updated = {key: block.momentum * running[key] + (1 - block.momentum) * seen[key] for key in running}
        block.put_variable("batch_stats", name, updated)
    out = block.place.put(jnp.transpose(out, (2, 0, 1, 3)))
    return packed.repack(out, 1, max(columns // spec.stride, 1)) if "expand" in params else out


class Weights(NamedTuple):
    """Of one block, float32; of batch normalisation after the expand product and the depthwise convolution too."""

    expand: Array | None  # [in, C]; None without expansion
    expand_scale: Array | None  # [C]
    expand_bias: Array | None  # [C]
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


def _product_moments(x: Float[Array, "H W N in"], kernel: Float[Array, "in C"]):
    """(mean, biased variance) over all but the channels of x @ kernel, float32, without the product; for the way back.

    x may have several columns in a cell (packed.py).
    """
    wide = kernel.astype(x.dtype).astype(jnp.float32)
    inputs, narrow = len(kernel), x.dtype.itemsize < 4
    cells, count = x.shape[-1] // inputs, x.size // inputs
    over = tuple(range(x.ndim - 1))  # not one axis of all: the devices would have to send each other their images
    mean = jnp.sum(jnp.sum(x, axis=over, dtype=jnp.float32).reshape(cells, inputs), axis=0) / count
    mean = checkpoint_name(mean, "moments")
    # In 16 bits the products are exact, and x has lost more than the sums do.
    x = x if narrow else x - jnp.tile(mean, cells)
    products = lax.dot_general(x, x, ((over, over), ((), ())), preferred_element_type=jnp.float32)
    covariance = jnp.einsum("ninj->ij", products.reshape(cells, inputs, cells, inputs)) / count
    if narrow:
        covariance = covariance - mean[:, None] * mean
    covariance = checkpoint_name(covariance, "moments")
    turned = jnp.dot(covariance, wide, precision="highest")
    var = jnp.maximum(jnp.sum(wide * turned, axis=0), 0)
    return (jnp.dot(mean, wide, precision="highest"), var), (wide, mean, turned)


def _product_moments_backward(to_x, x, saved, gradients):
    """The gradients of x, with `to_x` that it has already, and of the kernel.

    d var / d z = 2 (z - mean) / count, d mean / d z = 1 / count, with z = x w.
    """
    wide, mean, turned = saved
    to_mean, to_var = gradients
    count, cells = x.size // len(wide), x.shape[-1] // len(wide)
    mix = jnp.dot(wide * (2 / count * to_var), wide.T, precision="highest")
    shift = jnp.dot(wide, to_mean, precision="highest") / count - jnp.dot(mean, mix, precision="highest")

    def add(to_x, x, mix, shift):
        return mbconv_backward.add_product(_flat(to_x), _flat(x), mix, shift).reshape(x.shape)

    mix, shift = packed.pointwise(mix, cells).astype(x.dtype), jnp.tile(shift, cells)[None]
    to_x = _on_devices(add, (2, 2, None, None), 2)(to_x, x, mix, shift)
    return to_x, 2 * turned * to_var + mean[:, None] * to_mean


def _norm(moments, scale, bias, eps):
    """Factor and offset of a batch normalisation with these moments."""
    mean, var = moments
    factor = scale * lax.rsqrt(var + eps)
    return factor, bias - mean * factor


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def narrow_to_narrow(
    x: Float[Array, "H W N in"], weights: Weights, eps: float, window: mosaic.Window
) -> tuple[Float[Array, "h w N out"], tuple[Array, Array], *tuple[tuple[Array, Array], ...]]:
    """Expand product, if any, to project product.

    With it mean and biased variance of the depthwise convolution's output and, if any, of the expand product's; no gradient
    flows through them. x may have `window.stride` columns in a cell (packed.py); without expansion x and the result any number.
    The backward pass keeps x, the depthwise convolution's output and what is small.
    """
    return _forward(x, weights, eps, window)[0]


def _forward(x, weights, eps, window):
    images, lanes = x.shape[2], _lanes(x, weights)
    count = window.rows * window.columns * images * lanes.columns
    taps, expand_moments, of_moments = _taps(weights.taps, lanes), (), None
    if weights.expand is None:

        def first(x, taps):
            d, sums = mbconv_first.depthwise(_flat(x), taps, x.shape[2], lanes.channels)
            return d.reshape(*x.shape[:3], -1), sums

        d, sums = _on_devices(first, (2, None), (2, 2))(x, taps)
    else:

        def first(x, w_expand, affine, taps):
            d, sums = mbconv_forward.expand_depthwise(_flat(x), w_expand, affine, taps, x.shape[2], window)
            return d.reshape(window.rows, window.columns, x.shape[2], -1), sums

        moments, of_moments = _product_moments(x, weights.expand)
        expand_moments = (moments,)
        factor, offset = _norm(moments, weights.expand_scale, weights.expand_bias, eps)
        affine = lanes.rows(factor / 2, offset / 2)
        w_expand = _cells(weights.expand, x.shape[3]).astype(x.dtype)
        d, sums = _on_devices(first, (2, None, None, None), (2, 2))(x, w_expand, affine, taps)
    d = checkpoint_name(d, "conv")
    if x.dtype.itemsize < 4:
        mean, square = (
            lanes.sums(part)[0] / count for part in jnp.moveaxis(jnp.sum(sums, axis=2, keepdims=True), 1, 0)
        )
        var = jnp.maximum(square - mean * mean, 0)
    else:  # E[x^2] - E[x]^2 loses digits
        whole = lanes.elements(mosaic.floats(d))
        mean = jnp.mean(whole, axis=range(whole.ndim - 1))
        var = jnp.mean(jnp.square(whole - mean), axis=range(whole.ndim - 1))
    mean, var = checkpoint_name(mean, "moments"), checkpoint_name(var, "moments")
    affine = _normalising(weights, mean, var, eps, lanes)
    squeeze = _on_devices(lambda d, affine: mbconv_forward.squeeze(_flat(d), affine, d.shape[2]), (2, None), 1)
    means = checkpoint_name(lanes.sums(squeeze(d, affine)) * (images / count), "moments")

    def last(d, affine, gate, w_project):
        return mbconv_forward.project(_flat(d), affine, gate, w_project).reshape(*d.shape[:3], -1)

    gate = lanes.blocks(_gate(means, weights.squeeze))
    out = _on_devices(last, (2, None, 1, None), 2)(d, affine, gate, lanes.project(weights.project).astype(x.dtype))
    out = checkpoint_name(out, "conv")  # as bits, as d
    out = lax.bitcast_convert_type(out, x.dtype)
    return (out, (mean, var), *expand_moments), (x, weights, d, mean, var, means, expand_moments, of_moments)


def _backward(eps, window, saved, gradients):
    x, weights, d, mean, var, means, expand_moments, of_moments = saved
    images, lanes = x.shape[2], _lanes(x, weights)
    area = window.rows * window.columns * lanes.columns
    count = area * images
    gate, squeeze_backward = jax.vjp(_gate, means, weights.squeeze)
    w_project = jnp.swapaxes(lanes.project(weights.project), 1, 2).astype(x.dtype)
    affine = _normalising(weights, mean, var, eps, lanes)

    def sums_of(d, gradient, affine, gate, w_project):
        sums, to_w = mbconv_backward.project_sums(_flat(d), _flat(gradient), affine, gate, w_project)
        return sums, to_w[None]

    sums, to_project = _on_devices(sums_of, (2, 2, None, 1, None), (2, 0))(
        d, gradients[0], affine, lanes.blocks(gate), w_project
    )
    to_gate, *sums = (lanes.sums(part) for part in jnp.moveaxis(sums, 1, 0))
    to_means, to_squeeze = squeeze_backward(to_gate)
    added = to_means / area
    slope_gradient, slope, slope_gradient_d, slope_d = (part / 2 for part in sums)
    to_bias = jnp.sum(gate * slope_gradient + added * slope, axis=0)
    deviation = lax.rsqrt(var + eps)
    to_scale = deviation * (jnp.sum(gate * slope_gradient_d + added * slope_d, axis=0) - mean * to_bias)
    factor = weights.scale * deviation
    of_d = factor * deviation * to_scale / count
    affine = jnp.concatenate([affine, lanes.rows(factor, -of_d, mean * of_d - factor * to_bias / count)], axis=1)
    by_image = jnp.stack([lanes.blocks(gate / 2), lanes.blocks(added / 2)], axis=1)
    taps = _taps(weights.taps, lanes)
    if weights.expand is None:

        def inputs_of(d, gradient, x, *rest):
            to_x, to_taps = mbconv_first.depthwise_back(_flat(d), _flat(gradient), _flat(x), *rest, lanes.channels)
            return to_x.reshape(x.shape), to_taps

        to_x, to_taps = _on_devices(inputs_of, (2, 2, 2, None, 2, None, None), (2, 2))(
            d, gradients[0], x, affine, by_image, w_project, taps
        )
        of_expand = (None,) * 3
    else:

        def inputs_of(d, gradient, x, *rest):
            given = _flat(d), _flat(gradient), _flat(x), *rest, window
            to_x, to_w, sums, to_taps = mbconv_backward.depthwise_expand(*given)
            return to_x.reshape(x.shape), to_w[None], sums, to_taps

        (factor, offset), norm_backward = jax.vjp(
            functools.partial(_norm, eps=eps), *expand_moments, weights.expand_scale, weights.expand_bias
        )
        affine = jnp.concatenate([affine, lanes.rows(factor / 2, offset / 2)], axis=1)
        w_expand = weights.expand.astype(x.dtype)
        back = jnp.swapaxes(_cells(weights.expand * factor, x.shape[3]), 1, 2).astype(x.dtype)
        to_x, to_expand, to_offset, to_taps = _on_devices(inputs_of, (2, 2, 2, None, 2, *(None,) * 4), (2, 0, 1, 2))(
            d, gradients[0], x, affine, by_image, w_project, _cells(w_expand, x.shape[3]), back, taps
        )
        cells, inputs = x.shape[3] // len(w_expand), len(w_expand)
        to_expand = jnp.sum(to_expand, axis=0).reshape(cells, -1, cells, inputs, mosaic.LANES)
        to_expand = lanes.sums(jnp.einsum("nbnil->bil", to_expand))
        to_factor = jnp.sum(to_expand * w_expand, axis=0)
        to_moments, *to_norm = norm_backward((to_factor, jnp.sum(lanes.sums(to_offset), axis=0)))
        to_x, through_moments = _product_moments_backward(to_x, x, of_moments, to_moments)
        of_expand = (to_expand * factor + through_moments, *to_norm)
    to_weights = Weights(
        *of_expand,
        lanes.sums(jnp.sum(to_taps, axis=2)).reshape(weights.taps.shape),
        to_scale,
        to_bias,
        to_squeeze,
        lanes.project_sums(jnp.sum(to_project, axis=0)),
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


class _Lanes(NamedTuple):
    """How channels lie in blocks of 128 lanes: those of each column of a cell one after the other, filled with zeros."""

    channels: int
    columns: int

    def blocks(self, x):
        """[rows, C] -> [blocks, rows, 128]."""
        return _blocks(jnp.tile(x, (1, self.columns)))

    def rows(self, *vectors):
        """[C] each -> [blocks, rows, 128]."""
        return self.blocks(jnp.stack(vectors))

    def elements(self, x):
        """[..., blocks*128] -> [..., columns, C]."""
        return x[..., : self.columns * self.channels].reshape(*x.shape[:-1], self.columns, self.channels)

    def sums(self, blocks):
        """[blocks, rows, 128] -> [rows, C], over the columns."""
        return jnp.sum(self.elements(jnp.swapaxes(blocks, 0, 1).reshape(blocks.shape[1], -1)), axis=1)

    def project(self, kernel):
        """[C, out] -> [blocks, 128, columns*out]."""
        return jnp.swapaxes(_blocks(packed.pointwise(kernel, self.columns).T), 1, 2)

    def project_sums(self, blocks):
        """[blocks, columns*out, 128] -> [C, out], over the columns."""
        outputs = blocks.shape[1] // self.columns
        whole = self.elements(jnp.swapaxes(blocks, 0, 1).reshape(blocks.shape[1], -1))
        return jnp.einsum("popc->co", whole.reshape(self.columns, outputs, self.columns, self.channels))


def _lanes(x, weights):
    channels = len(weights.scale)
    return _Lanes(channels, x.shape[3] // channels if weights.expand is None else 1)


def _flat(x):
    """[H, W, N, C] as the kernels take it, [H, W*N, C]: the same memory."""
    return x.reshape(x.shape[0], -1, x.shape[3])


def _normalising(weights, mean, var, eps, lanes):
    factor = weights.scale * lax.rsqrt(var + eps)
    return lanes.rows(factor / 2, (weights.bias - mean * factor) / 2)


def _blocks(x):
    filled = jnp.pad(x, ((0, 0), (0, -x.shape[1] % mosaic.LANES)))
    return jnp.swapaxes(filled.reshape(len(x), -1, mosaic.LANES), 0, 1)


def _cells(kernel, inputs):
    """[in, C] -> [cells*blocks, cells*in, 128]: from x with so many `inputs` in a cell to each of its columns."""
    cells = inputs // len(kernel)
    of_columns = jnp.split(packed.pointwise(kernel, cells), cells, axis=1)
    return jnp.concatenate([_blocks(of_column) for of_column in of_columns])


def _taps(kernel, lanes):
    """[k, k, C] -> [blocks, k*k, 128]."""
    return lanes.blocks(kernel.reshape(-1, kernel.shape[-1]))
