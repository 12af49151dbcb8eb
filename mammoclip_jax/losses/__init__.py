"""Loss terms by name. A term is `(Embeddings, Batch, mesh, **options) -> (scalar, metrics)`.

To add one: write the function in a file here and give it a line in `LOSSES`; a config may then name it.
"""

import importlib
from functools import partial

from mammoclip_jax.names import check_options, lookup

LOSSES = {
    "clip": "contrastive.clip",
    "mammo_clip": "multiview.mammo_clip",
    "sigmoid": "contrastive.sigmoid",
}


def build(terms):
    """Config `{name: {"weight": w, "start_step": s, **options}}` -> list of (name, function, weight, start_step)."""
    built = []
    for name, options in terms.items():
        options = dict(options)
        weight, start_step = options.pop("weight", 1.0), options.pop("start_step", 0)
        module, function = lookup(LOSSES, name, "loss").split(".")
        term = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        check_options(term, options, f"config.losses.{name}")
        built.append((name, partial(term, **options), weight, start_step))
    return built
