"""What a config with labels trains: a classifier or a detector, its batches and its step.

The loop, the optimiser, the checkpoints and the ways to resume are those of pretraining (trainer.py, training/).
"""

import json
import logging
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mammoclip_jax import models
from mammoclip_jax.boxes import iou
from mammoclip_jax.data import labelled, leave_out, subsets
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import detection
from mammoclip_jax.models import retinanet
from mammoclip_jax.names import check_name
from mammoclip_jax.trainer import Trainer, assemble, check_rows
from mammoclip_jax.training import augment, mesh as meshes
from mammoclip_jax.training.step import held
from mammoclip_jax.types import Batch

KINDS = ("pretrain", "classifier", "detector")
ENCODERS = ("train", "eval")


def target(config) -> labelled.Target:
    """What the config learns.

    Raises:
        UserError: it names no labels, or not in the way that the kind of model wants.
    """
    task, model = config.task, config.model
    check_name(task.kind, KINDS, "kind of config.task.kind")
    check_name(task.encoder, ENCODERS, "mode of config.task.encoder")
    if not model.labels:
        raise UserError(f"config.model.labels is empty: name what the {task.kind} is to find.")
    classes = bool(task.label)
    if task.kind == "classifier" and classes != (model.activation == "softmax"):
        raise UserError(f"config.task.label is {task.label!r} and config.model.activation {model.activation!r}: the "
                        "values of one label are classes and go with softmax, yes/no labels have no config.task.label "
                        "and go with sigmoid.")
    if task.kind == "detector" and (classes or task.unit != "image"):
        raise UserError("a detector finds boxes of config.model.labels in images: leave config.task.label and "
                        "config.task.unit as they are.")
    return labelled.Target(tuple(model.labels), task.label, task.kind == "detector")


