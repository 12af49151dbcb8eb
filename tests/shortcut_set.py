"""A data set with a shortcut, a classifier that fell for it, and a dual encoder made of arithmetic.

The images hold a mass (a grey disc) and a skin marker (a bright square). The classifier is a small random network with a last
layer fitted where the marker nearly always tells of the mass; the dual encoder's vectors count both.
"""

import json
import zlib

import jax
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from mammoclip_jax import models, provenance
from mammoclip_jax.config import defaults
from mammoclip_jax.inference.heads import Classifier
from mammoclip_jax.inference.prompts import unit
from mammoclip_jax.models.heads import HEAD
from mammoclip_jax.weights import actions

HEIGHT, WIDTH = 48, 40
PREPROCESSING = {"geometry": "fit", "height": HEIGHT, "width": WIDTH, "intensity": "voi", "bits": 8}
PATIENTS = {"train": 120, "val": 160, "test": 160}
PLACES = [
    f"{side} {part} part"
    for side in ("left", "right")
    for part in ("upper", "lower", "outer", "inner", "deep", "front")
]
WORDS = {  # what is said of each, where it is there and where it is not
    "mass": (("There is a mass in the {}.", "A mass is seen in the {}."), ("There is no mass in the {}.",)),
    "marker": (
        ("A skin marker is seen over the {}.", "There is a skin marker at the {}."),
        ("No skin marker over the {}.", "There is no skin marker at the {}."),
    ),
    "else": (("The {} is of usual shape.", "The {} looks as before."),) * 2,
}
OPTIONS = ["top=25", "resamples=60", "draws=2", "cs=[0.1]", "quantiles=[0.3, 0.4, 0.5, 0.6, 0.7]"]  # for speed


class ShortcutSet:
    """As `data.store.shards.Dataset`; two images a patient."""

    def __init__(self, share=0.95, path="shortcut", shuffled=0, seed=0):
        """`share` of the training images whose marker agrees with the mass. `shuffled` > 0: other order, fewer images."""
        rng, rows, self.images = np.random.default_rng(seed), [], []
        for split, count in PATIENTS.items():
            for patient in range(count):
                for side in "LR":
                    mass = int(rng.random() < 0.5)
                    agrees = rng.random() < (share if split == "train" else 0.5)
                    marker = int(mass == agrees)
                    rows.append(_row(split, patient, side, mass, marker, rng))
                    self.images.append(_image(mass, marker, rng))
        index = pd.DataFrame(rows)
        if shuffled:
            order = np.random.default_rng(shuffled).permutation(len(index))[:-4]
            index, self.images = index.iloc[order].reset_index(drop=True), [self.images[i] for i in order]
        self.path, self.index = path, index
        self.info = {
            "schema_version": 1,
            "name": "shortcut",
            "real": False,
            "licence": "CC0-1.0",
            "citation": "made up",
            "preprocessing": PREPROCESSING,
            "counts": {"images": len(index)},
            "fingerprint": f"{share}-{shuffled}",
        }

    def __len__(self):
        return len(self.index)

    def read(self, row):
        return self.images[row]


def _row(split, patient, side, mass, marker, rng):
    return {
        "dataset": "shortcut",
        "patient": f"secret-{split}-{patient:03d}",
        "study": f"{split}{patient}",
        "image": f"secret-{split}-{patient:03d}-{side}",
        "laterality": side,
        "view": "CC",
        "split": split,
        "vendor": ("North", "South")[int(rng.random() < 0.5)],
        "real": False,
        "texts": [_text({"mass": mass, "marker": marker, "else": 1}, rng)],
        "sections": ["findings"],
        "labels": json.dumps({"mass": mass, "skin_marker": marker, "density": "AB"[int(rng.random() < 0.5)]}),
        "boxes": "[]",
        "boxes_canvas": "[]",
    }


def _text(facts, rng):
    chosen = [WORDS[word][0 if there else 1] for word, there in facts.items()]
    return " ".join(lines[rng.integers(len(lines))].format(PLACES[rng.integers(len(PLACES))]) for lines in chosen)


