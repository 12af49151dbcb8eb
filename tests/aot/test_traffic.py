"""Bytes and FLOPs by instruction: closed forms, and loops against the same program without them."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mammoclip_jax.aot import hlo, traffic


def costs(function, *arrays):
    return traffic.costs(hlo.parse(jax.jit(function).lower(*arrays).compile().as_text()))


def test_products_are_two_flops_a_multiply_add():
    text = """
ENTRY %main (p: f32[8,32], q: f32[32,24]) -> f32[8,24] {
  %p = f32[8,32]{1,0} parameter(0)
  %q = f32[32,24]{1,0} parameter(1)
  ROOT %r = f32[8,24]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    sums = traffic.total(traffic.costs(hlo.parse(text)))
    assert sums == (4 * (8 * 32 + 32 * 24 + 8 * 24), 4 * (8 * 32 + 32 * 24 + 8 * 24), 2 * 8 * 32 * 24)


@pytest.mark.parametrize(
    "groups,window,flops",
    [
        (1, "size=3x3 pad=1_1x1_1", 2 * 2 * 6 * (3 * 6 - 2) * (3 * 5 - 2) * 4),  # the border has fewer taps
        (4, "size=3x3 pad=1_1x1_1", 2 * 2 * 6 * (3 * 6 - 2) * (3 * 5 - 2)),
        (1, "size=3x3 stride=2x2 pad=0_1x0_0", 2 * 2 * 6 * (3 + 3 + 2) * (3 + 3) * 4),
    ],
)
def test_a_convolution_counts_the_taps_that_meet_an_input(groups, window, flops):
    height, width = (3, 2) if "stride" in window else (6, 5)
    text = f"""
ENTRY %main (p: f32[2,6,5,4], q: f32[3,3,{4 // groups},6]) -> f32[2,{height},{width},6] {{
  %p = f32[2,6,5,4]{{3,2,1,0}} parameter(0)
  %q = f32[3,3,{4 // groups},6]{{3,2,1,0}} parameter(1)
  ROOT %r = f32[2,{height},{width},6]{{3,2,1,0}} convolution(%p, %q), window={{{window}}}, dim_labels=b01f_01io->b01f
}}
"""
    assert traffic.total(traffic.costs(hlo.parse(text))).flops == flops


def test_what_stays_on_the_chip_is_no_traffic_of_main_memory():
    text = """
ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0:T(1024)} parameter(0)
  %near = f32[1024]{0:T(1024)S(1)} fusion(%p), kind=kLoop, calls=%inner
  ROOT %r = f32[1024]{0:T(1024)} fusion(%near), kind=kLoop, calls=%inner
}

%inner (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0:T(1024)} parameter(0)
  ROOT %y = f32[1024]{0:T(1024)} negate(%x)
}
"""
    sums = traffic.total(traffic.costs(hlo.parse(text)))
    assert (sums.bytes, sums.hbm) == (4 * 4096, 2 * 4096)


def test_a_slice_reads_what_it_takes_and_an_update_in_place_writes_what_it_changes():
    text = """
%inner (stack: f32[100,64], i: s32[]) -> f32[1,64] {
  %stack = f32[100,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,64}
  ROOT %twice = f32[1,64]{1,0} add(%row, %row)
}

%write (stack: f32[100,64], row: f32[1,64], i: s32[]) -> f32[100,64] {
  %stack = f32[100,64]{1,0} parameter(0)
  %row = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %out = f32[100,64]{1,0} dynamic-update-slice(%stack, %row, %i, %zero)
}

ENTRY %main (p: f32[100,64], i: s32[]) -> f32[100,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %a = f32[1,64]{1,0} fusion(%p, %i), kind=kLoop, calls=%inner
  ROOT %b = f32[100,64]{1,0} fusion(%p, %a, %i), kind=kLoop, calls=%write
}
"""
    read, written = traffic.costs(hlo.parse(text))
    assert read.bytes == 2 * 256 + 4 and written.bytes == 2 * 256 + 4


def test_a_loop_counts_as_its_passes_written_out():
    weights, x = jnp.ones((6, 64, 64)), jnp.ones((32, 64))

    def step(unroll):
        return lambda weights, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0]

    loop, flat = (costs(step(unroll), weights, x) for unroll in (1, True))
    often, once, straight = traffic.total(loop), traffic.total(loop, loops=False), traffic.total(flat)
    assert often.flops == straight.flops == 6 * 2 * 32 * 64 * 64 and once.flops == straight.flops / 6
    assert often.bytes == pytest.approx(straight.bytes, rel=0.25)


def test_sums_are_near_those_of_xla():
    def step(w, x):
        return jax.grad(lambda w: jnp.square(jnp.tanh(lax.conv(x, w, (2, 2), "SAME"))).mean())(w)

    compiled = jax.jit(step).lower(jnp.ones((16, 8, 3, 3)), jnp.ones((4, 8, 32, 32))).compile()
    sums = traffic.total(traffic.costs(hlo.parse(compiled.as_text())))
    assert sums.bytes == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.2)
    assert sums.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.2)


def test_the_heaviest_are_named_by_their_operation():
    def step(x, w):
        with jax.named_scope("encoder"):
            return (x @ w).sum()

    (first, *_) = traffic.heaviest(costs(step, jnp.ones((64, 512)), jnp.ones((512, 256))), 3)
    assert "encoder" in first["source"] and first["bytes"] > 4 * 512 * 256 and first["passes"] >= 1
