"""A stride-1 mobile inverted bottleneck on a CPU, but for its last batch norm and shortcut, by the C++ passes of mbconv.cc.

Product that expands, batch norm and swish, depthwise convolution, batch norm and swish, squeeze-excite, product that
projects. XLA passes over the wide maps about twice as often, and keeps the activated map for the backward pass; here
that keeps the expanded map, the convolution's output and what is projected. Values and gradients are those of
`layers.py`, to rounding.

The gradient of the expanding product's output, `dz by_z - e by_e + constant` with e = x W, is never written: by_e and the
constant go through the products, as x (W by_e W^T) and (x^T x) W by_e, which are small.

Over several devices each does its images, and the sums over the batch are added up between them.
"""

import ctypes
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import products
from mammoclip_jax.models.layers import sigmoid, swish
from mammoclip_jax.models.native import build

LANES = 16  # channels are a multiple of it
SIZES = (3, 5)
_PASSES = {
    f"mammoclip_{name.lower()}": f"Mbconv{name}" for name in ("Moments", "Forward", "Pool", "Gate", "Sums", "Backward")
}


class Params(NamedTuple):
    """Parameters of the block, all float32."""

    widen: Float[Array, "in C"]  # kernel of the product that expands
    scale1: Float[Array, " C"]
    bias1: Float[Array, " C"]
    kernel: Float[Array, "k k C"]
    scale2: Float[Array, " C"]
    bias2: Float[Array, " C"]
    reduce: tuple[Float[Array, "C s"], Float[Array, " s"]]  # of squeeze-excite: kernel and bias
    expand: tuple[Float[Array, "s C"], Float[Array, " C"]]
    project: Float[Array, "C out"]


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


