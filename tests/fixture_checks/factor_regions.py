"""The arrays loc_* of mammo_factor.npz: heat map, threshold, regions by both rules, boxes, and which true boxes are found."""

import jax.numpy as jnp
import numpy as np

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.explain.factor import factor
from mammoclip_jax.explain.maps import Grid, Subject, over_image

STAGE = "map"
TOLERANCES = [
    (r"loc_(mask|mask_breast|boxes|localised)", 0, 0),
    (r"loc_(heat|threshold|box_scores|iou)", 1e-9, 1e-5),
    ("loc_heat_full", 1e-6, 1e-5),
]


def values(fixture):
    maps, scores = np.moveaxis(fixture["loc_maps"], 0, -1)[None], jnp.asarray(fixture["loc_scores"])
    subject = Subject(lambda pixels: (None, {STAGE: jnp.asarray(maps)}), *[None] * 5, lambda *_: scores)
    heat = factor(subject, None, None, STAGE) * jnp.linalg.norm(scores)  # the file's scores are not of unit length
    size = fixture["loc_heat_full"].shape
    stride = size[0] // heat.shape[0]
    full = np.asarray(over_image(heat, Grid(stride, stride / 2, stride / 2), size, signed=True))
    quantile, breast = of_maps.QUANTILE, fixture["loc_breast"]
    part = of_maps.RULES["published"](full, breast, quantile)
    boxes, box_scores = of_maps.located(full, part)
    overlaps = iou(fixture["loc_truth"][:, None], boxes)
    return {
        "loc_heat": heat,
        "loc_heat_full": full,
        "loc_threshold": np.quantile(full, quantile),
        "loc_mask": part,
        "loc_mask_breast": of_maps.RULES["breast"](full, breast, quantile),
        "loc_boxes": boxes,
        "loc_box_scores": box_scores,
        "loc_iou": overlaps,
        "loc_localised": [(overlaps.max(axis=1, initial=0) >= least).mean() for least in (0.25, 0.5)],
    }
