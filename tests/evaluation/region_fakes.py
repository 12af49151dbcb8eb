"""Breasts with masses, calcifications and neither, as the evaluators of regions want them, and a model that sees them."""

import json

import numpy as np
import pandas as pd
from fakes import SHAPE, FakeDataset, FakeModel

SENTENCES = {
    "mass": "There is a mass.",
    "calcification": "There are calcifications.",
    "normal_tissue": "Normal tissue.",
}
CONCEPTS = {label: [text] for label, text in SENTENCES.items()}


class RegionDataset(FakeDataset):
    """Every breast has its mass, a bright square, in the upper half, or a calcification, one white pixel, in the lower, or
    neither; a third of the patients each are for training, for validation and for the test."""

    def __init__(self, patients=12, **options):
        super().__init__(patients, boxes=False, **options)
        rng = np.random.default_rng(1)
        for row in range(len(self.index)):
            kind = (row // 2) % 3  # both views of a breast alike
            x, y = int(rng.integers(4, 16)), int(rng.integers(14, 22) if kind == 0 else rng.integers(34, 40))
            image = np.where(self.images[row] > 0, np.minimum(self.images[row], 100), 0).astype(np.uint8)
            found = []
            if kind == 0:
                image[y : y + 8, x : x + 8] = 200
                found = [{"label": "mass", "box": [x, y, x + 8, y + 8]}]
            elif kind == 1:
                image[y + 2, x + 2] = 255
                image[18:26, 6:14] = 130  # brighter, as a whole, than what is around the pixel
                found = [{"label": "calcification", "box": [x, y, x + 6, y + 6]}]
            self.images[row] = image
            at = self.index.index[row]
            flags = {"mass": int(kind == 0), "calcification": int(kind == 1)}
            self.index.at[at, "labels"], self.index.at[at, "boxes_canvas"] = json.dumps(flags), json.dumps(found)
            self.index.at[at, "boxes"] = json.dumps(found)
            self.index.at[at, "texts"] = [text for k, text in enumerate(SENTENCES.values()) if k == kind][:1]
        of = self.index["patient"].map({p: i // 3 % 3 for i, p in enumerate(sorted(set(self.index["patient"])))})
        self.index["split"] = of.map({0: "train", 1: "val", 2: "test"})


class RegionModel(FakeModel):
    """Sees a mass where a region is bright as a whole, a calcification where one pixel of it is white; `blind`: nothing."""

    logit_scale = 10.0

    def __init__(self, blind=False):
        super().__init__()
        self.blind, self.shapes = blind, []

    def embed_crops(self, images, boxes):
        self.shapes.append(boxes.shape)
        vectors = np.zeros((*boxes.shape[:2], 3), np.float32)
        for n, image in enumerate(images):
            for r, (x0, y0, x1, y1) in enumerate(boxes[n].round().astype(int)):
                inside = image[max(y0, 0) : max(y1, 1), max(x0, 0) : max(x1, 1)].astype(np.float32)
                seen = np.zeros(0) if self.blind else inside.ravel()
                mass = (seen == 200).mean() if seen.size else 0
                vectors[n, r] = mass, float((seen == 255).any()), 0.3
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def embed_places(self, images, boxes):
        return self.embed_crops(images, boxes)

    def region_means(self, images, boxes, stages=()):
        return self.embed_crops(images, boxes)

    def embed_text(self, texts):
        return np.stack([np.eye(3, dtype=np.float32)[self._kind(text)] for text in texts])

    @staticmethod
    def _kind(text):
        text = text.lower()
        return 2 if text.startswith("no") else 1 if "calcification" in text else 0


def regions_of(*boxes, label="mass", position=0):
    """A table of regions of one image of SHAPE."""
    columns = ["left", "top", "right", "bottom"]
    return pd.DataFrame(np.array(boxes, float).reshape(-1, 4), columns=columns).assign(position=position, label=label)


__all__ = ["CONCEPTS", "SHAPE", "RegionDataset", "RegionModel", "regions_of"]
