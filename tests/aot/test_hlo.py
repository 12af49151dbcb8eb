"""HLO text: types, computations, passes of loops."""

import jax
import jax.numpy as jnp
import pytest

from mammoclip_jax.aot import hlo

TPU_LOOP = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}

%inner_body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %doubled = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %out = (s32[], f32[8]{0}) tuple(%j, %doubled)
}

%fused (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %twice = f32[8]{0} add(%y, %y)
}

%outer_condition (r: (s32[], f32[8], s32[])) -> pred[] {
  %r = (s32[], f32[8], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %end = s32[] get-tuple-element(%r), index=2
  ROOT %before = pred[] compare(%k, %end), direction=LT
}

%outer_body (t: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %t = (s32[], f32[8], s32[]) parameter(0)
  %inner = (s32[], f32[8]{0}) while(%t), condition=%inner_condition, body=%inner_body
  ROOT %result = (s32[], /*index=1*/f32[8]{0}, s32[]) tuple(%inner)
}

ENTRY %main (z: f32[8]) -> f32[8] {
  %z = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %copied = s32[] copy(%five)
  %start = (s32[], f32[8]{0}, s32[]) tuple(%zero, %z, %copied)
  %loop = (s32[], f32[8]{0}, s32[]) while(%start), condition=%outer_condition, body=%outer_body
  ROOT %last = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_nested_loops_multiply_and_a_limit_may_be_carried():
    program = hlo.parse(TPU_LOOP)
    assert program.passes["main"] == 1 and program.passes["outer_body"] == 5
    assert program.passes["inner_body"] == program.passes["fused"] == 15
    assert program.passes["add"] == 0 and program.unknown_loops == ()


def test_a_loop_whose_end_is_not_known_counts_once_and_is_named():
    program = hlo.parse(TPU_LOOP.replace("%five = s32[] constant(5)", "%five = s32[] parameter(1)"))
    assert program.passes["outer_body"] == 1 and program.passes["inner_body"] == 3
    assert program.unknown_loops == ("loop",)


@pytest.mark.parametrize("noted", ['backend_config={"known_trip_count":{"n":"7"}}', "known_trip_count={n=7}"])
def test_a_noted_number_of_passes_goes_before_the_condition(noted):
    text = TPU_LOOP.replace("body=%outer_body", f"body=%outer_body, {noted}")
    assert hlo.parse(text).passes["outer_body"] == 7


def test_tiles_of_a_layout_fill_up_memory():
    (array,) = hlo.arrays("bf16[8,32,24,8]{3,2,1,0:T(8,128)(2,1)S(1)}")
    assert array.bytes == 8 * 32 * 24 * 8 * 2 and array.padded == 8 * 32 * 24 * 128 * 2 and array.space == 1
    (array,) = hlo.arrays("f32[24,100]{0,1:T(8,128)}")  # the second axis is the slower one
    assert array.padded == 104 * 128 * 4 and array.space == 0
    signal, number, flag = hlo.arrays("(u32[]{:S(2)}, f32[3,5], pred[7]{0})")
    assert (signal.bytes, number.bytes, number.padded, flag.bytes) == (4, 60, 60, 7)


def test_loops_of_jax_are_counted():
    def step(x):
        def body(x, _):
            return jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y @ y), x), None

        return jax.lax.scan(body, x, length=4)[0]

    text = jax.jit(step).lower(jnp.ones((4, 4))).compile().as_text()
    assert max(hlo.parse(text).passes.values()) == 12


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO text"):
        hlo.parse("module @jit_step {\n}")
