"""Loss terms by name. A term is `(Embeddings, Batch, mesh, **options) -> (scalar, metrics)`.

To add one: write the function in a file here and give it a line in `LOSSES`; a config may then name it. A term that needs
more than the global vectors says so in its attribute `needs`, names for `Embeddings.named`:

    local.needs = ("image/stage4", "text/states")
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mammoclip_jax.names import check_options, load

LOSSES = {"clip": "contrastive.clip", "mammo_clip": "multiview.mammo_clip", "sigmoid": "contrastive.sigmoid"}


class Term(NamedTuple):
    """A loss with its options and its part in the sum."""

    name: str
    function: Callable  # (Embeddings, Batch, mesh) -> (scalar, metrics)
    weight: float
    start_step: int  # it is not computed before
    needs: tuple[str, ...]


def build(terms) -> list[Term]:
    """Of a config `{name: {"weight": w, "start_step": s, **options}}`."""
    built = []
    for name, options in terms.items():
        options = dict(options)
        weight, start_step = options.pop("weight", 1.0), options.pop("start_step", 0)
        term = load(__name__, LOSSES, name, "loss")
        check_options(term, options, f"config.losses.{name}")
        built.append(Term(name, partial(term, **options), weight, start_step, getattr(term, "needs", ())))
    return built
