"""Image tower, text tower, projections and temperature -> Embeddings."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.elementwise import Dropout, gelu
from mammoclip_jax.models.pooling import pool
from mammoclip_jax.models.vectors import Heads
from mammoclip_jax.types import Embeddings

PROJECTIONS = ("linear", "mlp")
TOWERS = ("image", "text")


class Projection(nn.Module):
    """Encoder features to the shared space: one linear map, or an MLP with a residual and LayerNorm.

    Both as in Mammo-CLIP (codebase/breastclip/model/modules/projection.py); published weights are `linear`. CLIP and
    MedCLIP have linear maps without `bias`.
    """

    kind: str
    dim: int
    dropout: float = 0.0
    bias: bool = True

    @nn.compact
    def __call__(self, x, train):
        if self.kind not in PROJECTIONS:
            raise UserError(f"config.model.projection.kind is {self.kind!r}; it may be {' or '.join(PROJECTIONS)}.")
        projected = nn.Dense(self.dim, use_bias=self.bias, name="dense")(x)
        if self.kind == "linear":
            return projected
        hidden = nn.Dense(self.dim, name="hidden")(gelu(projected))
        hidden = Dropout(self.dropout, not train)(hidden)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(hidden + projected)


class DualEncoder(nn.Module):
    """Two towers into one space of unit vectors.

    Attributes:
        pooling: of the text states, a name in `pooling.POOLINGS`.
        pooling_token: id of the token that the poolings "eot" and "sep" look for.
        frozen: towers, "image" or "text", that training leaves as they are: they run in evaluation mode (running
            statistics, no dropout) and no gradient enters them. Their projections are trained.
        logit_scale: initial value of the factor on cosines, 1/0.07 in CLIP; the parameter is its logarithm.
        logit_bias: initial value of what the sigmoid loss adds to the logits, -10 in SigLIP; None: no such parameter.
        heads: what makes further vectors of the towers' outputs for loss terms; None: no term needs any.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    dim: int = 512
    projection: Mapping[str, Any] = None
    pooling: str = "eos"
    pooling_token: int | None = None
    frozen: tuple[str, ...] = ()
    projected: tuple[str, ...] = ()
    logit_scale: float = 1 / 0.07
    logit_bias: float | None = None
    heads: Heads | None = None

    def setup(self):
        for field in ("frozen", "projected"):
            for tower in getattr(self, field):
                if tower not in TOWERS:
                    raise UserError(f"config.model.{field} names {tower!r}; it may name {' and '.join(TOWERS)}.")
        options = dict(self.projection or {"kind": "linear"})
        if "image" not in self.projected:
            self.image_projection = Projection(dim=self.dim, **options)
        if "text" not in self.projected:
            self.text_projection = Projection(dim=self.dim, **options)
        self.log_scale = self.param("logit_scale", lambda _: jnp.float32(math.log(self.logit_scale)))
        self.bias = None
        if self.logit_bias is not None:
            self.bias = self.param("logit_bias", lambda _: jnp.float32(self.logit_bias))

    def encode_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N D"], Mapping[str, Array]]:
        """Unit vectors and the encoder's named stage maps; `offsets` are added to the stages of their name."""
        pooled, stages = self.pool_image(image, train=train, offsets=offsets)
        return self.project_image(pooled, train=train), stages

    def image_outputs(
        self, image: Float[Array, "N H W C"], *, train: bool = False
    ) -> tuple[Float[Array, "N D"], Mapping[str, Array]]:
        """Unit vectors, and all that a term or a head may need beside them: the stage maps and `pooled`."""
        pooled, stages = self.pool_image(image, train=train)
        return self.project_image(pooled, train=train), {**stages, "pooled": pooled}

    def pool_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], Mapping[str, Array]]:
        """What is projected, and the encoder's named stage maps."""
        frozen = "image" in self.frozen
        pooled, stages = self.image_encoder(image, train=train and not frozen, offsets=offsets)
        return jax.lax.stop_gradient((pooled, stages)) if train and frozen else (pooled, stages)

    def apply_head(self, name: str, inputs: Mapping[str, Array], *, train: bool = False) -> dict[str, Array]:
        """What the head of that name makes of the towers' outputs and the batch; see `vectors.Heads`."""
        return self.heads(name, inputs, train)

    def embed_patches(
        self, head: str, maps: Float[Array, "N h w c"], lit: Bool[Array, "N H W"], *, train: bool = False
    ) -> tuple[Float[Array, "N h w D"], Bool[Array, "N h w"]]:
        """Unit vectors that a head of kind local makes of the patches of its stage, and which of them count.

        Args:
            maps: of the head's stage; lit: the pixels that are brighter than the background.
        """
        vectors, there = self.heads.by_name[head].of_patches(maps, lit, jnp.ones(len(maps), bool), train)
        return _unit(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))), there

    def embed_sentences(
        self,
        head: str,
        ids: Int[Array, "N L"],
        mask: Bool[Array, "N L"],
        sentence: Int[Array, "N L"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "N S D"], Bool[Array, "N S"]]:
        """Unit vectors that a head of kind local makes of the sentences of texts, and which there are.

        Args:
            sentence: number of the sentence that each token belongs to, -1 for tokens of none.
        """
        _, states = self.pool_text(ids, mask, train=train)
        vectors, there = self.heads.by_name[head].of_sentences(states, sentence, mask, jnp.ones(len(ids), bool), train)
        return _unit(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))), there

    def project_image(self, pooled: Float[Array, "... c"], *, train: bool = False) -> Float[Array, "... D"]:
        """Unit vectors of pooled features, or of the features of places of the stage that is pooled."""
        wide = jnp.promote_types(pooled.dtype, jnp.float32)
        return self._project("image", pooled.astype(wide), train)

    def encode_text(
        self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool = False
    ) -> tuple[Float[Array, "N D"], Float[Array, "N L c"]]:
        """Unit vectors and the token states; the one way of texts in training, evaluation and export."""
        pooled, states = self.pool_text(ids, mask, train=train)
        return self.project_text(pooled, train=train), states

    def pool_text(
        self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool = False
    ) -> tuple[Float[Array, "N c"], Float[Array, "N L c"]]:
        """What is projected, in float32, and the token states."""
        frozen = "text" in self.frozen
        states = self.text_encoder(ids, mask, train=train and not frozen)
        states = jax.lax.stop_gradient(states) if train and frozen else states
        pooled = pool(states, ids, mask, self.pooling, self.pooling_token)
        return pooled.astype(jnp.float32), states

    def project_text(self, pooled: Float[Array, "N c"], *, train: bool = False) -> Float[Array, "N D"]:
        """Unit vectors of what `pool_text` gave, now or long ago (config.model.cached_text)."""
        return self._project("text", pooled, train)

    def _project(self, tower, pooled, train):
        if tower not in self.projected:
            return _unit(getattr(self, f"{tower}_projection")(pooled, train))
        if pooled.shape[-1] != self.dim:
            raise UserError(
                f"config.model.projected names {tower}, whose encoder gives {pooled.shape[-1]} numbers, and "
                f"config.model.dim is {self.dim}: leave {tower} out, or make them the same."
            )
        return _unit(pooled)

    def __call__(
        self, image: Float[Array, "B V H W C"], ids: Int[Array, "B T L"], mask: Bool[Array, "B T L"], *, train: bool
    ) -> Embeddings:
        breasts, views = image.shape[:2]
        texts = ids.shape[1]
        images = image.reshape(-1, *image.shape[2:])
        image_vectors, outputs = self.image_outputs(images, train=train)
        text_vectors, states = self.encode_text(
            ids.reshape(-1, ids.shape[2]), mask.reshape(-1, mask.shape[2]), train=train
        )
        outputs = {f"image/{name}": x.reshape(breasts, views, *x.shape[1:]) for name, x in outputs.items()}
        outputs |= {"text/states": states.reshape(breasts, texts, *states.shape[1:])}
        if self.heads and self.is_initializing():
            self._initialise_heads(outputs, image, mask)
        return Embeddings(
            image=image_vectors.reshape(breasts, views, -1),
            text=text_vectors.reshape(breasts, texts, -1),
            logit_scale=jnp.exp(self.log_scale),
            logit_bias=self.bias,
            named=outputs,
        )

    def _initialise_heads(self, outputs, image, mask):
        """Two views and texts of each breast: the most that a head asks for."""
        inputs = outputs | {
            "image/lit": image[..., 0] > 0,
            "view_mask": jnp.ones(image.shape[:2], bool),
            "token_mask": mask,
            "sentence": jnp.zeros(mask.shape, jnp.int32),
        }
        inputs = {name: jnp.concatenate([x, x], axis=1)[:, :2] for name, x in inputs.items()}
        for name in self.heads.makers:
            self.heads(name, inputs | {"mask": jnp.ones(len(image), bool)}, False)


def _unit(x):
    """Rows of norm one; a zero row stays zero instead of turning into NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
