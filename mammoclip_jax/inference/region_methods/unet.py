"""The connected parts of the masks that a segmentation predicts, as regions."""

from collections.abc import Sequence
from typing import Any

from mammoclip_jax.data.regions.components import LEAST, LIMIT, MOST, components, of_findings
from mammoclip_jax.data.regions.found import Method
from mammoclip_jax.inference.region_methods import weights


def unet(
    dataset,
    *,
    model: Any,
    threshold: float = 0.5,
    channels: Sequence[str] = (),
    least: float = LEAST,
    most: float = MOST,
    limit: int = LIMIT,
) -> Method:
    """Each connected part where a label's probability is above the threshold is a region with that label.

    Its score is the mean probability in the part.

    Args:
        channels: which labels; (): all that are findings, so neither the breast nor its muscle.
        least, most, limit: see `components`.

    Raises:
        UserError: the model is no segmentation, sees other images, or has no such label.
    """
    weights.check(model, dataset, "segmenter", "unet")
    chosen = of_findings(model.labels, channels, "segmentation")
    places = [model.labels.index(name) for name in chosen]
    bounds: dict[str, Any] = {"least": least, "most": most, "limit": limit}

    def find(rows, images):
        probabilities = model.probabilities(images)[..., places]
        return [components(one > threshold, chosen, scores=one, **bounds) for one in probabilities]

    options = {"threshold": threshold, "channels": list(chosen), **bounds}
    return Method(find, {"method": "unet", "options": options, "weights": weights.depends(model)})
