"""A heat map over a grey image with its boxes, or masks, as PNG bytes; and the pictures that are kept of a view."""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIDE = 1024  # pixels of the longer side of the pictures that are kept of a view, at most
OPACITY = 0.6  # of the hottest cell of a map

# BGR. White on black shows on any tissue and any heat.
_LINE, _EDGE = (255, 255, 255), (0, 0, 0)
_FOUND = (0, 159, 230)  # Okabe and Ito's orange
MASKS = ((115, 158, 0), (233, 180, 86), _FOUND, (66, 228, 240))  # their bluish green, sky blue, orange, yellow


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w] for display from uint8 or uint16 [h, w]."""
    return image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)


def colours(image: np.ndarray, heat: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """BGR uint8 [h, w, 3]: `heat` [h, w] in [0, 1] in cv2's TURBO colours over `image` [h, w] uint8 or uint16.

    The opacity grows with the heat, so cold tissue stays as it is on film.
    """
    heat = np.clip(np.nan_to_num(heat.astype(np.float32)), 0, 1)
    base = cv2.cvtColor(grey(image), cv2.COLOR_GRAY2BGR).astype(np.float32)
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO).astype(np.float32)
    alpha = (opacity * np.sqrt(heat))[..., None]
    return (base * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def draw(
    image: np.ndarray, heat: np.ndarray | None = None, boxes: Iterable = (), peak: tuple | None = None, side: int = 0
) -> np.ndarray:
    """BGR uint8 of `image` [h, w] uint8 or uint16 with `heat` [h, w] in [0, 1] over it.

    `boxes` (x0, y0, x1, y1) and `peak` (x, y) are in pixels of `image`. `side`: pixels of the result's longer side; 0
    keeps the size.
    """
    canvas = cv2.cvtColor(grey(image), cv2.COLOR_GRAY2BGR) if heat is None else colours(image, heat)
    height, width = canvas.shape[:2]
    scale = side / max(height, width) if side else 1.0
    if scale != 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    line = _line(canvas)
    _rectangles(canvas, boxes, scale, _LINE)
    if peak is not None:
        centre = tuple(int(float(c) * scale) for c in peak)
        for colour, thickness in ((_EDGE, line + 2), (_LINE, line)):
            cv2.drawMarker(canvas, centre, colour, cv2.MARKER_CROSS, 6 * line, thickness)
    return canvas


def detections(image: np.ndarray, truth: Iterable, found: Iterable, scores: Iterable, side: int = 0) -> bytes:
    """PNG bytes of `image` with its true boxes in white and the boxes `found` in orange, with their scores."""
    canvas = draw(image, None, truth, None, side)
    scale, found, line = canvas.shape[0] / image.shape[0], list(found), _line(canvas)
    _rectangles(canvas, found, scale, _FOUND)
    for box, score in zip(found, scores, strict=True):
        place = (round(float(box[0]) * scale), max(round(float(box[1]) * scale) - 2 * line, 8 * line))
        for colour, thickness in ((_EDGE, line + 2), (_FOUND, (line + 1) // 2)):
            cv2.putText(
                canvas, f"{score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.3 * line, colour, thickness, cv2.LINE_AA
            )
    return png(canvas)


def _rectangles(canvas: np.ndarray, boxes: Iterable, scale: float, colour: tuple) -> None:
    line = _line(canvas)
    for box in boxes:
        x0, y0, x1, y1 = (round(float(corner) * scale) for corner in box)
        for each, thickness in ((_EDGE, line + 2), (colour, line)):
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), each, thickness)


def _line(canvas: np.ndarray) -> int:
    """Pixels of a line's width."""
    return max(1, round(max(canvas.shape[:2]) / 240))


def picture(
    image: np.ndarray, heat: np.ndarray | None = None, boxes: Iterable = (), peak: tuple | None = None, side: int = 0
) -> bytes:
    """PNG bytes of `draw` with the same arguments."""
    return png(draw(image, heat, boxes, peak, side))


