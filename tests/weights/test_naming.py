"""Kernels of PyTorch in our order of axes. Reading and writing use one table: no round trip tells that it is wrong."""

import numpy as np
import pytest

from mammoclip_jax.weights.naming import Leaf, from_torch, to_torch


@pytest.mark.parametrize(
    "kind, shape, axes",
    [
        ("same", (2, 3), "ab->ab"),
        ("dense", (2, 3), "oi->io"),
        ("conv", (2, 3, 4, 5), "oihw->hwio"),
        ("depthwise", (2, 1, 4, 5), "cxhw->hwc"),
        ("pointwise", (2, 3, 1, 1), "oixy->io"),
    ],
)
def test_each_kind_of_kernel_has_its_axes(kind, shape, axes):
    theirs = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours = from_torch(Leaf("weight", kind), theirs)
    np.testing.assert_array_equal(ours, np.einsum(axes, theirs))
    np.testing.assert_array_equal(to_torch(Leaf("weight", kind), ours), theirs)


def test_a_part_is_taken_in_its_order():
    theirs = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(from_torch(Leaf("qkv", "dense", (2, 3)), theirs), theirs[4:].T)
