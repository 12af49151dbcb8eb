"""What the namings ask of the shapes in a state dict, and of the config.json beside it."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def shape_of(shapes: Shapes, key: str, what: str) -> tuple[int, ...]:
    """The shape of an array that has to be there; UserError, which says `what` the file does not hold, if it is not."""
    if key not in shapes:
        raise UserError(f"the file has no {key}: it holds no {what}, or another part of it.")
    return shapes[key]


def depths(shapes: Shapes, block: str) -> tuple[int, ...]:
    """Blocks of each stage; the expression `block` finds keys of a block, its stage and its number there."""
    blocks = {(int(match[1]), int(match[2])) for key in shapes if (match := re.match(block, key))}
    return tuple(Counter(stage for stage, _ in sorted(blocks)).values())


def check_config(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises UserError if config.json says something else than `expected`; what it does not say is not checked."""
    for key, value in expected.items():
        entry = config.get(key, value)
        if (list(entry) if isinstance(entry, tuple) else entry) != value:
            raise UserError(
                f"config.json has {key} {entry}; the network here has {value} with this file's arrays: it "
                "is another architecture, or the config of another file."
            )
