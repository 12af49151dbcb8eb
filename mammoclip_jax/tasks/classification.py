"""Yes/no labels, or the classes that one label has, of images, breasts or exams."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mammoclip_jax import models
from mammoclip_jax.data.batches import labelled as batches
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import labelled

MODEL = "classifier"
COMMAND, load_tokenizer, start = labelled.COMMAND, labelled.load_tokenizer, labelled.start
READS = (
    *labelled.READS,
    *("model.frozen", "model.activation", "model.combine", "task.label", "task.encoder", "task.pos_weight"),
)


def check(config) -> None:
    """Raises UserError where labels, classes and activation do not go together."""
    labelled.check(config)
    classes = bool(config.task.label)
    if classes != (config.model.activation == "softmax"):
        raise UserError(
            f"config.task.label is {config.task.label!r} and config.model.activation "
            f"{config.model.activation!r}: the values of one label are classes and go with softmax, yes/no "
            "labels have no config.task.label and go with sigmoid."
        )


def network(config):
    """The model of a config."""
    return models.classifier(config.model)


def target(config) -> batches.Target:
    """What the config learns."""
    return batches.Target(tuple(config.model.labels), config.task.label)


def split(config, datasets):
    """As `labelled.split`, with as many of each class in every part."""
    return labelled.split(config, datasets, target(config))


def prepare(config, datasets, preprocessing: dict, mesh, *, tokenize=None, workdir=None):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `labelled.make_trainer`.
    """
    check(config)
    wanted, sets = target(config), list(datasets.values())
    labelled.check_labels(sets, wanted)
    examples = batches.examples(sets, "train", wanted, config.task.unit)
    logging.info("%s", describe(wanted, examples))
    trainer = labelled.make_trainer(config, network(config), loss(config, wanted, examples), preprocessing, mesh)
    return trainer, labelled.train_iterator(config, sets, examples, mesh, 0)


def describe(wanted: batches.Target, examples) -> str:
    """A line for the log: how many examples, and positives of each label."""
    positives = (np.array([example.target for example in examples]) == 1).sum(axis=0)
    counts = ", ".join(f"{name} {count}" for name, count in zip(wanted.labels, positives))
    return f"{len(examples)} training examples; positive: {counts}"


def loss(config, wanted: batches.Target, examples):
    """Cross-entropy of classes, or of yes/no labels with their positive weights, over what is known."""
    weights = jnp.asarray(positive_weights(config.task.pos_weight, wanted, examples))

    def loss_fn(apply, image, batch):
        logits, updated = apply(image, batch["view_mask"], method="of_views")
        counts = batch["known"] & batch["mask"][:, None]
        if wanted.values_of:
            losses = optax.softmax_cross_entropy(logits, batch["target"])
            counts = counts.all(axis=1)
            right = logits.argmax(axis=1) == batch["target"].argmax(axis=1)
        else:
            positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
            losses = -(weights * batch["target"] * positive + (1 - batch["target"]) * negative)
            right = (logits > 0) == (batch["target"] > 0)
        total = jnp.maximum(counts.sum(), 1)
        return (losses * counts).sum() / total, {"accuracy": (right & counts).sum() / total}, updated

    return loss_fn


def positive_weights(wanted_weight: str, wanted: batches.Target, examples) -> np.ndarray:
    """Float32 [K]: factor on the loss of positives; "balanced" is negatives / positives of the training examples.

    Raises:
        UserError: neither "", "balanced" nor a number; or classes, which have none.
    """
    if wanted_weight and wanted.values_of:
        raise UserError("config.task.pos_weight is for yes/no labels: classes have config.task.sampling=balanced.")
    targets = np.array([example.target for example in examples])
    return labelled.positive_weights(wanted_weight, (targets == 1).sum(axis=0), (targets == 0).sum(axis=0))
