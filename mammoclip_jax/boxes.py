"""Boxes (left, top, right, bottom) in continuous pixels: their overlap, and regressions relative to anchors.

The functions take NumPy and JAX arrays alike, and return what they were given.
"""

from typing import Any

from jaxtyping import Float

BOX_SCALE = (0.1, 0.1, 0.2, 0.2)  # of the regressions dx, dy, log dw, log dh
SHORTEST = 1.0  # pixels: shorter sides are taken as this long where their logarithm is


def iou(a: Float[Any, "*n 4"], b: Float[Any, "*n 4"]) -> Float[Any, "*n"]:
    """Intersection over union of boxes that broadcast: `iou(a[:, None], b)` of all pairs. 0 where neither has an area.

    Two arrays of the same library.
    """
    xp = a.__array_namespace__()
    sides = xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2])
    sides = xp.maximum(sides, 0)
    both = sides[..., 0] * sides[..., 1]
    either = area(a) + area(b) - both
    return both / xp.where(either > 0, either, 1)


def area(boxes: Float[Any, "*n 4"]) -> Float[Any, "*n"]:
    """Square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def encode(boxes: Float[Any, "*n 4"], anchors: Float[Any, "*n 4"]) -> Float[Any, "*n 4"]:
    """Regressions by which `decode` makes the boxes of the anchors (R-CNN, arXiv:1311.2524, appendix C).

    A side below one pixel is taken as one pixel, as Mammo-CLIP does (Detectors/retinanet/losses.py).
    """
    xp = boxes.__array_namespace__()
    (centre, sides), (anchor_centre, anchor_sides) = _centred(boxes), _centred(anchors)
    shift = (centre - anchor_centre) / anchor_sides
    log_scale = xp.log(xp.maximum(sides, SHORTEST) / anchor_sides)
    return xp.concatenate([shift, log_scale], axis=-1) / xp.asarray(BOX_SCALE, dtype=boxes.dtype)


def decode(
    deltas: Float[Any, "*n 4"], anchors: Float[Any, "*n 4"], size: tuple[int, int] | None = None
) -> Float[Any, "*n 4"]:
    """Boxes of a network's regressions: the anchor's centre moved, its sides scaled.

    Args:
        size: (height, width) of the image, which the boxes are cut to; None leaves them. A box that lies outside has
            no area then, where Mammo-CLIP's may have its sides exchanged.
    """
    xp = deltas.__array_namespace__()
    centre, sides = _centred(anchors)
    deltas = deltas * xp.asarray(BOX_SCALE, dtype=deltas.dtype)
    centre = centre + deltas[..., :2] * sides
    half = xp.exp(deltas[..., 2:]) * sides / 2
    boxes = xp.concatenate([centre - half, centre + half], axis=-1)
    if size is None:
        return boxes
    height, width = size
    return xp.clip(boxes, 0, xp.asarray([width, height] * 2, dtype=boxes.dtype))


def _centred(boxes):
    """(centre, sides), each [... 2] as (x, y)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides
