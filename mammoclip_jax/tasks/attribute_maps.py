"""A frozen encoder runs once over the training images, instead of at every step (config.task.cached_maps)."""

import hashlib
import json
import logging
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mammoclip_jax import provenance
from mammoclip_jax.data.store.map_files import MapFiles
from mammoclip_jax.progress import Bar
from mammoclip_jax.training import augment, checkpoint, disk, distributed
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.training.processes import barrier

FOLDER = "maps"
PIXELS = 2**23  # of the images that are computed at a time
MOST = 32


def files(workdir) -> MapFiles:
    """The maps of a run's training images."""
    return MapFiles(Path(workdir, FOLDER))


def shapes(model, config, preprocessing) -> dict[str, tuple[tuple[int, ...], str]]:
    """{stage: (shape [h w C], name of the dtype)} of the stages that the attributes are looked for in."""
    channels = augment.preprocess_options(config).channels
    image = jax.ShapeDtypeStruct((1, preprocessing["height"], preprocessing["width"], channels), jnp.float32)

    def of_fresh(key, image):
        return model.apply(model.init(key, image), image, method="encode")

    maps = jax.eval_shape(of_fresh, jax.random.key(0), image)
    return {stage: (maps[stage].shape[1:], maps[stage].dtype.name) for stage in model.stages}


def prepare(config, trainer, state, datasets, examples, workdir) -> None:
    """Sees to it that `workdir` holds the maps of every image of `examples`; see `files`.

    They are computed by process 0 on its own devices where they are missing, or of another encoder or other data; what a
    stopped job has computed stays. Every process has to call, with the state that `trainer.init` made; a run that has a
    checkpoint takes the weights from that.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(trainer.mesh))(variables))
    if checkpoint.steps(Path(workdir, "checkpoints")):
        variables = checkpoint.load(workdir)[1]
    if distributed.is_main():
        sets = list(datasets.values())
        keys = sorted({(example.source, row) for example in examples for row, _ in example.images})
        data = [dataset.info["fingerprint"] for dataset in sets]
        made_by = json.dumps([provenance.encoder_fingerprint(config, variables), data])
        made_by = hashlib.sha256(made_by.encode()).hexdigest()
        program = _program(config, trainer.model, variables, sets)
        asked = shapes(trainer.model, config, sets[0].info["preprocessing"])
        # A file that is mapped into memory takes its space only when it is written, and then cannot say that there is none.
        each = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in asked.values())
        left = max(each * len(keys) - files(workdir).held(), 0)
        disk.check_space(workdir, left, "the maps of all training images (config.task.cached_maps) need")
        made = files(workdir).write(made_by, keys, asked, program)
        if made:
            size = files(workdir).size()
            logging.info("maps of %d training images computed, %d bytes an image", made, size)
    barrier("maps of images")


def _program(config, model, variables, datasets):
    """Keys -> the maps of their images, some at a time, on this process's devices."""
    mesh, options = make_mesh({"data": -1}, jax.local_devices()), augment.preprocess_options(config)
    variables = jax.device_put(variables, replicated(mesh))

    @jax.jit
    def encode(variables, images):
        maps = model.apply(variables, augment.eval_images(images, options), method="encode")
        return {stage: maps[stage] for stage in model.stages}

    def compute(keys):
        preprocessing = datasets[0].info["preprocessing"]
        size = min(max(PIXELS // (preprocessing["height"] * preprocessing["width"]), 1), MOST)
        size = -(-size // mesh.size) * mesh.size
        with jax.set_mesh(mesh), Bar(len(keys), "image", "maps") as bar:
            for start in range(0, len(keys), size):
                part = keys[start : start + size]
                images = np.stack([datasets[source].read(row) for source, row in part])
                images = np.pad(images, [(0, size - len(part)), (0, 0), (0, 0)], mode="edge")
                maps = encode(variables, jax.device_put(images, batch_sharding(mesh)))
                yield {stage: np.asarray(values)[: len(part)] for stage, values in maps.items()}
                bar.update(len(part))

    return compute
