"""What the Mosaic kernels of MBConv blocks share: how they go through maps, and how they are called."""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
_STEP = 8  # columns at a time in the loops over taps, of what fits the vector registers
_BYTES_A_CYCLE = 819e9 / 1.5e9  # of a v5e's HBM
_VMEM = 100 * 2**20  # bytes that a kernel may use, of a v5e's 128 MiB


class Window(NamedTuple):
    """A depthwise convolution: sides of its kernel, stride, zeros above and to the left, rows and columns that it makes.

    A step of a grid takes one row of its output and `stride` of its input. Two passes go over the rows: the first puts
    rows of the input into a ring and makes the output, the second puts gradients of the output there.
    """

    size: int
    stride: int
    top: int
    left: int
    rows: int
    columns: int

    def late(self) -> int:
        """Steps from the first of a step's input rows to the output row at the same place."""
        return max(-((self.top + self.stride - self.size) // self.stride), 0)

    def ring(self) -> int:
        """Rows of the input that are kept."""
        return self.stride * (self.late() - -self.top // self.stride + 1)

    def reach(self, count: int) -> int:
        """Columns of the input for `count` of the output, to whole strides."""
        return self.stride * (count - 1 - -self.size // self.stride)

    def late_back(self) -> int:
        """Steps from an output row's gradient to those of the input rows at the same place."""
        return (self.stride - 1 + self.top) // self.stride

    def ring_back(self) -> int:
        """Rows of the output's gradient that are kept."""
        return self.late_back() + (self.size - 1 - self.top) // self.stride + 1

    def around(self) -> tuple[int, int]:
        """Columns of the output that the input at its place reads to its left and right, beside its own."""
        return (self.size - 1 - self.left) // self.stride, (self.stride - 1 + self.left) // self.stride

    def taps(self, pad: int, part: int) -> list[int]:
        """Those that read the input row (pad: top) or column (left) number `part` of a step; the others are between."""
        return [tap for tap in range(self.size) if (part + pad - tap) % self.stride == 0]


def start_ring(ring, sums_ref, i, c):
    @pl.when(i == 0)
    def _():
        ring[c] = jnp.zeros(ring.shape[1:], ring.dtype)
        sums_ref[c] = jnp.zeros(sums_ref.shape[1:], jnp.float32)


def bits_of(dtype) -> jnp.dtype:
    """Of what maps are kept as: jax.checkpoint copies what is kept as floating point, to round it (jax#22244)."""
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def bits(x, dtype):
    """x rounded to `dtype`, as its bits."""
    return lax.bitcast_convert_type(x.astype(dtype), bits_of(dtype))


def floats(x):
    """Bits of bfloat16 or float32 as float32."""
    return lax.bitcast_convert_type(x, jnp.bfloat16 if x.dtype.itemsize == 2 else jnp.float32).astype(jnp.float32)


def dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def by_image(x, factor, offset=None):
    """x [W*N, 128] times (and plus) what is given by image, [N, 128]."""
    y = x.reshape(-1, *factor.shape) * factor
    return (y if offset is None else y + offset).reshape(x.shape)


def accumulate(total, part, c):
    @pl.when(c == 0)
    def _():
        total[...] = part

    @pl.when(c > 0)
    def _():
        total[...] += part


def loop(columns, step, carry):
    """`step(first column, columns, carry)` over all columns, `_STEP` at a time, then over the rest."""
    whole = columns // _STEP
    if whole:
        carry = lax.fori_loop(0, whole, lambda i, carry: step(i * _STEP, _STEP, carry), carry)
    return step(whole * _STEP, columns % _STEP, carry) if columns % _STEP else carry


def span(start, count, images):
    if isinstance(start, int):
        return pl.ds(start * images, count * images)
    return pl.ds(pl.multiple_of(start * images, _STEP * images), count * images)


def line(ring, c, slot, start, count, images):
    return ring[c, slot, span(start, count, images), :]


def columns(line, first, count, images, stride=1):
    """Every `stride`-th; the line has whole strides."""
    if stride == 1:
        return line[first * images : (first + count) * images]
    step, part = divmod(first, stride)
    steps = line.reshape(-1, stride * images, LANES)
    return steps[step : step + count, part * images : (part + 1) * images].reshape(-1, LANES)


def interleave(parts, images):
    """The line whose `columns` with stride len(parts) these are."""
    if len(parts) == 1:
        return parts[0]
    return jnp.concatenate([part.reshape(-1, images, LANES) for part in parts], axis=1).reshape(-1, LANES)


def add(sums, values, count, images):
    """Adds up columns; values are [count*N, 128], sums [N, 128]."""
    for n in range(count):
        sums = tuple(total + columns(value, n, 1, images) for total, value in zip(sums, values))
    return sums


def whole(x):
    return pl.BlockSpec(x.shape, lambda i, c: (0,) * len(x.shape))


def late_row(x, late, height, stride=1):
    """A row of a narrow map, or `stride` of them, `late` steps after the grid's."""
    last = -(-height // stride) - 1
    return pl.BlockSpec((stride, *x.shape[1:]), lambda i, c: (jnp.clip(i - late, 0, last), 0, 0))


def wide_row(row, late):
    """128 channels of a row of a wide map, `late` rows after the grid's; before the first it stays at its beginning."""
    return pl.BlockSpec((1, row, LANES), lambda i, c: (jnp.maximum(i - late, 0), 0, jnp.where(i < late, 0, c)))


def early_row(row, height):
    """128 channels of the grid's row; after the last it stays where it is."""

    def index(i, c):
        last = pl.num_programs(1) - 1
        return jnp.minimum(i, height - 1), 0, jnp.where(i < height, c, last)

    return pl.BlockSpec((1, row, LANES), index)


class Cost(NamedTuple):
    """Of one step of a kernel's grid: what the compiler's schedule takes, and the products' other sides together.

    `row` is what a step takes of the kernel's first operand.
    """

    register: float  # cycles a vector register [8, 128] of the row
    step: float  # cycles beside
    products: int  # sum of k over its products of [W*N, k] and [k, 128], however turned


def call(body, name, grid, in_specs, out_specs, outs, cost: Cost, scratch=()):
    """The kernel on a TPU, elsewhere by the interpreter; outputs come as a list.

    With it go its cost for XLA, and as metadata the `cycles` of a v5e that aot/cycles.py reads: every operand and result
    passes once between HBM and the chip, while it computes, so it takes the longer of both.
    """

    def run(*args, interpret):
        row, steps = math.prod(in_specs[0].block_shape[:-1]), math.prod(grid)
        moved = sum(_bytes(x) for x in (*args, *outs))
        cycles = max(steps * (cost.register * -(-row // SUBLANES) + cost.step), moved / _BYTES_A_CYCLE)
        return pl.pallas_call(
            body,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=outs,
            scratch_shapes=list(scratch),
            interpret=interpret,
            name=name,
            cost_estimate=pl.CostEstimate(
                flops=2 * steps * row * cost.products * LANES, bytes_accessed=moved, transcendentals=steps * row * LANES
            ),
            metadata={"cycles": str(round(cycles))},
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM),
        )(*args)

    def choose(*args):
        kernel, interpreted = (functools.partial(run, interpret=value) for value in (False, True))
        return lax.platform_dependent(*args, tpu=kernel, default=interpreted)

    return choose


def _bytes(x):
    """As it lies in HBM, in tiles of 8 x 128."""
    *outer, rows, columns = x.shape
    return math.prod(outer) * -(-rows // SUBLANES) * SUBLANES * -(-columns // LANES) * LANES * x.dtype.itemsize
