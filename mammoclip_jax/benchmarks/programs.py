"""What a config's training does, as programs that take one step when told: a worker of the modes below.

    pretrain      the training step on one batch that is always the same
    image_tower   the image encoder alone, in training; the mean square of its features is the loss
    inference     the image encoder alone, forward (inference.py)
    text_tower    the text encoder alone, the loss is of every second feature, since all have a constant one
    attributes    the training step of attributes on cached maps that are always the same
    input         the next batch of the training input; no device computes
    end_to_end    both, as the training loop has them: a step's metrics are fetched while the next one runs

The specification: work, config (as JSON), devices (how many of those there are; 0 takes all), and, where the batch is
always the same, inputs (a file of `against.write_inputs`), vocab_size, height and width, of inference images (how many),
height and width; else workdir.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax import models
from mammoclip_jax.aot import flops
from mammoclip_jax.benchmarks import worker
from mammoclip_jax.benchmarks.inference import inference
from mammoclip_jax.config import complete
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.pooling import pool
from mammoclip_jax.tasks.attributes import MAP
from mammoclip_jax.tasks.attributes import make_trainer as make_attribute_trainer
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.training import augment, distributed
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import make_optimizer


def make(specification: dict):
    """For `worker.serve`."""
    config, count = complete(specification["config"]), specification["devices"]
    config.cpu_devices = count or config.cpu_devices
    distributed.configure(config)
    if count > len(jax.devices()):
        raise UserError(f"--devices wants {count}, there are {len(jax.devices())} {jax.devices()[0].device_kind}.")
    mesh = meshes.make_mesh(config.mesh, jax.devices()[: count or None])
    with jax.set_mesh(mesh):
        about, step = WORKS[specification["work"]](config, specification, mesh)

    def on_mesh():
        with jax.set_mesh(mesh):
            return step() | _device_memory()

    return about | {"devices": mesh.size, "device_kind": jax.devices()[0].device_kind}, on_mesh


def pretrain(config, specification, mesh):
    """The training step that `pretrain` compiles, on the arrays of the specification's file."""
    preprocessing = {"height": specification["height"], "width": specification["width"], "bits": 8}
    trainer = make_trainer(config, specification["vocab_size"], preprocessing, mesh)
    arrays = np.load(specification["inputs"])
    given = {name: x.reshape(trainer.batch[name].shape) for name, x in arrays.items()}
    rest = {
        name: np.ones(x.shape, x.dtype) if name == "mask" else np.zeros(x.shape, x.dtype)
        for name, x in trainer.batch.items()
        if name not in given
    }
    batch = meshes.put_batch(given | rest, mesh, config.model.image.get("rows"))
    program = _Compiled(trainer.jitted(), trainer.init(), batch)
    images = config.train.batch_size * config.data.views
    return program.about(images, flops.training_flops(trainer, config), mesh), lambda: program.step(batch)


def image_tower(config, specification, mesh):
    """Images to loss, gradient, AdamW: the encoder, optimiser and normalisation of the config, without the rest."""
    encoder = models.image_encoder(config.model.image.to_dict(), jnp.dtype(config.model.dtype))
    preprocess = augment.preprocess_options(config)
    rows = config.model.image.get("rows")
    spread = PartitionSpec(tuple(axis for axis in meshes.AXES if axis != rows), rows)
    images = jax.device_put(np.load(specification["inputs"])["image"], NamedSharding(mesh, spread))
    example = jax.ShapeDtypeStruct((*images.shape, preprocess.channels), jnp.float32)
    variables = jax.jit(
        lambda key: encoder.init(key, jnp.zeros((1, *example.shape[1:])), train=False),
        out_shardings=meshes.replicated(mesh),
    )(jax.random.key(config.seed))

    def loss_of(variables, images, key):
        pixels = augment.normalise(augment.to_unit(images), preprocess)
        (features, _), updated = encoder.apply(
            variables, pixels, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.square(features).mean(), updated["batch_stats"]

    forward = flops.model_flops(lambda v, x: flops.without_cells(encoder).apply(v, x, train=False), variables, example)
    program = _tower(config, loss_of, variables, images, mesh)
    return program.about(len(images), flops.TRAINING * forward, mesh), lambda: program.step(images)


def text_tower(config, specification, mesh):
    """Token ids to loss, gradient, AdamW: the encoder and pooling of the config, without projection; images are texts."""
    text, model = config.model.text.to_dict(), config.model
    encoder = models.text_encoder(text, specification["vocab_size"], jnp.dtype(model.dtype))
    arrays = np.load(specification["inputs"])
    spread = NamedSharding(mesh, PartitionSpec(meshes.AXES))
    texts = jax.device_put((arrays["token_ids"], arrays["token_mask"]), (spread, spread))
    variables = jax.jit(
        lambda key: encoder.init(key, *(jnp.zeros((1, x.shape[1]), x.dtype) for x in texts), train=False),
        out_shardings=meshes.replicated(mesh),
    )(jax.random.key(config.seed))

    def loss_of(variables, texts, key):
        states = encoder.apply({"params": variables["params"]}, *texts, train=True, rngs={"dropout": key})
        return jnp.square(pool(states, *texts, model.pooling, model.pooling_token)[:, ::2]).mean(), {}

    forward = flops.model_flops(lambda v, *x: encoder.apply(v, *x, train=False), variables, *texts)
    program = _tower(config, loss_of, {"batch_stats": {}} | variables, texts, mesh)
    return program.about(len(texts[0]), flops.TRAINING * forward, mesh), lambda: program.step(texts)


def _tower(config, loss_of, variables, batch, mesh):
    """The step of `loss_of(variables, batch, key) -> (loss, batch statistics)` with the config's optimiser."""
    optimizer = make_optimizer(config.train, variables["params"])

    def step(state, batch):
        params, stats, opt_state, number = state
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        (loss, stats), gradients = jax.value_and_grad(
            lambda params: loss_of({"params": params, "batch_stats": stats}, batch, key), has_aux=True
        )(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state, number + 1), {"loss": loss}

    state = jax.device_put(
        (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]), jnp.zeros((), jnp.int32)),
        meshes.replicated(mesh),
    )
    return _Compiled(jax.jit(step, donate_argnums=0), state, batch)


def attributes(config, specification, mesh):
    """The training step of attributes (config.task.kind) on random maps of the shapes that the config's encoder makes."""
    preprocessing = {"height": specification["height"], "width": specification["width"], "bits": 8}
    trainer = make_attribute_trainer(config, preprocessing, mesh)
    rng = np.random.default_rng(config.seed)

    def filled(name, x):
        if name.startswith(MAP):
            return rng.random(x.shape, np.float32).astype(x.dtype)
        if name == "target":
            return (np.arange(x.shape[0])[:, None] % 2 == np.arange(x.shape[1]) % 2).astype(x.dtype)
        return np.ones(x.shape, x.dtype) if x.dtype == bool else np.zeros(x.shape, x.dtype)

    maps = [x for name, x in trainer.batch.items() if name.startswith(MAP)]
    if not maps:
        raise UserError("--work=attributes measures a step on cached maps: set config.task.cached_maps=True.")
    batch = meshes.put_batch({name: filled(name, x) for name, x in trainer.batch.items()}, mesh)
    # Not `trainer.init`: the draws of the frozen encoder's weights would take longer to compile than the step.
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, x.dtype) * 0.02, trainer.state.params)
    rest = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), trainer.state._replace(params={}, key={}))
    vectors = rng.standard_normal(rest.batch_stats["attributes"]["dictionary"].shape, np.float32)
    statistics = rest.batch_stats | {"attributes": {"dictionary": vectors}}
    state = rest._replace(params=params, batch_stats=statistics, key=jax.random.key(config.seed))
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, trainer.state))
    program = _Compiled(trainer.jitted(), state, batch)
    about = program.about(config.train.batch_size, None, mesh)
    cached = sum(x.size * x.dtype.itemsize for x in maps) / config.train.batch_size
    grids = " + ".join("x".join(map(str, x.shape[1:])) for x in maps)
    size = specification["height"], specification["width"]
    return about | {"map_bytes": cached, "grid": grids, "size": size}, lambda: program.step(batch)


