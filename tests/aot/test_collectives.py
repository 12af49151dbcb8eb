"""Collectives: each form of the text, and programs whose communication is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mammoclip_jax.aot import collectives, hlo
from mammoclip_jax.training.mesh import make_mesh

GROUPS = "replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0','axis_1'}"
# Line, kind, bytes of a device, groups. %p is f32[16,128], %q bf16[64].
FORMS = [
    (
        f"%r = f32[16,128]{{1,0:T(8,128)}} all-reduce(%p), channel_id=1, {GROUPS}, to_apply=%add",
        "all-reduce",
        8192,
        "mesh['axis_0'=4,'axis_1'=1] {'axis_0','axis_1'}",
    ),
    (
        "%r = (f32[16,128]{1,0}, /*index=1*/bf16[64]{0}) all-reduce(%p, %q), replica_groups={{0,1},{2,3}}, to_apply=%add",
        "all-reduce",
        8320,
        "{{0,1},{2,3}}",
    ),
    (
        "%r = f32[16,128]{1,0} all-reduce-start(%p), replica_groups=[2,4]<=[8], to_apply=%add",
        "all-reduce",
        8192,
        "[2,4]<=[8]",
    ),
    (
        "%r = f32[64,128]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}",
        "all-gather",
        32768,
        "[1,4]<=[4]",
    ),
    (
        "%r = (f32[16,128]{1,0}, f32[64,128]{1,0}) all-gather-start(%p), replica_groups=[2,2]<=[2,2]T(1,0)",
        "all-gather",
        32768,
        "[2,2]<=[2,2]T(1,0)",
    ),
    (
        "%r = ((f32[16,128], bf16[64]), (f32[32,128], bf16[128])) all-gather-start(%p, %q), replica_groups={}",
        "all-gather",
        16640,
        "{}",
    ),
    (
        "%r = f32[4,128]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add",
        "reduce-scatter",
        8192,
        "{{0,1,2,3}}",
    ),
    (
        "%r = f32[16,128]{1,0} all-to-all(%p), replica_groups={{0,1,2,3}}, dimensions={0}",
        "all-to-all",
        8192,
        "{{0,1,2,3}}",
    ),
    ("%r = (bf16[64]{0}, bf16[64]{0}) all-to-all(%q, %q), replica_groups={{0,1}}", "all-to-all", 256, "{{0,1}}"),
    (
        "%r = f32[16,128]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
        "collective-permute",
        8192,
        "{{0,1},{1,0}}",
    ),
    (
        "%r = (f32[16,128], f32[16,128], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}",
        "collective-permute",
        8192,
        "{{0,1}}",
    ),
]


@pytest.mark.parametrize("line,kind,size,groups", FORMS, ids=[form[1] + str(i) for i, form in enumerate(FORMS)])
def test_every_form_is_read(line, kind, size, groups):
    program = hlo.parse(f"""
ENTRY %main (p: f32[16,128], q: bf16[64]) -> f32[16,128] {{
  %p = f32[16,128]{{1,0}} parameter(0)
  %q = bf16[64]{{0}} parameter(1)
  {line}, metadata={{op_name="jit(step)/encoder/sum"}}
  %end = f32[16,128]{{1,0}} all-reduce-done(%r)
}}
""")
    (found,) = collectives.find(program)
    assert (found.kind, found.bytes, found.groups) == (kind, size, groups)
    assert found.source == "jit(step)/encoder/sum" and found.passes == 1


def test_an_asynchronous_collective_is_counted_once():
    fused = """
%{0} (x: f32[16]) -> f32[16] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %all = f32[16]{{0}} all-reduce(%x), channel_id=7, replica_groups={{}}
}}
"""
    program = hlo.parse(
        fused.format("start_of")
        + fused.format("end_of")
        + """
ENTRY %main (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %a = f32[16]{0} fusion(%p), kind=kCustom, calls=%start_of
  ROOT %b = f32[16]{0} fusion(%a), kind=kCustom, calls=%end_of
}
"""
    )
    assert [collective.total for collective in collectives.find(program)] == [64]


def compiled(function, *arrays):
    return collectives.find(hlo.parse(jax.jit(function).lower(*arrays).compile().as_text()))


def test_a_sharded_gradient_is_one_all_reduce_of_its_size():
    mesh = make_mesh({"data": -1})
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp", "space"))))
    w = jax.ShapeDtypeStruct((32, 24), jnp.float32, sharding=NamedSharding(mesh, P()))
    found = compiled(jax.grad(lambda w, x: jnp.tanh(x @ w).sum()), w, x)
    assert collectives.by_kind(found) == {"all-reduce": {"count": 1, "bytes": 32 * 24 * 4}}


def test_a_loop_of_permutes_and_a_gather_have_the_bytes_of_all_passes():
    mesh = make_mesh({"data": -1})
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def local(x):
        def pass_on(i, carry):
            held, total = carry
            held = jax.lax.ppermute(held, "data", ring)
            return held, total + held.sum()

        _, total = jax.lax.fori_loop(0, 7, pass_on, (x, x.sum()))
        return jax.lax.all_gather(x, "data", tiled=True) * total

    shards = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    sums = collectives.by_kind(compiled(shards, x))
    assert sums["collective-permute"] == {"count": 7, "bytes": 7 * 8 * 16 * 4}
    assert sums["all-gather"] == {"count": 1, "bytes": 64 * 16 * 4}
