"""Layouts of whole published checkpoints: which module of the file is which of ours, and what else a user must know.

To add one: a file here with a `parts.Layout`, and a line in `LAYOUTS`.
"""

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import load
from mammoclip_jax.weights.layouts.parts import Layout
from mammoclip_jax.weights.naming import State

# In the order they are tried; the last takes what is a single encoder.
LAYOUTS = {
    "mammo_clip": "mammo_clip.MAMMO_CLIP",
    "mammo_fm": "mammo_clip.MAMMO_FM",
    "mammo_clip_classifier": "downstream.MAMMO_CLIP_CLASSIFIER",
    "mammo_clip_detector": "downstream.MAMMO_CLIP_DETECTOR",
    "medclip": "medclip.MEDCLIP",
    "mama": "mama.MAMA",
    "unet": "unet.UNET",
    "clip": "clip.CLIP",
    "clip_transformers": "clip.CLIP_TRANSFORMERS",
    "region_clip": "clip.REGION_CLIP",
    "encoder": "encoder.ENCODER",
}


def layout(name: str) -> Layout:
    """The layout of that name. Raises UserError when there is none."""
    return load(__name__, LAYOUTS, name, "layout")


def detect(state: State) -> str:
    """Name of the first layout that the keys fit.

    Raises:
        UserError: none does; the message shows some of the keys.
    """
    for name in LAYOUTS:
        if layout(name).fits(state):
            return name
    raise UserError(
        f"no layout known here has keys like {', '.join(list(state)[:6])}, ... "
        f"({len(state)} of them). Known layouts: {', '.join(LAYOUTS)}."
    )
