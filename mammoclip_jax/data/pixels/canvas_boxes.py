"""Boxes of an image on its canvas. Apart from rendering, which reads files: the streams of batches need only this."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mammoclip_jax.data.pixels.geometry import Transform


class Boxes(NamedTuple):
    """Boxes of an image after rendering, as the JSON of the index."""

    original: str  # clipped to the image
    canvas: str  # in canvas pixels, clipped to the crop; boxes outside the crop are left out
    flags: tuple[str, ...]


def place_boxes(boxes: str, transform: Transform) -> Boxes:
    """`boxes` (JSON, original pixels) on the canvas.

    Raises:
        ValueError: a box lies outside the image: table and file do not belong together.
    """
    height, width = transform.original
    kept, placed, flags = [], [], []
    for item in json.loads(boxes):
        box = _clip(item["box"], (0, 0, width, height))
        if box is None:
            raise ValueError(f"box {item['box']} in an image of width {width} and height {height}")
        if box != [float(value) for value in item["box"]]:
            flags.append("box_clipped_to_image")
        kept.append(item | {"box": box})
        whole, inside = _on_canvas(box, transform)
        if inside is None:
            flags.append("box_outside_crop")
            continue
        if not np.allclose(inside, whole, atol=1e-6):
            flags.append("box_cut_by_crop")
        placed.append(item | {"box": _rounded(inside)})
    return Boxes(json.dumps(kept), json.dumps(placed), tuple(dict.fromkeys(flags)))


def canvas_box(box: Sequence[float], transform: Transform) -> list[float] | None:
    """Where `place_boxes` puts a box of the image; None outside the crop."""
    _, inside = _on_canvas(box, transform)
    return None if inside is None else _rounded(inside)


def _on_canvas(box: Sequence[float], transform: Transform) -> tuple[np.ndarray, list[float] | None]:
    """The whole box in canvas pixels, and the part of it within the crop."""
    top, left, bottom, right = transform.content
    whole = transform.boxes([box])[0]
    return whole, _clip(whole, (left, top, right, bottom))


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in box]


def _clip(box, bounds: tuple[int, int, int, int]) -> list[float] | None:
    x0, y0 = max(box[0], bounds[0]), max(box[1], bounds[1])
    x1, y1 = min(box[2], bounds[2]), min(box[3], bounds[3])
    return [float(x0), float(y0), float(x1), float(y1)] if x0 < x1 and y0 < y1 else None
