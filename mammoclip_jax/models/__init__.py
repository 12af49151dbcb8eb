"""Encoders by name, and the dual encoder that a config describes.

To add an encoder: write the module in a file here and give it a line in a table; a config may then name it.
An image encoder is `(x [N H W C], train, offsets) -> (pooled [N c], stages {name: [N h w c]})`,
a text encoder `(ids [N L], mask [N L], train) -> states [N L c]`.
"""

import importlib

import jax.numpy as jnp

from mammoclip_jax.names import check_options, lookup

IMAGE_ENCODERS = {
    "convnext": "convnext.ConvNext",
    "dinov2": "vit.dinov2",
    "efficientnet": "efficientnet.EfficientNet",
    "resnet": "resnet.ResNet",
    "vit": "vit.vit",
}
TEXT_ENCODERS = {
    "bert": "bert.from_options",
    "clip_text": "clip_text.from_options",
    "gpt2": "gpt2.from_options",
    "modernbert": "modernbert.from_options",
}


def build(config, vocab_size: int):
    """The `DualEncoder` of `config.model`; options that an encoder does not know are a UserError."""
    from mammoclip_jax.models.dual_encoder import DualEncoder

    options = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    dtype = jnp.dtype(options.pop("dtype"))
    image = _encoder(IMAGE_ENCODERS, options.pop("image"), "image encoder", dtype=dtype)
    text = _encoder(TEXT_ENCODERS, options.pop("text"), "text encoder", dtype=dtype, vocab_size=vocab_size)
    options["projection"] = dict(options["projection"])
    check_options(DualEncoder, options, "config.model")
    return DualEncoder(image_encoder=image, text_encoder=text, **options)


def _encoder(table, options, kind, **common):
    options = dict(options)
    module, name = lookup(table, options.pop("name"), kind).split(".")
    encoder = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    check_options(encoder, options, f"{kind} {name}")
    return encoder(**common, **options)
