"""What a model of attributes says of an image, for people: its attributes, the channels that show each, and where."""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mammoclip_jax.data.regions import of_maps

CHANNELS = 3  # of an attribute that are named, at most
MEANING = "cosine of the channel that shows the attribute most, from -1 to 1; not a probability"


def found(model, images: Shaped[np.ndarray, "N H W"], method: str, stage: str) -> list[list[dict[str, Any]]]:
    """Of each preprocessed image its attributes by falling score.

    Args:
        model: an `inference.attributes.Attributes`.
        method, stage: of the maps; see `ImageModel.saliency`.

    Returns:
        JSON {"label", "score", "channels": [{"stage", "channel", "score"}] by falling score, "box": that of the region
        with the highest score by the published rule, in pixels of the image, None of a flat map}.
    """
    scores = model.attribute_scores(images)
    count = sum(cosines.shape[1] for cosines in model.channel_scores(images[:1]).values())
    top = model.top_channels(images, min(CHANNELS, count))
    boxes = {label: strongest(model, images, label, method, stage) for label in model.labels}
    views = []
    for i, own in enumerate(scores):
        listed = [
            {
                "label": model.labels[k],
                "score": float(own[k]),
                "channels": [
                    {"stage": str(stage), "channel": int(channel), "score": float(score)}
                    for stage, channel, score in zip(top.stage[i, k], top.channel[i, k], top.score[i, k], strict=True)
                ],
                "box": boxes[model.labels[k]][i],
            }
            for k in np.argsort(-own, kind="stable")
        ]
        views.append(listed)
    return views


def strongest(
    model, images: Shaped[np.ndarray, "N H W"], label: str, method: str, stage: str
) -> list[Float[np.ndarray, "4"] | None]:
    """The box (left, top, right, bottom) of the region with the highest score in the map of each image."""
    heats = model.saliency(images, [label] * len(images), method=method, stage=stage, raw=True)
    boxes = [of_maps.located(heat, of_maps.above(heat, heat > 0, of_maps.QUANTILE))[0] for heat in np.asarray(heats)]
    return [each[0] if len(each) else None for each in boxes]
