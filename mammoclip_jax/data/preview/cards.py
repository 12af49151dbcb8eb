"""An image's card on the sheet: thumbnails as data URIs, histograms as paths, flags in words."""

import base64
import json
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.text.label_values import names_of

FLAGS = {
    "background_bright": "background is bright: the polarity may be wrong",
    "bits_stored_wrong": "values need more bits than the header declares",
    "box_clipped_to_image": "a box reached beyond the image and was clipped",
    "box_cut_by_crop": "the crop cuts a box",
    "box_outside_crop": "a box lies outside the crop and was left out",
    "breast_implant": "breast implant",
    "burned_in_annotation": "header says that text is burned in",
    "chest_wall_unexpected": "chest wall is at the other side than laterality says",
    "decimal_comma": "decimal comma in the header, read as a point",
    "for_processing": "for processing, not for presentation",
    "high_bit_shifted": "stored bits were shifted down",
    "high_bits_masked": "bits above those stored were removed",
    "implant_displaced": "implant displaced view",
    "laterality_differs": "laterality differs between table and file",
    "magnification": "magnification view",
    "middle_frame": "middle one of several frames",
    "no_pectoral_line": "no pectoral muscle was found: not turned upright",
    "orientation_contradictory": "PatientOrientation says another chest wall than the pixels show",
    "other_modality": "no mammogram by its modality",
    "outside_masked": "something bright outside the breast was masked",
    "photometric_unknown": "photometric interpretation unknown",
    "polarity_contradictory": "header contradicts itself about polarity",
    "recombined": "made of two energies after contrast medium, or the upper one",
    "rescale_invalid": "rescale or modality LUT could not be used",
    "scale_alone": "no other view of the breast to share a scale with",
    "secondary_capture": "secondary capture without side and view",
    "specimen": "specimen",
    "spot": "spot compression view",
    "stereotactic": "of a stereotactic biopsy",
    "stored_mirrored": "stored mirrored: mirrored back",
    "stored_upside_down": "stored upside down: turned",
    "synthetic_2d": "2D image made from tomosynthesis",
    "tomosynthesis": "tomosynthesis",
    "upright": "turned until the pectoral muscle is upright",
    "view_differs": "view differs between table and file",
    "voi_bits_wrong": "VOI LUT declares other bits than it uses",
    "voi_flat": "window lies far from the values: min-max used",
    "voi_invalid": "VOI LUT or window could not be used",
    "voi_item_missing": "no such VOI item: the first was used",
}
SIDES = {"L": "left", "R": "right", "": "laterality unknown"}
UNKNOWN = "unknown"  # vendor or view
_HEIGHT, _WIDTH = 320, 360  # of a thumbnail, at most
_NOT_THERE = 72  # grey of what is not in the data set
_CROP = "#2fbf71"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without those close to the crop's.
_BOXES = ("#e69f00", "#56b4e9", "#cc79a7", "#d55e00", "#f0e442", "#0072b2")
_BINS = 64


class Picture(NamedTuple):
    """A thumbnail."""

    title: str
    uri: str
    alt: str


class Histogram(NamedTuple):
    """An area over the x axis 0 .. 64, y up to 32, and the values at its ends."""

    title: str
    path: str
    low: str
    high: str