def _image(mass, marker, rng):
    image = rng.integers(40, 90, (HEIGHT, WIDTH)).astype(np.uint8)
    if mass:
        y, x = rng.integers(8, 20), rng.integers(8, 30)
        image[y : y + 10, x : x + 10] = rng.integers(105, 125)
    if marker:
        y, x = rng.integers(30, 40), rng.integers(4, 30)
        image[y : y + 7, x : x + 7] = 255
    return image


class Language:
    """The interface of `inference.dual_encoder.DualEncoder`: two numbers, how much mass and how much marker there is."""

    kind, step, trained_on = "dual_encoder", 5, None
    preprocessing = PREPROCESSING

    def __init__(self, licence="MIT"):
        self.config = defaults()
        self.config.name = "made of arithmetic"
        entry = {"weights": "made of arithmetic", "licence": licence, "title": licence, "stated": True}
        self.provenance = {"licences": [entry], "data": {}}
        self.calls = 0

    def fingerprint(self):
        return "arithmetic"

    def embed_image(self, images):
        self.calls += 1
        masses = ((images >= 105) & (images < 130)).mean(axis=(1, 2)) > 0.02
        return self._vectors(masses, (images == 255).mean(axis=(1, 2)) > 0.01)

    def embed_text(self, texts):
        said = lambda text, word: 0.5 if word not in text.lower() else float(not self._denied(text.lower(), word))
        own = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=6) for text in texts]  # no two alike
        return self._vectors(
            *([said(text, word) for text in texts] for word in ("mass", "marker")), 0.7 * unit(np.array(own))
        )

    @staticmethod
    def _denied(text, word):
        before = text[: text.index(word)].rpartition(".")[2]
        return any(f" {cue} " in f" {before} " for cue in ("no", "without")) or f"{word} is not" in text

    @staticmethod
    def _vectors(mass, marker, own=None):
        mass, marker = (np.asarray(x, float) for x in (mass, marker))
        said = np.stack([2 * mass - 1, 2 * marker - 1, np.ones(len(mass))], axis=1)
        return unit(np.concatenate([said, np.zeros((len(said), 6)) if own is None else own], axis=1)).astype(np.float32)


def classifier_folder(out, dataset):
    """The model folder of a classifier whose last layer is fitted on the training images of `dataset`."""
    config = defaults()
    config.name = "fell for it"
    config.image.channels = 1
    config.model.image.update(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.labels = ("other", "mass")
    config.task.kind = "classifier"
    meta = {
        "kind": "classifier",
        "step": 7,
        "config": config.to_dict(),
        "preprocessing": PREPROCESSING,
        "tokenizer": None,
        "provenance": {"data": {"shortcut": {"licence": "CC0-1.0", "real": False, "counts": {}, "fingerprint": "x"}}},
        "trained_on": provenance.trained_on([dataset]),
    }
    module = models.classifier(config.model)
    variables = jax.jit(lambda key: module.init(key, np.zeros((1, HEIGHT, WIDTH, 1)), train=False))(jax.random.key(0))
    variables = jax.tree.map(np.asarray, {name: variables[name] for name in ("params", "batch_stats")})
    rows = np.flatnonzero(dataset.index["split"] == "train")
    model = Classifier(variables, meta, 7, batch_size=64)
    features = model.image_features(np.stack([dataset.read(row) for row in rows]))
    truth = [json.loads(text)["mass"] for text in dataset.index["labels"].iloc[rows]]
    spread = features.std(axis=0) + 1e-6
    fitted = LogisticRegression(C=1.0, max_iter=2000).fit(features / spread, truth)
    head = variables["params"][HEAD]
    kernel, bias = np.array(head["kernel"]), np.array(head["bias"])
    kernel[:, 1], bias[1] = fitted.coef_[0] / spread, fitted.intercept_[0]
    variables["params"][HEAD] = {"kernel": kernel, "bias": bias}
    actions.write_folder(str(out), variables, meta)
    return out
