"""Mosaic (Pallas) kernels of a stride-1 MBConv block's backward pass; see mbconv_forward.py."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mammoclip_jax.models.kernels import mosaic


def project_sums(d, gradient, affine, gate, w_project):
    """What the backward pass has to know of all rows before it can go back through squeeze-excite and BN.

    With g the gradient of the gated map, a = swish(z), s = 2 swish'(z):

    Args:
        gradient: [H, W*N, out], of `project`'s output.
        w_project: [blocks, out, 128].

    Returns:
        sums over rows and columns [blocks, 5, N, 128] of a g, s g, s, s g d, s d; gradient of w_project, float32.
    """
    height, row, _ = d.shape
    blocks, outputs, _ = w_project.shape
    images = gate.shape[1]

    def body(d_ref, g_ref, affine_ref, gate_ref, w_ref, sums_ref, to_w_ref, turned):
        i, c = pl.program_id(0), pl.program_id(1)

        @pl.when(i == 0)
        def _():
            sums_ref[c] = jnp.zeros(sums_ref.shape[1:], jnp.float32)
            to_w_ref[c] = jnp.zeros(to_w_ref.shape[1:], jnp.float32)

        @pl.when(c == 0)
        def _():
            turned[...] = g_ref[0].T

        d = mosaic.floats(d_ref[0])
        g = mosaic.dot(g_ref[0], w_ref[c])
        h = d * affine_ref[c, 0:1] + affine_ref[c, 1:2]
        tanh = jnp.tanh(h)
        a, s = h + h * tanh, (1 + tanh) * (1 + h * (1 - tanh))
        sg = s * g
        for n, value in enumerate((a * g, sg, s, sg * d, s * d)):
            sums_ref[c, n] += jnp.sum(value.reshape(-1, images, mosaic.LANES), axis=0)
        to_w_ref[c] += mosaic.dot(turned[...], mosaic.by_image(a, gate_ref[c]).astype(g_ref.dtype))

    sums = jax.ShapeDtypeStruct((blocks, 5, images, mosaic.LANES), jnp.float32)
    to_w = jax.ShapeDtypeStruct((blocks, outputs, mosaic.LANES), jnp.float32)
    in_specs = [
        mosaic.wide_row(row, 0, height),
        mosaic.late_row(gradient, 0, height),
        mosaic.whole(affine),
        mosaic.whole(gate),
    ]
    return mosaic.call(
        body,
        "mbconv_project_sums",
        (height, blocks),
        [*in_specs, mosaic.whole(w_project)],
        [mosaic.whole(sums), mosaic.whole(to_w)],
        [sums, to_w],
        mosaic.Cost(8, 50 + 1.5 * outputs, 2 * outputs),
        [pltpu.VMEM((outputs, row), gradient.dtype)],
    )(d, gradient, affine, gate, w_project)


def depthwise_expand(d, gradient, x, affine, by_image, w_project, w_expand, w_back, taps):
    """Back through gate, swish, BN, depthwise convolution, swish and the expand product, in one.

    Args:
        affine: [blocks, 7, 128] float32: half factor and half offset of BN after the depthwise convolution, the
            factors of the gradient, of d and the constant in the gradient of d, half factor and half offset of the
            BN after the expand product.
        by_image: [blocks, 2, N, 128] float32: half the gate, half of what squeeze-excite adds to the gradient.
        w_project: [blocks, out, 128]. w_expand: [blocks, in, 128]. w_back: [blocks, 128, in], the factor of BN in it.
        taps: [blocks, k*k, 128] float32.

    Returns:
        gradient of x [H, W*N, in] but for what comes through BN's moments; x^T u [blocks, in, 128] float32 for the
        gradient u of the first BN's output; sums over rows and columns of u [blocks, N, 128]; gradient of the taps
        [blocks, k*k, N, 128].
    """
    height, row, inputs = x.shape
    blocks, outputs, _ = w_project.shape
    images, size = by_image.shape[2], math.isqrt(taps.shape[1])
    half = size // 2
    # Rows of taps that are gone through together: their sums stay in registers.
    groups = [range(size)] if size == 3 else [[a] for a in range(size)]

    def body(d_ref, g_ref, x_ref, affine_ref, image_ref, wp_ref, we_ref, wb_ref, taps_ref, *rest):
        to_x_ref, to_w_ref, sums_ref, to_taps_ref, ring, turned, a_ref, slope_ref, u_ref, part, total = rest
        i, c = pl.program_id(0), pl.program_id(1)
        mosaic.start_ring(ring, sums_ref, i, c)
        slot = lax.rem(i, size)

        @pl.when(i == 0)
        def _():
            to_w_ref[c] = jnp.zeros(to_w_ref.shape[1:], jnp.float32)
            to_taps_ref[c] = jnp.zeros(to_taps_ref.shape[1:], jnp.float32)

        @pl.when(i < height)
        def _():
            d = mosaic.floats(d_ref[0])
            h = d * affine_ref[c, 0:1] + affine_ref[c, 1:2]
            tanh = jnp.tanh(h)
            g = mosaic.by_image(mosaic.dot(g_ref[0], wp_ref[c]), image_ref[c, 0], image_ref[c, 1])
            g = g * ((1 + tanh) * (1 + h * (1 - tanh)))
            to_d = g * affine_ref[c, 2:3] + d * affine_ref[c, 3:4] + affine_ref[c, 4:5]
            ring[c, slot, pl.ds(half * images, row), :] = to_d

        @pl.when(i >= height)
        def _():
            ring[c, slot] = jnp.zeros(ring.shape[2:], ring.dtype)

        def back(group, first, last, start, count, sums):
            span = mosaic.span(start, count, images)
            a_map = a_ref[span, :]
            to_a = jnp.zeros(a_map.shape, jnp.float32) if first else part[span, :]
            products = []
            for a in group:
                line = mosaic.line(ring, c, lax.rem(i + 1 + a, size), start, count + size - 1, images)
                for b in range(size):
                    tap = _turn(a, b, size)
                    there = mosaic.columns(line, b, count, images)
                    to_a = to_a + there * taps_ref[c, tap : tap + 1]
                    products.append(there * a_map)
            if last:
                u = to_a * slope_ref[span, :]
                u_ref[span, :] = u.astype(u_ref.dtype)
            else:
                part[span, :] = u = to_a
            return mosaic.add(sums, (*products, u), count, images)

        @pl.when(i >= half)
        def _():
            @pl.when(c == 0)
            def _():
                turned[...] = x_ref[0].T

            h = mosaic.dot(x_ref[0], we_ref[c]) * affine_ref[c, 5:6] + affine_ref[c, 6:7]
            tanh = jnp.tanh(h)
            a_ref[...] = h + h * tanh
            slope_ref[...] = 0.5 * (1 + tanh) * (1 + h * (1 - tanh))
            zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
            for n, group in enumerate(groups):
                step = functools.partial(back, group, n == 0, n == len(groups) - 1)
                *to_taps, to_bias = mosaic.loop(row // images, step, (zero,) * (len(group) * size + 1))
                for t, (a, b) in enumerate((a, b) for a in group for b in range(size)):
                    to_taps_ref[c, _turn(a, b, size)] += to_taps[t]
                if n == len(groups) - 1:
                    sums_ref[c] += to_bias
            mosaic.accumulate(total, mosaic.dot(u_ref[...], wb_ref[c]), c)
            to_w_ref[c] += mosaic.dot(turned[...], u_ref[...])

            @pl.when(c == blocks - 1)
            def _():
                to_x_ref[0] = total[...].astype(to_x_ref.dtype)

    outs = [
        jax.ShapeDtypeStruct((height, row, inputs), x.dtype),
        jax.ShapeDtypeStruct((blocks, inputs, mosaic.LANES), jnp.float32),
        jax.ShapeDtypeStruct((blocks, images, mosaic.LANES), jnp.float32),
        jax.ShapeDtypeStruct((blocks, size * size, images, mosaic.LANES), jnp.float32),
    ]
    small = [mosaic.whole(v) for v in (affine, by_image, w_project, w_expand, w_back, taps)]
    wide = pltpu.VMEM((row, mosaic.LANES), jnp.float32)
    return mosaic.call(
        body,
        "mbconv_depthwise_expand",
        (height + half, blocks),
        [mosaic.early_row(row, height), mosaic.late_row(gradient, 0, height), mosaic.late_row(x, half, height), *small],
        [mosaic.late_row(outs[0], half, height), *(mosaic.whole(out) for out in outs[1:])],
        outs,
        mosaic.Cost(9 + 1.75 * size**2, 500 + 1.5 * inputs, 3 * inputs + outputs),
        [
            pltpu.VMEM((blocks, size, row + 2 * half * images, mosaic.LANES), jnp.float32),
            pltpu.VMEM((inputs, row), x.dtype),
            wide,
            wide,
            pltpu.VMEM((row, mosaic.LANES), x.dtype),
            wide,
            pltpu.VMEM((row, inputs), jnp.float32),
        ],
    )(d, gradient, x, affine, by_image, w_project, w_expand, w_back, taps)


def _turn(a, b, size):
    """The tap by which (a, b) of the gradient's neighbourhood was read."""
    return (size - 1 - a) * size + size - 1 - b
