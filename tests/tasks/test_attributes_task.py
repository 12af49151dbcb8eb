"""Attributes learn by the common loop over maps that are computed once: the same loss as live, an encoder that stays as it
is, files, and what is refused."""

import json

import numpy as np
import pandas as pd

from mammoclip_jax.config import defaults

SIZE = (32, 32)
PREPROCESSING = {"geometry": "fit", "height": SIZE[0], "width": SIZE[1], "intensity": "voi", "bits": 8}
LABELS = ("mass", "calcification")


class Images:
    """Noise, with labels; calcification is unknown of every third image."""

    def __init__(self, folder, count=17):
        rng = np.random.default_rng(0)
        self.path, self.info = folder, {"fingerprint": "f", "preprocessing": PREPROCESSING, "counts": {"images": count}}
        self.images = rng.integers(0, 255, (count, *SIZE), np.uint8)
        self.read_often = 0
        known = [{"mass": i % 2} | ({"calcification": int(i % 5 == 0)} if i % 3 else {}) for i in range(count)]
        views = dict(study="s", laterality="L", view="CC", split="train", boxes_canvas="[]")
        self.index = pd.DataFrame(
            [
                {"patient": f"p{i}", "image": f"i{i}", "labels": json.dumps(labels)} | views
                for i, labels in enumerate(known)
            ]
        )

    def read(self, row):
        self.read_often += 1
        return self.images[row]


def config_of(**task):
    config = defaults()
    config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.25)
    config.model.labels, config.model.stages = LABELS, ("stage2", "stage3")
    config.model.attributes.update(dim=6, prompts="phantom")
    config.image.channels = 1
    config.task.update(kind="attributes", temperature=0.07, **task)
    config.data.folders.images = "images"
    config.warm_start.encoder = dict(weights="run", load=("image_encoder/.*", "attributes/dictionary"))
    config.train.update(batch_size=8, steps=40, warmup_steps=1, lr=1e-2)
    return config
