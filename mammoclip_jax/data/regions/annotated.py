"""The boxes that a data set came with, as a table of regions."""

import json

import numpy as np

from mammoclip_jax.data.regions.found import Found, Method
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
