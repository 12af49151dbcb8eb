"""Loss terms by name. A term is `(Embeddings, Batch, mesh, **options) -> (scalar, metrics)`.

To add one: write the function in a file here and give it a line in `LOSSES`; a config may then name it. A term that needs
more than the global vectors says so in its attribute `needs`, names for `Embeddings.named`:

    local.needs = ("image/stage4", "text/states")

or "HEAD/PART" of a head of `config.model.heads`; an option of the term in braces stands for its value:

    local.needs = ("{head}/patches", "{head}/sentences")

A term that reads keys of the batch that only some configs ask for has them in its attribute `reads`; one in which only rows
count whose text is their image's own (`pairs.there`) has the attribute `pairs_alone`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mammoclip_jax.names import check_options, load

LOSSES = {
    "clip": "contrastive.clip",
    "distillation": "regions.distillation",
    "geometry": "geometry.geometry",
    "local_alignment": "local_alignment.local_alignment",
    "mammo_clip": "multiview.mammo_clip",
    "nt_xent": "views.nt_xent",
    "region_concept": "regions.region_concept",
    "region_phrase": "region_phrase.region_phrase",
    "sigmoid": "contrastive.sigmoid",
    "soft_targets": "soft_targets.soft_targets",
    "view_text": "views.view_text",
}


class Term(NamedTuple):
    """A loss with its options and its part in the sum."""

    name: str
    function: Callable  # (Embeddings, Batch, mesh) -> (scalar, metrics)
    weight: float
    start_step: int  # it is not computed before
    needs: tuple[str, ...]
    reads: tuple[str, ...] = ()
    pairs_alone: bool = False


def build(terms, **of_data) -> list[Term]:
    """Of a config `{name: {"kind": k, "weight": w, "start_step": s, **options}}`; without a kind the name is the kind.

    `of_data` are options that follow from the data: for the terms that have them and do not set them.
    """
    built = []
    for name, options in terms.items():
        options = dict(options)
        weight, start_step = options.pop("weight", 1.0), options.pop("start_step", 0)
        term = load(__name__, LOSSES, options.pop("kind", name), "loss")
        check_options(term, options, f"config.losses.{name}")
        defaults = {key: field.default for key, field in inspect.signature(term).parameters.items()}
        options = {key: value for key, value in of_data.items() if key in defaults} | options
        values = defaults | options
        needs = tuple(need.format(**values) for need in getattr(term, "needs", ()))
        more = getattr(term, "reads", ()), getattr(term, "pairs_alone", False)
        built.append(Term(name, partial(term, **options), weight, start_step, needs, *more))
    return built
