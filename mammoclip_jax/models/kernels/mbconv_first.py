"""Mosaic (Pallas) kernels of the depthwise convolution in blocks without expansion, stage 1; see mbconv_forward.py.

Their maps have too few channels for 128 lanes, so a cell of the map has several columns (packed.py) and its channels
fill one block of lanes. A step to the next column is then a turn of the lanes, and for the cell's outermost column a step
to the next cell. What squeeze, project and project_sums do is the same in any lane.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mammoclip_jax.models.kernels import mbconv_backward, mosaic

_SIZE = 3


def depthwise(x, taps, images, channels):
    """The 3 x 3 depthwise convolution with zeros around.

    Args:
        x: [H, W*N, columns*channels], up to 128.
        taps: [1, 9, 128] float32, as often as there are columns in a cell.

    Returns:
        the bits of d [H, W*N, 128] in x's dtype; sums over rows and cells [1, 2, N, 128] of d and its square.
    """
    height, row, lanes = x.shape

    def body(x_ref, taps_ref, d_ref, sums_ref, ring):
        i, c = pl.program_id(0), pl.program_id(1)
        mosaic.start_ring(ring, sums_ref, i, c)
        slot = lax.rem(i, _SIZE)

        @pl.when(i < height)
        def _():
            ring[0, slot, pl.ds(images, row), pl.ds(0, lanes)] = x_ref[0].astype(jnp.float32)

        @pl.when(i >= height)
        def _():
            ring[0, slot] = jnp.zeros(ring.shape[2:], ring.dtype)

        @pl.when(i >= 1)
        def _():
            def step(start, count, sums):
                lines = [
                    mosaic.line(ring, 0, lax.rem(i + 1 + a, _SIZE), start, count + 2, images) for a in range(_SIZE)
                ]
                total = _columns([_down(lines, taps_ref, b) for b in range(_SIZE)], count, images, channels, lanes)
                d_ref[0, mosaic.span(start, count, images), :] = mosaic.bits(total, x.dtype)
                return mosaic.add(sums, (total, total * total), count, images)

            zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
            for n, total in enumerate(mosaic.loop(row // images, step, (zero, zero))):
                sums_ref[0, n] += total

    sums = jax.ShapeDtypeStruct((1, 2, images, mosaic.LANES), jnp.float32)
    return mosaic.call(
        body,
        "mbconv_depthwise",
        (height + 1, 1),
        [mosaic.late_row(x, 0, height), mosaic.whole(taps)],
        [mosaic.wide_row(row, 1), mosaic.whole(sums)],
        [jax.ShapeDtypeStruct((height, row, mosaic.LANES), mosaic.bits_of(x.dtype)), sums],
        mosaic.Cost(21, 50, 0),
        [pltpu.VMEM((1, _SIZE, row + 2 * images, mosaic.LANES), jnp.float32)],
    )(x, taps)


def depthwise_back(d, gradient, x, affine, by_image, w_project, taps, channels):
    """Back through gate, swish, BN and depthwise convolution.

    Args:
        affine: [1, 5, 128], by_image [1, 2, N, 128], w_project [1, out, 128], taps [1, 9, 128]: as of
            `mbconv_backward.depthwise_expand`, as often as there are columns in a cell.

    Returns:
        gradients of x and of the taps [1, 9, N, 128].
    """
    height, row, lanes = x.shape
    images, outputs = by_image.shape[2], w_project.shape[1]

    def body(d_ref, g_ref, x_ref, affine_ref, image_ref, w_ref, taps_ref, to_x_ref, to_taps_ref, ring, x_row):
        i, c = pl.program_id(0), pl.program_id(1)
        mosaic.start_ring(ring, to_taps_ref, i, c)
        slot = lax.rem(i, _SIZE)

        @pl.when(i == 0)
        def _():
            x_row[...] = jnp.zeros(x_row.shape, x_row.dtype)

        @pl.when(i < height)
        def _():
            to_d = mbconv_backward.of_depthwise(
                mosaic.floats(d_ref[0]), g_ref[0], affine_ref.at[0], image_ref.at[0], w_ref[0]
            )
            ring[0, slot, pl.ds(images, row), :] = to_d

        @pl.when(i >= height)
        def _():
            ring[0, slot] = jnp.zeros(ring.shape[2:], ring.dtype)

        @pl.when(i >= 1)
        def _():
            x_row[pl.ds(images, row), pl.ds(0, lanes)] = x_ref[0].astype(jnp.float32)

            def step(start, count, sums):
                # Row a of the taps met the output's row i - a.
                lines = [
                    mosaic.line(ring, 0, lax.rem(i + _SIZE - a, _SIZE), start, count + 2, images) for a in range(_SIZE)
                ]
                sides = [_down(lines, taps_ref, b) for b in reversed(range(_SIZE))]
                to_x = _columns(sides, count, images, channels, lanes)
                to_x_ref[0, mosaic.span(start, count, images), :] = to_x[:, :lanes].astype(to_x_ref.dtype)
                near = x_row[mosaic.span(start, count + 2, images), :]
                at = _shifted(near, count, images, channels, lanes)
                middle = [mosaic.columns(line, 1, count, images) for line in lines]
                return mosaic.add(sums, [there * x for there in middle for x in at], count, images)

            zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
            for tap, total in enumerate(mosaic.loop(row // images, step, (zero,) * _SIZE**2)):
                to_taps_ref[0, tap] += total

    outs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((1, _SIZE**2, images, mosaic.LANES), jnp.float32),
    ]
    line = (row + 2 * images, mosaic.LANES)
    return mosaic.call(
        body,
        "mbconv_depthwise_back",
        (height + 1, 1),
        [
            mosaic.early_row(row, height),
            mosaic.late_row(gradient, 0, height),
            mosaic.late_row(x, 1, height),
            *(mosaic.whole(v) for v in (affine, by_image, w_project, taps)),
        ],
        [mosaic.late_row(outs[0], 1, height), mosaic.whole(outs[1])],
        outs,
        mosaic.Cost(36, 100, outputs),
        [pltpu.VMEM((1, _SIZE, *line), jnp.float32), pltpu.VMEM(line, jnp.float32)],
    )(d, gradient, x, affine, by_image, w_project, taps)


def _down(lines, taps_ref, b):
    """Sum of the rows, each times its tap in column b."""
    return sum(line * taps_ref[0, a * _SIZE + b : a * _SIZE + b + 1] for a, line in enumerate(lines))


def _columns(sides, count, images, channels, lanes):
    """Sum at each column of sides[0] one column to the left, sides[1] there and sides[2] to the right.

    Each is [(count + 2)*N, 128], with a cell more on each side; so is none of the result.
    """
    left = _left(sides[0], count, images, channels, lanes)
    right = _right(sides[2], count, images, channels, lanes)
    return left + mosaic.columns(sides[1], 1, count, images) + right


def _shifted(line, count, images, channels, lanes):
    """What lies one column to the left of each column, there, and to the right."""
    left = _left(line, count, images, channels, lanes)
    right = _right(line, count, images, channels, lanes)
    return left, mosaic.columns(line, 1, count, images), right


def _left(line, count, images, channels, lanes):
    """Lanes beyond those of the cell are of no meaning."""
    before, here = (mosaic.columns(line, first, count, images) for first in (0, 1))
    lane = lax.broadcasted_iota(jnp.int32, here.shape, 1)
    return jnp.where(lane < channels, _turn(before, channels - lanes), _turn(here, channels))


def _right(line, count, images, channels, lanes):
    here, after = (mosaic.columns(line, first, count, images) for first in (1, 2))
    lane = lax.broadcasted_iota(jnp.int32, here.shape, 1)
    return jnp.where(lane < lanes - channels, _turn(here, -channels), _turn(after, lanes - channels))


def _turn(x, lanes):
    return pltpu.roll(x, lanes % mosaic.LANES, 1) if lanes % mosaic.LANES else x
