"""A contrastive loss alone, value and gradients, compiled for a topology: at global batches for which no model is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mammoclip_jax.aot import collectives, cycles, figures, hlo, program, traffic
from mammoclip_jax.aot.topology import Topology
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import contrastive, forms
from mammoclip_jax.training.mesh import batch_sharding, make_mesh

GIB, MIB = 2**30, 2**20


def _clip(mesh, form: str) -> Callable:
    def value(queries, keys, scale, bias):
        del bias
        found = contrastive.info_nce(queries, keys, scale, form=form, mesh=mesh)
        return (found.forward + found.backward) / 2

    return value


def _sigmoid(mesh, form: str) -> Callable:
    return lambda *vectors: contrastive.sigmoid_loss(*vectors, form=form, mesh=mesh)[0]


LOSSES = {"clip": _clip, "sigmoid": _sigmoid}


def compile_loss(
    name: str, pairs: int, dim: int, form: str, target: Topology, cache: str = "", options: dict[str, Any] | None = None
) -> dict:
    """Value and gradients of a loss of `pairs` float32 vectors of `dim` numbers from each tower, rows split over all chips.

    Args:
        name: of `LOSSES`; as in training without `duplicates`.
        form: of `forms.FORMS`.
        cache, options: as of `program.compile_step`.

    Returns:
        loss, form, pairs, dim, topology, chips, device_kind, fits, hbm_bytes, memory {kind: bytes}, compile_seconds, versions;
        and where it fits, of one chip in one step: counted_flops, counted_hbm_bytes (our rules, loops as often as they run),
        estimated_seconds (None where the compiler does not say), unknown_loops, collectives {kind: {count, bytes}},
        vectors_bytes: of one chip's queries and keys.

    Raises:
        UserError: pairs do not split evenly over the chips.
    """
    mesh = make_mesh({"data": -1}, target.devices)
    if pairs % mesh.size:
        raise UserError(f"--pairs={pairs} do not split evenly over the {mesh.size} chips of {target.name}.")
    form = forms.choose(form, pairs, mesh)
    vectors = jax.ShapeDtypeStruct((pairs, dim), jnp.float32, sharding=batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct(
        (), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    gradient = jax.jit(
        jax.value_and_grad(LOSSES[name](mesh, form), (0, 1, 2, 3)),
        out_shardings=(scalar.sharding, (vectors.sharding,) * 2 + (scalar.sharding,) * 2),
    )
    with jax.set_mesh(mesh):
        lowered = gradient.lower(vectors, vectors, scalar, scalar)
    compiled = program.compile_lowered(lowered, target, cache, options or {})
    found = {
        "loss": name,
        "form": form,
        "pairs": pairs,
        "dim": dim,
        "topology": target.name,
        "chips": mesh.size,
        "device_kind": target.devices[0].device_kind,
        "fits": compiled.fits,
        "hbm_bytes": compiled.memory.get("available", target.hbm),
        "memory": compiled.memory,
        "compile_seconds": compiled.seconds,
        "versions": compiled.versions,
    }
    if not compiled.fits:
        return found
    text = hlo.parse(compiled.text)
    counted = traffic.total(traffic.costs(text))
    return found | {
        "counted_flops": counted.flops,
        "counted_hbm_bytes": counted.hbm,
        "estimated_seconds": figures.estimated_seconds(found["device_kind"], cycles.total(text)),
        "unknown_loops": list(text.unknown_loops),
        "collectives": collectives.by_kind(collectives.find(text)),
        "vectors_bytes": 2 * 4 * pairs * dim // mesh.size,
    }


def text(found: dict) -> str:
    """The figures in lines."""
    memory = found["memory"]
    lines = [
        f"{found['loss']} ({found['form']}) of {found['pairs']:,} pairs, {found['dim']} numbers each, on {found['topology']}: "
        f"{found['chips']} x {found['device_kind']}"
    ]
    if not found["fits"]:
        lines.append(
            f"  DOES NOT FIT: needs {memory['needed'] / GIB:.3f} of {memory['available'] / GIB:.3f} GiB a chip"
        )
        return "\n".join(lines)
    lines += [
        f"  memory of a chip: {memory['total'] / MIB:.1f} MiB, of them arguments {memory['arguments'] / MIB:.1f}, results "
        f"{memory['outputs'] / MIB:.1f}, temporaries {memory['temporaries'] / MIB:.1f}, code {memory['code'] / MIB:.1f}; "
        f"XLA's peak, with what lies in VMEM, {memory['peak'] / MIB:.1f}",
        f"  work of a chip and step: {found['counted_flops'] / 1e12:.2f} TFLOP, {found['counted_hbm_bytes'] / GIB:.2f} GiB of HBM"
        + (f", {found['estimated_seconds'] * 1e3:.0f} ms expected" if found["estimated_seconds"] else ""),
        "  collectives of a chip and step: "
        + ", ".join(
            f"{kind} {sums['count']} times, {sums['bytes'] / MIB:.1f} MiB"
            for kind, sums in found["collectives"].items()
        ),
    ]
    if found["unknown_loops"]:
        lines.append(
            f"  WARNING: passes of these loops are not known, they count once: {', '.join(found['unknown_loops'])}"
        )
    return "\n".join(lines)
