"""A data set and a model made of arithmetic: interfaces of `shards.Dataset` and `inference.dual_encoder.DualEncoder`."""

import contextlib
import json

import cv2
import numpy as np
import pandas as pd

from mammoclip_jax.config import defaults

SHAPE = (64, 48)


class FakeDataset:
    """Breasts as grey half ellipses at the left edge; a mass is a bright square with its box."""

    def __init__(self, patients=12, *, real=False, split="test", seed=0, boxes=True, name="phantom"):
        rng = np.random.default_rng(seed)
        self.path, self.info = (
            name,
            {
                "schema_version": 1,
                "name": name,
                "real": real,
                "licence": "CC0",
                "citation": "made up",
                "preprocessing": {"geometry": "fit", "height": SHAPE[0], "width": SHAPE[1], "bits": 8},
                "counts": {"images": 4 * patients, "patients": patients},
                "provenance": {"source": name},
                "fingerprint": "f00",
            },
        )
        self.images, rows = [], []
        for p in range(patients):
            for side in "LR":
                mass = int(rng.random() < 0.5)
                x, y = int(rng.integers(2, 18)), int(rng.integers(14, 40))
                for view in ("CC", "MLO"):
                    rows.append(_row(name, p, side, view, split, mass, real, [x, y, x + 8, y + 8] if boxes else None))
                    self.images.append(_breast(mass, x, y, rng))
        self.index = pd.DataFrame(rows)

    def __len__(self):
        return len(self.index)

    def read(self, i):
        return self.images[i]


def _breast(mass, x, y, rng):
    image = np.zeros(SHAPE, dtype=np.uint8)
    cv2.ellipse(image, (0, SHAPE[0] // 2), (34, 28), 0, -90, 90, 90, -1)
    image[image > 0] += rng.integers(0, 20, size=SHAPE, dtype=np.uint8)[image > 0]
    if mass:
        image[y : y + 8, x : x + 8] = 240
    return image


def _row(name, p, side, view, split, mass, real, box):
    found = [{"label": "mass", "box": box}] if mass and box else []
    text = f"There is a mass in breast {p}{side}." if mass else "No mass."
    return {
        "dataset": name,
        "patient": f"p{p:03d}",
        "study": f"s{p:03d}",
        "image": f"p{p:03d}_{side}{view}",
        "laterality": side,
        "view": view,
        "split": split,
        "vendor": "",
        "real": real,
        "texts": [text],
        "sections": ["findings"],
        "labels": json.dumps({"mass": mass}),
        "boxes": json.dumps(found),
        "boxes_canvas": json.dumps(found),
        "height": SHAPE[0],
        "width": SHAPE[1],
        "bits": 8,
    }


class FakeModel:
    """Embeds an image by its brightest pixel and a text by whether it denies; its map is the brightness."""

    kind = "dual_encoder"
    stages = ("stage_3", "head")
    labels, local_heads, attribute_stages = (), {}, ()
    step = 7
    config = defaults()
    provenance, trained_on = {"datasets": ["phantom"]}, None
    preprocessing = {"geometry": "fit", "height": SHAPE[0], "width": SHAPE[1], "bits": 8}

    weights = None

    def __init__(self):
        self.calls = []

    def fingerprint(self):
        return f"{self.step:016x}"

    def embed_image(self, images):
        self.calls.append(len(images))
        angle = images.reshape(len(images), -1).max(1) / 255 * np.pi / 2
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    def embed_text(self, texts):
        angle = np.array([0.0 if text.lower().startswith("no ") else np.pi / 2 for text in texts])
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    def text_directions(self, texts, method="grad_cam", stage=None):
        return self.embed_text(texts)

    def similarity(self, a, b):
        return a @ b.T

    def map_stage(self, method, stage=None):
        return stage or self.stages[-1]

    def saliency(self, images, texts, *, stage, method, **options):
        assert np.shape(texts) == (len(images), 2) and stage in self.stages
        bright = images.astype(np.float32) / np.maximum(images.max(axis=(1, 2), keepdims=True), 1)
        return bright if self.weights is None else bright[:, ::-1] * self.weights

    def deletion_curves(self, images, texts, maps, tissue, *, steps, fill):
        """Falls with the heat that is left, and rises with that which has come."""
        assert tissue.dtype == bool and maps.shape == tissue.shape == images.shape
        share = np.linspace(0, 1, steps + 1)
        return np.stack([np.stack([share, 1 - share]) * heat.mean() for heat in maps])

    def randomise(self, seed=0, keep=None):
        return 0.5 if keep else 0.25

    @contextlib.contextmanager
    def using(self, variables):
        self.weights = variables
        yield
        self.weights = None
