"""Columns packed into channels: the same numbers as the map as it was."""

import jax
import numpy as np
import pytest
from jax import lax

from mammoclip_jax.models import efficientnet, packed


def plain(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize("columns", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "size, stride, padding",
    [
        (3, 1, ((1, 1), (1, 1))),
        (5, 1, ((2, 2), (2, 2))),
        (3, 2, ((0, 1), (0, 1))),
        (5, 2, ((1, 2), (1, 2))),
        (3, 2, ((1, 1), (1, 0))),
        (1, 1, ((0, 0), (0, 0))),
    ],
)
def test_convolutions_of_packed_maps(columns, size, stride, padding):
    if columns % stride:
        columns *= stride
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = rng.normal(size=(2, 9, 16, 3)), rng.normal(size=(size, size, 3, 5))
        cells = packed.repack(x, 1, columns)
        ours = packed.convolve(cells, kernel, stride, padding, columns)
        np.testing.assert_allclose(
            packed.repack(ours, columns // stride, 1), plain(x, kernel, stride, padding), atol=1e-12
        )
        own = kernel[..., 0]
        ours = packed.depthwise(cells, own, stride, padding, columns)
        np.testing.assert_allclose(
            packed.repack(ours, columns // stride, 1), plain(x, own[:, :, None], stride, padding, groups=3), atol=1e-12
        )


def test_pointwise_kernel():
    x, kernel = np.random.default_rng(0).normal(size=(2, 3, 8, 4)), np.random.default_rng(1).normal(size=(4, 5))
    ours = packed.repack(packed.repack(x, 1, 4) @ packed.pointwise(kernel, 4), 4, 1)
    np.testing.assert_allclose(ours, x @ kernel, rtol=1e-5, atol=1e-5)


def test_cells_of_b5_at_912_columns():
    """At most a third of 128 lanes is empty, and what does not divide is left as it is."""
    scaling = efficientnet.VARIANTS["b5"]
    table, width = efficientnet.pads("b5"), 456
    found = []
    for i, spec in enumerate(efficientnet.block_specs(scaling.width, scaling.depth)):
        pads = table[efficientnet.block_name(i)][1]
        found.append(packed.columns(spec.expanded, width, spec.size, spec.stride, pads))
        width = (width + sum(pads) - spec.size) // spec.stride + 1
    assert found == [2, 4, 4, 2] + [1] * 35
    assert packed.columns(48, 912, 3, 2, (0, 1), before=True) == 4
    assert packed.columns(24, 455, 3, 1, (1, 1)) == 1 and packed.columns(24, 456, 3, 2, (0, 0)) == 1
