"""How pixels become a canvas, as fields with their choices: what flags, dataset.json and checkpoints hold. Imports little."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

POLICIES = ("voi", "published", "raw_minmax")  # intensity.py
CROPS = ("robust", "published", "none")
GEOMETRIES = ("fit", "stretch")
OUTSIDES = ("masked", "kept", "")
CHEST_WALLS = ("left", "as_is", "centre")
FRAMES = ("refuse", "middle")
SCALES = ("image", "breast")
CHOICES = {
    "geometry": GEOMETRIES,
    "intensity": POLICIES,
    "crop": CROPS,
    "bits": (8, 16),
    "outside": OUTSIDES,
    "chest_wall": CHEST_WALLS,
    "frames": FRAMES,
    "upright": (False, True),
    "scale": SCALES,
}
LATER = {"upright": False, "scale": "image"}  # written only where they are chosen: older folders and runs lack them


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pixels become a canvas; written into dataset.json and carried by every checkpoint."""

    geometry: str = "fit"  # "fit": aspect kept, chest wall at the left; "stretch": as Mammo-CLIP
    height: int = 1520
    width: int = 912
    intensity: str = "voi"  # a policy of intensity.py
    bits: int = 8
    crop: str = "robust"
    outside: str = ""  # "masked": outside the breast all becomes background, burned-in text too; "kept";
    # "" is "kept" with intensity "published", else "masked"
    # With geometry "fit"; "as_is": only what was stored mirrored is mirrored; "centre": the same, and the image stands
    # in the middle of the canvas, as of a chest.
    chest_wall: str = "left"
    frames: str = "refuse"  # multi-frame files (tomosynthesis), or their "middle" frame
    voi_item: int = 0  # which of several VOI LUTs and windows
    upright: bool = False  # MLO views are turned until the pectoral muscle's edge is the chest wall's side
    scale: str = "image"  # with geometry "fit": as large as fits, or the "breast"'s CC and MLO views alike

    def __post_init__(self):
        for name, known in CHOICES.items():
            _choice(name, getattr(self, name), known)
        if self.scale == "breast" and self.geometry != "fit":
            raise UserError(f"geometry {self.geometry!r} keeps no scale: use scale 'image', or geometry 'fit'")
        if self.voi_item < 0:
            raise UserError(f"there is no voi_item {self.voi_item}; use 0 for the first VOI LUT or window")
        if not (1 <= self.height <= 65535 and 1 <= self.width <= 65535):
            raise UserError(f"a canvas of height {self.height} and width {self.width} cannot be made; use 1 to 65535")
        if self.intensity == "published" and self.bits != 8:
            raise UserError("intensity 'published' gives 8-bit images: use --bits=8, or another intensity")

    @property
    def masks(self) -> bool:
        """Whether what lies outside the breast becomes background."""
        return self.outside == "masked" or (not self.outside and self.intensity != "published")

    def as_dict(self) -> dict[str, Any]:
        """The fields as dataset.json and checkpoints hold them."""
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in LATER or value != LATER[name]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The preprocessing that a dataset.json or a checkpoint names.

        One written before `outside` existed was made without masking, and the other new fields had no choice.

        Raises:
            UserError: there is a field that this version does not know.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"there is no preprocessing field {name!r}.{suggestion(name, known)} Known: "
                    f"{', '.join(known)}. A newer version may have written it: update this one."
                )
        return cls(**{"outside": "kept"} | dict(values))


def _choice(field: str, value, known: tuple) -> None:
    if value not in known:
        hint = suggestion(str(value), map(str, known))
        names = ", ".join(str(option) for option in known if option != "")
        raise UserError(f"there is no {field} {value!r}.{hint} Known: {names}.")
