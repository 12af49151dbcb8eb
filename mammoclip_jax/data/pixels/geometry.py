"""Crop, turn, resize and place an image on a canvas as one invertible transform that points, boxes and maps follow.

Coordinates are continuous: x to the right, y down, origin at the top left corner, and pixel i covers [i, i + 1). A box
[x0, y0, x1, y1] is therefore the pixels x0 .. x1 - 1. `cv2.resize` uses the same convention.
"""

import dataclasses
import json

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """original pixels -> crop -> mirror, turn -> scale -> place on the canvas. All pairs are (y, x)."""

    original: tuple[int, int]  # height, width of the decoded image
    crop: tuple[int, int, int, int]  # y0, x0, y1, x1 in the original, y1 and x1 exclusive
    flip_horizontal: bool  # the crop is mirrored before it is resized
    scale: tuple[float, float]  # canvas pixels per original pixel
    offset: tuple[int, int]  # of the resized crop in the canvas
    canvas: tuple[int, int]  # height, width of the result
    flip_vertical: bool = False  # the crop is turned upside down as well

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

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

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Points [N, 2] as (x, y) in the original -> the same in the canvas, float64. Nothing is clipped."""
        xy = np.asarray(xy, np.float64).reshape(-1, 2)
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
        return np.stack([x1 - x if self.flip_horizontal else x + x0, y1 - y if self.flip_vertical else y + y0], axis=1)

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in the original -> in the canvas, float64, not clipped."""
        return _ordered(self.points(np.asarray(xyxy, np.float64).reshape(-1, 2)))

    def boxes_inverse(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in the canvas -> in the original, float64, not clipped."""
        return _ordered(self.points_inverse(np.asarray(xyxy, np.float64).reshape(-1, 2)))

    def circles(self, xyr: np.ndarray) -> np.ndarray:
        """Circles [N, 3] (x, y, radius) in the original -> ellipses [N, 4] (x, y, radius along x, along y), float64.

        A stretch makes ellipses of circles; with the geometry `fit` the two radii differ by rounding only.
        """
        xyr = np.asarray(xyr, np.float64).reshape(-1, 3)
        return np.concatenate([self.points(xyr[:, :2]), xyr[:, 2:] * np.array(self.scale[::-1])], axis=1)

    def circles_inverse(self, ellipses: np.ndarray) -> np.ndarray:
        """Ellipses [N, 4] (x, y, radius along x, along y) in the canvas -> in the original; of a circle, alike."""
        ellipses = np.asarray(ellipses, np.float64).reshape(-1, 4)
        radii = ellipses[:, 2:] / np.array(self.scale[::-1])
        return np.concatenate([self.points_inverse(ellipses[:, :2]), radii], axis=1)

    def image(self, array: np.ndarray) -> np.ndarray:
        """The canvas [H, W] of an original image [h, w], in its dtype; padding is 0."""
        y0, x0, y1, x1 = self.crop
        return self.place(array[y0:y1, x0:x1])

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

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask [h, w] in the original -> on the canvas [H, W] bool: pixels of which more than half is covered."""
        return self.image(np.asarray(mask, np.float32)) > 0.5

    def mask_inverse(self, mask: np.ndarray) -> np.ndarray:
        """A mask [H, W] on the canvas -> on the original [h, w] bool."""
        return self.map_inverse(np.asarray(mask, np.float32)) > 0.5

    def map_inverse(self, values: np.ndarray) -> np.ndarray:
        """A map on the canvas [H, W] (saliency) -> on the original [h, w]; 0 outside the crop."""
        top, left, bottom, right = self.content
        y0, x0, y1, x1 = self.crop
        part = resize(values[top:bottom, left:right], (y1 - y0, x1 - x0))
        original = np.zeros(self.original, values.dtype)
        original[y0:y1, x0:x1] = self._turned(part)
        return original


def _ordered(corners: np.ndarray) -> np.ndarray:
    """Corner pairs [2N, 2] -> boxes [N, 4] with x0 <= x1: a mirror swaps the sides."""
    pairs = corners.reshape(-1, 2, 2)
    return np.concatenate([pairs.min(axis=1), pairs.max(axis=1)], axis=1)


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


def fit(
    original: tuple[int, int],
    crop: tuple[int, int, int, int],
    canvas: tuple[int, int],
    chest_wall: str = "left",
    laterality: str = "",
) -> Transform:
    """The largest size that keeps the aspect ratio, the chest wall at one side of the canvas, centred vertically.

    A left breast is displayed with its chest wall at the left, a right one at the right; the image is mirrored where
    that is not the side asked for. An unknown laterality is not mirrored.
    """
    y0, x0, y1, x1 = crop
    height, width = y1 - y0, x1 - x0
    ratio = min(canvas[0] / height, canvas[1] / width)
    # Whole pixels; the scale is what the rounding made of it, so that points follow exactly.
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    offset = ((canvas[0] - size[0]) // 2, 0 if chest_wall == "left" else canvas[1] - size[1])
    flip = laterality == ("R" if chest_wall == "left" else "L")
    return Transform(tuple(original), tuple(crop), flip, (size[0] / height, size[1] / width), offset, tuple(canvas))
