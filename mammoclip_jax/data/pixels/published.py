"""Mammo-CLIP's VinDr boxes as published, fault included; for comparison only, our own boxes are right.

Their arithmetic (`preprocess_VinDr_detector.py`, lines 83 to 106): 5 pixels off each coordinate for the border, not
below 0; x1 is limited by the HEIGHT of the array without its border and y1 by its WIDTH, which is the wrong way round;
then the crop's origin off, and the crop scaled to the canvas. Of a tall image the lower boxes are cut, or turned upside
down.
"""

from collections.abc import Sequence

from mammoclip_jax.data.pixels.intensity import PUBLISHED_BORDER


def published_vindr_box_original(box: Sequence[float], image_size: tuple[int, int]) -> list[float]:
    """[x0, y0, x1, y1] of the table -> the box in original pixels that a transform takes to the published one.

    `image_size` is (height, width). With `geometry.stretch` and the same crop, `Transform.boxes` gives
    `published_vindr_box` but for float rounding. Where y0 >= y1 comes out the published box is upside down and
    `Transform.boxes`, which puts corners in order, does not give it; leave such boxes out.
    """
    height, width = (side - 2 * PUBLISHED_BORDER for side in image_size)
    x0, y0, x1, y1 = (max(value - PUBLISHED_BORDER, 0) for value in box)
    inner = (x0, y0, min(x1, height), min(y1, width))
    return [float(value + PUBLISHED_BORDER) for value in inner]


def published_vindr_box(
    box: Sequence[float], image_size: tuple[int, int], crop: tuple[int, int, int, int], canvas: tuple[int, int]
) -> list[float]:
    """The published box on a canvas (height, width), from the table's box in original pixels.

    `crop` is (y0, x0, y1, x1) in the original image.
    """
    x0, y0, x1, y1 = published_vindr_box_original(box, image_size)
    top, left, bottom, right = crop
    down, across = canvas[0] / (bottom - top), canvas[1] / (right - left)
    return [(x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down]
