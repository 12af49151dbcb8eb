"""A data set and a model made of arithmetic, as the page takes them."""

import json

import numpy as np
from fakes import FakeDataset, FakeModel

from mammoclip_jax.viewer.app import Viewer
from mammoclip_jax.viewer.catalogue import Catalogue
from mammoclip_jax.viewer.reader import Reader
from mammoclip_jax.viewer.scored import Scored, truth_of
from mammoclip_jax.viewer.side import Side

PROMPTS = {"mass": {"positive": "a mass", "negative": "no mass"}}


def dataset(patients=6, bits=8, **options):
    """`FakeDataset` with vendors and densities; of 16 bits the same pictures, finer."""
    made = FakeDataset(patients, **options)
    number = np.arange(len(made.index)) // 4
    made.index["vendor"] = np.where(number % 2, "Maker A", "Maker B")
    labels = [json.loads(text) | {"density": "ABCD"[n % 4]} for text, n in zip(made.index["labels"], number)]
    made.index["labels"] = [json.dumps(one) for one in labels]
    if bits == 16:
        made.images = [image.astype(np.uint16) * 257 for image in made.images]
        made.index["bits"] = 16
    return made


def viewer(data=None, models=("one",), stored=False, slices=()):
    """A `Viewer` with a fake model for each name; `stored`: with scores of the label mass by the image's brightest pixel."""
    data = data or dataset()
    catalogue, sides = Catalogue(data), []
    score = np.array([image.max() / 255 for image in data.images])
    scored = [Scored("mass", score, truth_of(catalogue.of_label("mass")), "a test")] if stored else []
    for name in models:
        sides.append(Side(name, catalogue, Reader(FakeModel(), name, PROMPTS) if name else None, scored))
    return Viewer(catalogue, sides, slices)
