"""What collectives are compared with, and bounds from a chip's peaks."""

import jax
import jax.numpy as jnp
import pytest

from mammoclip_jax.aot import figures, hlo
from mammoclip_jax.aot.collectives import Collective


def travelling(*types):
    return [Collective("sum", "all-reduce", hlo.arrays(text), 1, "", "") for text in types]


PARAMETERS = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 3, 1, 64), (64, 256), (1000, 64))]


def test_an_array_of_the_size_of_the_images_is_found_unless_it_is_a_gradient():
    maps = "bf16[16,760,456,48]"
    found = travelling("f32[1000,64]", "bf16[256,64]", "f32[7,3,3,64]", maps, "f32[64]")
    assert [each.arrays for each in figures.large(PARAMETERS, found, 2000)] == [hlo.arrays(maps)]
    assert figures.large(PARAMETERS, found, 2 * 16 * 760 * 456 * 48 + 1) == []


def test_a_gradient_counts_in_the_type_it_travels_in():
    found = travelling("(f32[1000,64], bf16[64,256])")
    assert figures.gradient_bytes(PARAMETERS, found) == 4 * 64_000 + 2 * 64 * 256 + 4 * 9 * 64


def test_bounds_of_a_v5e():
    rates = figures.bounds("TPU v5 lite", 8, moved=8 * 27.7 * 2**30, computed=8 * 0.6e12)
    assert rates["bandwidth"] == pytest.approx(27.5, abs=0.1) and rates["flops"] == pytest.approx(328, abs=1)
    assert rates["bound"] == rates["bandwidth"] and figures.bounds("cpu", 8, 1.0, 1.0) == {}
