"""Mosaic (Pallas) kernels of an MBConv block: its wide maps stay in a TPU's vector memory (VMEM).

A map lies as [H, W*N, C], images innermost: eight of them fill the sublanes of a vector register, 128 channels its
lanes, and a step to the next column is a step of whole registers. Every kernel goes through the rows, and for each row
through blocks of 128 channels. Rows of what a depthwise convolution reads stay in a ring of k rows, so that nothing is
computed or read twice at the seams, and an output row comes as soon as its last input row has (mosaic.Window).

    expand_depthwise   x -> expand product, BN, swish, depthwise: d, with its sums (the first pass over the wide map)
    squeeze            d -> BN, swish, sums over each image
    project            d -> BN, swish, gate, project product
    project_sums       d and the gradient of `project` -> the five sums that squeeze-excite and BN need, and the
                       gradient of the project kernel
    depthwise_expand   d, that gradient and x -> the gradients of x and of the depthwise and expand kernels
    add_product        what comes to x through BN's moments of the expand product

Wide arrays are filled up to whole blocks of 128 channels with zeros. What is given by channel is [blocks, rows, 128].
swish(z) = h + h tanh h with h = z / 2, so that factors and offsets of h are half those of BN; its slope is
(1 + tanh h) (1 + h (1 - tanh h)) / 2.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mammoclip_jax.models.kernels import mosaic


def expand_depthwise(x, w_expand, affine, taps, images, window):
    """Expand product, BN, swish, depthwise convolution.

    Args:
        x: [H, W*N, in], or [H, W/stride*N, stride*in] with as many columns in a cell (packed.py).
        w_expand: [blocks, in, 128], x's dtype; with cells [stride*blocks, stride*in, 128], for each of their columns.
        affine: [blocks, 2, 128] float32: half the factor, half the offset of BN.
        taps: [blocks, k*k, 128] float32.

    Returns:
        the bits of d [h, w*N, blocks*128] in x's dtype; sums over rows and columns [blocks, 2, N, 128] of d and its square.
    """
    height, row, inputs = x.shape
    blocks, size, stride, late, kept = len(taps), window.size, window.stride, window.late(), window.ring()
    cells = len(w_expand) // blocks
    width = max(window.left + cells * row // images, window.reach(window.columns))

    def body(x_ref, w_ref, affine_ref, taps_ref, d_ref, sums_ref, ring):
        i, c = pl.program_id(0), pl.program_id(1)
        mosaic.start_ring(ring, sums_ref, i, c)
        for part in range(stride):
            here = i * stride + part
            slot = lax.rem(here, kept)

            @pl.when(here < height)
            def _(part=part, slot=slot):
                z = [mosaic.dot(x_ref[part], w_ref[n * blocks + c]) for n in range(cells)]
                h = mosaic.interleave(z, images) * affine_ref[c, 0:1] + affine_ref[c, 1:2]
                ring[c, slot, pl.ds(window.left * images, cells * row), :] = h + h * jnp.tanh(h)

            @pl.when(here >= height)
            def _(slot=slot):
                ring[c, slot] = jnp.zeros(ring.shape[2:], ring.dtype)

        @pl.when(i >= late)
        def _():
            first = (i - late) * stride + kept - window.top

            def step(start, count, sums):
                total = jnp.zeros((count * images, mosaic.LANES), jnp.float32)
                for a in range(size):
                    line = mosaic.line(ring, c, lax.rem(first + a, kept), start * stride, window.reach(count), images)
                    for b in range(size):
                        tap = taps_ref[c, a * size + b : a * size + b + 1]
                        total = total + mosaic.columns(line, b, count, images, stride) * tap
                d_ref[0, mosaic.span(start, count, images), :] = mosaic.bits(total, x.dtype)
                return mosaic.add(sums, (total, total * total), count, images)

            zero = jnp.zeros((images, mosaic.LANES), jnp.float32)
            for n, total in enumerate(mosaic.loop(window.columns, step, (zero, zero))):
                sums_ref[c, n] += total

    in_specs = [mosaic.late_row(x, 0, height, stride), mosaic.whole(w_expand), mosaic.whole(affine), mosaic.whole(taps)]
    sums = jax.ShapeDtypeStruct((blocks, 2, images, mosaic.LANES), jnp.float32)
    return mosaic.call(
        body,
        "mbconv_expand_depthwise",
        (window.rows + late, blocks),
        in_specs,
        [mosaic.wide_row(window.columns * images, late), mosaic.whole(sums)],
        [
            jax.ShapeDtypeStruct(
                (window.rows, window.columns * images, blocks * mosaic.LANES), mosaic.bits_of(x.dtype)
            ),
            sums,
        ],
        mosaic.Cost(5.5 + 0.7 * size**2, 50 + 0.4 * inputs, inputs)
        if stride == 1
        else mosaic.Cost(cells * (5.5 + 0.96 * (size / stride) ** 2), 100 + inputs, cells * inputs),
        [pltpu.VMEM((blocks, kept, width * images, mosaic.LANES), jnp.float32)],
    )(x, w_expand, affine, taps)


def squeeze(d, affine, images):
    """Sums over rows and columns of swish(BN(d)), [blocks, N, 128] float32; arguments as of `project`."""
    height, row, channels = d.shape

    def body(d_ref, affine_ref, sums_ref):
        i, c = pl.program_id(0), pl.program_id(1)

        @pl.when(i == 0)
        def _():
            sums_ref[c] = jnp.zeros(sums_ref.shape[1:], jnp.float32)

        h = mosaic.floats(d_ref[0]) * affine_ref[c, 0:1] + affine_ref[c, 1:2]
        sums_ref[c] += jnp.sum((h + h * jnp.tanh(h)).reshape(-1, images, mosaic.LANES), axis=0)

    out = jax.ShapeDtypeStruct((channels // mosaic.LANES, images, mosaic.LANES), jnp.float32)
    return mosaic.call(
        body,
        "mbconv_squeeze",
        (height, channels // mosaic.LANES),
        [mosaic.wide_row(row, 0), mosaic.whole(affine)],
        [mosaic.whole(out)],
        [out],
        mosaic.Cost(2.5, 50, 0),
    )(d, affine)[0]


def project(d, affine, gate, w_project):
    """(swish(BN(d)) gate) w_project, the bits of [H, W*N, out] in w_project's dtype.

    Args:
        d: bits [H, W*N, blocks*128].
        affine: [blocks, 2, 128] float32: half the factor, half the offset of BN.
        gate: [blocks, N, 128] float32.
        w_project: [blocks, 128, out].
    """
    height, row, _ = d.shape
    blocks, _, outputs = w_project.shape

    def body(d_ref, affine_ref, gate_ref, w_ref, out_ref, total):
        c = pl.program_id(1)
        h = mosaic.floats(d_ref[0]) * affine_ref[c, 0:1] + affine_ref[c, 1:2]
        part = mosaic.dot(mosaic.by_image(h + h * jnp.tanh(h), gate_ref[c]).astype(w_ref.dtype), w_ref[c])
        mosaic.accumulate(total, part, c)

        @pl.when(c == blocks - 1)
        def _():
            out_ref[0] = mosaic.bits(total[...], w_project.dtype)

    out = jax.ShapeDtypeStruct((height, row, outputs), mosaic.bits_of(w_project.dtype))
    return mosaic.call(
        body,
        "mbconv_project",
        (height, blocks),
        [mosaic.wide_row(row, 0), mosaic.whole(affine), mosaic.whole(gate), mosaic.whole(w_project)],
        [mosaic.late_row(out, 0, height)],
        [out],
        mosaic.Cost(3 + -(-outputs // mosaic.LANES), 50 + 0.3 * outputs, outputs),
        [pltpu.VMEM((row, outputs), jnp.float32)],
    )(d, affine, gate, w_project)[0]
