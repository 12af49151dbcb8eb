"""Models without texts: a classifier, a detector, an image encoder alone."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from mammoclip_jax import models
from mammoclip_jax.boxes import decode
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.models.heads import ACTIVATIONS, HEAD
from mammoclip_jax.models.nms import Detections, nms
from mammoclip_jax.models.retinanet import anchors, input_size
from mammoclip_jax.names import check_options, lookup
from mammoclip_jax.training import augment


class Classifier(ImageModel):
    """An image encoder with a linear head: probabilities of `labels`, and Grad-CAM towards each."""

    kind = "classifier"

    def _build(self, meta):
        self.labels = tuple(self.config.model.labels)
        return models.classifier(self.config.model)

    def classify(
        self, images: Shaped[np.ndarray, "N H W"], *, calibrated: bool | None = None
    ) -> Float[np.ndarray, "N labels"]:
        """Probabilities of preprocessed images, uint8 or uint16: each label by itself, or classes that sum to one.

        Args:
            calibrated: as was measured for these weights (`python -m mammoclip_jax.calibrate`); None: as the model was
                loaded.

        Raises:
            UserError: calibrated ones are wanted, and nothing was measured.
        """
        return self._meant(self._of_images(self._classify, images), calibrated)

    def classify_views(
        self, images: Shaped[np.ndarray, "N V H W"], there: Bool[np.ndarray, "N V"], *, calibrated: bool | None = None
    ) -> Float[np.ndarray, "N labels"]:
        """Probabilities of breasts or exams from their views; `there` is False for a view that is not.

        As `classify`.
        """
        scores = self._of_images(self._classify_views, images, np.asarray(there, bool), views=True)
        return self._meant(scores, calibrated, self.config.task.unit)

    def head(self, label: str) -> tuple[Float[np.ndarray, " c"], float]:
        """(weights, bias) that make a label's logit of an image's pooled features.

        Raises:
            UserError: there is no such label, or it is one of several classes, whose probabilities depend on all logits.
        """
        place = lookup({name: place for place, name in enumerate(self.labels)}, label, "label of the model")
        if self.config.model.activation != "sigmoid":
            raise UserError(f"{label!r} is one of several classes: only a yes/no label has a logit of its own.")
        kernel, bias = (np.asarray(self._variables["params"][HEAD][name]) for name in ("kernel", "bias"))
        return kernel[:, place], float(bias[place])

    @functools.partial(jax.jit, static_argnums=0)
    def _classify(self, variables, images):
        logits, _ = self._encode(variables, augment.eval_images(images, self._options))
        return ACTIVATIONS[self.config.model.activation](logits)

    @functools.partial(jax.jit, static_argnums=0)
    def _classify_views(self, variables, images, there):
        pixels = augment.eval_images(images.reshape(-1, *images.shape[2:]), self._options)
        logits = self._module.apply(variables, pixels, there, train=False, method="of_views")
        return ACTIVATIONS[self.config.model.activation](logits)


class Detector(ImageModel):
    """A RetinaNet: boxes of `labels`; and maps of each label's highest logit."""

    kind = "detector"
    _encoding = "encode_image"

    def _build(self, meta):
        self.labels = tuple(self.config.model.labels)
        self._canvas = (self.preprocessing["height"], self.preprocessing["width"])
        self._input_size = input_size(self.config.model, self._canvas)
        return models.detector(self.config.model)

    def detect(self, images: Shaped[np.ndarray, "N H W"], **options) -> Detections:
        """The boxes [N, K, 4] of preprocessed images, in their pixels, by falling score; see `models.nms.Detections`.

        Classes are places in `labels`. Images are stretched to config.model.input_size first, where that is given.

        Args:
            options: of `models.nms.nms`: threshold, overlap, limit (K), candidates, class_aware.

        Raises:
            UserError: there is no such option.
        """
        check_options(nms, options, "detect")
        return self._batched(functools.partial(self._detect, tuple(sorted(options.items()))), np.asarray(images))

    def with_classes(self, vectors: Mapping[str, Float[np.ndarray, " D"]]) -> "Detector":
        """The same weights with other classes, {label: text vector}; of one whose classes are texts."""
        config = self.config.copy_and_resolve_references()
        config.model.labels = tuple(vectors)
        prompts = {"vectors": np.stack(list(vectors.values()))}
        statistics = {**self._variables["batch_stats"], "texts": {"prompts": prompts}}
        meta = {
            "config": config.to_dict(),
            "preprocessing": self.preprocessing,
            "provenance": self.provenance,
            "trained_on": self.trained_on,
        }
        variables = {**self._variables, "batch_stats": statistics}
        return Detector(variables, meta, self.step, batch_size=self._batch_size, mesh=self._mesh)

    def map_stage(self, method: str, stage: str | None = None) -> str:
        """As of all models.

        Raises:
            UserError: besides, images are stretched: the maps would not lie on them.
        """
        if self._input_size != self._canvas:
            raise UserError(
                f"config.model.input_size is {self._input_size}, the images have {self._canvas} pixels: "
                "maps are made for detectors that see images as they are."
            )
        return super().map_stage(method, stage)

    def _blank(self):
        return jnp.zeros((1, *self._input_size, self._options.channels))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _detect(self, options, variables, images):
        pixels = augment.resized(augment.eval_images(images, self._options), self._input_size)
        logits, deltas = self._module.apply(variables, pixels, train=False)
        boxes = decode(deltas, anchors(*self._input_size), self._input_size)
        scale = np.array(self._canvas[::-1] * 2) / np.array(self._input_size[::-1] * 2)
        detections = jax.vmap(lambda *each: nms(*each, **dict(options)))(boxes, jax.nn.sigmoid(logits))
        return detections._replace(boxes=detections.boxes * scale.astype(np.float32))


class ImageEncoder(ImageModel):
    """An image encoder alone, such as published ImageNet or DINOv2 weights: features for a linear probe, and maps.

    It has seen no data set of ours, so it takes canvases of any size and preparation; `preprocessing` is that of
    `read_images`. Normalisation is the weights' own. Maps are of N directions in the space of pooled features.
    """

    kind = "image_encoder"
    _one_size = False

    def _build(self, meta):
        return models.bare_image_encoder(self.config.model)

    def predict(self, folder, out=None, **options):
        """Raises UserError: features are no scores."""
        raise UserError(
            "an image encoder alone scores nothing: train a head on it (`finetune` with "
            "config.warm_start), or measure its features with the evaluator linear_probe."
        )
