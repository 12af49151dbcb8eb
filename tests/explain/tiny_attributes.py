"""A small model of attributes with random weights."""

import functools

import jax
import numpy as np
from tiny_subject import MEAN, RESNET, STD

from mammoclip_jax import models, provenance
from mammoclip_jax.config import defaults
from mammoclip_jax.inference.attributes import Attributes
from mammoclip_jax.training.mesh import make_mesh

LABELS, STAGES, DIM = ("mass", "calcification"), ("stage1", "stage2"), 6


def attributes_of(preprocessing, labels=LABELS, stages=STAGES, batch_size=4):
    """The model for images of this preprocessing, on one device."""
    config = defaults()
    config.image.update(channels=1, mean=MEAN, std=STD)
    config.model.image = dict(RESNET)
    config.model.update(labels=labels, stages=stages)
    config.model.attributes.update(dim=DIM, prompts="phantom", hidden=8)
    config.task.kind = "attributes"
    module = models.attribute_model(config.model)
    blank = np.zeros((1, preprocessing["height"], preprocessing["width"], 1), np.float32)
    shapes = jax.eval_shape(functools.partial(module.init, jax.random.key(0)), blank)
    rng = np.random.default_rng(0)

    def fill(path, x):
        draw = rng.normal(size=x.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return draw * np.float32((2 / np.prod(x.shape[:-1])) ** 0.5)
        if path[-1].key == "dictionary":
            return draw / np.linalg.norm(draw, axis=1, keepdims=True)
        return 0.1 * draw + np.float32(path[-1].key in ("scale", "var"))

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    meta = {
        "config": config.to_dict(),
        "preprocessing": preprocessing,
        "provenance": {},
        "attributes": {
            "sentences": {label: [label] for label in labels},
            "encoder": provenance.encoder_fingerprint(config, variables),
        },
    }
    return Attributes(variables, meta, 3, batch_size=batch_size, mesh=make_mesh({"data": 1}, jax.devices()[:1]))
