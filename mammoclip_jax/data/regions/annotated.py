"""What a data set came with, as a table of regions: its boxes, and the parts of its masks."""

import json
from collections.abc import Sequence

import numpy as np

from mammoclip_jax.data.regions.components import LEAST, LIMIT, MOST, components, of_findings
from mammoclip_jax.data.regions.found import Found, Method
from mammoclip_jax.data.store.masks import ANNOTATED, Masks
from mammoclip_jax.data.text.label_values import names_of


def boxes(dataset) -> Method:
    """Each box of the index is a region of score 1 with its own label."""
    items = [json.loads(text) for text in dataset.index["boxes_canvas"]]

    def find(rows, images):
        return [
            Found(
                np.array([item["box"] for item in items[row]], np.float32).reshape(-1, 4),
                np.ones(len(items[row]), np.float32),
                [", ".join(names_of(item)) for item in items[row]],
            )
            for row in rows
        ]

    return Method(find, {"method": "boxes"}, pixels=False)


def masks(
    dataset,
    *,
    masks: str = ANNOTATED,
    channels: Sequence[str] = (),
    least: float = LEAST,
    most: float = MOST,
    limit: int = LIMIT,
) -> Method:
    """Each connected part of a stored mask is a region of score 1, labelled with its channel.

    Args:
        masks: the name of the masks beside the data set (data/store/masks.py).
        channels: which; (): all that are findings, so neither the breast nor its muscle.
        least, most, limit: see `components`.

    Raises:
        UserError: there are no such masks, or no such channel.
    """
    stored = Masks.open(dataset, masks)
    chosen = of_findings(stored.channels, channels, f"masks {masks!r}")
    places = [stored.channels.index(name) for name in chosen]
    bounds = {"least": least, "most": most, "limit": limit}

    def find(rows, images):
        return [components(stored.read(row)[..., places] > 0, chosen, **bounds) for row in rows]

    options = {"masks": masks, "channels": list(chosen), **bounds}
    return Method(find, {"method": "masks", "options": options}, pixels=False)
