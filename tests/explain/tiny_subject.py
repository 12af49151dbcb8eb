"""Small models for maps: as `inference` has them, and as `explain.maps.Subject` in float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.explain.maps import Subject
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.models import attention
from mammoclip_jax.training.augment import lit
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.training.step import init_variables

HEIGHT, WIDTH, DIM = 48, 32, 6
MEAN, STD = 0.3, 0.25
RESNET = {"name": "resnet", "variant": "18", "width": 4, "depths": (1, 1)}
LOCAL = {"stage": "stage2", "hidden": 5, "dim": DIM, "sentences": 3, "sentence": "mean", "lit": 0.5}
SCORED = RESNET | {"scored": True}  # whose channels have scores for attributes
HEADED = RESNET | {"local": {"near": {"kind": "local"} | LOCAL}}  # with a local head
VIT = {
    "name": "vit",
    "variant": "tiny",
    "width": 16,
    "depth": 3,
    "heads": 2,
    "patch": 8,
    "size": 32,
    "stages": (1, 2, 3),
}


@functools.cache
def _words():
    return tokenizer.Tokenize(tokenizer.train_wordpiece(["a mass in the left breast", "no mass"], 200))


def meta_of(image):
    config = defaults()
    config.image.update(channels=1, mean=MEAN, std=STD)
    config.data.text_length = 16
    image = dict(image)
    config.model.heads = image.pop("local", {})
    image.pop("scored", None)
    config.model.image = image
    config.model.text.update(
        name="bert", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.model.dim = DIM
    return {
        "config": config.to_dict(),
        "tokenizer": _words().to_json(),
        "provenance": {},
        "preprocessing": {"height": HEIGHT, "width": WIDTH},
    }


def module_of(image, dtype="float32"):
    return models.build(meta_of(image)["config"]["model"] | {"dtype": dtype}, _words().vocab_size)


def variables_of(image, seed=0):
    """Random numbers that no program has to be compiled for."""
    shapes = jax.eval_shape(
        lambda key: init_variables(module_of(image), key, (HEIGHT, WIDTH, 1), 16),
        jax.ShapeDtypeStruct((), jax.random.key(0).dtype),
    )
    rng = np.random.default_rng(seed)

    def fill(path, x):
        draw = rng.normal(size=x.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return draw * np.float32((2 / np.prod(x.shape[:-1])) ** 0.5)
        return 0.1 * draw + np.float32(path[-1].key in ("scale", "var"))

    return jax.tree_util.tree_map_with_path(fill, shapes)


def scores_of(features, stage, direction):
    """Of both signs, and of the values of the channel alone, as an adapter's are."""
    return jnp.sin(3 * features.mean(axis=(0, 1)) * direction[0] + direction[1] * len(stage))


class Scored(DualEncoder):
    """A model whose channels have scores."""

    attribute_stages = ("stage1", "stage2")

    def _subject(self, variables):
        return super()._subject(variables)._replace(channel_scores=scores_of)


def model_of(image, batch_size=8, devices=8):
    return _model_of(json.dumps(image), batch_size, devices)


@functools.cache
def _model_of(image, batch_size, devices):
    image, mesh = json.loads(image), make_mesh({"data": devices}, jax.devices()[:devices])
    kind = Scored if "scored" in image else DualEncoder
    return kind(variables_of(image), meta_of(image), 1, batch_size=batch_size, mesh=mesh)


def images(count):
    return np.random.default_rng(0).integers(0, 255, (count, HEIGHT, WIDTH), dtype=np.uint8)


def directions(count):
    return np.random.default_rng(1).normal(size=(count, DIM)).astype(np.float32)


def subject_of(image):
    """(Subject in float64, the module, its variables, pixels [1 H W 1], direction [D]); within `jax.enable_x64`."""
    module = module_of(image, "float64")
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables_of(image))
    pixels = (images(1)[..., None] / 255 - MEAN) / STD

    def encode(pixels, offsets={}, **options):
        return module.apply(wide, pixels, train=False, offsets=offsets, method="encode_image", **options)

    subject = Subject(
        encode=encode,
        project=functools.partial(module.apply, wide, train=False, method="project_image"),
        patches=lambda pixels, stage: module.apply(
            wide, "near", encode(pixels)[1][stage], lit(pixels), method="embed_patches"
        ),
        attention=lambda pixels: attention.recorded(encode(pixels, mutable=["intermediates"])[1]),
        tokens=getattr(module.image_encoder, "pooled_tokens", None),
        grey=lambda value: (value - MEAN) / STD,
    )
    return subject, module, wide, jnp.asarray(pixels), jnp.asarray(directions(1)[0], jnp.float64)
