"""Models made of arithmetic that have all that mirrored looks, windows and ensembles ask of one."""

import numpy as np

from mammoclip_jax.config import defaults
from mammoclip_jax.inference import image_model
from mammoclip_jax.inference.looks import Meant
from mammoclip_jax.models.nms import Detections

HEIGHT, WIDTH = 16, 12


class Toy(Meant):
    """A classifier: "mass" is the brightness of the left third, "calcification" `gain` times that of the brightest pixel."""

    step, stages, local_heads, attribute_stages, trained_on = 5, ("head",), {}, (), ""
    provenance = {"licences": [{"title": "CC0"}]}

    def __init__(self, name="toy", gain=1.0, size=(HEIGHT, WIDTH), kind="classifier", labels=("mass", "calcification")):
        self.name, self.gain, self.kind, self.labels = name, gain, kind, labels
        self.config = defaults()
        self.preprocessing = {"geometry": "fit", "height": size[0], "width": size[1], "intensity": "voi", "bits": 8}
        self.seen = []

    def __repr__(self):
        return f"<{self.name}>"

    def fingerprint(self):
        return self.name

    def map_stage(self, method, stage=None):
        return stage or "head"

    def read_images(self, files):
        return image_model.read(files, self.preprocessing)

    def classify(self, images, *, calibrated=None):
        images = np.asarray(images)
        assert images.shape[1:] == (self.preprocessing["height"], self.preprocessing["width"]), images.shape
        self.seen.append(len(images))
        left = images[:, :, : images.shape[2] // 3].mean(axis=(1, 2)) / 255
        peak = self.gain * images.max(axis=(1, 2)) / 255
        return self._meant(np.stack([left, peak], axis=1).astype(np.float32), calibrated)

    def classify_views(self, images, there, *, calibrated=None):
        each = self.classify(np.asarray(images).reshape(-1, *images.shape[2:]), calibrated=False)
        each = each.reshape(*there.shape, -1) * there[..., None]
        return self._meant(each.sum(axis=1) / there.sum(axis=1, keepdims=True), calibrated, self.config.task.unit)

    def embed_image(self, images):
        """By how much brighter the left half is than the right one."""
        half = images.shape[2] // 2
        angle = (images[:, :, :half].mean(axis=(1, 2)) - images[:, :, half:].mean(axis=(1, 2))) / 255 * self.gain
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def embed_text(self, texts):
        angle = np.array([0.1 * len(text) + 0.5 * ("left" in text) - 0.3 * ("right" in text) for text in texts])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def text_directions(self, texts, method="grad_cam", stage=None):
        return self.embed_text(texts)

    def saliency(self, images, towards, *, method="grad_cam", stage=None, raw=False, **options):
        """Brightness above 100, more of it at the left, times the first number of the direction or the label's place."""
        factor = [1 + self.labels.index(one) if isinstance(one, str) else one[0] for one in towards]
        slope = np.linspace(2, 1, images.shape[2])
        heats = (images.astype(np.float32) - 100) / 155 * slope * np.reshape(factor, (-1, 1, 1))
        heats = heats.astype(np.float32)
        if raw:
            return heats
        heats = np.maximum(heats, 0)
        highest = heats.max(axis=(1, 2), keepdims=True)
        return heats / np.where(highest > 0, highest, 1)

    def detect(self, images, limit=3, threshold=0.05, overlap=0.5):
        """One box of class 0 around what is 200 or more, scored by its mean and `gain`; no other."""
        boxes, scores = np.zeros((len(images), limit, 4), np.float32), np.zeros((len(images), limit), np.float32)
        classes = np.full((len(images), limit), -1, np.int32)
        for i, image in enumerate(images):
            rows, columns = np.nonzero(image >= 200)
            score = self.gain * image[rows, columns].mean() / 255 * (0.5 + columns.min() / 40) if len(rows) else 0
            if score > threshold:
                boxes[i, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                scores[i, 0], classes[i, 0] = score, 0
        return Detections(boxes, scores, classes, classes >= 0)


def breasts(count=5, size=(HEIGHT, WIDTH), seed=0):
    """uint8 [count, H, W]: noise above 60 in the left two thirds, black at the right."""
    images = np.random.default_rng(seed).integers(60, 255, (count, *size), dtype=np.uint8)
    images[:, :, 2 * size[1] // 3 :] = 0
    return images
