"""A shortcut for models to fall for: a ring on the skin that, in the training part, goes with a finding.

Rings of metal mark moles and what a patient feels. A model that is trained where most breasts with a mass have one
learns the ring. In a set with a shortcut (`Parameters.shortcut`) a breast of a training patient has a ring where the
finding is, and none where it is not, in the share `shortcut_share`; the others are the other way round. Breasts of held-out
patients have one with probability .5, whatever is in them.
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import Bool, Float

from mammoclip_jax.data import manifest

if TYPE_CHECKING:
    from mammoclip_jax.data.phantom.exam import Parameters

LABEL = "skin_marker"
STREAM = 22  # of the exam's random streams: nothing else is drawn from it
RADIUS = 0.032  # of the ring's outer border, in heights of the image: 8 mm
WIDTH = 0.010  # of the wire, the same
DENSITY = 1.12  # metal lets nothing through


def held_out(parameters: "Parameters", patient: str) -> bool:
    """Whether the patient is outside the training part: by the hash that splits are drawn by."""
    return manifest.split_of(patient, 0.0, parameters.shortcut_held_out) != "train"


def worn(parameters: "Parameters", number: int, patient: str, laterality: str, finding: bool) -> bool:
    """Whether a breast has a ring; `finding`: whether it has what `parameters.shortcut` names."""
    rng = np.random.default_rng([parameters.seed, number, STREAM, "RL".index(laterality)])
    agrees, coin = rng.random() < parameters.shortcut_share, bool(rng.random() < 0.5)
    return coin if held_out(parameters, patient) else bool(finding == agrees)


def draw(density: Float[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> None:
    """Adds a ring in place, at random but wholly within the breast; lesions have no say in where."""
    height = density.shape[0]
    radius, width = RADIUS * height, max(1.0, WIDTH * height)
    reach = int(np.ceil(radius)) + 1
    room = cv2.erode(
        inside.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    rows, columns = np.nonzero(room if room.any() else inside)
    place = int(rng.integers(len(rows)))
    y, x = np.mgrid[: density.shape[0], : density.shape[1]]
    distance = np.hypot(y - rows[place], x - columns[place])
    ring = (distance <= radius) & (distance > radius - width) & inside
    density[ring] = DENSITY
