"""RoIAlign (He et al. 2017, arXiv:1703.06870, sec. 3) as products of matrices: static, and differentiable in the maps.

A sample's bilinear weights are a product of one for its row and one for its column, and so is the rule at the border. So
a bin's mean over its samples is a product of the map with a matrix for the rows and one for the columns.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.boxes import area
from mammoclip_jax.errors import UserError


def roi_align(
    maps: Float[Array, "N h w C"],
    boxes: Float[Array, "N R 4"],
    mask: Bool[Array, "N R"],
    *,
    stride: float,
    size: tuple[int, int] = (7, 7),
    samples: int = 0,
    aligned: bool = True,
) -> Float[Array, "N R p q C"]:
    """What a map holds in each of `size` (p, q) bins of each box, 0 for boxes that are not there; in the maps' dtype.

    The numbers of torchvision's `roi_align` (its C++ kernel, csrc/ops/cpu/roi_align_kernel.cpp): a bin is the mean of
    `samples` x `samples` bilinear ones. A sample more than a cell outside the centres of the map's cells is 0; others
    outside are those of the nearest cell. No gradient goes to the boxes.

    Args:
        boxes: left, top, right, bottom in pixels of the image; may lie past its border, and have no area.
        stride: pixels of a cell of the map.
        samples: of a bin, along each side; 0: as many as it has cells, rounded up (torchvision's adaptive number), so
            that a box without area gives 0.
        aligned: pixel centres are at halves, as those of the map's cells; else shifted by half a cell, and a box has at
            least one cell (torchvision's aligned=False).

    Raises:
        UserError: there are no bins, or a negative number of samples.
    """
    _check(size, samples)
    return _pooled(maps, *_weights(maps.shape[1:3], boxes, mask, stride, size, samples, aligned))


def roi_align_levels(
    maps: Sequence[Float[Array, "N h w C"]],
    boxes: Float[Array, "N R 4"],
    mask: Bool[Array, "N R"],
    *,
    strides: Sequence[float],
    cells: float = 14.0,
    size: tuple[int, int] = (7, 7),
    samples: int = 0,
    aligned: bool = True,
) -> Float[Array, "N R p q C"]:
    """`roi_align` of several maps of one width, each box from the level of its size (`level_of`).

    Args:
        strides: of the maps, ascending.

    Raises:
        UserError: as `roi_align`; or there is not one stride for each map, or they do not ascend.
    """
    _check(size, samples)
    if len(strides) != len(maps) or list(strides) != sorted(set(strides)):
        raise UserError(f"{len(maps)} maps have the strides {tuple(strides)}: give one for each, from fine to coarse.")
    level = level_of(boxes, strides, cells)
    return sum(
        _pooled(x, *_weights(x.shape[1:3], boxes, mask & (level == i), stride, size, samples, aligned))
        for i, (x, stride) in enumerate(zip(maps, strides))
    )


def level_of(boxes: Float[Array, "*n 4"], strides: Sequence[float], cells: float = 14.0) -> Int[Array, "*n"]:
    """The coarsest level on which the square root of a box's area is at least `cells` cells; the finest if none.

    With strides that are powers of 2 and 14 cells that is the rule of the feature pyramid (Lin et al. 2017,
    arXiv:1612.03144, eq. 1: a box of 224 pixels is of the level with stride 16).
    """
    side = jnp.sqrt(jnp.maximum(area(boxes), 0))
    # A box of just that many cells is one, however its root is rounded.
    enough = side[..., None] * (1 + 1e-6) >= cells * jnp.asarray(strides)
    return jnp.maximum(enough.sum(axis=-1) - 1, 0)


def _check(size, samples) -> None:
    if min(size) < 1 or samples < 0:
        raise UserError(f"RoIAlign has size={tuple(size)} and samples={samples}: it needs bins, and 0 samples or more.")


def _weights(shape, boxes, mask, stride, size, samples, aligned):
    """Those of the rows [N R p h] and of the columns [N R q w] in the mean of each bin."""
    boxes = jax.lax.stop_gradient(jnp.where(mask[..., None], boxes, 0))
    rows, columns = (
        _of_axis(boxes[..., i] / stride, (boxes[..., 2 + i] - boxes[..., i]) / stride, n, bins, samples, aligned)
        for i, n, bins in ((1, shape[0], size[0]), (0, shape[1], size[1]))
    )
    return rows * mask[..., None, None], columns


def _of_axis(start, side, n: int, bins: int, samples: int, aligned: bool):
    """[... bins n] of boxes that begin at `start` and are `side` long, in cells."""
    if aligned:
        start = start - 0.5
    else:
        side = jnp.maximum(side, 1)
    of_bin = side / bins
    count = jnp.full_like(side, samples) if samples else jnp.maximum(jnp.ceil(of_bin), 0)
    step = of_bin / jnp.maximum(count, 1)
    first = start[..., None] + of_bin[..., None] * jnp.arange(bins)  # where the bins begin
    step, count = step[..., None, None], count[..., None, None]
    if samples:
        index = jnp.arange(samples)
    else:
        # Steps of an adaptive number are above half a cell, and no shorter than n / (n + 1) of one where a bin reaches
        # over the whole map: so of all samples of a bin, however long, those inside are among n + 3 in a row.
        outside = jnp.ceil((-1 - first[..., None]) / jnp.where(step > 0, step, 1) - 0.5)
        index = jnp.maximum(outside, 0) + jnp.arange(n + 3)
    at = first[..., None] + (index + 0.5) * step  # [... bins samples]
    counts = (index < count) & (at >= -1) & (at <= n)
    # Bilinear weights of a place: how near each cell is. Beyond the first and last it is that cell.
    near = jnp.maximum(1 - jnp.abs(jnp.clip(at, 0, n - 1)[..., None] - jnp.arange(n)), 0)
    return jnp.where(counts[..., None], near, 0).sum(axis=-2) / jnp.maximum(count, 1)


def _pooled(maps, rows, columns):
    dtype = jnp.promote_types(maps.dtype, jnp.float32)
    x, rows, columns = maps.astype(dtype), rows.astype(dtype), columns.astype(dtype)
    h, q, width = rows.shape[-1], columns.shape[-2], x.shape[-1]
    # Of the two orders, the one that keeps less between its products: the weights of all cells in each bin, or the map
    # with one side pooled.
    if h * q <= width:
        weights = jnp.einsum("nrph,nrqw->nrpqhw", rows, columns)
        found = jnp.einsum("nrpqhw,nhwc->nrpqc", weights, x, precision="highest")
    else:
        pooled = jnp.einsum("nrph,nhwc->nrpwc", rows, x, precision="highest")
        found = jnp.einsum("nrqw,nrpwc->nrpqc", columns, pooled, precision="highest")
    return found.astype(maps.dtype)
