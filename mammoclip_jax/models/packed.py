"""Maps with few channels for a TPU, whose memory has 128 lanes.

XLA lays the channels of a convolution's input along the lanes: 24 channels fill 24 of 128, and a map takes, and every
pass over it moves, five times its size. So neighbouring columns go side by side into the channels: [N H W C] becomes
[N H W/columns columns*C], which is the same memory in row-major order. A convolution then mixes whole cells, with a kernel
that is zero between different channels: more arithmetic for the matrix unit, which has it to spare, and less traffic.
Parameters and results are those of the map as it was.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

LANES = 128


def repack(x: Float[Array, "N H w p*C"], before: int, after: int) -> Float[Array, "N H W q*C"]:
    """From `before` columns in a cell to `after`."""
    n, height, cells, channels = x.shape
    return x.reshape(n, height, cells * before // after, channels * after // before)


def columns(channels: int, width: int, size: int, stride: int, pads: tuple[int, int], before: bool = False) -> int:
    """How many columns a cell should have so that at most a third of the lanes stays empty: 1, 2, 4 or 8.

    Args:
        channels: of the map whose lanes count: the convolution's input, or, with `before` its stride, its output.
        width, size, stride, pads: of the convolution, as without cells.
    """
    whole = (width + sum(pads) - size) // stride + 1 == width // stride
    for count in (1, 2, 4, 8):
        filled = channels * count // (stride if before else 1)
        if count > 1 and (not whole or width % count or count % stride):
            continue
        if 4 * filled >= 3 * -(-filled // LANES) * LANES:
            return count
    return 1


def convolve(x, kernel: Float[Array, "k k in out"], stride: int, padding, columns: int) -> Float[Array, "N h w out"]:
    """The convolution of a packed map; its output has `columns // stride` columns in a cell.

    `padding` is that of the map as it was, ((top, bottom), (left, right)).
    """
    strides = (stride, stride)
    if columns > 1:
        kernel, around = _cell_kernel(kernel, stride, padding[1][0], columns)
        strides, padding = (stride, 1), (padding[0], around)
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def depthwise(x, kernel: Float[Array, "k k C"], stride: int, padding, columns: int) -> Float[Array, "N h w C"]:
    """As `convolve`, each channel with its own k x k kernel."""
    return convolve(x, kernel[:, :, :, None] * jnp.eye(kernel.shape[-1], dtype=kernel.dtype), stride, padding, columns)


def pointwise(kernel: Float[Array, "in out"], columns: int) -> Float[Array, "p*in p*out"]:
    """The kernel of a 1 x 1 convolution of a packed map."""
    return jnp.kron(jnp.eye(columns, dtype=kernel.dtype), kernel) if columns > 1 else kernel


def _cell_kernel(kernel, stride, left, columns):
    """Output column j of a cell reads, by tap b, input column `stride * j + b - left`, counted from its cell's first."""
    size, _, inputs, outputs = kernel.shape
    out_columns = columns // stride
    column, tap = np.meshgrid(np.arange(out_columns), np.arange(size), indexing="ij")
    source = stride * column + tap - left
    cell = source // columns
    first, last = min(cell.min(), 0), max(cell.max(), 0)
    places = np.zeros((size, last - first + 1, columns, out_columns), np.float32)
    places[tap, cell - first, source % columns, column] = 1
    cells = jnp.einsum("abio,bdpq->adpiqo", kernel, places.astype(kernel.dtype), precision="highest")
    return cells.reshape(size, last - first + 1, columns * inputs, out_columns * outputs), (-first, last)


def on_lanes(x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Asks a TPU's compiler to lay channels along the lanes and images along the sublanes; elsewhere nothing.

    Left alone, it lays rows along the lanes for 1 x 1 convolutions and copies every map before and after a k x k one.
    """
    return lax.platform_dependent(x, tpu=_lanes, default=lambda x: x)


@jax.custom_vjp
def _lanes(x):
    return with_layout_constraint(x, Layout(major_to_minor=(1, 2, 0, 3)))


_lanes.defvjp(lambda x: (_lanes(x), None), lambda _, gradient: (_lanes(gradient),))
