"""Regions of the attributes that an image's labels affirm, by Mammo-FActOR's maps: pseudo-boxes for a detector."""

import json
from typing import Any

import numpy as np

from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.data.regions.components import LEAST, MOST
from mammoclip_jax.data.regions.found import Found, Method, by_size
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.attributes import Attributes
from mammoclip_jax.inference.region_methods import weights
from mammoclip_jax.names import check_name

ALL = "all"


def factor(
    dataset,
    *,
    model: Attributes,
    stage: str = "",
    rule: str = "published",
    quantile: float = of_maps.QUANTILE,
    images: str = "affirmed",
    least: float = LEAST,
    most: float = MOST,
    limit: int = 1,
) -> Method:
    """Of each attribute the strongest regions of its map, with the attribute as the label.

    A region's score is its map's maximum in it as a share of the whole map's, times (1 + cosine) / 2 of the image: a map
    without a positive value gives none.

    Args:
        stage: of the attributes, or several as "stage2+stage3"; "": all of them.
        rule: of `of_maps.RULES`: the quantile of all pixels ("published"), or of the breast's ("breast").
        images: "affirmed": regions of the attributes that the labels of an image affirm, as training without boxes may know
            them; "all": of all attributes, whatever the labels say, as for images that are to be judged.
        least, most: bounds of a region's side, the root of its box's area, as parts of the canvas' longer side.
        limit: regions of an attribute in an image.

    Raises:
        UserError: the model is none of attributes or sees other images, or an option is out of place.
    """
    weights.check(model, dataset, "attributes", "factor")
    check_name(rule, of_maps.RULES, "rule of regions")
    check_name(images, ("affirmed", ALL), "choice of images")
    if not 0 < quantile < 1 or limit < 1:
        raise UserError(f"quantile={quantile} must be between 0 and 1, limit={limit} at least 1.")
    looked_at = model.map_stage("factor", stage)

    def find(rows, canvases):
        cosines = model.attribute_scores(canvases)
        known = [json.loads(dataset.index["labels"].iloc[row]) for row in rows]
        parts: list[list[tuple]] = [[] for _ in rows]
        dropped = [0] * len(known)
        for k, label in enumerate(model.labels):
            own = [i for i, labels in enumerate(known) if images == ALL or labels.get(label) == 1]
            if not own:
                continue
            heats = model.saliency(canvases[own], [label] * len(own), method="factor", stage=looked_at, raw=True)
            for i, heat in zip(own, np.asarray(heats), strict=True):
                boxes, scores, out = _regions(canvases[i], heat)
                dropped[i] += out
                parts[i] += [(box, score * (1 + cosines[i, k]) / 2, label) for box, score in zip(boxes, scores)]
        return [_found(part, out) for part, out in zip(parts, dropped, strict=True)]

    def _regions(canvas, heat):
        """(boxes, scores from 0 to 1, how many more there are of another size)."""
        highest = heat.max()
        tissue = of_maps.breast_mask(canvas) if rule == "breast" else heat > 0
        boxes, scores = of_maps.located(heat, of_maps.RULES[rule](heat, tissue, quantile))
        there = scores > 0
        fits = there & by_size(boxes, least, most, heat.shape)
        return boxes[fits][:limit], scores[fits][:limit] / max(highest, 1e-30), int((there & ~fits).sum())

    options: dict[str, Any] = {"stage": looked_at, "rule": rule, "quantile": quantile, "images": images}
    options |= {"least": least, "most": most, "limit": limit}
    return Method(find, {"method": "factor", "options": options, "weights": weights.depends(model)})


def _found(part: list[tuple], dropped: int) -> Found:
    """Regions of all attributes, best first."""
    part = sorted(part, key=lambda one: -one[1])
    return Found(
        np.array([box for box, *_ in part], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in part], np.float32),
        [label for *_, label in part],
        dropped={"too small or too large": dropped},
    )
