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

    def body(x_ref, taps_ref, d_ref, sums_ref, ring, filled):
        i = pl.program_id(0)
        _start(ring, sums_ref, filled, i)

        @pl.when(i < height)
        def _():
            filled[:, pl.ds(0, lanes)] = x_ref[0].astype(jnp.float32)
            _keep(ring, i, filled[...], images, channels, lanes)

        @pl.when(i >= height)
        def _():
            ring[:, lax.rem(i, _SIZE)] = jnp.zeros((_SIZE, row, mosaic.LANES), ring.dtype)

        @pl.when(i >= 1)
        def _():
            def step(start, count, sums):
                total = jnp.zeros((count * images, mosaic.LANES), jnp.float32)
                for tap in range(_SIZE**2):
                    line = mosaic.line(ring, tap % _SIZE, lax.rem(i + 1 + tap // _SIZE, _SIZE), start, count, images)
                    total = total + line * taps_ref[0, tap : tap + 1]
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
        mosaic.Cost(12, 50, 0),
        _scratch(row),
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

    def body(d_ref, g_ref, x_ref, affine_ref, image_ref, w_ref, taps_ref, to_x_ref, to_taps_ref, ring, filled):
        i = pl.program_id(0)
        _start(ring, to_taps_ref, filled, i)

        @pl.when(i < height)
        def _():
            given = affine_ref.at[0], image_ref.at[0], w_ref[0]
            _keep(
                ring,
                i,
                mbconv_backward.of_depthwise(mosaic.floats(d_ref[0]), g_ref[0], *given),
                images,
                channels,
                lanes,
            )

        @pl.when(i >= height)
        def _():
            ring[:, lax.rem(i, _SIZE)] = jnp.zeros((_SIZE, row, mosaic.LANES), ring.dtype)

        @pl.when(i >= 1)
        def _():
            filled[:, pl.ds(0, lanes)] = x_ref[0].astype(jnp.float32)

            def step(start, count, sums):
                span = mosaic.span(start, count, images)
                here, products = filled[span, :], []
                to_x = jnp.zeros(here.shape, jnp.float32)
                for tap in range(_SIZE**2):  # it met the output's row i - a and the column b - 1 to the left
                    a, b = divmod(tap, _SIZE)
                    line = mosaic.line(ring, _SIZE - 1 - b, lax.rem(i + _SIZE - a, _SIZE), start, count, images)
                    to_x = to_x + line * taps_ref[0, tap : tap + 1]
                    products.append(line * here)
                to_x_ref[0, span, :] = to_x[:, :lanes].astype(to_x_ref.dtype)
                return mosaic.add(sums, products, count, images)

            zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
            for tap, total in enumerate(mosaic.loop(row // images, step, (zero,) * _SIZE**2)):
                to_taps_ref[0, tap] += total

    outs = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((1, _SIZE**2, images, mosaic.LANES), jnp.float32),
    ]
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
        mosaic.Cost(30, 100, outputs),
        _scratch(row),
    )(d, gradient, x, affine, by_image, w_project, taps)


def _scratch(row):
    """The ring: what lies one column to the left of a row's columns, there, and to the right; a row filled to 128 lanes."""
    line = row, mosaic.LANES
    return [pltpu.VMEM((_SIZE, _SIZE, *line), jnp.float32), pltpu.VMEM(line, jnp.float32)]


def _start(ring, sums_ref, filled, i):
    @pl.when(i == 0)
    def _():
        for ref in (ring, sums_ref, filled):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _keep(ring, i, line, images, channels, lanes):
    """Puts a row [W*N, 128] into the ring; lanes beyond those of the cell are of no meaning there."""
    lane, none = lax.broadcasted_iota(jnp.int32, line.shape, 1), jnp.zeros((images, mosaic.LANES), line.dtype)
    before = jnp.concatenate([none, _turn(line, channels - lanes)[:-images]])
    after = jnp.concatenate([_turn(line, lanes - channels)[images:], none])
    slot = lax.rem(i, _SIZE)
    ring[0, slot] = jnp.where(lane < channels, before, _turn(line, channels))
    ring[1, slot] = line
    ring[2, slot] = jnp.where(lane < lanes - channels, _turn(line, -channels), after)


def _turn(x, lanes):
    return pltpu.roll(x, lanes % mosaic.LANES, 1) if lanes % mosaic.LANES else x
