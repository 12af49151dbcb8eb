"""An image encoder without projection or head."""

from collections.abc import Mapping

import flax.linen as nn
from jaxtyping import Array, Float


class ImageEncoder(nn.Module):
    """An image encoder whose parameters lie where whole models have them, under image_encoder/."""

    image_encoder: nn.Module

    def __call__(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], Mapping[str, Array]]:
        """Pooled features and the encoder's named stage maps; `offsets` are added to the stages of their name."""
        return self.image_encoder(image, train=train, offsets=offsets)

    def project_image(self, pooled: Float[Array, "... c"], *, train: bool = False) -> Float[Array, "... c"]:
        """The features themselves: nothing comes behind them."""
        return pooled
