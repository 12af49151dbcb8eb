"""Depthwise convolution, in the formulation that the platform runs well.

XLA's convolution is right on TPU. On GPU its backward pass is reported as slow as a dense convolution's
(jax-ml/jax#13800), and another convolution's kernel gradient as 30 times slower than PyTorch's (openxla/xla#34273):
there the kernel gradient is k reductions of k sums each ("sums"). No GPU has measured that yet (`benchmark
--mode=device` does). XLA's CPU backend runs grouped convolutions 10 to 30 times slower than the sum of k*k shifted
slices, each times its tap, so on CPU all passes are written that way:

- forward: pad once, add the shifted (and strided) slices;
- input gradient: the same over the output gradient, once for every residue of the pixel position modulo the stride;
- kernel gradient: a loop over images and output rows that adds up products per (group, tap, column, channel),
  for no more columns at a time than the cache holds.

The groups are as many equal parts of the batch as there are devices: a batch sharded over all devices is added up
where it lies, without communication inside the loop, and reduced once at its end. So it is in "sums".
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

FORMULATIONS = ("native", "shifted", "sums")
PLATFORMS = {"cpu": "shifted", "cuda": "sums", "rocm": "sums"}  # what each runs well; "native" on others
Pads = tuple[tuple[int, int], tuple[int, int]]

_CACHE = 2**18  # bytes; the kernel gradient of large maps takes half the time of sums over the whole width


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "k k C"],
    stride: int,
    padding: Pads,
    formulation: str | None = None,
) -> Float[Array, "N h w C"]:
    """Correlates every channel with its own k x k kernel; differentiable in reverse mode, once.

    Args:
        padding: rows and columns of zeros ((top, bottom), (left, right)), not negative.
        formulation: "native" (XLA's convolutions), "shifted" (see above) or "sums" (native but for the kernel
            gradient); None takes shifted for CPU, sums for GPU and native elsewhere. That is decided when the program
            is lowered, by the platform it is lowered for: on a CPU host compiling for a TPU it is native.

    Returns:
        [N, (H + top + bottom - k) // stride + 1, (W + left + right - k) // stride + 1, C] in x's dtype.
        The shifted formulation adds up in float32 at least, and so does the kernel gradient of "sums".

    Raises:
        UserError: there is no such formulation.
    """
    return _forward(x, kernel, stride, padding, formulation)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))  # layers of equal shape are traced and lowered once
def _forward(x, kernel, stride, padding, formulation):
    passes = {"native": _native, "shifted": _shifted, "sums": _native}
    return _choose(formulation, passes, stride=stride, padding=padding)(x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(stride, padding, formulation, saved, gradient):
    passes = {"native": _native_backward, "shifted": _shifted_backward, "sums": _summed_backward}
    return _choose(formulation, passes, stride=stride, padding=padding)(*saved, gradient)


depthwise_conv.defvjp(lambda x, kernel, *static: (_forward(x, kernel, *static), (x, kernel)), _backward)


def _choose(formulation, passes, **options):
    passes = {name: functools.partial(function, **options) for name, function in passes.items()}
    if formulation is None:
        chosen = {platform: passes[name] for platform, name in PLATFORMS.items()}
        return functools.partial(lax.platform_dependent, default=passes["native"], **chosen)
    if formulation not in passes:
        raise UserError(
            f"a depthwise convolution has no formulation {formulation!r}."
            f"{suggestion(str(formulation), FORMULATIONS)} Known: {', '.join(FORMULATIONS)}."
        )
    return passes[formulation]


def _native(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _native_backward(x, kernel, gradient, stride, padding):
    return jax.vjp(functools.partial(_native, stride=stride, padding=padding), x, kernel)[1](gradient)


def _summed_backward(x, kernel, gradient, stride, padding):
    (input_gradient,) = jax.vjp(lambda x: _native(x, kernel, stride, padding), x)[1](gradient)
    return input_gradient, _summed_kernel_gradient(x, kernel, gradient, stride, padding)


def _summed_kernel_gradient(x, kernel, gradient, stride, padding):
    """Tap (a, b) is the sum over images, rows and columns of the slice that it read times the output's gradient.

    The k sums of a row of taps are one reduction, which reads both arrays once: k kernels on a GPU, where a reduction
    of all k*k sums at once would need more shared memory than a block has (for k=5 and float32, 25 tiles of 4 KiB).
    The groups are summed last: over an axis that is split, the partitioner gathers the parts of each of the k sums.
    """
    k = len(kernel)
    n, height, width, c = gradient.shape
    groups = math.gcd(n, jax.device_count())
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    wide = gradient.astype(dtype)

    def product(a, b):
        end = (n, a + (height - 1) * stride + 1, b + (width - 1) * stride + 1, c)
        part = lax.slice(padded, (0, a, b, 0), end, (1, stride, stride, 1)).astype(dtype) * wide
        return part.reshape(groups, n // groups, height, width, c)

    def add(left, right):
        return tuple(map(operator.add, left, right))

    zeros = (jnp.zeros((), dtype),) * k
    rows = [jnp.stack(lax.reduce(tuple(product(a, b) for b in range(k)), zeros, add, (1, 2, 3))) for a in range(k)]
    return jnp.stack(rows).sum(2).astype(kernel.dtype)


def _shifted(x, kernel, stride, padding):
    padded = _pad(x, padding)
    height, width = ((n - len(kernel)) // stride + 1 for n in padded.shape[1:3])
    taps = [(a, b, a, b) for a in range(len(kernel)) for b in range(len(kernel))]
    return _sum_of_slices(padded, kernel, taps, (height, width), stride)


def _shifted_backward(x, kernel, gradient, stride, padding):
    return (
        _input_gradient(x.shape, kernel, gradient, stride, padding),
        _kernel_gradient(x, kernel, gradient, stride, padding),
    )


def _pad(x, padding):
    # Without the barrier the compiler would fold the padding into each of the k*k reads, as a test per element.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))


def _sum_of_slices(padded, kernel, taps, size, stride):
    """sum over (a, b, row, column) of taps: kernel[a, b] * (size rows and columns from there on, every stride-th)."""
    n, _, _, c = padded.shape
    dtype = jnp.promote_types(padded.dtype, jnp.float32)
    height, width = size
    total = jnp.zeros((), dtype)
    for a, b, row, column in taps:
        end = (n, row + (height - 1) * stride + 1, column + (width - 1) * stride + 1, c)
        part = lax.slice(padded, (0, row, column, 0), end, (1, stride, stride, 1))
        total = total + part.astype(dtype) * kernel[a, b].astype(dtype)
    return jnp.broadcast_to(total, (n, height, width, c)).astype(padded.dtype)


def _input_gradient(shape, kernel, gradient, stride, padding):
    """Input pixel stride * q + r was read by tap a at output q + (r + pad - a) / stride, where that is whole."""
    k = len(kernel)
    n, height, width, c = shape
    size = (-(-height // stride), -(-width // stride))
    reads = [
        [[(a, (r + low - a) // stride) for a in range(k) if (r + low - a) % stride == 0] for r in range(stride)]
        for low, _ in padding
    ]
    pads = []
    for axis in (0, 1):
        shifts = [shift for residue in reads[axis] for _, shift in residue]
        pads.append((max(0, -min(shifts)), max(0, max(shifts) + size[axis] - gradient.shape[1 + axis])))
    padded = _pad(gradient, pads)
    parts = []
    for rows in reads[0]:
        for columns in reads[1]:
            taps = [(a, b, i + pads[0][0], j + pads[1][0]) for a, i in rows for b, j in columns]
            parts.append(_sum_of_slices(padded, kernel, taps, size, 1))
    if stride == 1:
        return parts[0]
    rows = [jnp.stack(parts[r * stride : (r + 1) * stride], axis=3) for r in range(stride)]
    whole = jnp.stack(rows, axis=2).reshape(n, size[0] * stride, size[1] * stride, c)
    return whole[:, :height, :width]


def _kernel_gradient(x, kernel, gradient, stride, padding):
    k = len(kernel)
    n, height, width, c = gradient.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    groups = math.gcd(n, jax.device_count())
    columns = _columns(width, k * k * c * dtype.itemsize)
    span = (columns - 1) * stride + k
    padded = _pad(x, padding)

    def window(array, image, row, column, size):
        grouped = array.reshape(groups, n // groups, *array.shape[1:])  # in the loop: before it, it may become a copy
        part = lax.dynamic_slice(grouped, (0, image, row, column, 0), (groups, 1, *size, c))
        return part[:, 0].astype(dtype)

    def add_part(t, sums):
        row, part = lax.div(t, width // columns), lax.rem(t, width // columns)
        image, row = lax.div(row, height), lax.rem(row, height)
        g = window(gradient, image, row, part * columns, (1, columns))
        lines = window(padded, image, row * stride, part * columns * stride, (k, span))
        return tuple(total + lines[:, :, b : span - k + 1 + b : stride] * g for b, total in enumerate(sums))

    # One sum for each column of taps, over all its rows: k kernels to compile and to start instead of k * k.
    sums = (jnp.zeros((groups, k, columns, c), dtype),) * k
    sums = lax.fori_loop(0, n // groups * height * (width // columns), add_part, sums)
    return jnp.stack([total.sum((0, 2)) for total in sums], axis=1).astype(kernel.dtype)


def _columns(width, size):
    """Largest part of the width that divides it and keeps the sums, `size` bytes a column, within `_CACHE`."""
    return max((part for part in range(2, width + 1) if width % part == 0 and part * size <= _CACHE), default=1)
