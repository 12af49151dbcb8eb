"""Mosaic (Pallas) kernels of an MBConv block's backward pass; see mbconv_forward.py."""

import functools

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
    in_specs = [mosaic.wide_row(row, 0), mosaic.late_row(gradient, 0, height), mosaic.whole(affine), mosaic.whole(gate)]
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


def add_product(to_x, x, mix, shift):
    """to_x + x mix + shift, with to_x and x [H, W*N, in], mix [in, in] in x's dtype, shift [1, in] float32."""
    height, row, inputs = x.shape

    def body(to_x_ref, x_ref, mix_ref, shift_ref, out_ref):
        total = to_x_ref[0].astype(jnp.float32) + mosaic.dot(x_ref[0], mix_ref[...]) + shift_ref[...]
        out_ref[0] = total.astype(out_ref.dtype)

    groups = -(-inputs // mosaic.LANES)
    return mosaic.call(
        body,
        "mbconv_add_product",
        (height, 1),
        [mosaic.late_row(to_x, 0, height), mosaic.late_row(x, 0, height), mosaic.whole(mix), mosaic.whole(shift)],
        [mosaic.late_row(x, 0, height)],
        [jax.ShapeDtypeStruct(x.shape, x.dtype)],
        mosaic.Cost(2.2 * groups, 100, inputs * groups),
    )(to_x, x, mix, shift)[0]


def of_depthwise(d, g, affine, by_image, w_project):
    """The gradient of a row of the depthwise convolution's output, [W*N, 128] float32; arguments as of `depthwise_expand`."""
    h = d * affine[0:1] + affine[1:2]
    tanh = jnp.tanh(h)
    g = mosaic.by_image(mosaic.dot(g, w_project), by_image[0], by_image[1])
    return g * ((1 + tanh) * (1 + h * (1 - tanh))) * affine[2:3] + d * affine[3:4] + affine[4:5]


def depthwise_expand(d, gradient, x, affine, by_image, w_project, w_expand, w_back, taps, window):
    """Back through gate, swish, BN, depthwise convolution, swish and the expand product, in one.

    Args:
        affine: [blocks, 7, 128] float32: half factor and half offset of BN after the depthwise convolution, the
            factors of the gradient, of d and the constant in the gradient of d, half factor and half offset of the
            BN after the expand product.
        by_image: [blocks, 2, N, 128] float32: half the gate, half of what squeeze-excite adds to the gradient.
        x: as of `expand_depthwise`, with cells perhaps.
        w_project: [blocks, out, 128]. w_expand: as there. w_back: turned, with the factor of BN in it.
        taps: [blocks, k*k, 128] float32.

    Returns:
        gradient of x but for what comes through BN's moments; x^T u float32, of w_expand's shape, for the gradient u of
        the first BN's output, with cells for each of their columns; sums over rows and columns of u [blocks, N, 128];
        gradient of the taps [blocks, k*k, N, 128].
    """
    height, row, inputs = x.shape
    blocks, outputs, _ = w_project.shape
    images, size, stride = by_image.shape[2], window.size, window.stride
    late, kept, (before, after) = window.late_back(), window.ring_back(), window.around()
    cells = len(w_expand) // blocks
    wide_row = cells * row
    steps = -(-wide_row // (stride * images))  # of `stride` columns; what the last has too many stays zero
    width = before + max(steps + after, window.columns)

    def body(d_ref, g_ref, x_ref, affine_ref, image_ref, wp_ref, we_ref, wb_ref, taps_ref, *rest):
        to_x_ref, to_w_ref, sums_ref, to_taps_ref, ring, turned, a_ref, slope_ref, u_ref, part, total = rest
        i, c = pl.program_id(0), pl.program_id(1)
        mosaic.start_ring(ring, sums_ref, i, c)
        slot = lax.rem(i, kept)

        @pl.when(i == 0)
        def _():
            if wide_row % (stride * images):
                a_ref[...], slope_ref[...] = (jnp.zeros(a_ref.shape, a_ref.dtype),) * 2
            for n in range(cells):
                to_w_ref[n * blocks + c] = jnp.zeros(to_w_ref.shape[1:], jnp.float32)
            to_taps_ref[c] = jnp.zeros(to_taps_ref.shape[1:], jnp.float32)

        @pl.when(i < window.rows)
        def _():
            to_d = of_depthwise(mosaic.floats(d_ref[0]), g_ref[0], affine_ref.at[c], image_ref.at[c], wp_ref[c])
            ring[c, slot, pl.ds(before * images, to_d.shape[0]), :] = to_d

        @pl.when(i >= window.rows)
        def _():
            ring[c, slot] = jnp.zeros(ring.shape[2:], ring.dtype)

        def back(line, group, first, last, start, count, sums):
            """Of row `line` of the step's, through the rows of taps in `group`."""
            span = mosaic.span(start * stride, count * stride, images)
            a_map, maps, products = a_ref[span, :], [], {}
            slots = [lax.rem(i - late + (line + window.top - a) // stride + kept, kept) for a in group]
            lines = [mosaic.line(ring, c, slot, start, count + before + after, images) for slot in slots]
            given = None if first else part[span, :]
            for n in range(stride):
                mine = mosaic.columns(a_map, n, count, images, stride)
                to_a = jnp.zeros(mine.shape, jnp.float32)
                if not first:
                    to_a = mosaic.columns(given, n, count, images, stride)
                for a, there in zip(group, lines):
                    for b in window.taps(window.left, n):
                        tap, at = a * size + b, before + (n + window.left - b) // stride
                        of_d = mosaic.columns(there, at, count, images)
                        to_a = to_a + of_d * taps_ref[c, tap : tap + 1]
                        products[tap] = of_d * mine
                maps.append(to_a)
            u = mosaic.interleave(maps, images)
            if last:
                u = u * slope_ref[span, :]
                here = mosaic.span(start * stride // cells, count * stride // cells, images)
                for n in range(cells):
                    of_cells = mosaic.columns(u, n, count * stride // cells, images, cells)
                    u_ref[n, here, :] = of_cells.astype(u_ref.dtype)
            else:
                part[span, :] = u
            *to_taps, to_bias = sums
            to_taps = mosaic.add(to_taps, [products[tap] for tap in sorted(products)], count, images)
            return *to_taps, *(mosaic.add((to_bias,), (u,), count * stride, images) if last else (to_bias,))

        for line in range(stride):

            @pl.when((i >= late) & ((i - late) * stride + line < height))
            def _(line=line):
                @pl.when(c == 0)
                def _():
                    turned[line] = x_ref[line].T

                z = [mosaic.dot(x_ref[line], we_ref[n * blocks + c]) for n in range(cells)]
                h = mosaic.interleave(z, images) * affine_ref[c, 5:6] + affine_ref[c, 6:7]
                tanh = jnp.tanh(h)
                a_ref[pl.ds(0, wide_row), :] = h + h * tanh
                slope_ref[pl.ds(0, wide_row), :] = 0.5 * (1 + tanh) * (1 + h * (1 - tanh))
                zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
                # Rows of taps that are gone through together: their sums stay in registers.
                taps = window.taps(window.top, line)
                groups = [taps] if size == 3 else [[a] for a in taps]
                for n, group in enumerate(groups):
                    is_last = n == len(groups) - 1
                    step = functools.partial(back, line, group, n == 0, is_last)
                    *to_taps, to_bias = mosaic.loop(steps, step, (zero,) * (len(group) * size + 1))
                    for t, a in enumerate(sorted(group)):
                        for b in range(size):
                            to_taps_ref[c, a * size + b] += to_taps[t * size + b]
                    if is_last:
                        sums_ref[c] += to_bias
                u = [u_ref[n, pl.ds(0, row), :] for n in range(cells)]
                back_in_x = sum(mosaic.dot(part, wb_ref[n * blocks + c]) for n, part in enumerate(u))
                mosaic.accumulate(total.at[line], back_in_x, c)
                for n in range(cells):
                    to_w_ref[n * blocks + c] += mosaic.dot(turned[line], u[n])

                @pl.when(c == blocks - 1)
                def _():
                    to_x_ref[line] = total[line].astype(to_x_ref.dtype)

    outs = [
        jax.ShapeDtypeStruct((height, row, inputs), x.dtype),
        jax.ShapeDtypeStruct(w_expand.shape, jnp.float32),
        jax.ShapeDtypeStruct((blocks, images, mosaic.LANES), jnp.float32),
        jax.ShapeDtypeStruct((blocks, size * size, images, mosaic.LANES), jnp.float32),
    ]
    small = [mosaic.whole(v) for v in (affine, by_image, w_project, w_expand, w_back, taps)]
    wide = pltpu.VMEM((steps * stride * images, mosaic.LANES), jnp.float32)
    return mosaic.call(
        body,
        "mbconv_depthwise_expand",
        (-(-height // stride) + late, blocks),
        [
            mosaic.early_row(window.columns * images, window.rows),
            mosaic.late_row(gradient, 0, window.rows),
            mosaic.late_row(x, late, height, stride),
            *small,
        ],
        [mosaic.late_row(outs[0], late, height, stride), *(mosaic.whole(out) for out in outs[1:])],
        outs,
        mosaic.Cost(9 + 1.75 * size**2, 500 + 1.5 * inputs, 3 * inputs + outputs)
        if stride == 1
        else mosaic.Cost(54 + 1.8 * size**2, 150 + 9 * inputs, stride**2 * 3 * inputs + outputs),
        [
            pltpu.VMEM((blocks, kept, width * images, mosaic.LANES), jnp.float32),
            pltpu.VMEM((stride, inputs, row), x.dtype),
            wide,
            wide,
            pltpu.VMEM((cells, steps * stride // cells * images, mosaic.LANES), x.dtype),
            wide,
            pltpu.VMEM((stride, row, inputs), jnp.float32),
        ],
    )(d, gradient, x, affine, by_image, w_project, w_expand, w_back, taps)
