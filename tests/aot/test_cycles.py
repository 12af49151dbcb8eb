"""The compiler's own estimate of time, read from a program's text."""

import jax
import jax.numpy as jnp
import pytest

from mammoclip_jax.aot import cycles, figures, hlo

# As libtpu prints a loop of three passes around a fusion and a kernel with metadata, then a copy and a kernel without.
TEXT = """HloModule jit_step, is_scheduled=true

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %three = s32[] constant(3)
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%q), index=1
  %twice = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"w":{"estimated_cycles":"25392","b":["6"]}}
  %ours = f32[8]{0} custom-call(%twice), custom_call_target="tpu_custom_call", x={kernel_metadata={
"cycles":"700"
}}, metadata={op_name="ours"}
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %out = (s32[], f32[8]{0}) tuple(%j, %ours)
}

%fused (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} add(%y, %y), backend_config={"window_config":{"estimated_cycles":"9"}}
}

ENTRY %main (z: f32[8]) -> f32[8] {
  %z = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %copied = f32[8]{0} copy(%z), backend_config={"window_config":{"estimated_cycles":"1849"}}
  %start = (s32[], f32[8]{0}) tuple(%zero, %copied)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%loop), index=1
  ROOT %flash = f32[8]{0} custom-call(%y), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={}}
}
"""


def test_notes_count_as_often_as_they_run_and_not_inside_fusions():
    found = cycles.total(hlo.parse(TEXT))
    assert found == (3 * (25_392 + 700) + 1849, 3, ("flash",))
    assert hlo.source(hlo.parse(TEXT).computations["body"]["ours"]) == "ours"
    assert figures.estimated_seconds("TPU v5 lite", found) == pytest.approx(found.cycles / 1.5e9)


def test_without_notes_there_is_no_estimate():
    text = jax.jit(lambda x: jnp.tanh(x) * 2).lower(jnp.ones(8)).compile().as_text()
    found = cycles.total(hlo.parse(text))
    assert found == (0, 0, ()) and figures.estimated_seconds("TPU v5 lite", found) is None


def test_the_scarcest_of_traffic_products_and_cycles_is_the_bound():
    rates = figures.bounds("TPU v5 lite", 8, moved=8 * 2**30, computed=8 * 0.6e12, seconds=0.4)
    assert rates["cycles"] == rates["bound"] == pytest.approx(20)
