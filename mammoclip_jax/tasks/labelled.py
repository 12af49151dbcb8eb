"""What tasks with labels share: splits by the config, their Trainer, and the batches of labelled images."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from mammoclip_jax.data import leave_out, subsets
from mammoclip_jax.data.batches import labelled
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text.label_values import names_of
from mammoclip_jax.errors import UserError, together
from mammoclip_jax.names import check_name
from mammoclip_jax.tasks.trainer import Trainer, abstract_batch, assemble, check_rows
from mammoclip_jax.training import augment
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import make_gradient_fn

COMMAND = "finetune"
READS = ("model.labels", "task.unit", "task.sampling", "task.fraction", "task.folds", "task.fold")
ENCODERS = ("train", "eval")


def check(config) -> None:
    """Raises UserError where the config names no labels, or what config.task does not know, and for folds that cannot be made."""
    task = config.task

    def names_labels():
        if not config.model.labels:
            raise UserError(f"config.model.labels is empty: name what the {task.kind} is to find.")

    together(
        lambda: check_name(task.encoder, ENCODERS, "mode of config.task.encoder"),
        lambda: check_name(task.unit, labelled.UNITS, "unit of config.task.unit"),
        lambda: check_name(task.sampling, labelled.SAMPLINGS, "config.task.sampling"),
        lambda: positive_weights(task.pos_weight, np.ones(1), np.ones(1)),
        lambda: check_folds(task),
        names_labels,
    )


def check_folds(task) -> None:
    """Raises UserError unless config.task has no folds, or enough of them, and one of these as its own."""
    if task.folds and task.folds < 3:
        raise UserError(
            f"config.task.folds={task.folds}: one fold is tested, the next chooses the state and the "
            "others train, so there must be 3 or more."
        )
    if task.folds and not 0 <= task.fold < task.folds:
        raise UserError(
            f"config.task.fold={task.fold} must be from 0 to {task.folds - 1}, below config.task.folds; "
            "-1, all of them, is for `finetune`."
        )


def check_labels(datasets: Sequence[Dataset], target: labelled.Target) -> None:
    """Raises UserError where none of the data sets knows a label at all: it is misspelt, and nothing could be learnt of it."""
    if target.masks:
        return  # `labelled.examples` says which channels there are
    known: set[str] = set()
    for dataset in datasets:
        known |= {name for text in dataset.index["labels"].unique() for name in json.loads(text)}
        if target.boxes:
            boxes = dataset.index["boxes_canvas"].unique()
            known |= {name for text in boxes for item in json.loads(text) for name in names_of(item)}
    together(
        *(
            functools.partial(check_name, label, known, "label in the data sets called")
            for label in ((target.values_of,) if target.values_of else target.labels)
        )
    )


def load_tokenizer(config, workdir, datasets) -> None:
    """No text is read."""


def start(config, trainer, state, datasets, *, tokenize, workdir) -> None:
    """Nothing is left to do."""


def split(config, datasets: Mapping[str, Dataset], target: labelled.Target) -> dict[str, Dataset]:
    """The data sets with the splits that `config.task` asks for: its fold, and its fraction of the training patients.

    Raises:
        UserError: folds or a fraction that cannot be made.
    """
    return {name: _split(config, dataset, target) for name, dataset in datasets.items()}


def _split(config, dataset: Dataset, target: labelled.Target) -> Dataset:
    task, index = config.task, dataset.index
    if not task.folds and task.fraction == 1.0:
        return dataset
    strata = [str(values) for values in target.of_rows(index["labels"].tolist()).tolist()]
    splits = index["split"].to_numpy(copy=True)
    if task.folds:
        check_folds(task)
        fold = subsets.folds(index["patient"], strata, task.folds, config.seed)
        folded = np.where(fold == task.fold, "test", np.where(fold == (task.fold + 1) % task.folds, "val", "train"))
        splits = np.where(splits == leave_out.SPLIT, splits, folded)
    if task.fraction < 1.0:
        train = np.flatnonzero(splits == "train")
        kept = subsets.fraction(index["patient"].to_numpy()[train], np.array(strata)[train], task.fraction, config.seed)
        splits[train[~kept]] = "unused"
    return Dataset(dataset.path, dataset.info, index.assign(split=splits))


def train_iterator(config, datasets, examples, mesh, boxes: int, target: labelled.Target | None = None, maps=None):
    """This process's checkpointable iterator of its devices' parts of the batches of `examples`; with the masks that
    `target` wants, and with `maps` (`MapFiles`) instead of the images where they are given."""
    rows = tuple(meshes.process_rows(config.train.batch_size, mesh, config.model.image.get("rows")))
    return labelled.train_iterator(
        datasets,
        examples,
        batch_size=config.train.batch_size,
        views=labelled.UNITS[config.task.unit],
        boxes=boxes,
        seed=config.seed,
        rows=rows,
        sampling=config.task.sampling,
        flip_horizontal=config.data.flip_horizontal,
        flip_vertical=config.data.flip_vertical,
        channels=target.labels if target and target.masks else (),
        maps=maps,
        read_threads=config.data.read_threads,
    )


def make_trainer(
    config, model, loss: Callable, preprocessing: dict, mesh, *, input_size=None, boxes: int = 0, masks: bool = False
) -> Trainer:
    """The Trainer of a model with labels, whose images have up to `boxes` boxes, or masks of the labels.

    Args:
        loss: (apply, image, batch) -> (loss, metrics, updated collections), where `apply` is the model's.
        input_size: (H, W) that the model sees; None: of the images as they are.

    Raises:
        UserError: an unknown part or option, a batch that does not split over the mesh, a rule without parameters.
    """
    check_rows(config, model.image_encoder, preprocessing, mesh)
    preprocess = augment.preprocess_options(config)
    shape = (1, *(input_size or (preprocessing["height"], preprocessing["width"])), preprocess.channels)
    labels, views = len(config.model.labels), labelled.UNITS[config.task.unit]
    more: dict = {"view_mask": ((views,), bool), "target": ((labels,), np.float32), "known": ((labels,), bool)}
    if boxes:
        more |= {"boxes": ((views, boxes, 4), np.float32), "box_classes": ((views, boxes), np.int32)}
    if masks:
        planes = (views, preprocessing["height"], preprocessing["width"])
        more["masks"] = planes, labelled.plane_type(labels)
    batch = abstract_batch(config, preprocessing, mesh, views, more)

    def fresh(key):
        return model.init(key, jnp.zeros(shape, jnp.float32), train=False)

    def gradient(frozen):
        return make_gradient_fn(supervised(model, loss, preprocess, config.task.encoder == "train"), preprocess, frozen)

    return assemble(config, mesh, model, fresh, lambda params: batch, gradient)


def positive_weights(wanted: str, positives, negatives) -> np.ndarray:
    """Float32 [K]: the factor on the loss of positives that `config.task.pos_weight` asks for.

    Args:
        wanted: "" is 1, "balanced" negatives / positives, "root" the square root of that, or a number for all labels.
        positives, negatives: how many there are of each label in training, [K]; of a label without positives it is 1.

    Raises:
        UserError: none of these.
    """
    if wanted in ("balanced", "root"):
        ratio = np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0)
        return (ratio if wanted == "balanced" else np.sqrt(ratio)).astype(np.float32)
    try:
        return np.full(len(positives), float(wanted or 1), np.float32)
    except ValueError:
        raise UserError(f"config.task.pos_weight={wanted!r} must be balanced, root, a number or empty.") from None


def supervised(model, loss: Callable, preprocess, train: bool):
    """The loss of `make_gradient_fn`; with `train` the encoder normalises by the batch and drops out."""

    def loss_fn(variables, batch, draws, key, step):
        image = augment.train_images(batch["image"].reshape(-1, *batch["image"].shape[2:]), draws, preprocess)

        def apply(*inputs, method=None):
            return model.apply(
                variables, *inputs, train=train, rngs={"dropout": key}, mutable=["batch_stats"], method=method
            )

        value, metrics, updated = loss(apply, image, batch)
        return value, metrics, updated.get("batch_stats", variables["batch_stats"])

    return loss_fn
