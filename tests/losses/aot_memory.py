"""Compiles InfoNCE, forward and backward, for sixteen TPU v5e chips that are not there; prints memory a chip in MiB.

python aot_memory.py FORM[,FORM] ROWS[,ROWS]       one JSON object: {"ring 32768": {"peak": ..., "temporary": ...}}
"""

import json
import sys

import jax
import jax.numpy as jnp

from mammoclip_jax.aot import topology
from mammoclip_jax.losses.contrastive import info_nce
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated

DIM = 512
CHIPS = "v5e:4x4"


def memory(form, rows, mesh):
    def loss(queries, keys, scale, mask):
        contrast = info_nce(queries, keys, scale, mask=mask, form=form, mesh=mesh)
        return (contrast.forward + contrast.backward) / 2

    vectors = jax.ShapeDtypeStruct((rows, DIM), jnp.float32, sharding=batch_sharding(mesh))
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    mask = jax.ShapeDtypeStruct((rows,), bool, sharding=batch_sharding(mesh))
    gradient = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        out_shardings=(replicated(mesh), (batch_sharding(mesh),) * 2 + (replicated(mesh),)),
    )
    analysis = gradient.lower(vectors, vectors, scale, mask).compile().memory_analysis()
    return {"peak": analysis.peak_memory_in_bytes / 2**20, "temporary": analysis.temp_size_in_bytes / 2**20}


if __name__ == "__main__":
    forms, sizes = sys.argv[1].split(","), [int(size) for size in sys.argv[2].split(",")]
    topology.prepare(CHIPS)
    mesh = make_mesh({"data": -1}, topology.load(CHIPS).devices)
    print(json.dumps({f"{form} {size}": memory(form, size, mesh) for form in forms for size in sizes}))
