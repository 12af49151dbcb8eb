"""One file -> one canvas: the per-image function that `prepare` maps over a data set and `predict` over an exam."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mammoclip_jax.data import breast, dicom, geometry, intensity
from mammoclip_jax.data.geometry import Transform
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

CROPS = ("robust", "published", "none")
GEOMETRIES = ("fit", "stretch")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pixels become a canvas; written into dataset.json and carried by every checkpoint."""

    geometry: str = "fit"           # "fit": aspect kept, chest wall at the left; "stretch": as Mammo-CLIP
    height: int = 1520
    width: int = 912
    intensity: str = "voi"          # a policy of intensity.py
    bits: int = 8
    crop: str = "robust"

    def __post_init__(self):
        _choice("geometry", self.geometry, GEOMETRIES)
        _choice("intensity", self.intensity, intensity.POLICIES)
        _choice("crop", self.crop, CROPS)
        _choice("bits", self.bits, (8, 16))
        if not (1 <= self.height <= 65535 and 1 <= self.width <= 65535):
            raise UserError(f"a canvas of height {self.height} and width {self.width} cannot be made; use 1 to 65535")
        if self.intensity == "published" and self.bits != 8:
            raise UserError("intensity 'published' gives 8-bit images: use --bits=8, or another intensity")


def _choice(field: str, value, known: tuple) -> None:
    if value not in known:
        hint = suggestion(str(value), map(str, known))
        raise UserError(f"there is no {field} {value!r}.{hint} Known: {', '.join(map(str, known))}.")


class Rendered(NamedTuple):
    """A file on its canvas."""

    image: np.ndarray               # [H, W] uint8 or uint16
    transform: Transform
    fields: dicom.Fields
    laterality: str                 # the table's, else the file's
    view: str
    flags: tuple[str, ...]


def render(path: Path | str, preprocessing: Preprocessing, laterality: str = "", view: str = "") -> Rendered:
    """Decodes, crops, resizes and quantises a file. What the caller knows of laterality and view goes first.

    Raises:
        dicom.Unreadable: the file cannot become an image.
    """
    decoded = dicom.read(path)
    try:
        grey = intensity.grey(decoded, preprocessing.intensity)
    except intensity.FlatImage:
        raise dicom.Unreadable(path, "pixels", "constant image", "export the image again") from None
    fields = decoded.fields
    flags = list(grey.flags)
    for name, told, found in (("laterality", laterality, fields.laterality), ("view", view, fields.view)):
        if told and found and told != found:
            flags.append(f"{name}_differs")
    laterality, view = laterality or fields.laterality, view or fields.view
    crop = find_crop(grey, preprocessing.crop)
    side = chest_wall(grey.array, crop, laterality, flags) if preprocessing.geometry == "fit" else ""
    transform = make_transform(grey.array.shape, crop, preprocessing, side)
    image = quantise(transform.image(grey.array), preprocessing.bits)
    return Rendered(image, transform, fields, laterality, view, tuple(flags))


def find_crop(grey: intensity.Grey, method: str) -> breast.Crop:
    """y0, x0, y1, x1 in the original image, within the part of it that counts."""
    y0, x0, y1, x1 = grey.inside
    if method == "none":
        return grey.inside
    inner = grey.array[y0:y1, x0:x1]
    if method == "robust":
        found = breast.robust_crop(inner)
    else:
        found = breast.published_crop(inner if inner.dtype == np.uint8 else (inner * 255).astype(np.uint8))
    return (y0 + found[0], x0 + found[1], y0 + found[2], x0 + found[3])


def chest_wall(array: np.ndarray, crop: breast.Crop, laterality: str, flags: list[str]) -> str:
    """Side of the chest wall, "left" or "right": where the pixels show it; where they do not, as laterality says."""
    y0, x0, y1, x1 = crop
    expected = {"L": "left", "R": "right", "": ""}[laterality]
    seen = breast.chest_wall_side(array) or breast.chest_wall_side(array[y0:y1, x0:x1])
    if seen and expected and seen != expected:
        flags.append("chest_wall_unexpected")
    return seen or expected


def make_transform(
    original: tuple[int, int], crop: breast.Crop, preprocessing: Preprocessing, side: str,
) -> Transform:
    """The transform of a crop whose chest wall is at `side` ("left", "right", "" unknown; `fit` only)."""
    canvas = (preprocessing.height, preprocessing.width)
    if preprocessing.geometry == "stretch":
        return geometry.stretch(original, crop, canvas)
    lies_like = {"left": "L", "right": "R", "": ""}[side]
    return geometry.fit(original, crop, canvas, chest_wall="left", laterality=lies_like)


def quantise(image: np.ndarray, bits: int) -> np.ndarray:
    """float [0, 1] -> uint8 or uint16, rounded; uint8 stays as it is."""
    if image.dtype == np.uint8:
        return image
    top = 2**bits - 1
    return np.rint(np.clip(image, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)


class Boxes(NamedTuple):
    """Boxes of an image after rendering, as the JSON of the index."""

    original: str                   # clipped to the image
    canvas: str                     # in canvas pixels, clipped to the crop; boxes outside the crop are left out
    flags: tuple[str, ...]


def place_boxes(boxes: str, transform: Transform) -> Boxes:
    """`boxes` (JSON, original pixels) on the canvas.

    Raises:
        ValueError: a box lies outside the image: table and file do not belong together.
    """
    height, width = transform.original
    top, left, bottom, right = transform.content
    kept, placed, flags = [], [], []
    for item in json.loads(boxes):
        box = _clip(item["box"], (0, 0, width, height))
        if box is None:
            raise ValueError(f"box {item['box']} in an image of width {width} and height {height}")
        if box != [float(value) for value in item["box"]]:
            flags.append("box_clipped_to_image")
        kept.append(item | {"box": box})
        whole = transform.boxes([box])[0]
        inside = _clip(whole, (left, top, right, bottom))
        if inside is None:
            flags.append("box_outside_crop")
            continue
        if not np.allclose(inside, whole, atol=1e-6):
            flags.append("box_cut_by_crop")
        placed.append(item | {"box": [round(value, 3) for value in inside]})
    return Boxes(json.dumps(kept), json.dumps(placed), tuple(dict.fromkeys(flags)))


def _clip(box, bounds: tuple[int, int, int, int]) -> list[float] | None:
    x0, y0 = max(box[0], bounds[0]), max(box[1], bounds[1])
    x1, y1 = min(box[2], bounds[2]), min(box[3], bounds[3])
    return [float(x0), float(y0), float(x1), float(y1)] if x0 < x1 and y0 < y1 else None
