"""Image tower, text tower, projections and temperature -> Embeddings."""

import math
from typing import Any, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
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
        image_micro_batches: parts that the images of a training step are encoded in, one after the other, each
            computed again in the backward pass: memory falls by that factor, and batch statistics are those of a
            part. Negatives are still counted over the whole batch.
        logit_scale: initial value of the factor on cosines, 1/0.07 in CLIP; the parameter is its logarithm.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    dim: int = 512
    projection: Mapping[str, Any] = None
    pooling: str = "eos"
    image_micro_batches: int = 1
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
        images = image.reshape(-1, *image.shape[2:])
        if train and self.image_micro_batches > 1:
            image_vectors, stages = self._encode_in_parts(images), {}
        else:
            image_vectors, stages = self.encode_image(images, train=train)
        text_vectors, states = self.encode_text(
            ids.reshape(-1, ids.shape[2]), mask.reshape(-1, mask.shape[2]), train=train)
        return Embeddings(
            image=image_vectors.reshape(breasts, views, -1),
            text=text_vectors.reshape(breasts, texts, -1),
            logit_scale=jnp.exp(self.log_scale),
            image_stages=stages,
            text_states=states,
        )

    def _encode_in_parts(self, images: Float[Array, "N H W C"]) -> Float[Array, "N D"]:
        parts = self.image_micro_batches
        if len(images) % parts:
            raise UserError(f"{len(images)} images do not split into config.model.image_micro_batches={parts} parts")

        def encode(module, carry, part):
            return carry, module.encode_image(part, train=True)[0]

        # Image i goes to part i % parts, so that a batch sharded by its rows keeps every part spread over all devices.
        stacked = images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)
        scan = nn.scan(nn.remat(encode, prevent_cse=False), variable_broadcast="params", variable_carry="batch_stats",
                       split_rngs={"params": False, "dropout": True})
        _, vectors = scan(self, None, stacked)
        return vectors.swapaxes(0, 1).reshape(len(images), -1)


def _unit(x):
    """Rows of norm one; a zero row stays zero instead of turning into NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
