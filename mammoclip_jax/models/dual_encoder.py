"""Image tower, text tower, projections and temperature -> Embeddings."""

import math
from typing import Any, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.models.bert import pool
from mammoclip_jax.types import Embeddings


class Projection(nn.Module):
    """Encoder features to the shared space: one linear map, or an MLP with a residual and LayerNorm.

    Both as in Mammo-CLIP (codebase/breastclip/model/modules/projection.py); published weights are `linear`.
    """

    kind: str
    dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        if self.kind == "linear":
            return nn.Dense(self.dim, name="dense")(x)
        if self.kind != "mlp":
            raise ValueError(f"config.model.projection.kind is {self.kind!r}; it may be 'linear' or 'mlp'")
        projected = nn.Dense(self.dim, name="dense")(x)
        hidden = nn.Dense(self.dim, name="hidden")(nn.gelu(projected, approximate=False))
        hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(hidden + projected)


class DualEncoder(nn.Module):
    """Two towers into one space of unit vectors.

    Attributes:
        pooling: of the text states, "eos" (last real token), "bos" or "mean".
        logit_scale: initial value of the factor on cosines, 1/0.07 in CLIP; the parameter is its logarithm.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    dim: int = 512
    projection: Mapping[str, Any] = None
    pooling: str = "eos"
    logit_scale: float = 1 / 0.07

    def setup(self):
        options = dict(self.projection or {"kind": "linear"})
        self.image_projection = Projection(dim=self.dim, **options)
        self.text_projection = Projection(dim=self.dim, **options)
        self.log_scale = self.param("logit_scale", lambda _: jnp.float32(math.log(self.logit_scale)))

    def encode_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N D"], Mapping[str, Array]]:
        """Unit vectors and the encoder's named stage maps; `offsets` are added to the stages of their name."""
        pooled, stages = self.image_encoder(image, train=train, offsets=offsets)
        return _unit(self.image_projection(pooled.astype(jnp.float32), train)), stages

    def encode_text(
        self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool = False
    ) -> tuple[Float[Array, "N D"], Float[Array, "N L c"]]:
        """Unit vectors and the token states."""
        states = self.text_encoder(ids, mask, train=train)
        return _unit(self.text_projection(pool(states, mask, self.pooling).astype(jnp.float32), train)), states

    def __call__(
        self, image: Float[Array, "B V H W C"], ids: Int[Array, "B T L"], mask: Bool[Array, "B T L"], *, train: bool
    ) -> Embeddings:
        breasts, views = image.shape[:2]
        texts = ids.shape[1]
        image_vectors, stages = self.encode_image(image.reshape(-1, *image.shape[2:]), train=train)
        text_vectors, states = self.encode_text(
            ids.reshape(-1, ids.shape[2]), mask.reshape(-1, mask.shape[2]), train=train)
        return Embeddings(
            image=image_vectors.reshape(breasts, views, -1),
            text=text_vectors.reshape(breasts, texts, -1),
            logit_scale=jnp.exp(self.log_scale),
            image_stages=stages,
            text_states=states,
        )


def _unit(x):
    """Rows of norm one; a zero row stays zero instead of turning into NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