def training_input(config, specification, mesh):
    """Batches as `pretrain` gets them, on the host."""
    iterator, _, _ = _real_data(config, specification, mesh)

    def step():
        next(iterator)
        return {}

    height, width = next(iterator)["image"].shape[2:]
    return {"images": config.train.batch_size * config.data.views, "size": (height, width)}, step


def end_to_end(config, specification, mesh):
    """Real batches through the training step; figures have data_wait_seconds."""
    iterator, vocab_size, preprocessing = _real_data(config, specification, mesh)
    trainer = make_trainer(config, vocab_size, preprocessing, mesh)
    rows = config.model.image.get("rows")
    program = _Compiled(trainer.jitted(), trainer.init(), meshes.put_batch(next(iterator), mesh, rows))

    def step():
        start = time.perf_counter()
        host_batch = next(iterator)
        waited = time.perf_counter() - start if program.idle() else 0.0  # as the loop's ledger counts it
        return program.step(meshes.put_batch(host_batch, mesh, rows), behind=True) | {"data_wait_seconds": waited}

    images = config.train.batch_size * config.data.views
    about = program.about(images, flops.training_flops(trainer, config), mesh)
    return about | {"size": trainer.batch["image"].shape[2:]}, step


def _real_data(config, specification, mesh):
    """The training iterator of `pretrain`, the tokenizer's size, the preprocessing."""
    from mammoclip_jax import run, tasks  # whose libraries would count as memory of the works that need no data

    workdir = Path(specification["workdir"])
    datasets = run.open_datasets(config, workdir)
    task = tasks.task_of(config)
    tokenize = task.load_tokenizer(config, workdir, datasets)
    iterator = task.train_iterator(config, datasets, tokenize, mesh, workdir)
    return iterator, tokenize.vocab_size, run.common_preprocessing(datasets)


WORKS = {
    "pretrain": pretrain,
    "image_tower": image_tower,
    "inference": inference,
    "text_tower": text_tower,
    "attributes": attributes,
    "input": training_input,
    "end_to_end": end_to_end,
}


class _Compiled:
    """A step `(state, batch) -> (state, metrics)` that was compiled ahead, and the state it is at."""

    def __init__(self, jitted, state, batch):
        start = time.perf_counter()
        self._program = jitted.lower(state, batch).compile()
        self._seconds = time.perf_counter() - start
        self._state, self._pending = state, None
        params = state.params if hasattr(state, "params") else state[0]
        self._parameters = sum(x.size for x in jax.tree.leaves(params))

    def about(self, images: int, model_flops: int | None, mesh) -> dict:
        """What is known before the first step; costs are the compiler's, of one device's program."""
        costs = self._program.cost_analysis() or {}
        return {
            "images": images,
            "parameters": self._parameters,
            "compile_seconds": self._seconds,
            "model_flops": model_flops,
            "compiled_flops": mesh.size * costs.get("flops", 0),
            "compiled_bytes": mesh.size * costs.get("bytes accessed", 0),
        }

    def idle(self) -> bool:
        """Whether the devices have nothing to do."""
        return self._pending is None or self._pending["loss"].is_ready()

    def step(self, batch, behind: bool = False) -> dict:
        """One step; with `behind`, what is waited for is the step before."""
        self._state, metrics = self._program(self._state, batch)
        if behind:
            metrics, self._pending = self._pending or metrics, metrics
        else:
            jax.block_until_ready(self._state)
        return {"loss": float(metrics["loss"])}


def _device_memory() -> dict:
    """The most that a device held since the process began, where the platform counts."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return {"device_peak_bytes": max(peaks)} if max(peaks) else {}


if __name__ == "__main__":
    worker.serve(make)