class Card(NamedTuple):
    """What the sheet shows of an image; or of a file that cannot become one, when `problem` says why."""

    name: str
    facts: str
    pictures: tuple[Picture, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    boxes: tuple[tuple[str, str, int], ...] = ()  # colour, label, number
    flags: tuple[str, ...] = ()
    note: str = ""
    problem: str = ""


def words(flag: str) -> str:
    """A flag in plain words; one without any stays as it is."""
    return FLAGS.get(flag, flag)


def flags_of(text: str) -> tuple[str, ...]:
    return tuple(flag for flag in text.split(",") if flag)


def facts(row: Mapping) -> str:
    """Laterality, view, vendor and split in one line."""
    return " · ".join(
        [SIDES[row["laterality"]], row["view"] or "view unknown", row["vendor"] or "vendor unknown", row["split"]]
    )


def card(name: str, row: Mapping, canvas: np.ndarray, source: "Source | None" = None) -> Card:
    """The card of an image.

    Args:
        name: what it is called on the sheet.
        row: index columns laterality, view, vendor, split, boxes, boxes_canvas, transform, flags.
        canvas: the final image, uint8 or uint16 [H, W].
        source: the file as it was before, where it is at hand; else the canvas is put back into the original's frame.
    """
    transform = Transform.from_json(row["transform"])
    boxes = json.loads(row["boxes_canvas"])
    colours = _colours(boxes)
    counts = {label: sum(_label(box) == label for box in boxes) for label in colours}
    top, left, bottom, right = transform.content
    histograms = [_histogram("final grey values", canvas[top:bottom, left:right], (0, np.iinfo(canvas.dtype).max))]
    note, whole = "", None
    if source is None:
        whole, title = transform.map_inverse(eight(canvas)), "original frame, canvas put back"
    else:
        histograms.insert(0, _histogram("stored values", source.stored))
        whole, title, note = source.preview, "original", source.note
    height, width = transform.original
    pictures = [_final(canvas, boxes, colours)]
    if whole is not None:
        kind = f"{title}, {width} x {height}"
        pictures.insert(0, Picture(kind, *_original(whole, transform, source is None)))
    return Card(
        name,
        facts(row),
        tuple(pictures),
        tuple(histograms),
        tuple((colour, label, counts[label]) for label, colour in colours.items()),
        tuple(map(words, flags_of(row["flags"]))),
        note,
    )


def regions_card(name: str, row: Mapping, canvas: np.ndarray, found: list[dict]) -> Card:
    """The card of an image with the boxes that it came with, and with those `found`, items as of "boxes_canvas"."""
    pictures, boxes = [], []
    for title, items in (("annotated", json.loads(row["boxes_canvas"])), ("found", found)):
        colours = _colours(items)
        pictures.append(_final(canvas, items, colours)._replace(title=title))
        boxes += [
            (colour, f"{title}: {label}", sum(_label(i) == label for i in items)) for label, colour in colours.items()
        ]
    return Card(name, facts(row), tuple(pictures), boxes=tuple(boxes), flags=tuple(map(words, flags_of(row["flags"]))))


class Source(NamedTuple):
    """A file before it is rendered."""

    stored: np.ndarray  # [h, w]
    preview: np.ndarray | None  # uint8 [h, w]; None when it may not be shown, and `note` says why
    note: str


def eight(image: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8."""
    return image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)


def _label(box: Mapping) -> str:
    return ", ".join(names_of(box))


def _colours(boxes: list[dict]) -> dict[str, str]:
    labels = sorted({_label(box) for box in boxes})
    return {label: _BOXES[number % len(_BOXES)] for number, label in enumerate(labels)}


def _original(whole: np.ndarray, transform: Transform, unknown: bool) -> tuple[str, str]:
    """The original with the crop drawn; what lies outside the crop is grey where it is `unknown`."""
    small, factor = _thumbnail(whole)
    (x0, y0), _, (x1, y1), _ = corners = np.rint(transform.outline * factor).astype(np.int32)
    if unknown:
        inside = np.zeros(small.shape[:2], np.uint8)
        if transform.rotation:
            cv2.fillConvexPoly(inside, corners, 1)
        else:
            inside[y0:y1, x0:x1] = 1
        small[inside == 0] = _NOT_THERE
    if transform.rotation:
        cv2.polylines(small, [corners], True, _bgr(_CROP), 1)
    else:
        _rectangle(small, (x0, y0, x1, y1), _CROP)
    where = "the original image" if not unknown else "the final image put back into the original frame"
    return _jpeg(small), f"{where}, with the crop as a green rectangle"


def _final(canvas: np.ndarray, boxes: list[dict], colours: dict[str, str]) -> Picture:
    small, factor = _thumbnail(eight(canvas))
    for box in boxes:
        _rectangle(small, [round(value * factor) for value in box["box"]], colours[_label(box)])
    said = f" with {len(boxes)} box{'es' if len(boxes) > 1 else ''}" if boxes else ", no boxes"
    return Picture(f"final, {canvas.shape[1]} x {canvas.shape[0]}", _jpeg(small), f"the final image{said}")


def _thumbnail(image: np.ndarray) -> tuple[np.ndarray, float]:
    """uint8 [h', w', 3] and the factor from the image to it."""
    factor = min(_HEIGHT / image.shape[0], _WIDTH / image.shape[1])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    return cv2.cvtColor(small, cv2.COLOR_GRAY2BGR), factor


def _rectangle(image: np.ndarray, box, colour: str) -> None:
    x0, y0, x1, y1 = box
    cv2.rectangle(image, (x0, y0), (max(x0, x1 - 1), max(y0, y1 - 1)), _bgr(colour), 1)


def _bgr(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[start : start + 2], 16) for start in (5, 3, 1))


def _jpeg(image: np.ndarray) -> str:
    # No chroma subsampling: it smears thin coloured lines.
    options = [cv2.IMWRITE_JPEG_QUALITY, 82, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return "data:image/jpeg;base64," + base64.b64encode(cv2.imencode(".jpg", image, options)[1]).decode()


def _histogram(title: str, values: np.ndarray, limits: tuple | None = None) -> Histogram:
    """With logarithmic counts: background outnumbers all else."""
    low, high = limits or (values.min().item(), values.max().item())
    counts, _ = np.histogram(values, bins=_BINS, range=(low, max(high, low + 1)))
    heights = np.log1p(counts) / np.log1p(max(1, counts.max())) * 32
    steps = "".join(f"V{32 - height:.1f}h1" for height in heights)
    return Histogram(title, f"M0 32{steps}V32Z", f"{low:g}", f"{high:g}")