def split(config, datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The data sets with the splits that `config.task` asks for: its fold, and its fraction of the training patients.

    Raises:
        UserError: folds or a fraction that cannot be made.
    """
    return {name: _split(config, dataset) for name, dataset in datasets.items()}


def _split(config, dataset: Dataset) -> Dataset:
    task, index = config.task, dataset.index
    if not task.folds and task.fraction == 1.0:
        return dataset
    wanted = target(config)
    strata = [str(wanted.of(json.loads(labels)).tolist()) for labels in index["labels"]]
    splits = index["split"].to_numpy(copy=True)
    if task.folds:
        if task.folds < 3:
            raise UserError(f"config.task.folds={task.folds}: one fold is tested, the next chooses the state and the "
                            "others train, so there must be 3 or more.")
        if not 0 <= task.fold < task.folds:
            raise UserError(f"config.task.fold={task.fold} must be from 0 to {task.folds - 1}, below config.task.folds; "
                            "-1, all of them, is for `finetune`.")
        fold = subsets.folds(index["patient"], strata, task.folds, config.seed)
        folded = np.where(fold == task.fold, "test", np.where(fold == (task.fold + 1) % task.folds, "val", "train"))
        splits = np.where(splits == leave_out.SPLIT, splits, folded)
    if task.fraction < 1.0:
        train = np.flatnonzero(splits == "train")
        kept = subsets.fraction(index["patient"].to_numpy()[train], np.array(strata)[train], task.fraction, config.seed)
        splits[train[~kept]] = "unused"
    return Dataset(dataset.path, dataset.info, index.assign(split=splits))


def prepare(config, datasets: Mapping[str, Dataset], preprocessing: dict, mesh):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `make_trainer`.
    """
    wanted = target(config)
    sets = list(datasets.values())
    found = labelled.examples(sets, "train", wanted, config.task.unit)
    if wanted.boxes and config.task.without_boxes == "leave_out":
        found = _with_boxes(found, sets)
    logging.info("%s", describe(wanted, found))
    if wanted.boxes and not config.task.force_match:
        _warn_of_unmatched(config, preprocessing, found)
    boxes = labelled.most_boxes(found) if wanted.boxes else 0
    trainer = make_trainer(config, preprocessing, mesh, found, boxes)
    rows = meshes.process_rows(config.train.batch_size, mesh, config.model.image.get("rows"))
    return trainer, labelled.train_iterator(
        sets, found, batch_size=config.train.batch_size, views=labelled.UNITS[config.task.unit], boxes=boxes,
        seed=config.seed, rows=rows, sampling=config.task.sampling, flip_horizontal=config.data.flip_horizontal,
        flip_vertical=config.data.flip_vertical, read_threads=config.data.read_threads)


def _with_boxes(found, datasets) -> list[labelled.Example]:
    """Those of the examples that have a box.

    Raises:
        UserError: none has.
    """
    kept = [example for example in found if example.boxes]
    if not kept:
        folders = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(f"no training image of {folders} has a box of config.model.labels, and "
                        "config.task.without_boxes=leave_out takes no other.")
    return kept


def make_trainer(config, preprocessing: dict, mesh, found, boxes: int) -> Trainer:
    """The Trainer of a config with labels, for the examples `found`, of images with up to `boxes` boxes.

    Raises:
        UserError: an unknown part or option, a batch that does not split over the mesh, a rule without parameters.
    """
    wanted = target(config)
    if any(parts != 1 for parts in config.train.micro_batches.values()):
        raise UserError("config.train.micro_batches is for contrastive losses: lower config.train.batch_size instead.")
    build = models.classifier if config.task.kind == "classifier" else models.detector
    model = build(config.model)
    check_rows(config, model.image_encoder, preprocessing, mesh)
    preprocess = augment.preprocess_options(config)
    size = (preprocessing["height"], preprocessing["width"])
    shape = (1, *retinanet.input_size(config.model, size), preprocess.channels)

    def fresh(key):
        return model.init(key, jnp.zeros(shape, jnp.float32), train=False)

    objective = (classification_loss(config, wanted, found) if config.task.kind == "classifier"
                 else detection_loss(config, size))
    batch = abstract_batch(config, preprocessing, mesh, len(wanted.labels), boxes)
    return assemble(config, mesh, model, fresh, lambda params: batch,
                    lambda frozen: make_gradient_fn(model, objective, preprocess, config.task, frozen))


def make_gradient_fn(model, objective, preprocess, task, frozen=None):
    """`(TrainState, Batch) -> (loss, metrics, batch_stats, gradients)`, as `step.make_gradient_fn`."""
    training = task.encoder == "train"

    def gradient_fn(state, batch):
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        draws = augment.draw(batch, augment_key, preprocess)
        image = augment.train_images(batch["image"].reshape(-1, *batch["image"].shape[2:]), draws, preprocess)

        def loss_fn(params):
            params = held(params, frozen)

            def apply(*inputs, method=None):
                return model.apply({"params": params, "batch_stats": state.batch_stats}, *inputs, train=training,
                                   rngs={"dropout": dropout_key}, mutable=["batch_stats"], method=method)

            loss, metrics, updated = objective(apply, image, batch, draws)
            return loss, (metrics, updated.get("batch_stats", state.batch_stats))

        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return loss, metrics, batch_stats, gradients

    return gradient_fn


def classification_loss(config, wanted: labelled.Target, found):
    """Cross-entropy of classes, or of yes/no labels with their positive weights, over what is known."""
    weights = jnp.asarray(positive_weights(config.task.pos_weight, wanted, found))

    def loss_fn(apply, image, batch, draws):
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


def positive_weights(wanted_weight: str, wanted: labelled.Target, found) -> np.ndarray:
    """Float32 [K]: factor on the loss of positives; "balanced" is negatives / positives of the training examples.

    Raises:
        UserError: neither "", "balanced" nor a number; or classes, which have none.
    """
    if not wanted_weight:
        return np.ones(len(wanted.labels), np.float32)
    if wanted.values_of:
        raise UserError("config.task.pos_weight is for yes/no labels: classes have config.task.sampling=balanced.")
    if wanted_weight != "balanced":
        try:
            return np.full(len(wanted.labels), float(wanted_weight), np.float32)
        except ValueError:
            raise UserError(f"config.task.pos_weight={wanted_weight!r} must be balanced, a number or empty.") from None
    targets = np.array([example.target for example in found])
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    return np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0).astype(np.float32)


