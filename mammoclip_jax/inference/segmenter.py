"""A segmentation for use: masks of its labels."""

import functools

import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.image_model import ImageModel
from mammoclip_jax.training import augment


class Segmenter(ImageModel):
    """A U-Net, or an encoder with a pyramid: a mask of each of `labels`, by itself; and maps of each one's highest logit."""

    kind = "segmenter"
    _encoding = "encode_image"

    def _build(self, meta):
        self.labels = tuple(self.config.model.labels)
        return models.segmenter(self.config.model)

    def segment(self, images: Shaped[np.ndarray, "N H W"], threshold: float = 0.5) -> Bool[np.ndarray, "N H W labels"]:
        """Masks of preprocessed images, uint8 or uint16: where the probability is above `threshold`.

        `masks[..., model.labels.index("breast")]` are those of one label.
        """
        return self.probabilities(images) > threshold

    def probabilities(self, images: Shaped[np.ndarray, "N H W"]) -> Float[np.ndarray, "N H W labels"]:
        """Of each pixel, float32: each label by itself."""
        return self._of_images(self._probabilities, images)

    def predict(self, folder, out=None, **options):
        """Raises UserError: masks are no scores."""
        raise UserError(
            "a segmentation scores no exams: use `segment` on images of `read_images`, or the evaluator segmentation."
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _probabilities(self, variables, images):
        pixels = augment.eval_images(images, self._options)
        return jax.nn.sigmoid(self._module.apply(variables, pixels, train=False))