def block(
    x: Float[Array, "N H W in"], params: Params, eps: float
) -> tuple[Float[Array, "N H W out"], tuple[tuple[Array, Array], tuple[Array, Array]]]:
    """The projected map, and (mean, biased variance) [C] of both batch norms, through which no gradient flows.

    Products are rounded where `products.rounds` says so.

    Args:
        x: the block's input, float32; C a multiple of 16, k of 3 or 5, N one of the devices.

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
    y, mean1, var1, mean2, var2 = _block(x, params, eps, axes, products.rounds())
    return y, ((mean1, var1), (mean2, var2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _block(x, params, eps, axes, narrow):
    return _forward(x, params, eps, axes, narrow)[0]


def _forward(x, params, eps, axes, narrow):
    x = x.astype(_dtype(narrow))
    e = products.dot(x, params.widen.astype(x.dtype))
    mean1, var1 = _moments("moments", axes, e)
    first = _affine(params.scale1, params.bias1, mean1, var1, eps)
    d, mean2, var2 = _moments("forward", axes, e, *first, params.kernel)
    second = _affine(params.scale2, params.bias2, mean2, var2, eps)
    means = _call("pool", axes, _like((1, *_ends(d)), 1))(d, *second)[0] / (d.shape[1] * d.shape[2])
    gate = _excite(means, params.reduce, params.expand)
    y = _call("gate", axes, _like(d.shape, 0, x.dtype))(d, *second, gate)
    projected = products.dot(y, params.project.astype(x.dtype))
    return (projected, mean1, var1, mean2, var2), (x, e, d, y, params, mean1, var1, mean2, var2, means)


def _backward(eps, axes, narrow, saved, gradients):
    x, e, d, y, params, mean1, var1, mean2, var2, means = saved
    dtype, count, pixels = _dtype(narrow), d.size // d.shape[-1], d.shape[1] * d.shape[2]
    first = _affine(params.scale1, params.bias1, mean1, var1, eps)
    second = _affine(params.scale2, params.bias2, mean2, var2, eps)
    gradient = gradients[0].astype(dtype)
    g, to_project = (
        products.dot(gradient, params.project.astype(dtype), axis=1),
        products.kernel_gradient(y, gradient),
    )
    to_gate, g_slope, g_slope_d, slope, slope_d = _call("sums", axes, _like((5, *_ends(d)), 1))(d, g, *second)
    gate, excite_backward = jax.vjp(_excite, means, params.reduce, params.expand)
    to_means, to_reduce, to_expand = excite_backward(to_gate)
    spread = to_means / pixels  # to every pixel of what squeeze-excite averaged
    # As `layers._batch_norm_backward`, from the sums of the gradient before the second swish.
    to_bias2 = jnp.sum(gate * g_slope + spread * slope, 0)
    weighted = jnp.sum(gate * g_slope_d + spread * slope_d, 0)
    to_scale2, coefficients = _norm_backward(to_bias2, weighted, params.scale2, mean2, var2, eps, count)
    size = params.kernel.shape[0]
    dz, sums = _call("backward", axes, _like(d.shape, 0, dtype), _like((size * size + 2, *_ends(d)), 1))(
        e, d, g, *first, params.kernel, *second, gate, spread, *coefficients
    )
    sums = jnp.sum(sums, 1)
    to_bias1, weighted = sums[-2:]
    to_scale1, (by_z, by_e, constant) = _norm_backward(to_bias1, weighted, params.scale1, mean1, var1, eps, count)
    to_kernel = sums[:-2].reshape(params.kernel.shape)
    widen = params.widen
    square = jnp.dot(widen * by_e, widen.T, precision="highest")
    to_x = (
        products.dot(dz, (widen * by_z).astype(dtype), axis=1)
        - products.dot(x, square.astype(dtype))
        + widen @ constant
    )
    gram = jnp.dot(products.kernel_gradient(x, x), widen, precision="highest")
    total = jnp.sum(x.astype(jnp.float32), (0, 1, 2))
    to_widen = products.kernel_gradient(x, dz) * by_z - gram * by_e + jnp.outer(total, constant)
    norms = to_scale1, to_bias1, to_kernel, to_scale2, to_bias2
    return to_x, Params(to_widen, *norms, to_reduce, to_expand, to_project)


_block.defvjp(_forward, _backward)


def _dtype(narrow):
    return jnp.bfloat16 if narrow else jnp.float32


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


class _Result(NamedTuple):
    """What a pass writes: shape over all devices, the axis that counts images (None: sums over them), and type."""

    shape: tuple[int, ...]
    batch: int | None
    dtype: Any


def _like(shape, batch, dtype=jnp.float32):
    return _Result(tuple(shape), batch, dtype)


def _moments(name, axes, x, *args):
    """Of a pass that ends with a mean [C] and squared deviations [C]: what comes before, the mean, the biased variance."""
    wide = x.shape[-1:]
    results = [_like(x.shape, 0)] * (name == "forward") + [_like(wide, None)] * 2

    def local(x, *args):
        *rest, mean, squares = _ffi(name, _own(results, axes))(x, *args)
        var = squares / (x.size // wide[0])
        if not axes:
            return *rest, mean, var
        # Equal parts' moments together (Chan, Golub and LeVeque 1983).
        whole = lax.pmean(mean, axes)
        return *rest, whole, lax.pmean(var + jnp.square(mean - whole), axes)

    return _spread(local, axes, results)(x, *args)


def _call(name, axes, *results):
    """A pass over maps [N H W C] with parameters [C], [k k C] or [N C]."""

    def local(*args):
        found = _ffi(name, _own(results, axes))(*args)
        return found if len(results) > 1 else found[0]

    return _spread(local, axes, results if len(results) > 1 else results[0])


def _spread(function, axes, results):
    """`function` on every device's images, where there are several."""
    if not axes:
        return function

    def spec(batch):
        return PartitionSpec() if batch is None else PartitionSpec(*(None,) * batch, axes)

    def run(*args):
        inputs = tuple(spec(0 if x.ndim in (2, 4) else None) for x in args)
        outputs = spec(results.batch) if isinstance(results, _Result) else tuple(spec(each.batch) for each in results)
        return jax.shard_map(function, in_specs=inputs, out_specs=outputs, check_vma=False)(*args)

    return run


def _own(results, axes):
    """Of one device."""
    count = jax.sharding.get_abstract_mesh().size if axes else 1
    return [
        each._replace(shape=tuple(n // count if axis == each.batch else n for axis, n in enumerate(each.shape)))
        for each in results
    ]


def _ffi(name, results):
    return jax.ffi.ffi_call(
        f"mammoclip_{name}", tuple(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in results)
    )
