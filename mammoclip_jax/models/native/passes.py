"""The middle of a stride-1 mobile inverted bottleneck on a CPU, by the C++ passes of mbconv.cc.

From the expanded map to what is projected: batch norm and swish, depthwise convolution, batch norm and swish,
squeeze-excite. XLA passes over the wide maps about twice as often, and keeps the activated map for the backward pass;
here that keeps the expanded map and the convolution's output alone. Values and gradients are those of `layers.py`,
to rounding in float32.

Over several devices each does its images, and the sums over the batch are added up between them.
"""

import ctypes
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.layers import sigmoid, swish
from mammoclip_jax.models.native import build

LANES = 16  # channels are a multiple of it
SIZES = (3, 5)
_PASSES = {f"mammoclip_{name.lower()}": f"Mbconv{name}" for name in ("Forward", "Pool", "Gate", "Sums", "Backward")}


class Middle(NamedTuple):
    """Parameters of the middle, all float32."""

    scale1: Float[Array, " C"]
    bias1: Float[Array, " C"]
    kernel: Float[Array, "k k C"]
    scale2: Float[Array, " C"]
    bias2: Float[Array, " C"]
    reduce: tuple[Float[Array, "C s"], Float[Array, " s"]]  # of squeeze-excite: kernel and bias
    expand: tuple[Float[Array, "s C"], Float[Array, " C"]]


@functools.cache
def register() -> None:
    """Tells XLA of the passes, once a process.

    Raises:
        UserError: the library was not built.
    """
    path = build.library()
    if not path.exists():
        raise UserError(
            f"config.model.image.kernels='native' needs the C++ passes, which were not built here: run `{build.REMEDY}`, "
            "or take 'xla'."
        )
    passes = ctypes.CDLL(str(path))
    for target, symbol in _PASSES.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(passes, symbol)), platform="cpu")


