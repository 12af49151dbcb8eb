"""Rotate, crop, turn, resize and place an image on a canvas as one invertible affine transform, which points, boxes and
maps follow.

Coordinates are continuous: x to the right, y down, origin at the top left corner, and pixel i covers [i, i + 1). A box
[x0, y0, x1, y1] is therefore the pixels x0 .. x1 - 1. `cv2.resize` uses the same convention.
"""

import dataclasses
import json
import math

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """original pixels -> rotate -> crop -> mirror, turn -> scale -> place on the canvas. All pairs are (y, x)."""

    original: tuple[int, int]  # height, width of the decoded image
    crop: tuple[int, int, int, int]  # y0, x0, y1, x1 in the rotated original, y1 and x1 exclusive
    flip_horizontal: bool  # the crop is mirrored before it is resized
    scale: tuple[float, float]  # canvas pixels per original pixel
    offset: tuple[int, int]  # of the resized crop in the canvas
    canvas: tuple[int, int]  # height, width of the result
    flip_vertical: bool = False  # the crop is turned upside down as well
    rotation: float = 0.0  # degrees about the original's centre, clockwise as seen

    def to_json(self) -> str:
        """Without the rotation where there is none, as before there was one."""
        values = dataclasses.asdict(self)
        return json.dumps(values if self.rotation else {name: values[name] for name in values if name != "rotation"})

    @classmethod
    def from_json(cls, text: str) -> "Transform":
        values = json.loads(text)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    @property
    def content(self) -> tuple[int, int, int, int]:
        """y0, x0, y1, x1 of the canvas that the crop covers; the rest is padding."""
        y0, x0, y1, x1 = self.crop
        height, width = round((y1 - y0) * self.scale[0]), round((x1 - x0) * self.scale[1])
        return (self.offset[0], self.offset[1], self.offset[0] + height, self.offset[1] + width)

    @property
    def outline(self) -> np.ndarray:
        """The corners of the crop in the original, float64 [4, 2] as (x, y), in order around it."""
        y0, x0, y1, x1 = self.crop
        return rotated(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64), -self.rotation, self.original)

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Points [N, 2] as (x, y) in the original -> the same in the canvas, float64. Nothing is clipped."""
        xy = rotated(np.asarray(xy, np.float64).reshape(-1, 2), self.rotation, self.original)
        y0, x0, y1, x1 = self.crop
        x = x1 - xy[:, 0] if self.flip_horizontal else xy[:, 0] - x0
        y = y1 - xy[:, 1] if self.flip_vertical else xy[:, 1] - y0
        return np.stack([x * self.scale[1] + self.offset[1], y * self.scale[0] + self.offset[0]], axis=1)

    def points_inverse(self, xy: np.ndarray) -> np.ndarray:
        """Points [N, 2] in the canvas -> in the original, float64."""
        xy = np.asarray(xy, np.float64).reshape(-1, 2)
        y0, x0, y1, x1 = self.crop
        x = (xy[:, 0] - self.offset[1]) / self.scale[1]
        y = (xy[:, 1] - self.offset[0]) / self.scale[0]
        xy = np.stack([x1 - x if self.flip_horizontal else x + x0, y1 - y if self.flip_vertical else y + y0], axis=1)
        return rotated(xy, -self.rotation, self.original)

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in the original -> in the canvas, float64, not clipped; of a rotated one the box around it."""
        return _hulls(self.points(_corners(xyxy)))

    def boxes_inverse(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in the canvas -> in the original, float64, not clipped; of a rotated one the box around it."""
        return _hulls(self.points_inverse(_corners(xyxy)))

    def image(self, array: np.ndarray) -> np.ndarray:
        """The canvas [H, W] of an original image [h, w], in its dtype; padding is 0."""
        return self.place(self.cut(array))

    def cut(self, array: np.ndarray, at: tuple[int, int] = (0, 0)) -> np.ndarray:
        """What the crop cuts out of the rotated original, [y1 - y0, x1 - x0] in the dtype of `array`.

        `array` is the part of the original whose first pixel is `at`; what lies outside it is 0 where it is rotated,
        else the part must hold the crop.
        """
        y0, x0, y1, x1 = self.crop
        if not self.rotation:
            return array[y0 - at[0] : y1 - at[0], x0 - at[1] : x1 - at[1]]
        return cv2.warpAffine(np.ascontiguousarray(array), self._warp(at), (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)

    def _warp(self, at: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Centres of the original's pixels, counted from `at`, -> of the rotated crop's, float64 [2, 3] as of OpenCV."""
        y0, x0 = self.crop[:2]
        ends = np.array([[at[1], at[0]], [at[1] + 1, at[0]], [at[1], at[0] + 1]], np.float64) + 0.5
        origin, right, down = rotated(ends, self.rotation, self.original) - [x0 + 0.5, y0 + 0.5]
        return np.stack([right - origin, down - origin, origin], axis=1)

    def place(self, region: np.ndarray) -> np.ndarray:
        """The canvas [H, W] of what the crop cuts out [y1 - y0, x1 - x0], in its dtype; padding is 0."""
        top, left, bottom, right = self.content
        part = resize(region, (bottom - top, right - left))
        if part.shape == self.canvas and not self.flip_horizontal and not self.flip_vertical:
            return part
        canvas = np.zeros(self.canvas, region.dtype)
        canvas[top:bottom, left:right] = self._turned(part)
        return canvas

    def _turned(self, part: np.ndarray) -> np.ndarray:
        """A view [h, w] mirrored and turned as the image is; a second time undoes it."""
        return part[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]

    def map_inverse(self, values: np.ndarray) -> np.ndarray:
        """A map on the canvas [H, W] (saliency) -> on the original [h, w]; 0 outside the crop."""
        top, left, bottom, right = self.content
        y0, x0, y1, x1 = self.crop
        part = self._turned(resize(values[top:bottom, left:right], (y1 - y0, x1 - x0)))
        if self.rotation:
            return cv2.warpAffine(
                np.ascontiguousarray(part),
                self._warp(),
                self.original[::-1],
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            )
        original = np.zeros(self.original, values.dtype)
        original[y0:y1, x0:x1] = part
        return original


def rotated(xy: np.ndarray, degrees: float, size: tuple[int, int]) -> np.ndarray:
    """Points [N, 2] as (x, y) of an image of `size` (height, width), turned about its centre, clockwise as seen."""
    if not degrees:
        return xy
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    centre = np.array([size[1], size[0]]) / 2
    return (xy - centre) @ np.array([[c, s], [-s, c]]) + centre


def frame(size: tuple[int, int], degrees: float) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 of the whole pixels that hold an image of `size` (height, width) once it is rotated."""
    x0, y0, x1, y1 = _hulls(rotated(_corners([0, 0, size[1], size[0]]), degrees, size))[0]
    rounding = 1e-9
    return (math.floor(y0 + rounding), math.floor(x0 + rounding), math.ceil(y1 - rounding), math.ceil(x1 - rounding))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] -> their corners [4N, 2] as (x, y), float64."""
    return np.asarray(boxes, np.float64).reshape(-1, 4)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)


