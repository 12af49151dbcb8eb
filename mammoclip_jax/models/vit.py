"""Vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929), DINOv2 (Oquab et al. 2023, arXiv:2304.07193),
DINOv2 with registers (Darcet et al. 2023, arXiv:2309.16588) and CLIP's (Radford et al. 2021, arXiv:2103.00020).

Parameters are named as in the DINOv2 checkpoints on the Hugging Face hub, dots turned into slashes and list numbers
joined to the name: `encoder.layer.0.attention.attention.query.weight` is `encoder/layer_0/attention/attention/query/
kernel`, transposed; the others have the same names here. Mask token and pooler of those checkpoints have no counterpart.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attention import ATTENTIONS
from mammoclip_jax.models.cubic import cubic_matrix
from mammoclip_jax.models.layers import Stages
from mammoclip_jax.models.vit_blocks import ACTIVATIONS, Encoder, init, layer_norm
from mammoclip_jax.names import check_choices, check_options, suggestion

POOLING = ("cls", "mean", "all", "cls+mean")
REMAT = ("none", "block")
FEED_FORWARD = ("mlp", "swiglu")


class Variant(NamedTuple):
    """Published sizes: width of a token, blocks, heads."""

    width: int
    depth: int
    heads: int


VIT = {
    "tiny": Variant(192, 12, 3),
    "small": Variant(384, 12, 6),
    "base": Variant(768, 12, 12),
    "large": Variant(1024, 24, 16),
    "huge": Variant(1280, 32, 16),
}
DINOV2 = {name: VIT[name] for name in ("small", "base", "large")} | {"giant": Variant(1536, 40, 24)}
CLIP = {name: VIT[name] for name in ("base", "large")}


def vit(variant: str = "base", dtype: Any = jnp.float32, **options: Any) -> "VisionTransformer":
    """ViT with 16-pixel patches (14 for huge) at a nominal 224; `options` are fields of `VisionTransformer`.

    Raises:
        UserError: there is no such variant, option or value.
    """
    published = {"patch": 14 if variant == "huge" else 16, "size": 224, "eps": 1e-12}
    return _from_options("vit", VIT, variant, dtype, published, options)


def dinov2(variant: str = "base", dtype: Any = jnp.float32, **options: Any) -> "VisionTransformer":
    """DINOv2 with 14-pixel patches at a nominal 518; `options` are fields of `VisionTransformer`.

    With `registers` (4 in the published ones) positions are resampled with antialiasing, as those were trained.

    Raises:
        UserError: there is no such variant, option or value.
    """
    published = {
        "patch": 14,
        "size": 518,
        "eps": 1e-6,
        "layer_scale": 1.0,
        "antialias": options.get("registers", 0) > 0,
        "feed_forward": "swiglu" if variant == "giant" else "mlp",
    }
    return _from_options("dinov2", DINOV2, variant, dtype, published, options)


def clip(variant: str = "base", dtype: Any = jnp.float32, **options: Any) -> "VisionTransformer":
    """OpenAI's ViT-B/16 and ViT-L/14 at a nominal 224, and with patch=32 ViT-B/32; `options` as of `vit`.

    A LayerNorm before the blocks, patches without bias, and QuickGELU. Its last linear map is the dual encoder's.

    Raises:
        UserError: there is no such variant, option or value.
    """
    published = {
        "patch": 14 if variant == "large" else 16,
        "size": 224,
        "eps": 1e-5,
        "act": "quick_gelu",
        "pre_norm": True,
        "patch_bias": False,
    }
    return _from_options("clip_vit", CLIP, variant, dtype, published, options)


def _from_options(kind, variants, variant, dtype, published, options):
    check_options(VisionTransformer, options, f"image encoder {kind}")
    if variant not in variants:
        raise UserError(
            f"{kind} has no variant {variant!r}.{suggestion(str(variant), variants)} Known: {', '.join(variants)}."
        )
    if options.get("stages") is not None:
        options["stages"] = tuple(options["stages"])  # a config read from JSON has a list, which jit cannot hash
    return VisionTransformer(dtype=dtype, **variants[variant]._asdict() | published | options)


class PatchEmbeddings(nn.Module):
    """Patches to tokens, row by row; parameters kernel [patch, patch, channels, C] and bias under "projection"."""

    patch: int
    features: int
    bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W channels"]) -> Float[Array, "N h w C"]:
        size = (self.patch, self.patch)
        options = {"use_bias": self.bias, "dtype": self.dtype, "kernel_init": init}
        return nn.Conv(self.features, size, size, "VALID", name="projection", **options)(x)


class Embeddings(nn.Module):
    """Class token, registers and patches, with positions on all but the registers."""

    patch: int
    size: int
    features: int
    registers: int
    antialias: bool
    patch_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W channels"]) -> Float[Array, "N L C"]:
        side, c = self.size // self.patch, self.features
        cls = self.param("cls_token", init, (1, 1, c))
        positions = self.param("position_embeddings", init, (1, 1 + side * side, c))
        x = PatchEmbeddings(self.patch, c, self.patch_bias, self.dtype, name="patch_embeddings")(x)
        n, height, width, _ = x.shape
        grid = positions[0, 1:].reshape(side, side, c)
        if (height, width) != (side, side):
            rows, columns = (cubic_matrix(side, new, self.antialias).astype(positions.dtype) for new in (height, width))
            grid = jnp.einsum("hg,wk,gkc->hwc", rows, columns, grid, precision=lax.Precision.HIGHEST)
        x = (x + grid.astype(x.dtype)).reshape(n, -1, c)
        first = cls[0] + positions[0, :1]
        if self.registers:
            registers = self.param("register_tokens", nn.initializers.normal(1e-6), (1, self.registers, c))
            first = jnp.concatenate([first, registers[0]])
        return jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (n, *first.shape)), x], axis=1)


class VisionTransformer(nn.Module):
    """Image encoder; any number of input channels, any input size.

    Where height or width is no multiple of the patch, zeros are added below and on the right (transformers drops the
    rest of the image instead). Positions are kept for the nominal size and resampled bicubically to other ones.

    Grad-CAM under the pooling "cls" needs a stage before the last block: what follows it does not mix tokens, so that
    the gradient at the patches of the last block, and of "last", is zero. Under "all" that holds for "last".

    Attributes:
        width, depth, heads: of the tokens, the blocks, the attention.
        patch: side of a patch, in pixels.
        size: side of the square image that the positions are learned for.
        registers: number of further tokens that belong to no patch.
        feed_forward: "mlp" or "swiglu".
        act: "gelu" or "quick_gelu", of the feed-forward "mlp".
        pre_norm: whether a LayerNorm stands before the blocks too.
        patch_bias: whether the patches have a bias.
        layer_scale: initial factor on each branch; None for none.
        antialias: whether positions are resampled as transformers does for DINOv2 with registers.
        pooling: "cls" (post-norm class token), "mean" (of post-norm patches), "all" (mean of all tokens before the
            last norm, as MaMA's `--pool_feat`), "cls+mean" (the first two, 2 x width).
        drop_path: of the last block; from 0 in the first in equal steps.
        stages: numbers of the blocks, from 1, whose patch maps are returned; None for the ends of the four quarters.
        attention: "plain", "chunked", "flash" or "auto" (see `attention.attention`).
        remat: what the backward pass computes again: "none" or a whole "block" at a time.
        eps: of the LayerNorms.
        dtype: of products and activations; parameters, norms and softmax are float32.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    size: int = 224
    registers: int = 0
    feed_forward: str = "mlp"
    act: str = "gelu"
    pre_norm: bool = False
    patch_bias: bool = True
    layer_scale: float | None = None
    antialias: bool = False
    pooling: str = "cls"
    drop_path: float = 0.0
    stages: tuple[int, ...] | None = None
    attention: str = "auto"
    remat: str = "none"
    eps: float = 1e-6
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_choices(
            "the vision transformer",
            self,
            {
                "feed_forward": FEED_FORWARD,
                "act": ACTIVATIONS,
                "pooling": POOLING,
                "attention": ATTENTIONS,
                "remat": REMAT,
            },
        )
        if self.width % self.heads:
            raise UserError(f"the vision transformer's width={self.width} must be a multiple of heads={self.heads}")
        for block in self.stages or ():
            if not 1 <= block <= self.depth:
                raise UserError(f"the vision transformer has no block {block!r} for `stages`: 1 to {self.depth}")

    @property
    def dim(self) -> int:
        """Length of the pooled vector."""
        return 2 * self.width if self.pooling == "cls+mean" else self.width

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on; "last" is behind the last norm."""
        blocks = self.stages or {-(-self.depth * quarter // 4) for quarter in (1, 2, 3, 4)}
        return (*(f"block{block}" for block in sorted(blocks)), "last")

    @property
    def grad_cam_stage(self) -> str:
        """The last stage at whose patches the pooled vector has a gradient (see above)."""
        behind = {"cls": self.depth, "all": self.depth + 1}.get(self.pooling, self.depth + 2)
        numbers = [*(int(name.removeprefix("block")) for name in self.stage_names[:-1]), self.depth + 1]
        fitting = [name for name, number in zip(self.stage_names, numbers, strict=True) if number < behind]
        return fitting[-1] if fitting else self.stage_names[0]

    @property
    def pooled_stage(self) -> str | None:
        """The stage whose patches lie in the space of the pooled vector; None where that is twice as long."""
        return {"cls": "last", "mean": "last", "all": f"block{self.depth}"}.get(self.pooling)

    def pooled_tokens(self, patches: int) -> Float[np.ndarray, " L"]:
        """The share of each token in the pooled vector, for an image of so many patches; they sum to 1."""
        first = 1 + self.registers
        cls, mean = np.eye(1, first + patches)[0], np.repeat([0.0, 1 / patches], [first, patches])
        every = np.full(first + patches, 1 / (first + patches))
        return {"cls": cls, "mean": mean, "all": every, "cls+mean": (cls + mean) / 2}[self.pooling]

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of any size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1).
        """
        return {name: (self.patch, (self.patch / 2, self.patch / 2)) for name in self.stage_names}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """Pooled features (float32) and the named stage maps [N h w width].

        Training with `drop_path` needs the "dropout" generator. `offsets` are added to the stage maps of their names;
        their gradient at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage.
        """
        stages = Stages("the vision transformer", self.stage_names, offsets)
        fill = [-length % self.patch for length in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (0, fill[0]), (0, fill[1]), (0, 0)))
        first, grid = 1 + self.registers, (x.shape[1] // self.patch, x.shape[2] // self.patch)

        def stage(name, x):
            if name not in self.stage_names:
                return x
            if name in offsets:
                moved = x[:, first:] + offsets[name].astype(x.dtype).reshape(len(x), -1, self.width)
                x = jnp.concatenate([x[:, :first], moved], axis=1)
            stages.maps[name] = x[:, first:].reshape(len(x), *grid, self.width)
            return x

        embeddings = (self.patch, self.size, self.width, self.registers, self.antialias, self.patch_bias, self.dtype)
        x = Embeddings(*embeddings, name="embeddings")(x)
        if self.pre_norm:
            x = layer_norm(self.eps, self.dtype, "pre_layernorm")(x)
        layer = dict(
            heads=self.heads,
            feed_forward=self.feed_forward,
            act=self.act,
            layer_scale=self.layer_scale,
            attention=self.attention,
            eps=self.eps,
            dtype=self.dtype,
        )
        before = Encoder(self.depth, self.drop_path, self.remat, layer, name="encoder")(x, train, stage)
        after = stage("last", layer_norm(self.eps, self.dtype, "layernorm")(before))
        return self._pool(_wide(before), _wide(after), first), stages.maps

    def _pool(self, before, after, first):
        if self.pooling == "all":
            return before.mean(axis=1)
        cls, mean = after[:, 0], after[:, first:].mean(axis=1)
        return {"cls": cls, "mean": mean, "cls+mean": jnp.concatenate([cls, mean], axis=-1)}[self.pooling]


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