def middle(
    x: Float[Array, "N H W C"], params: Middle, eps: float
) -> tuple[Float[Array, "N H W C"], tuple[tuple[Array, Array], tuple[Array, Array]]]:
    """What is projected, and (mean, biased variance) [C] of both batch norms, through which no gradient flows.

    Args:
        x: the expanded map before its batch norm, float32; C a multiple of 16, k of 3 or 5, N one of the devices.

    Raises:
        UserError: the passes were not built or cannot do this.
    """
    register()
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    if len(x) % devices:
        raise UserError(
            f"config.model.image.kernels='native' needs whole images on each device: {len(x)} images do not divide by "
            f"{devices} devices. Take 'xla'."
        )
    axes = () if devices == 1 else tuple(mesh.axis_names)
    y, mean1, var1, mean2, var2 = _middle(x, params, eps, axes)
    return y, ((mean1, var1), (mean2, var2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _middle(x, params, eps, axes):
    return _forward(x, params, eps, axes)[0]


def _forward(x, params, eps, axes):
    count = x.size // x.shape[-1]
    mean1 = jnp.sum(x, (0, 1, 2)) / count
    var1 = jnp.sum(jnp.square(x - mean1), (0, 1, 2)) / count
    first = _affine(params.scale1, params.bias1, mean1, var1, eps)
    d, mean2, var2 = _depthwise(x, *first, params.kernel, axes)
    second = _affine(params.scale2, params.bias2, mean2, var2, eps)
    pixels = x.shape[1] * x.shape[2]
    means = _call("pool", (1, *_ends(d)), axes, 1)(d, *second)[0] / pixels
    gate = _excite(means, params.reduce, params.expand)
    y = _call("gate", d.shape, axes)(d, *second, gate)
    return (y, mean1, var1, mean2, var2), (x, d, params, mean1, var1, mean2, var2, means)


def _backward(eps, axes, saved, gradients):
    x, d, params, mean1, var1, mean2, var2, means = saved
    g, count, pixels = gradients[0], x.size // x.shape[-1], x.shape[1] * x.shape[2]
    first = _affine(params.scale1, params.bias1, mean1, var1, eps)
    second = _affine(params.scale2, params.bias2, mean2, var2, eps)
    to_gate, g_slope, g_slope_d, slope, slope_d = _call("sums", (5, *_ends(d)), axes, 1)(d, g, *second)
    gate, excite_backward = jax.vjp(_excite, means, params.reduce, params.expand)
    to_means, to_reduce, to_expand = excite_backward(to_gate)
    spread = to_means / pixels  # to every pixel of what squeeze-excite averaged
    # As `layers._batch_norm_backward`, from the sums of the gradient before the second swish.
    to_bias2 = jnp.sum(gate * g_slope + spread * slope, 0)
    weighted = jnp.sum(gate * g_slope_d + spread * slope_d, 0)
    to_scale2, coefficients = _norm_backward(to_bias2, weighted, params.scale2, mean2, var2, eps, count)
    size = params.kernel.shape[0]
    dz, sums = _call("backward", (x.shape, (size * size + 2, *_ends(d))), axes, (0, 1))(
        x, d, g, *first, params.kernel, *second, gate, spread, *coefficients
    )
    sums = jnp.sum(sums, 1)
    to_bias1, weighted = sums[-2:]
    to_scale1, (by_z, by_x, constant) = _norm_backward(to_bias1, weighted, params.scale1, mean1, var1, eps, count)
    to_kernel = sums[:-2].reshape(params.kernel.shape)
    to_params = Middle(to_scale1, to_bias1, to_kernel, to_scale2, to_bias2, to_reduce, to_expand)
    return dz * by_z - x * by_x + constant, to_params


_middle.defvjp(_forward, _backward)


def _affine(scale, bias, mean, var, eps):
    """Batch norm as factor and offset."""
    factor = scale * lax.rsqrt(var + eps)
    return factor, bias - mean * factor


def _norm_backward(to_bias, weighted, scale, mean, var, eps, count):
    """The gradient of the scale; and by_z, by_x, constant: that of the input is dz by_z - x by_x + constant.

    `to_bias` and `weighted` are the sums of dz and dz x, dz the gradient of the batch norm's output.
    """
    deviation = lax.rsqrt(var + eps)
    to_scale, factor = deviation * (weighted - mean * to_bias), scale * deviation
    slope = factor * deviation * to_scale / count
    return to_scale, (factor, slope, mean * slope - factor * to_bias / count)


def _excite(means, reduce, expand):
    return sigmoid(swish(means @ reduce[0] + reduce[1]) @ expand[0] + expand[1])


def _ends(x):
    return x.shape[0], x.shape[-1]


def _depthwise(x, factor, offset, kernel, axes):
    """The convolution of the activated map; mean and biased variance of all its pixels."""

    def local(x, factor, offset, kernel):
        shapes = x.shape, factor.shape, factor.shape
        d, mean, squares = _ffi("forward", shapes)(x, factor, offset, kernel)
        count = x.size // x.shape[-1]
        if not axes:
            return d, mean, squares / count
        # Two parts' moments together (Chan, Golub and LeVeque 1983), the parts being equal.
        whole = lax.pmean(mean, axes)
        return d, whole, lax.pmean(squares / count + jnp.square(mean - whole), axes)

    if not axes:
        return local(x, factor, offset, kernel)
    split, same = PartitionSpec(axes), PartitionSpec()
    return _spread(local, (split, same, same, same), (split, same, same))(x, factor, offset, kernel)


def _call(name, shapes, axes, batch=0):
    """A pass over maps [N ...] with parameters [C] or [N C]; axis `batch` of each result counts the images."""
    if not axes:
        return _ffi(name, shapes)
    many = isinstance(shapes[0], tuple)
    devices = jax.sharding.get_abstract_mesh().size

    def local(*args):
        own = [_divided(s, b, devices) for s, b in zip(shapes, batch)] if many else _divided(shapes, batch, devices)
        return _ffi(name, tuple(own) if many else own)(*args)

    def spec(b):
        return PartitionSpec(*(None,) * b, axes)

    def run(*args):
        images = args[0].shape[0]
        inputs = tuple(
            spec(0) if x.ndim != 3 and x.ndim > 1 and x.shape[0] == images else PartitionSpec() for x in args
        )
        return _spread(local, inputs, tuple(map(spec, batch)) if many else spec(batch))(*args)

    return run


def _divided(shape, batch, devices):
    return (*shape[:batch], shape[batch] // devices, *shape[batch + 1 :])


def _spread(function, inputs, outputs):
    return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)


def _ffi(name, shapes):
    many = isinstance(shapes[0], tuple)
    types = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (shapes if many else (shapes,)))
    return jax.ffi.ffi_call(f"mammoclip_{name}", types if many else types[0])
