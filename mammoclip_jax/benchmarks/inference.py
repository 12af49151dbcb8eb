"""The image encoder forward alone, as whoever uses a model runs it: a work of programs.py."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.aot import flops
from mammoclip_jax.training import augment
from mammoclip_jax.training import mesh as meshes


def inference(config, specification, mesh):
    """uint8 images to pooled features: normalisation and encoder of the config, running statistics, no gradient.

    Of the specification: images (how many), height, width. Returns what `programs.make` wants of a work.
    """
    encoder = models.image_encoder(config.model.image.to_dict(), jnp.dtype(config.model.dtype))
    preprocess = augment.preprocess_options(config)
    size = specification["images"], specification["height"], specification["width"]
    rows = config.model.image.get("rows")
    spread = PartitionSpec(tuple(axis for axis in meshes.AXES if axis != rows), rows)
    host = np.random.default_rng(config.seed).integers(0, 256, size, dtype=np.uint8)
    images = jax.device_put(host, NamedSharding(mesh, spread))
    example = jax.ShapeDtypeStruct((*size, preprocess.channels), jnp.float32)
    variables = jax.jit(
        lambda key: encoder.init(key, jnp.zeros((1, *example.shape[1:])), train=False),
        out_shardings=meshes.replicated(mesh),
    )(jax.random.key(config.seed))

    def features(variables, images):
        pixels = augment.normalise(augment.to_unit(images), preprocess)
        return encoder.apply(variables, pixels, train=False)[0]

    start = time.perf_counter()
    program = jax.jit(features).lower(variables, images).compile()
    costs = program.cost_analysis() or {}
    about = {
        "images": len(images),
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "compile_seconds": time.perf_counter() - start,
        "model_flops": flops.model_flops(
            lambda v, x: flops.without_cells(encoder).apply(v, x, train=False), variables, example
        ),
        "compiled_flops": mesh.size * costs.get("flops", 0),
        "compiled_bytes": mesh.size * costs.get("bytes accessed", 0),
    }

    def step():
        jax.block_until_ready(program(variables, images))
        return {}

    return about, step
