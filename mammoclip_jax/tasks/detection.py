"""Boxes of labels in images: RetinaNet."""

import logging
import re

import numpy as np

from mammoclip_jax import models
from mammoclip_jax.boxes import iou
from mammoclip_jax.data.batches import labelled as batches
from mammoclip_jax.data.batches.region_boxes import with_boxes_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.losses import detection
from mammoclip_jax.models import retinanet
from mammoclip_jax.names import check_name
from mammoclip_jax.tasks import labelled
from mammoclip_jax.training import augment

MODEL = "detector"
LEAVE_OUT = "leave_out"  # the images without boxes
COMMAND, load_tokenizer, start = labelled.COMMAND, labelled.load_tokenizer, labelled.start
READS = (
    *labelled.READS,
    *("data.regions.sources", "data.regions.make"),  # whose boxes are learnt
    *("model.frozen", "model.features", "model.input_size", "model.stages", "model.text_classifier"),
    *("task.encoder", "task.focal_alpha", "task.focal_gamma", "task.force_match", "task.without_boxes"),
)


def check(config) -> None:
    """Raises UserError where the config asks for classes, or for other units than images."""
    labelled.check(config)
    if config.task.label or config.task.unit != "image":
        raise UserError(
            "a detector finds boxes of config.model.labels in images: leave config.task.label and "
            "config.task.unit as they are."
        )
    known = (*detection.WITHOUT_BOXES, LEAVE_OUT)
    check_name(config.task.without_boxes, known, "treatment of images without boxes (config.task.without_boxes)")
    _check_texts(config)


def _check_texts(config) -> None:
    classifier = config.model.text_classifier
    loads = [
        pattern for entry in config.warm_start.values() if entry.get("weights") for pattern in entry.get("load", ())
    ]
    loaded = any(re.match(pattern, "texts/prompts") for pattern in loads)
    if classifier.dim and not (classifier.concepts and loaded):
        raise UserError(
            f"config.model.text_classifier.dim={classifier.dim} compares anchors with texts: name the lexicon of their prompts "
            "as config.model.text_classifier.concepts, and the dual encoder that reads them as "
            'config.warm_start.texts=dict(weights=..., load=("texts/prompts",)).'
        )
    if classifier.concepts and not classifier.dim:
        raise UserError(
            f"config.model.text_classifier.concepts={classifier.concepts!r} is read only with the dim of the dual encoder's "
            "vectors beside it."
        )


def network(config):
    """The model of a config."""
    return models.detector(config.model)


def target(config) -> batches.Target:
    """What the config learns."""
    return batches.Target(tuple(config.model.labels), boxes=True)


def split(config, datasets):
    """As `labelled.split`, with as many of each label in every part."""
    return labelled.split(config, datasets, target(config))


def prepare(config, datasets, preprocessing: dict, mesh, *, tokenize=None, workdir=None):
    """(Trainer, this process's checkpointable iterator of its devices' parts of the training batches).

    Raises:
        UserError: the config or the data are wrong; see `labelled.make_trainer`.
    """
    check(config)
    wanted, sources = target(config), config.data.regions.sources
    sets = [with_boxes_of(dataset, sources) for dataset in datasets.values()]
    labelled.check_labels(sets, wanted)
    examples = batches.examples(sets, "train", wanted, config.task.unit)
    if config.task.without_boxes == LEAVE_OUT:
        examples = _with_boxes(examples, sets)
    logging.info("%s", describe(wanted, examples))
    if not config.task.force_match:
        _warn_of_unmatched(config, preprocessing, examples)
    boxes, size = batches.most_boxes(examples), (preprocessing["height"], preprocessing["width"])
    trainer = labelled.make_trainer(
        config,
        network(config),
        loss(config, size),
        preprocessing,
        mesh,
        input_size=retinanet.input_size(config.model, size),
        boxes=boxes,
    )
    return trainer, labelled.train_iterator(config, sets, examples, mesh, boxes)


def _with_boxes(examples, datasets) -> list[batches.Example]:
    """Those of the examples that have a box.

    Raises:
        UserError: none has.
    """
    kept = [example for example in examples if example.boxes]
    if not kept:
        folders = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(
            f"no training image of {folders} has a box of config.model.labels, and "
            "config.task.without_boxes=leave_out takes no other."
        )
    return kept


def loss(config, size: tuple[int, int]):
    """RetinaNet's loss."""
    task = config.task
    without_boxes = "count" if task.without_boxes == LEAVE_OUT else task.without_boxes  # none is left
    height, width = retinanet.input_size(config.model, size)
    anchors = retinanet.anchors(height, width)
    scale = np.array([width / size[1], height / size[0]] * 2, np.float32)

    def loss_fn(apply, image, batch):
        classes = batch["box_classes"].reshape(-1, batch["box_classes"].shape[-1])
        boxes = batch["boxes"].reshape(-1, *batch["boxes"].shape[-2:])
        (logits, deltas), updated = apply(augment.resized(image, (height, width)))
        mask = (batch["mask"][:, None] & batch["view_mask"]).reshape(-1)
        value, metrics = detection.retinanet(
            logits,
            deltas,
            boxes * scale,
            classes,
            anchors,
            alpha=task.focal_alpha,
            gamma=task.focal_gamma,
            force_match=task.force_match,
            without_boxes=without_boxes,
            mask=mask,
            known=batch["known"],
        )
        return value, metrics, updated

    return loss_fn


def describe(wanted: batches.Target, examples) -> str:
    """A line for the log: how many examples, those with a box of each label, and boxes."""
    there = (np.array([example.target for example in examples]) == 1).sum(axis=0)
    counts = ", ".join(f"{name} {count}" for name, count in zip(wanted.labels, there))
    return f"{len(examples)} training examples; with a box of: {counts}; {len(_distinct(examples))} boxes"


def _distinct(examples) -> np.ndarray:
    """Float32 [n 4]: the boxes of the examples; one of several classes once."""
    boxes = {(example.source, row, *corners) for example in examples for row, _, *corners in example.boxes}
    return np.array([corners for _, _, *corners in sorted(boxes)], np.float32).reshape(-1, 4)


def _warn_of_unmatched(config, preprocessing: dict, examples) -> None:
    """Says how many boxes no anchor overlaps enough to learn from them, where an image lies as it is."""
    size = preprocessing["height"], preprocessing["width"]
    height, width = retinanet.input_size(config.model, size)
    anchors = np.asarray(retinanet.anchors(height, width))
    boxes = _distinct(examples) * np.array([width / size[1], height / size[0]] * 2, np.float32)
    missed = sum(float(iou(box, anchors).max()) < detection.POSITIVE for box in boxes)
    if missed:
        logging.warning(
            "%d of %d boxes overlap no anchor by %g and teach nothing: config.task.force_match=True gives "
            "each its nearest one",
            missed,
            len(boxes),
            detection.POSITIVE,
        )
