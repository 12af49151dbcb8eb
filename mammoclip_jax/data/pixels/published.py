"""Mammo-CLIP's VinDr boxes as published, fault included; for comparison only, our own boxes are right.

Their arithmetic (`preprocess_VinDr_detector.py`, lines 83 to 106): 5 pixels off each coordinate for the border, not
below 0; x1 is limited by the HEIGHT of the array without its border and y1 by its WIDTH, which is the wrong way round;
then the crop's origin off, and the crop scaled to the canvas. Of a tall image the lower boxes are cut, or turned upside
down.
"""

from collections.abc import Sequence

from mammoclip_jax.data.pixels.intensity import PUBLISHED_BORDER


def vindr_box(box: Sequence[float], image_size: tuple[int, int]) -> list[float]:
    """[x0, y0, x1, y1] of the table -> the box in original pixels that a transform takes to the published one.

    `image_size` is (height, width). With `geometry.stretch` and the same crop, `Transform.boxes` gives
    the published one but for float rounding. Where y0 >= y1 comes out the published box is upside down and
    `Transform.boxes`, which puts corners in order, does not give it; leave such boxes out.
    """
    height, width = (side - 2 * PUBLISHED_BORDER for side in image_size)
    x0, y0, x1, y1 = (max(value - PUBLISHED_BORDER, 0) for value in box)
    inner = (x0, y0, min(x1, height), min(y1, width))
    return [float(value + PUBLISHED_BORDER) for value in inner]
