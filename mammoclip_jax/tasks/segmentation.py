"""Masks of channels in images, each a yes or no of its own: the breast, its muscle, lesions; of a chest the lungs."""

import logging
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mammoclip_jax import models
from mammoclip_jax.data.batches import labelled as batches
from mammoclip_jax.data.store.masks import Masks
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.segmentation import cross_entropy_and_dice
from mammoclip_jax.tasks import labelled

MODEL = "segmenter"
COMMAND, load_tokenizer, start = labelled.COMMAND, labelled.load_tokenizer, labelled.start
READS = (
    *labelled.READS,
    *("model.frozen", "model.features", "model.stages", "task.encoder", "task.pos_weight", "task.dice_weight"),
)


def check(config) -> None:
    """Raises UserError where the config asks for classes, for other units than images, or for what no network reads."""
    labelled.check(config)
    if config.task.unit != "image":
        raise UserError("masks are those of images: leave config.task.unit as it is.")
    if config.model.image.get("name") == "unet" and (config.model.stages or config.model.features != 256):
        raise UserError(
            "nothing reads config.model.stages and config.model.features where config.model.image is a U-Net: take "
            "them out, or use another image encoder, which gets a pyramid of these stages."
        )


def network(config, prior: tuple[float, ...] = ()):
    """The model of a config; `prior` as `models.segmenter`."""
    return models.segmenter(config.model, prior)


def target(config) -> batches.Target:
    """What the config learns."""
    return batches.Target(tuple(config.model.labels), masks=True)


def split(config, datasets):
    """As `labelled.split`; its parts have alike many of each channel where the labels have their names."""
    return labelled.split(config, datasets, batches.Target(tuple(config.model.labels)))


def prepare(config, datasets, preprocessing: dict, mesh, *, tokenize=None, workdir=None):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `labelled.make_trainer`.
    """
    check(config)
    wanted, sets = target(config), list(datasets.values())
    examples = batches.examples(sets, "train", wanted, config.task.unit)
    logging.info("%s", describe(wanted, examples))
    counted = pixels(wanted, sets, examples)
    weights = labelled.positive_weights(config.task.pos_weight, *counted)
    # Adam moves a bias by no more than the learning rate a step: from one half it would take hundreds of steps to say of a
    # pixel that it shows most likely no calcification, and nothing else is learnt meanwhile.
    model = network(config, counted.prior(weights))
    trainer = labelled.make_trainer(config, model, loss(config, weights), preprocessing, mesh, masks=True)
    return trainer, labelled.train_iterator(config, sets, examples, mesh, 0, wanted)


def loss(config, weights: np.ndarray):
    """Cross-entropy of the pixels, those in a channel's mask times its weight of `weights` [K], and soft Dice."""

    def loss_fn(apply, image, batch):
        logits, updated = apply(image)
        known = batch["known"] & batch["mask"][:, None]
        masks = batch["masks"].reshape(-1, *batch["masks"].shape[2:])[..., None]
        channels = masks >> jnp.arange(known.shape[1]).astype(masks.dtype) & 1
        value, metrics = cross_entropy_and_dice(
            logits, channels, known, dice_weight=config.task.dice_weight, pos_weight=jnp.asarray(weights)
        )
        return value, metrics, updated

    return loss_fn


class Pixels(NamedTuple):
    """How many pixels of the training images lie in each channel's mask and how many do not, where it is known: [K]."""

    inside: np.ndarray
    outside: np.ndarray

    def prior(self, weights: np.ndarray) -> tuple[float, ...]:
        """What the cross-entropy with positive weights [K] says of a pixel of which nothing is seen: the share of pixels that
        are inside, each times its weight. One pixel more on either side, so that none is 0 or 1."""
        inside, outside = weights * (self.inside + 1), self.outside + 1
        return tuple(map(float, inside / (inside + outside)))


def pixels(wanted: batches.Target, datasets, examples) -> Pixels:
    """Of the images of `examples`."""
    masks = [batches.Channels(Masks.open(dataset), wanted.labels) for dataset in datasets]
    inside, known = np.zeros((2, len(wanted.labels)))
    for source, channels in enumerate(masks):
        rows = np.array([example.images[0][0] for example in examples if example.source == source], int)
        inside += channels.pixels(rows).sum(axis=0)
        known += channels.known(rows).sum(axis=0)
    return Pixels(inside, known * np.prod(masks[0].masks.size) - inside)


def describe(wanted: batches.Target, examples) -> str:
    """A line for the log: how many images, and of each channel those that show it and those of which it is known."""
    targets = np.array([example.target for example in examples])
    counts = ", ".join(
        f"{name} {there} of {known}"
        for name, there, known in zip(wanted.labels, (targets == 1).sum(axis=0), (~np.isnan(targets)).sum(axis=0))
    )
    return f"{len(examples)} training images; with a mask of: {counts}"
