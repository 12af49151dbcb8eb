"""One file -> one canvas: the per-image function that `prepare` maps over a data set and `predict` over an exam."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.pixels import breast, dicom, geometry, intensity, orientation, outside, upright
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.preprocessing import CHOICES as CHOICES  # handed on
from mammoclip_jax.data.pixels.preprocessing import Preprocessing

SIDES = {"L": "left", "R": "right", "": ""}  # of the chest wall, as mammograms are displayed


class Source(NamedTuple):
    """A file, and what the caller knows of it ("" unknown)."""

    path: Path | str
    laterality: str = ""
    view: str = ""


class Rendered(NamedTuple):
    """A file on its canvas."""

    image: np.ndarray  # [H, W] uint8 or uint16
    transform: Transform
    fields: dicom.Fields
    laterality: str  # the table's, else the file's
    view: str
    flags: tuple[str, ...]


def render(
    path: Path | str, preprocessing: Preprocessing, laterality: str = "", view: str = "", others: Sequence[Source] = ()
) -> Rendered:
    """Decodes, crops, masks, resizes and quantises a file. What the caller knows of laterality and view goes first.

    What the header says is stored mirrored or upside down is turned; where the pixels show the chest wall at the other
    side than it says, it is not believed. `others` are the other files of the breast, for scale "breast".

    Flags beside those of decoding: laterality_differs, view_differs (table against file), stored_mirrored,
    stored_upside_down, orientation_contradictory (the pixels against the header), chest_wall_unexpected (the pixels
    against laterality), upright, no_pectoral_line (an MLO view that was turned, or was not), scale_alone (the breast
    has no other view to share a scale with), outside_masked (something bright outside the breast went).

    Raises:
        dicom.Unreadable: the file cannot become an image.
    """
    laid, alone = _lay(Source(path, laterality, view), preprocessing), ()
    largest = math.inf
    if preprocessing.scale == "breast":
        largest = _shared_scale(laid, others, preprocessing)
        alone = ("scale_alone",) if math.isinf(largest) else ()
    transform = make_transform(laid.grey.shape, laid.crop, preprocessing, laid.side, laid.flags, laid.rotation, largest)
    part, masked = _part(laid, transform, preprocessing)
    image = quantise(transform.place(part), preprocessing.bits)
    flags = laid.flags + alone + ("outside_masked",) * masked
    return Rendered(image, transform, laid.fields, laid.laterality, laid.view, flags)


class _Laid(NamedTuple):
    """What is found in a file before there is a canvas."""

    grey: intensity.Grey
    fields: dicom.Fields
    laterality: str
    view: str
    flags: tuple[str, ...]
    searched: np.ndarray  # uint8 [h, w], before the window, which may hide the skin
    seen: breast.Found
    side: str  # of the chest wall, "" unknown
    cut: breast.Crop  # of the original
    rotation: float
    crop: breast.Crop  # of the rotated original


def _lay(source: Source, preprocessing: Preprocessing) -> _Laid:
    decoded = dicom.read(source.path, preprocessing.frames)
    try:
        grey = intensity.grey(decoded, preprocessing.intensity, preprocessing.voi_item)
    except intensity.FlatImage:
        raise dicom.Unreadable(source.path, "pixels", "constant image", "export the image again") from None
    fields = decoded.fields
    flags = list(grey.flags)
    for name, told, stored in (
        ("laterality", source.laterality, fields.laterality),
        ("view", source.view, fields.view),
    ):
        if told and stored and told != stored:
            flags.append(f"{name}_differs")
    own = "" if preprocessing.chest_wall == "centre" else fields.laterality  # a breast's; a chest has both sides
    laterality, view = source.laterality or own, source.view or fields.view
    searched = grey.search()
    seen = breast.find(inner(searched, grey.inside))
    cut = find_crop(searched, grey.inside, seen, preprocessing.crop)
    side, told = breast.side_of(seen.mask), orientation.stored(decoded.header, laterality, view)
    flags += (turns := orientation_flags(side, told, laterality))
    side = side or told.chest_wall or SIDES[laterality]
    turn = None
    if preprocessing.upright and view == "MLO":
        turn = upright.find(searched, grey.inside, seen, cut, side, "stored_upside_down" in turns)
        flags.append("upright" if turn else "no_pectoral_line")
    return _Laid(grey, fields, laterality, view, tuple(flags), searched, seen, side, cut, *(turn or (0.0, cut)))


def _shared_scale(laid: _Laid, others: Sequence[Source], preprocessing: Preprocessing) -> float:
    """The scale at which the other screening views of the breast fit as well; infinite where there is none."""
    canvas, found = (preprocessing.height, preprocessing.width), [(_view(laid), 0.0)]
    for other in others:
        try:
            seen = _lay(other, preprocessing)
        except dicom.Unreadable:  # it will not stand beside this one
            continue
        found.append((_view(seen), geometry.fitting(seen.crop, canvas)))
    named = [
        not reason and view.view for (view, _), reason in zip(found, units.not_screening([view for view, _ in found]))
    ]
    return min((scale for (_, scale), one in zip(found[1:], named[1:]) if one and named[0]), default=math.inf)


def _view(laid: _Laid) -> units.View:
    return units.View(laid.laterality, laid.view, laid.flags)


def _part(laid: _Laid, transform: Transform, preprocessing: Preprocessing) -> tuple[np.ndarray, bool]:
    """The crop at the size that it has on the canvas, masked; and whether something bright went."""
    top, left, bottom, right = transform.content
    size = (bottom - top, right - left)
    # A mask follows the original's rows.
    part = laid.grey.region(*laid.cut) if laid.rotation else laid.grey.resized(laid.cut, size)
    masked = preprocessing.masks and mask_outside(part, laid.searched, laid.grey.inside, laid.seen, laid.cut)
    if laid.rotation:
        part = geometry.resize(transform.cut(part, laid.cut[:2]), size)
    return part, masked


def inner(image: np.ndarray, inside: breast.Crop) -> np.ndarray:
    """The part of an image that counts."""
    y0, x0, y1, x1 = inside
    return image[y0:y1, x0:x1]


def find_crop(searched: np.ndarray, inside: breast.Crop, seen: breast.Found, method: str) -> breast.Crop:
    """y0, x0, y1, x1 in the original image, within the part of it that counts, in which `seen` was found."""
    if method == "none":
        return inside
    part = inner(searched, inside)
    crop = breast.crop_of(seen, part.shape) if method == "robust" else breast.published_crop(part)
    y0, x0 = inside[:2]
    return (y0 + crop[0], x0 + crop[1], y0 + crop[2], x0 + crop[3])


def mask_outside(
    part: np.ndarray, searched: np.ndarray, inside: breast.Crop, seen: breast.Found, crop: breast.Crop
) -> bool:
    """Fills, in place, what of `part`, the crop at any size, lies outside the breast; whether something bright went."""
    whole = inner(searched, inside)
    kept = outside.keep(whole, seen)
    top, left = inside[:2]
    return kept is not None and outside.cover(
        part, kept, whole.shape, (crop[0] - top, crop[1] - left, crop[2] - top, crop[3] - left)
    )


def orientation_flags(side: str, told: orientation.Stored, laterality: str) -> list[str]:
    """What is odd about the way round: `side` of the chest wall as the pixels show it, header and laterality.

    Any of them may be "", unknown.
    """
    if side and told.chest_wall and side != told.chest_wall:
        unexpected = laterality and side != SIDES[laterality]
        return ["orientation_contradictory"] + ["chest_wall_unexpected"] * bool(unexpected)
    flags = ["stored_upside_down"] if told.upside_down else []
    if laterality and (side or told.chest_wall or SIDES[laterality]) != SIDES[laterality]:
        flags.append("stored_mirrored" if told.chest_wall else "chest_wall_unexpected")
    return flags


def make_transform(
    original: tuple[int, int],
    crop: breast.Crop,
    preprocessing: Preprocessing,
    side: str,
    turns: Sequence[str] = (),
    rotation: float = 0.0,
    largest: float = math.inf,
) -> Transform:
    """The transform of a crop whose chest wall is at `side` ("left", "right", "" unknown; `fit` only).

    `turns` may hold the flags stored_mirrored and stored_upside_down, which then is undone. `largest` bounds the scale.
    """
    canvas, mirrored = (preprocessing.height, preprocessing.width), "stored_mirrored" in turns
    if preprocessing.geometry == "stretch":
        made = dataclasses.replace(geometry.stretch(original, crop, canvas), flip_horizontal=mirrored)
    elif preprocessing.chest_wall == "centre":
        made = geometry.fit(original, crop, canvas, chest_wall="centre", largest=largest)
        made = dataclasses.replace(made, flip_horizontal=mirrored)
    else:
        wanted = "left" if preprocessing.chest_wall == "left" or (side == "right") == mirrored else "right"
        lies_like = {"left": "L", "right": "R", "": ""}[side]
        made = geometry.fit(original, crop, canvas, chest_wall=wanted, laterality=lies_like, largest=largest)
    return dataclasses.replace(made, flip_vertical="stored_upside_down" in turns, rotation=rotation)


def quantise(image: np.ndarray, bits: int) -> np.ndarray:
    """float [0, 1] -> uint8 or uint16, rounded; uint8 stays as it is."""
    if image.dtype == np.uint8:
        return image
    top = 2**bits - 1
    return np.rint(np.clip(image, 0, 1) * top).astype(np.uint8 if bits == 8 else np.uint16)
