"""Ways to find the regions of a data set, with a trained model or without (data/regions).

To add one: a function `(dataset, **options) -> Method`, with an argument `model` where it needs weights, and a line in
`METHODS`; the command `regions` and config.data.regions.make may then name it.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mammoclip_jax.names import check_options, lookup

if TYPE_CHECKING:  # a list of the methods imports none of them
    from mammoclip_jax.data.regions.found import Method

METHODS = {
    "boxes": "mammoclip_jax.data.regions.annotated.boxes",
    "masks": "mammoclip_jax.data.regions.annotated.masks",
    "sliding": "mammoclip_jax.data.regions.sliding.sliding",
    "detector": "mammoclip_jax.inference.region_methods.detector.detector",
    "unet": "mammoclip_jax.inference.region_methods.unet.unet",
    "factor": "mammoclip_jax.inference.region_methods.factor.factor",
    "teacher": "mammoclip_jax.inference.region_methods.teacher.teacher",
}


def method_of(name: str) -> "Callable[..., Method]":
    """The function of that name. Raises UserError where there is none."""
    module, _, function = lookup(METHODS, name, "method of finding regions").rpartition(".")
    return getattr(importlib.import_module(module), function)


def opened(
    dataset, name: str, arguments: dict, *, batch_size: int | None = None, override_licence: str = ""
) -> "Method":
    """The method of that name, and its weights (`model`: what `loading.load` opens) with what they ask of those who use
    its regions.

    Raises:
        UserError: there is no such method, an argument is unknown, or the terms of the weights forbid it.
    """
    method = method_of(name)
    check_options(method, arguments, f"method {name}")
    if "model" not in arguments:
        return method(dataset, **arguments)
    from mammoclip_jax.inference import loading
    from mammoclip_jax.inference.region_methods import weights

    model = loading.load(arguments["model"], batch_size=batch_size)
    about = weights.about(model, arguments["model"], override_licence)
    return method(dataset, **arguments | {"model": model})._replace(about=about)