def side_by_side(image: np.ndarray, heat: np.ndarray, boxes: Iterable, peak: tuple | None, side: int) -> bytes:
    """PNG bytes: the image with its boxes, and beside it the same under the heat map with its peak."""
    boxes = list(boxes)
    left, right = draw(image, None, boxes, None, side), draw(image, heat, boxes, peak, side)
    gap = np.zeros((left.shape[0], max(2, side // 80), 3), np.uint8)
    return png(np.hstack([left, gap, right]))


def png(image: np.ndarray) -> bytes:
    """PNG bytes of a grey [h, w] or BGR [h, w, 3] uint8 image."""
    return cv2.imencode(".png", image)[1].tobytes()


def masks(image: np.ndarray, found: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray], side: int) -> np.ndarray:
    """BGR uint8 of `image` [h, w] with the outlines of masks bool [h, w]: those found in a colour for each name, which
    stands below, the true ones in white."""
    scale = side / max(image.shape)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    canvas = draw(image, side=side)
    for outlined, colours in ((true, [_LINE] * len(true)), (found, MASKS)):
        for mask, colour in zip(outlined.values(), itertools.cycle(colours)):
            large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outlines, -1, colour, 1 if colour == _LINE else _line(canvas))
    legend = np.zeros((14 * len(found) + 4, canvas.shape[1], 3), np.uint8)
    for number, (name, colour) in enumerate(zip(found, itertools.cycle(MASKS)), start=1):
        cv2.putText(legend, name, (3, 14 * number - 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return np.vstack([canvas, legend])


class Pictures:
    """The pictures of one view in a folder, and their places in what is said of the view.

    "picture": the image alone, grey; "maps" {label: the map alone}, a layer to lay over it; "overlays" {label: both in
    one, with boxes and peak}: paths below the folder. All have one size, and the whole original in their frame.
    """

    def __init__(self, out: Path, view: dict[str, Any], shown: np.ndarray, side: int):
        """`shown` uint8 [h, w]: the original; `side`: pixels of the pictures' longer side at most, 0: as the original's.

        `view` must have its "name", which begins the names of the files.
        """
        self._out, self._view = out, view
        self._scale = min(side / max(shown.shape), 1.0) if side else 1.0
        self._size = (max(1, round(shown.shape[1] * self._scale)), max(1, round(shown.shape[0] * self._scale)))
        self._shown = self._resized(shown)  # once, before colours are laid over it: a film has 12 million pixels
        view |= {"picture": self._write("", png(self._shown)), "maps": {}, "overlays": {}}

    def add_map(self, label: str, heat: np.ndarray, boxes: Sequence, peak: Sequence | None) -> None:
        """Writes a map, float32 [h, w] in [0, 1] on the original, its boxes and peak in pixels of the original."""
        heat = self._resized(heat)
        self._view["maps"][label] = self._write(f"_{label}_map", layer(heat))
        peak = None if peak is None else tuple(np.multiply(peak, self._scale))
        composed = picture(self._shown, heat, self._scaled(boxes), peak)
        self._view["overlays"][label] = self._write(f"_{label}", composed)

    def add_boxes(self, label: str, boxes: Sequence, scores: Sequence) -> None:
        """Writes found boxes with their scores; there is no map."""
        drawn = detections(self._shown, (), self._scaled(boxes), scores)
        self._view["overlays"][label] = self._write(f"_{label}", drawn)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        return image if self._scale == 1 else cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)

    def _scaled(self, boxes: Sequence) -> np.ndarray:
        return np.reshape(boxes, (-1, 4)) * self._scale

    def _write(self, end: str, content: bytes) -> str:
        stem = re.sub(r"[^\w.+-]+", "-", self._view["name"] + end)
        number = 1
        while (path := self._out / "overlays" / f"{stem}{f'-{number}' * (number > 1)}.png").exists():
            number += 1  # of two labels that differ in signs alone
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path.relative_to(self._out).as_posix()


def layer(heat: np.ndarray) -> bytes:
    """PNG bytes of a map alone, [h, w] in [0, 1], to be laid over its image.

    One byte a pixel, the map in 255ths; the palette gives it the colours and opacity of `colours`.
    """
    heat = np.clip(np.nan_to_num(heat.astype(np.float32)), 0, 1)
    levels = np.arange(256)
    picture = Image.fromarray(np.rint(heat * 255).astype(np.uint8))
    colour = cv2.applyColorMap(levels.astype(np.uint8)[None], cv2.COLORMAP_TURBO)
    picture.putpalette(colour[0, :, ::-1].tobytes())
    opacity = np.rint(255 * OPACITY * np.sqrt(levels / 255)).astype(np.uint8)
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=opacity.tobytes())
    return stream.getvalue()


def sheet(pictures: Sequence[np.ndarray], columns: int = 5) -> np.ndarray:
    """BGR uint8: pictures [h, w, 3] of one size beside and below each other."""
    empty = [np.zeros_like(pictures[0])] * (-len(pictures) % min(columns, len(pictures)))
    cells = [np.pad(picture, ((0, 4), (0, 4), (0, 0))) for picture in [*pictures, *empty]]
    columns = min(columns, len(pictures))
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])