def _hulls(corners: np.ndarray) -> np.ndarray:
    """Corners [4N, 2] -> boxes [N, 4] around them."""
    fours = corners.reshape(-1, 4, 2)
    return np.concatenate([fours.min(axis=1), fours.max(axis=1)], axis=1)


def resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] -> size: mean over areas along an axis that shrinks, linear along one that grows."""
    height, width = size
    smaller = (min(height, array.shape[0]), min(width, array.shape[1]))
    array = np.ascontiguousarray(array)
    if smaller != array.shape:
        array = cv2.resize(array, smaller[::-1], interpolation=cv2.INTER_AREA)
    if (height, width) != array.shape:
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
    return array


def whole(original: tuple[int, int]) -> tuple[int, int, int, int]:
    """The crop that keeps everything."""
    return (0, 0, original[0], original[1])


def stretch(original: tuple[int, int], crop: tuple[int, int, int, int], canvas: tuple[int, int]) -> Transform:
    """The crop fills the canvas, aspect ratio not kept and no side mirrored: as Mammo-CLIP does."""
    y0, x0, y1, x1 = crop
    scale = (canvas[0] / (y1 - y0), canvas[1] / (x1 - x0))
    return Transform(tuple(original), tuple(crop), False, scale, (0, 0), tuple(canvas))


def fitting(crop: tuple[int, int, int, int], canvas: tuple[int, int]) -> float:
    """Canvas pixels per original pixel at which a crop just fits, its aspect ratio kept."""
    y0, x0, y1, x1 = crop
    return min(canvas[0] / (y1 - y0), canvas[1] / (x1 - x0))


def fit(
    original: tuple[int, int],
    crop: tuple[int, int, int, int],
    canvas: tuple[int, int],
    chest_wall: str = "left",
    laterality: str = "",
    largest: float = math.inf,
) -> Transform:
    """The largest size that keeps the aspect ratio, the chest wall at one side of the canvas or "centre", centred vertically.

    A left breast is displayed with its chest wall at the left, a right one at the right; the image is mirrored where
    that is not the side asked for. An unknown laterality is not mirrored, nor is what stands in the centre.
    `largest` bounds the scale.
    """
    y0, x0, y1, x1 = crop
    height, width = y1 - y0, x1 - x0
    ratio = min(fitting(crop, canvas), largest)
    # Whole pixels; the scale is what the rounding made of it, so that points follow exactly.
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    spare = canvas[1] - size[1]
    offset = ((canvas[0] - size[0]) // 2, {"left": 0, "centre": spare // 2}.get(chest_wall, spare))
    flip = chest_wall != "centre" and laterality == ("R" if chest_wall == "left" else "L")
    return Transform(tuple(original), tuple(crop), flip, (size[0] / height, size[1] / width), offset, tuple(canvas))
