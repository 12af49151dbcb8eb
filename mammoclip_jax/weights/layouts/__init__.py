"""Layouts of whole published checkpoints: which module of the file is which of ours, and what else a user must know.

To add one: a file here with a `LAYOUT` (see `parts.Layout`), and a line in `LAYOUTS`.
"""

import importlib

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.layouts.parts import Layout
from mammoclip_jax.weights.naming import State

# In the order they are tried; the last takes what is a single encoder.
LAYOUTS = ("mammo_clip", "mammo_fm", "mammo_clip_classifier", "mammo_clip_detector", "medclip", "mama", "encoder")
_MODULES = {"mammo_fm": "mammo_clip", "mammo_clip_classifier": "downstream", "mammo_clip_detector": "downstream"}


def layout(name: str) -> Layout:
    """The layout of that name."""
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return getattr(module, name.upper())


def detect(state: State) -> str:
    """Name of the first layout that the keys fit.

    Raises:
        UserError: none does; the message shows some of the keys.
    """
    for name in LAYOUTS:
        if layout(name).fits(state):
            return name
    raise UserError(f"no layout known here has keys like {', '.join(list(state)[:6])}, ... "
                    f"({len(state)} of them). Known layouts: {', '.join(LAYOUTS)}.")
