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
from mammoclip_jax.models.products import Dense
from mammoclip_jax.models.vectors import Heads
from mammoclip_jax.types import Embeddings

PROJECTIONS = ("linear", "mlp")
TOWERS = ("image", "text")
OWN_HEAD = "image_encoder"  # in place of a head's name: an image encoder with `of_boxes`


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
        projected = Dense(self.dim, use_bias=self.bias, name="dense")(x)
        if self.kind == "linear":
            return projected
        hidden = Dense(self.dim, name="hidden")(gelu(projected))
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
        image_head: the head of kind regions that makes the vector of an image, as that of a region that is all of it, in
            place of the pooled features and their projection; "": none does.
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
    image_head: str = ""

    def setup(self):
        of_regions = self.heads.of_regions() if self.heads else ()
        if self.image_head and self.image_head not in of_regions:
            raise UserError(
                f"config.model.image_head is {self.image_head!r}: it names one of config.model.heads of kind regions, "
                f"here {', '.join(of_regions) or 'none'}."
            )
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
        return self._image_vector(pooled, stages, image.shape[1:3], train), stages

    def image_outputs(
        self, image: Float[Array, "N H W C"], *, train: bool = False
    ) -> tuple[Float[Array, "N D"], Mapping[str, Array]]:
        """Unit vectors, and all that a term or a head may need beside them: the stage maps and `pooled`."""
        pooled, stages = self.pool_image(image, train=train)
        vectors = self._image_vector(pooled, stages, image.shape[1:3], train)
        return vectors, {**stages, "pooled": pooled}

    def _image_vector(self, pooled, stages, size: tuple[int, int], train: bool):
        if not self.image_head:
            return self.project_image(pooled, train=train)
        return self._of_boxes(self.image_head, stages, jnp.zeros((len(pooled), 0, 4)), size)[:, 0]

    def embed_regions(
        self, head: str, image: Float[Array, "N H W C"], boxes: Float[Array, "N R 4"], *, train: bool = False
    ) -> Float[Array, "N R D"]:
        """Unit vectors that a head of kind regions makes of boxes (left, top, right, bottom) in pixels of the images; or
        OWN_HEAD, what the image encoder itself does: CLIP's ResNets."""
        _, stages = self.pool_image(image, train=train)
        if head == OWN_HEAD:
            return self.project_image(self.image_encoder.of_boxes(stages, boxes, train=train), train=train)
        return self._of_boxes(head, stages, boxes, image.shape[1:3])[:, 1:]

    def _of_boxes(self, head: str, stages, boxes: Float[Array, "N R 4"], size: tuple[int, int]):
        """Unit vectors [N 1+R D] of the whole image and of boxes, all of which are there."""
        made = self.heads.by_name[head]
        cells = self._cells(boxes, size, made.stages)
        vectors = made.of_boxes(stages, cells, jnp.ones((len(boxes), 1 + boxes.shape[1]), bool))
        return _unit(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)))

    def _cells(
        self, boxes: Float[Array, "*n R 4"], size: tuple[int, int], stages
    ) -> dict[str, Float[Array, "*n 1+R 4"]]:
        """The whole image, then the boxes, in the cells of the stages' maps: cell i covers i to i + 1."""
        whole = jnp.broadcast_to(jnp.array([0, 0, size[1], size[0]], boxes.dtype), (*boxes.shape[:-2], 1, 4))
        boxes, grids = jnp.concatenate([whole, boxes], axis=-2), self.image_encoder.stage_grids(*size)
        return {
            stage: (boxes - jnp.array((column, row) * 2, boxes.dtype)) / stride + 0.5
            for stage, (stride, (row, column)) in grids.items()
            if stage in stages
        }

    def pool_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], Mapping[str, Array]]:
        """What is projected, and the encoder's named stage maps."""
        frozen = "image" in self.frozen
        pooled, stages = self.image_encoder(image, train=train and not frozen, offsets=offsets)
        return jax.lax.stop_gradient((pooled, stages)) if train and frozen else (pooled, stages)

    def apply_head(
        self, name: str, inputs: Mapping[str, Array], *, size: tuple[int, int] | None = None, train: bool = False
    ) -> dict[str, Array]:
        """What the head of that name makes of the towers' outputs and the batch; see `vectors.Heads`.

        Args:
            size: (H, W) of the images, of which `boxes` [B V R 4] are in pixels; `regions` [B V R] says which there are.
        """
        if name in self.heads.of_regions() and "boxes" in inputs:
            cells = self._cells(inputs["boxes"], size, self.image_encoder.stage_grids(*size))
            there = inputs["view_mask"] & inputs["mask"][:, None]
            there = jnp.concatenate([there[..., None], inputs["regions"] & there[..., None]], axis=-1)
            inputs = {**inputs, "regions": there} | {f"boxes/{stage}": x for stage, x in cells.items()}
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
        """Unit vectors of pooled features, or of the features of places of the stage that is pooled.

        Raises:
            UserError: the images' vectors are those of a head (`image_head`), which has no vector of a place.
        """
        if self.image_head:
            raise UserError(
                f"the vectors of images are made by config.model.heads.{self.image_head}, of regions: there is no "
                "projection of single places. Take another method, such as grad_cam, or embed_regions."
            )
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

    def project_texts_raw(
        self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool = False
    ) -> Float[Array, "N D"]:
        """What `encode_text` scales to length one, as it is."""
        return self._projected("text", self.pool_text(ids, mask, train=train)[0], train)

    def _project(self, tower, pooled, train):
        return _unit(self._projected(tower, pooled, train))

    def _projected(self, tower, pooled, train):
        if tower not in self.projected:
            return getattr(self, f"{tower}_projection")(pooled, train)
        if pooled.shape[-1] != self.dim:
            raise UserError(
                f"config.model.projected names {tower}, whose encoder gives {pooled.shape[-1]} numbers, and "
                f"config.model.dim is {self.dim}: leave {tower} out, or make them the same."
            )
        return pooled

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
            "boxes": jnp.zeros((*image.shape[:2], 1, 4)),
            "regions": jnp.ones((*image.shape[:2], 1), bool),
        }
        inputs = {name: jnp.concatenate([x, x], axis=1)[:, :2] for name, x in inputs.items()}
        for name in self.heads.makers:
            self.apply_head(name, inputs | {"mask": jnp.ones(len(image), bool)}, size=image.shape[2:4])


def _unit(x):
    """Rows of norm one; a zero row stays zero instead of turning into NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
