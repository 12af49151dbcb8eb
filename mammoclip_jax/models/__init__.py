"""Encoders by name, and the dual encoder that a config describes.

To add an encoder: write the module in a file here and give it a line in a table; a config may then name it.
An image encoder is `(x [N H W C], train, offsets) -> (pooled [N c], stages {name: [N h w c]})`,
a text encoder `(ids [N L], mask [N L], train) -> states [N L c]`,
a head `(inputs {name: array}, train) -> {part: array}` with `needs`, the names of its inputs (vectors.Heads).
"""

import dataclasses
import functools

import jax.numpy as jnp

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_options, load

IMAGE_ENCODERS = {
    "clip_resnet": "clip_resnet.ClipResNet",
    "clip_vit": "vit.clip",
    "convnext": "convnext.ConvNext",
    "dinov2": "vit.dinov2",
    "efficientnet": "efficientnet.EfficientNet",
    "resnet": "resnet.ResNet",
    "swin": "swin.Swin",
    "vit": "vit.vit",
}
TEXT_ENCODERS = {
    "bert": "bert.from_options",
    "clip_text": "clip_text.from_options",
    "gpt2": "gpt2.from_options",
    "modernbert": "modernbert.from_options",
}
HEADS = {
    "cross_view": "cross_view.CrossView",
    "local": "vectors.Local",
    "regions": "regions.Regions",
    "simclr": "vectors.SimCLR",
}
TOWERS = ("image", "text")  # names of outputs that are no head's


def build(config, vocab_size: int):
    """The `DualEncoder` of `config.model`, adapted where it has a `lora`; unknown options are a UserError.

    `vocab_size` is the tokenizer's. A text encoder may have rows for more tokens: `config.model.text.vocab_size`.
    """
    from mammoclip_jax.models import lora
    from mammoclip_jax.models.dual_encoder import DualEncoder

    options = _plain(config)
    dtype = jnp.dtype(options.pop("dtype"))
    image = image_encoder(options.pop("image"), dtype)
    text = text_encoder(options.pop("text"), vocab_size, dtype)
    options["projection"] = dict(options["projection"])
    options["heads"] = heads_of(options.pop("heads", {}), dtype)
    adapters = options.pop("lora", None)
    others = ("cached_text", "labels", "activation", "combine", "stages", "features", "input_size", "text_classifier")
    for other in (*others, "attributes", "matmul"):
        options.pop(other, None)  # how the model is trained or computed, or what a classifier or detector has
    check_options(DualEncoder, options, "config.model")
    model = DualEncoder(image_encoder=image, text_encoder=text, **options)
    return lora.adapt(model, adapters) if adapters else model


def heads_of(table, dtype=jnp.float32):
    """The `vectors.Heads` of `config.model.heads`, {name: {"kind": a name in HEADS, options}}; None without any.

    Without a kind the name is the kind.

    Raises:
        UserError: a kind or an option is unknown, one is missing, or a head has the name of a tower or no plain name.
    """
    from mammoclip_jax.models.vectors import Heads

    makers = {}
    for name, options in table.items():
        options = dict(options)
        head = load(__name__, HEADS, options.pop("kind", name), "kind of head")
        if name in TOWERS or not name.isidentifier():
            raise UserError(f"config.model.heads.{name}: the name of a head is one word, and not image or text.")
        check_options(head, options, f"config.model.heads.{name}")
        missing = {
            field.name
            for field in dataclasses.fields(head)
            if field.default is field.default_factory is dataclasses.MISSING
        } - {*options, "dtype", "parent", "name"}
        if missing:
            raise UserError(f"config.model.heads.{name} has no {', '.join(sorted(missing))}.")
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        makers[name] = functools.partial(head, **{"dtype": dtype, **options})
    return Heads(makers) if makers else None


def classifier(config):
    """The `heads.Classifier` of `config.model`: an image encoder and a linear head."""
    from mammoclip_jax.models import heads

    return heads.from_options(_plain(config), image_encoder)


def detector(config):
    """The `retinanet.RetinaNet` of `config.model`: an image encoder, a feature pyramid and two subnets."""
    from mammoclip_jax.models import retinanet

    return retinanet.from_options(_plain(config), image_encoder)


def segmenter(config, prior: tuple[float, ...] = ()):
    """The network of `config.model` whose outputs are masks: a `unet.UNet`, or an image encoder and a feature pyramid.

    `prior` is the probability of each label at the start of a training; one half without it.
    """
    from mammoclip_jax.models import segmentation

    return segmentation.from_options(_plain(config), image_encoder, prior)


def attribute_model(config):
    """The `attributes.AttributeModel` of `config.model`: an image encoder, and adapters of its channels."""
    from mammoclip_jax.models import attributes

    return attributes.from_options(_plain(config), image_encoder)


def bare_image_encoder(config):
    """The `image_only.ImageEncoder` of `config.model`: its image encoder, at the place where whole models have it."""
    from mammoclip_jax.models import image_only

    options = _plain(config)
    return image_only.ImageEncoder(image_encoder(options["image"], jnp.dtype(options["dtype"])))


def image_encoder(options, dtype=jnp.float32):
    """The image encoder `options["name"]` with the other options."""
    return _encoder(IMAGE_ENCODERS, options, "image encoder", dtype=dtype)


def text_encoder(options, vocab_size: int, dtype=jnp.float32):
    """The text encoder `options["name"]` with the other options, for a tokenizer of `vocab_size` tokens.

    Raises:
        UserError: the encoder has fewer rows than the tokenizer has tokens.
    """
    options = dict(options)
    rows = options.pop("vocab_size", vocab_size)
    if rows < vocab_size:
        raise UserError(
            f"the text encoder has {rows} token vectors and the tokenizer {vocab_size} tokens: "
            "they are not of the same model."
        )
    return _encoder(TEXT_ENCODERS, options, "text encoder", dtype=dtype, vocab_size=rows)


def _plain(config):
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _encoder(table, options, kind, **common):
    options = dict(options)
    if "name" not in options:
        raise UserError(
            f"config.model names no {kind}: set config.model.{kind.split()[0]}.name, one of {', '.join(sorted(table))}."
        )
    name = options.pop("name")
    encoder = load(__name__, table, name, kind)
    check_options(encoder, options, f"{kind} {name}")
    return encoder(**common, **options)
