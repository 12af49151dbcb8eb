"""A detector's boxes as regions."""

from typing import Any

import numpy as np

from mammoclip_jax.data.regions.found import Found, Method
from mammoclip_jax.inference.heads import Detector
from mammoclip_jax.inference.region_methods import weights


def detector(
    dataset,
    *,
    model: Detector,
    threshold: float = 0.05,
    overlap: float = 0.5,
    limit: int = 64,
    class_aware: bool = True,
) -> Method:
    """Each detection is a region: its score, and its class as the label. Options are those of `Detector.detect`.

    Raises:
        UserError: the model is none, or sees other images.
    """
    weights.check(model, dataset, "detector", "detector")
    options: dict[str, Any] = {"threshold": threshold, "overlap": overlap, "limit": limit, "class_aware": class_aware}

    def find(rows, images):
        found = model.detect(images, **options)
        return [
            Found(boxes[there], scores[there], [model.labels[kind] for kind in classes[there]])
            for boxes, scores, classes, there in zip(*(np.asarray(part) for part in found), strict=True)
        ]

    return Method(find, {"method": "detector", "options": options, "weights": weights.depends(model)})
