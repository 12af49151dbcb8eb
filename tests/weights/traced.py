"""Shapes of encoders, traced once for all tests of a run that want them."""

import functools
from types import SimpleNamespace

from mammoclip_jax import models
from mammoclip_jax.weights import naming

# Options that no array depends on; values that are other encoders' too.
SHAPELESS = ("pads", "batch_norm_eps", "layer_norm_eps", "eps", "antialias")


def abstract(table, options, channels=3):
    """What `naming.abstract` gives; the options are tried even where the shapes are known."""
    if channels:
        models.image_encoder({"name": table.encoder} | dict(options))
    shaping = {key: value for key, value in options.items() if key not in SHAPELESS}
    return dict(_abstract(table.encoder, tuple(sorted(shaping.items())), channels))


@functools.cache
def _abstract(encoder, options, channels):
    return naming.abstract(SimpleNamespace(encoder=encoder), dict(options), channels)
