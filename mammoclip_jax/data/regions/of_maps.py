"""The hottest part of a map as a prediction of where findings are, and the boxes around its regions."""

from collections.abc import Callable

import cv2
import numpy as np
from scipy import ndimage

from mammoclip_jax.data.pixels import breast

QUANTILE = 0.95  # of the map, as published (arXiv:2405.12255)


def breast_mask(canvas: np.ndarray) -> np.ndarray:
    """bool [H, W]: the breast on a canvas, as the crop finds it, at the canvas's own resolution."""
    small, _ = breast.breast_mask(canvas)
    return cv2.resize(small.astype(np.uint8), canvas.shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def above(heat: np.ndarray, tissue: np.ndarray, quantile: float) -> np.ndarray:
    """bool [H, W]: where the map is strictly above this quantile of all of its pixels, of the breast or not.

    The paper's sentence, quoted in batmanlab/Mammo-CLIP issue 25: "where pixel values are greater than the 95% quantile of
    the heatmap's pixel value distribution".
    """
    return heat > np.quantile(heat, quantile)


def hottest(heat: np.ndarray, tissue: np.ndarray, quantile: float) -> np.ndarray:
    """bool [H, W]: where in the breast `tissue` the map is at least as high as this quantile of it there.

    What is as low as the lowest is no part of it, so that a flat map has none.
    """
    inside = heat[tissue]
    return tissue & (heat >= np.quantile(inside, quantile)) & (heat > inside.min())


# What of a map [H, W] and the breast [H, W] is the prediction, at a quantile; "published" is Mammo-FActOR's.
RULES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {"published": above, "breast": hottest}


def located(heat: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(boxes float64 [n, 4], scores float64 [n]) of the regions of `part` bool [H, W], by falling score.

    Regions are connected over corners too; a box (x0, y0, x1, y1) is that around a region, in pixels with exclusive ends,
    and its score the highest value of the map in it.
    """
    numbered, _ = ndimage.label(part, np.ones((3, 3)))
    places = ndimage.find_objects(numbered)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for y, x in places], np.float64).reshape(-1, 4)
    scores = np.array([heat[place].max() for place in places], np.float64)
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]
