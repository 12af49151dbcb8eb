"""What every task trains: a model, its state and the step, as shapes and as programs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.optimizer import frozen_parameters, make_optimizer
from mammoclip_jax.training.step import init_state, make_train_step
from mammoclip_jax.types import TrainState


class Trainer(NamedTuple):
    """One training program on one mesh. `state` and `batch` are shapes, dtypes and shardings; no array exists yet."""

    model: Any  # DualEncoder (perhaps with adapters), Classifier or RetinaNet
    mesh: jax.sharding.Mesh
    state: TrainState  # of jax.ShapeDtypeStruct
    batch: dict[str, jax.ShapeDtypeStruct]  # the global batch, its shardings too
    step: Callable  # (TrainState, Batch) -> (TrainState, metrics), not yet jitted
    gradient: Callable  # (TrainState, Batch) -> (loss, metrics, batch_stats, gradients), not yet jitted
    init: Callable  # (start=lambda variables: variables) -> TrainState on the mesh

    def jitted(self):
        """The step as a program that reuses the state's memory."""
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        return jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))


def assemble(
    config, mesh, model, fresh: Callable, batch: Callable, gradient: Callable, starts: Mapping[str, int] = {}
) -> Trainer:
    """The Trainer of a model and its loss, whatever they are.

    Args:
        fresh: key -> variables at the start.
        batch: abstract parameters -> the abstract global batch.
        gradient: tree of the frozen parameters -> `Trainer.gradient`.
        starts: see `make_optimizer`.
    """
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(fresh, init_key)
    frozen = frozen_parameters(config.train, abstract["params"], config.model.frozen)
    optimizer = make_optimizer(config.train, abstract["params"], config.model.frozen, starts)

    def fresh_state(variables):
        return init_state(variables, optimizer, state_key, config.train)

    state = jax.eval_shape(fresh_state, abstract)
    shardings = meshes.state_shardings(state, mesh, config.sharding)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

    def init(start=lambda variables: variables) -> TrainState:
        """The state before the first step; `start` may change the fresh variables (a warm start)."""
        with jax.set_mesh(mesh):
            return jax.jit(fresh_state, out_shardings=shardings)(start(jax.jit(fresh)(init_key)))

    gradient = gradient(frozen)
    return Trainer(
        model,
        mesh,
        state,
        batch(abstract["params"]),
        make_train_step(gradient, optimizer, config.train),
        gradient,
        init,
    )


def check_rows(config, encoder, preprocessing: dict, mesh) -> None:
    """Raises UserError where a batch, or the rows of an image or its maps, do not split evenly over the devices.

    jax's partitioner then gives wrong gradients of convolutions, while the loss stays right (`meshes.batch_sharding`).
    """
    meshes.check_batch_size(config, mesh)
    rows = config.model.image.get("rows")
    if rows is None:
        return
    height = preprocessing["height"]
    unit = mesh.shape[rows] * max(stride for stride, _ in encoder.stage_grids(height, preprocessing["width"]).values())
    if height % unit:
        raise UserError(
            f"images of {height} rows, and the maps made of them, do not split evenly over the "
            f"{mesh.shape[rows]} devices of config.mesh.{rows}: prepare the images with a multiple of "
            f"{unit} rows, or make that axis smaller."
        )


def abstract_batch(config, preprocessing: dict, mesh, views: int, more: dict) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, dtypes and shardings of a config's global training batch.

    Args:
        views: images of a row.
        more: {name: (shape of a row, dtype)} of what the task's batches hold beside what all hold.
    """
    pixel = np.uint8 if preprocessing["bits"] == 8 else np.uint16
    rows = {
        "image": ((views, preprocessing["height"], preprocessing["width"]), pixel),
        "record": ((views,), np.int32),
        "source": ((), np.int32),
        "flip_horizontal": ((), bool),
        "flip_vertical": ((), bool),
        "mask": ((), bool),
    } | more
    shapes = {name: ((config.train.batch_size, *shape), dtype) for name, (shape, dtype) in rows.items()}
    return meshes.abstract(shapes, mesh, config.model.image.get("rows"))