def detection_loss(config, size: tuple[int, int]):
    """RetinaNet's loss; boxes follow the images' flips and affine maps."""
    task = config.task
    height, width = retinanet.input_size(config.model, size)
    anchors = retinanet.anchors(height, width)
    scale = np.array([width / size[1], height / size[0]] * 2, np.float32)

    def loss_fn(apply, image, batch, draws):
        classes = batch["box_classes"].reshape(-1, batch["box_classes"].shape[-1])
        boxes = batch["boxes"].reshape(-1, *batch["boxes"].shape[-2:])
        boxes, there = augment.boxes(boxes, draws, size, config.augment.affine_probability > 0)
        classes = jnp.where(there, classes, -1)
        (logits, deltas), updated = apply(augment.resized(image, (height, width)))
        mask = (batch["mask"][:, None] & batch["view_mask"]).reshape(-1)
        loss, metrics = detection.retinanet(
            logits, deltas, boxes * scale, classes, anchors, alpha=task.focal_alpha, gamma=task.focal_gamma,
            force_match=task.force_match, without_boxes="count" if task.without_boxes == "leave_out" else task.without_boxes, mask=mask,
            known=batch["known"])
        return loss, metrics, updated

    return loss_fn


def abstract_batch(config, preprocessing: dict, mesh, labels: int, boxes: int) -> Batch:
    """The shapes, dtypes and shardings of a config's global training batch."""
    n, views = config.train.batch_size, labelled.UNITS[config.task.unit]
    pixel = np.uint8 if preprocessing["bits"] == 8 else np.uint16
    shapes = {
        "image": ((n, views, preprocessing["height"], preprocessing["width"]), pixel),
        "record": ((n, views), np.int32),
        "source": ((n,), np.int32),
        "view_mask": ((n, views), bool),
        "target": ((n, labels), np.float32),
        "known": ((n, labels), bool),
        "flip_horizontal": ((n,), bool),
        "flip_vertical": ((n,), bool),
        "mask": ((n,), bool),
    }
    if boxes:
        shapes |= {"boxes": ((n, views, boxes, 4), np.float32), "box_classes": ((n, views, boxes), np.int32)}
    return meshes.abstract(shapes, mesh, config.model.image.get("rows"))


def describe(wanted: labelled.Target, found) -> str:
    """A line for the log: how many examples, positives of each label, and boxes."""
    targets = np.array([example.target for example in found])
    counts = ", ".join(f"{name} {count}" for name, count in zip(wanted.labels, (targets == 1).sum(axis=0)))
    if not wanted.boxes:
        return f"{len(found)} training examples; positive: {counts}"
    return f"{len(found)} training examples; with a box of: {counts}; {len(_distinct(found))} boxes"


def _distinct(found) -> np.ndarray:
    """Float32 [n 4]: the boxes of the examples; one of several classes once."""
    boxes = {(example.source, row, *corners) for example in found for row, _, *corners in example.boxes}
    return np.array([corners for _, _, *corners in sorted(boxes)], np.float32).reshape(-1, 4)


def _warn_of_unmatched(config, preprocessing: dict, found) -> None:
    """Says how many boxes no anchor overlaps enough to learn from them, where an image lies as it is."""
    size = preprocessing["height"], preprocessing["width"]
    height, width = retinanet.input_size(config.model, size)
    anchors = np.asarray(retinanet.anchors(height, width))
    boxes = _distinct(found) * np.array([width / size[1], height / size[0]] * 2, np.float32)
    missed = sum(float(iou(box, anchors).max()) < detection.POSITIVE for box in boxes)
    if missed:
        logging.warning("%d of %d boxes overlap no anchor by %g and teach nothing: config.task.force_match=True gives each "
                        "its nearest one", missed, len(boxes), detection.POSITIVE)
