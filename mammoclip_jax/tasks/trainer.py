"""What a config trains: its model, the state and the step, as shapes and as programs."""

from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from mammoclip_jax import losses, models
from mammoclip_jax.errors import UserError
from mammoclip_jax.training import augment, mesh as meshes
from mammoclip_jax.training.optimizer import frozen_parameters, make_optimizer
from mammoclip_jax.training.step import init_state, init_variables, make_gradient_fn, make_train_step
from mammoclip_jax.types import Batch, TrainState


class Trainer(NamedTuple):
    """One training program on one mesh. `state` and `batch` are shapes, dtypes and shardings; no array exists yet."""

    model: Any                  # DualEncoder (perhaps with adapters), Classifier or RetinaNet
    mesh: jax.sharding.Mesh
    state: TrainState           # of jax.ShapeDtypeStruct
    batch: Batch                # of jax.ShapeDtypeStruct: the global batch
    step: Callable              # (TrainState, Batch) -> (TrainState, metrics), not yet jitted
    gradient: Callable          # (TrainState, Batch) -> (loss, metrics, batch_stats, gradients), not yet jitted
    init: Callable              # (start=lambda variables: variables) -> TrainState on the mesh

    def jitted(self):
        """The step as a program that reuses the state's memory."""
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        return jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, None))


def make_trainer(config, vocab_size: int, preprocessing: dict, mesh) -> Trainer:
    """The Trainer of a config.

    Args:
        vocab_size: of the tokenizer.
        preprocessing: of the data set (`dataset.json`); height, width and bits count here.
        mesh: may be of devices that are not there (ahead-of-time compilation); then `init` cannot be called.

    Raises:
        UserError: an unknown part or option, a batch that does not split over the mesh, a rule without parameters.
    """
    model = models.build(config.model, vocab_size)
    check_rows(config, model.image_encoder, preprocessing, mesh)
    preprocess = augment.preprocess_options(config)
    image_shape = (preprocessing["height"], preprocessing["width"], preprocess.channels)

    def fresh(key):
        return init_variables(model, key, image_shape, config.data.text_length)

    def gradient(frozen):
        return make_gradient_fn(model, losses.build(config.losses), preprocess, mesh, config.train, frozen)

    def batch(params):
        return abstract_batch(config, preprocessing, mesh, params["text_projection"]["dense"]["kernel"].shape[0])

    return assemble(config, mesh, model, fresh, batch, gradient)


def assemble(config, mesh, model, fresh: Callable, batch: Callable, gradient: Callable) -> Trainer:
    """The Trainer of a model and its loss, whatever they are.

    Args:
        fresh: key -> variables at the start.
        batch: abstract parameters -> the abstract global batch.
        gradient: tree of the frozen parameters -> `Trainer.gradient`.
    """
    init_key, state_key = jax.random.split(jax.random.key(config.seed))
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(fresh, init_key)
    frozen = frozen_parameters(config.train, abstract["params"], config.model.frozen)
    optimizer = make_optimizer(config.train, abstract["params"], config.model.frozen)

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
    return Trainer(model, mesh, state, batch(abstract["params"]), make_train_step(gradient, optimizer, config.train),
                   gradient, init)


def check_rows(config, encoder, preprocessing: dict, mesh) -> None:
    """Raises UserError where a batch, or the rows of an image or its maps, do not split evenly over the devices.

    The partitioner of jax 0.10.2 then gives wrong gradients of depthwise convolutions, while the loss stays right.
    """
    meshes.check_batch_size(config, mesh)
    rows = config.model.image.get("rows")
    if rows is None:
        return
    height = preprocessing["height"]
    unit = mesh.shape[rows] * max(stride for stride, _ in encoder.stage_grids(height, preprocessing["width"]).values())
    if height % unit:
        raise UserError(f"images of {height} rows, and the maps made of them, do not split evenly over the "
                        f"{mesh.shape[rows]} devices of config.mesh.{rows}: prepare the images with a multiple of "
                        f"{unit} rows, or make that axis smaller.")


def abstract_batch(config, preprocessing: dict, mesh, text_width: int) -> Batch:
    """The shapes, dtypes and shardings of a config's global training batch; texts are pooled to `text_width` numbers."""
    breasts, views, texts, length = (
        config.train.batch_size, config.data.views, config.data.texts, config.data.text_length)
    pixel = np.uint8 if preprocessing["bits"] == 8 else np.uint16
    shapes = {
        "image": ((breasts, views, preprocessing["height"], preprocessing["width"]), pixel),
        "record": ((breasts, views), np.int32),
        "source": ((breasts,), np.int32),
        "token_ids": ((breasts, texts, length), np.int32),
        "token_mask": ((breasts, texts, length), bool),
        "flip_horizontal": ((breasts,), bool),
        "flip_vertical": ((breasts,), bool),
        "mask": ((breasts,), bool),
    }
    if config.model.cached_text:
        shapes["text_features"] = ((breasts, texts, text_width), np.float32)
    return meshes.abstract(shapes, mesh, config.model.image.get("rows"))
