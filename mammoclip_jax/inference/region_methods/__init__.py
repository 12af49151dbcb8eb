"""Ways to find the regions of a data set, with a trained model or without (data/regions).

To add one: a function `(dataset, **options) -> Method`, with an argument `model` where it needs weights, and a line in
`METHODS`; the command `regions` and config.data.regions.make may then name it.
"""

from collections.abc import Callable

from mammoclip_jax.data.regions import annotated, sliding
from mammoclip_jax.data.regions.found import Method
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.region_methods import detector, factor, teacher, unet, weights
from mammoclip_jax.names import check_options, lookup

METHODS: dict[str, Callable[..., Method]] = {
    "boxes": annotated.boxes,
    "masks": annotated.masks,
    "sliding": sliding.sliding,
    "detector": detector.detector,
    "unet": unet.unet,
    "factor": factor.factor,
    "teacher": teacher.teacher,
}


def opened(dataset, name: str, arguments: dict, *, batch_size: int | None = None, override_licence: str = "") -> Method:
    """The method of that name, and its weights (`model`: what `loading.load` opens) with what they ask of those who use
    its regions.

    Raises:
        UserError: there is no such method, an argument is unknown, or the terms of the weights forbid it.
    """
    method = lookup(METHODS, name, "method of finding regions")
    check_options(method, arguments, f"method {name}")
    if "model" not in arguments:
        return method(dataset, **arguments)
    model = loading.load(arguments["model"], batch_size=batch_size)
    about = weights.about(model, arguments["model"], override_licence)
    return method(dataset, **arguments | {"model": model})._replace(about=about)
