"""Attributes that point, without boxes: Mammo-FActOR (Ghosh et al. 2024, arXiv:2405.12255, section 2.2).

A frozen encoder and a dictionary of attributes from a dual encoder (config.warm_start), and adapters that learn from labels of
images which channels of the encoder's maps show which attribute.
"""

import logging
import re

import jax
import jax.numpy as jnp

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import labelled as batches
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.attributes import attribute_contrast
from mammoclip_jax.tasks import attribute_maps, labelled
from mammoclip_jax.tasks.classification import describe
from mammoclip_jax.tasks.trainer import abstract_batch, assemble, check_rows
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import make_gradient_fn, stopped

MODEL = "attributes"
COMMAND, load_tokenizer = labelled.COMMAND, labelled.load_tokenizer
READS = (*labelled.READS, "model.stages", "model.attributes", "task.temperature", "task.cached_maps")
MAP = "map/"  # before a stage's name, in a batch
NEEDED = {"image_encoder/stem": "image_encoder/.*", "attributes/dictionary": "attributes/dictionary"}


def check(config) -> None:
    """Raises UserError where no encoder or dictionary is named, for other units than images, and for images that vary where
    maps are cached."""
    labelled.check(config)
    if config.task.unit != "image":
        raise UserError(
            "attributes are those of images: leave config.task.unit as it is. Breasts and exams are scored by their images."
        )
    if not config.task.temperature > 0:
        raise UserError(f"config.task.temperature={config.task.temperature} divides cosines: it must be above 0.")
    network(config)
    _check_start(config)
    if not config.task.cached_maps:
        return
    usual, data = defaults(), ("flip_horizontal", "flip_vertical")
    varied = [f"augment.{name}={value!r}" for name, value in config.augment.items() if value != usual.augment[name]]
    varied += [f"data.{name}={config.data[name]!r}" for name in data if config.data[name]]
    if varied:
        raise UserError(
            f"nothing reads config.{varied[0]} where config.task.cached_maps is True: the maps of an image are computed "
            "once, and it would make another image at every step. Take it out, or set config.task.cached_maps=False."
        )


def _check_start(config) -> None:
    if not config.model.attributes.prompts:
        raise UserError(
            "config.model.attributes.prompts is empty: name the prompt file (inference/prompt_texts, or a .json path) whose "
            "positive texts say that an attribute is there."
        )
    loads = [
        pattern
        for entry in config.warm_start.values()
        if entry.get("weights")
        for pattern in entry.get("load", ()) or (".*",)
    ]
    lacking = [pattern for path, pattern in NEEDED.items() if not any(re.match(wanted, path) for wanted in loads)]
    if lacking:
        raise UserError(
            f"nothing in config.warm_start loads {lacking[0]}: the encoder and the vectors of the attributes are those of a "
            'dual encoder. Name it, as config.warm_start.encoder=dict(weights=..., load=("image_encoder/.*", '
            '"attributes/dictionary")).'
        )


def network(config):
    """The model of a config."""
    return models.attribute_model(config.model)


def target(config) -> batches.Target:
    """What the config learns."""
    return batches.Target(tuple(config.model.labels))


def split(config, datasets):
    """As `labelled.split`, with as many of each attribute in every part."""
    return labelled.split(config, datasets, target(config))


def prepare(config, datasets, preprocessing: dict, mesh, *, tokenize=None, workdir=None):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `make_trainer`.
    """
    check(config)
    wanted, sets = target(config), list(datasets.values())
    labelled.check_labels(sets, wanted)
    examples = _examples(config, datasets)
    logging.info("%s", describe(wanted, examples))
    maps = attribute_maps.files(workdir) if config.task.cached_maps else None
    iterator = labelled.train_iterator(config, sets, examples, mesh, 0, maps=maps)
    return make_trainer(config, preprocessing, mesh), iterator


def start(config, trainer, state, datasets, *, tokenize, workdir) -> None:
    """Computes the maps of all training images, where the encoder runs once."""
    if config.task.cached_maps:
        attribute_maps.prepare(config, trainer, state, datasets, _examples(config, datasets), workdir)


def _examples(config, datasets):
    return batches.examples(list(datasets.values()), "train", target(config), "image")


def make_trainer(config, preprocessing: dict, mesh):
    """The Trainer of a config; its batches have maps instead of images where these are cached.

    Raises:
        UserError: an unknown part or option, a batch that does not split over the mesh, a rule without parameters.
    """
    frozen_too = config.copy_and_resolve_references()
    frozen_too.model.frozen = ("image",)
    model = network(config)
    check_rows(config, model.image_encoder, preprocessing, mesh)
    preprocess = augment.preprocess_options(config)
    shape = (1, preprocessing["height"], preprocessing["width"], preprocess.channels)
    labels, cached = len(config.model.labels), config.task.cached_maps
    more: dict = {"view_mask": ((1,), bool), "target": ((labels,), "float32"), "known": ((labels,), bool)}
    if cached:
        asked = attribute_maps.shapes(model, config, preprocessing)
        more |= {f"{MAP}{stage}": (size, dtype) for stage, (size, dtype) in asked.items()}
    batch = abstract_batch(config, preprocessing, mesh, 1, more)
    if cached:
        del batch["image"]

    def fresh(key):
        return model.init(key, jnp.zeros(shape, jnp.float32), train=False)

    def gradient(frozen):
        loss = contrast(model, preprocess, config.task.temperature)
        return cached_gradient(loss, frozen) if cached else make_gradient_fn(loss, preprocess, frozen)

    return assemble(frozen_too, mesh, model, fresh, lambda params: batch, gradient)


def contrast(model, preprocess, temperature: float):
    """The loss of `make_gradient_fn`, from the images of a batch or, where it has them, from their maps."""

    def loss_fn(variables, batch, draws, key, step):
        if draws is None:
            maps = {stage: batch[f"{MAP}{stage}"] for stage in model.stages}
        else:
            image = augment.train_images(batch["image"].reshape(-1, *batch["image"].shape[2:]), draws, preprocess)
            maps = jax.lax.stop_gradient(model.apply(variables, image, method="encode"))
        cosines = model.apply(variables, maps, method="image_scores")
        known = batch["known"] & batch["mask"][:, None]
        value, metrics = attribute_contrast(cosines, batch["target"], known, temperature=temperature)
        return value, metrics, variables["batch_stats"]

    return loss_fn


def cached_gradient(loss, frozen):
    """As `make_gradient_fn`, of batches whose images are not there and were not varied."""

    def gradient_fn(state, batch):
        def loss_fn(params):
            variables = {"params": stopped(params, frozen), "batch_stats": state.batch_stats}
            value, metrics, batch_stats = loss(variables, batch, None, None, state.step)
            return value, (metrics, batch_stats)

        (value, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return value, metrics, batch_stats, gradients

    return gradient_fn
