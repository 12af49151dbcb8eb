"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) with named stages.

Parameters are named as in the Swin checkpoints on the Hugging Face hub, dots turned into slashes and list numbers
joined to the name: `encoder.layers.0.blocks.1.attention.self.query.weight` is `encoder/layers_0/blocks_1/attention/
self/query/kernel`, transposed. Their mask token and their `relative_position_index` have no counterpart.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.convnext import Patches
from mammoclip_jax.models.elementwise import gelu
from mammoclip_jax.models.layers import GlobalPool, Stages, drop_path
from mammoclip_jax.models.products import Dense
from mammoclip_jax.models.vit_blocks import Output
from mammoclip_jax.names import check_choices


class Variant(NamedTuple):
    """Channels of the first stage, which double at each further one, and blocks and heads of each."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]


VARIANTS = {
    "tiny": Variant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": Variant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": Variant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": Variant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
REMAT = ("none", "block")

_PATCH = 4
_EPS = 1e-5  # of the norms behind patches and before merging, whatever `layer_norm_eps` is
_APART = -100.0  # added to the score of two tokens that only the shift brought together, as in the authors' code
_init = nn.initializers.truncated_normal(0.02)


def position_index(window: int) -> Int[np.ndarray, "T T"]:
    """Row of the bias table for query and key of a window of T = window^2 tokens, counted row by row."""
    places = np.stack(np.divmod(np.arange(window**2), window))
    rows, columns = places[:, :, None] - places[:, None, :] + window - 1
    return rows * (2 * window - 1) + columns


def to_windows(x: Array, window: int) -> Array:
    """[N H W C] as [N G T C]: the G windows of T tokens; H and W are multiples of `window`."""
    n, height, width, c = x.shape
    x = x.reshape(n, height // window, window, width // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, window**2, c)


def from_windows(x: Array, window: int, height: int, width: int) -> Array:
    """The way back to [N height width C]."""
    x = x.reshape(len(x), height // window, width // window, window, window, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)


def regions(height: int, width: int, window: int, shift: int) -> Int[Array, "G T"]:
    """Numbers of the regions of a map rolled by `shift`; tokens in one window but two regions were not neighbours.

    Counted on the device: as a constant, what follows from it would be computed by the compiler, slowly.
    """
    rows, columns = (jnp.arange(size) >= size - shift for size in (height, width))
    return to_windows((2 * rows[:, None] + columns)[None, :, :, None], window)[0, :, :, 0]


class SelfAttention(nn.Module):
    """Queries, keys and values of every head within each window, with a bias for each relative position.

    The table [(2 window - 1)^2, heads] has a bias for each; tokens of different `groups` do not see one another.
    """

    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N G T C"], groups: Int[Array, "G T"] | None) -> Float[Array, "N G T C"]:
        def project(name: str) -> Float[Array, "N G T heads d"]:
            return _dense(x.shape[-1], self.dtype, name)(x).reshape(*x.shape[:3], self.heads, -1)

        query, key, value = (project(name) for name in ("query", "key", "value"))
        table = self.param("relative_position_bias_table", _init, ((2 * self.window - 1) ** 2, self.heads))
        scores = jnp.einsum("ngqhd,ngkhd->nghqk", query, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / query.shape[-1] ** 0.5
        scores += table[position_index(self.window)].transpose(2, 0, 1)
        if groups is not None:
            apart = groups[:, None, :, None] != groups[:, None, None, :]
            scores = jnp.where(apart, scores + _APART, scores)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("nghqk,ngkhd->ngqhd", weights, value).reshape(x.shape)


class Attention(nn.Module):
    """Attention within windows, with its output projection."""

    heads: int
    window: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N G T C"], groups: Int[Array, "G T"] | None) -> Float[Array, "N G T C"]:
        context = SelfAttention(self.heads, self.window, self.dtype, name="self")(x, groups)
        return Output(x.shape[-1], self.dtype, name="output")(context)


class Block(nn.Module):
    """Attention within windows and an MLP four times as wide inside, each behind its LayerNorm and with a residual.

    Zeros below and on the right, which all tokens of a window see, fill the last windows. `shifted` moves the windows
    by half of one, except on a map no higher or no wider than a window. So does transformers, which fails on a map
    still smaller unless it is asked to `always_partition`: that fills it to one window, as here, but shifts.
    Unlike transformers, and as the authors' code, training drops the MLP's paths too.
    """

    heads: int
    window: int
    shifted: bool
    drop_rate: float
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N H W C"]:
        def residual(x: Array, y: Array) -> Array:
            if train and self.drop_rate:
                y = drop_path(y, self.drop_rate, self.make_rng("dropout"))
            return x + y

        x = residual(x, self._attend(_norm(self.eps, self.dtype, "layernorm_before")(x)))
        y = _norm(self.eps, self.dtype, "layernorm_after")(x)
        y = gelu(Output(4 * x.shape[-1], self.dtype, name="intermediate")(y))
        return residual(x, Output(x.shape[-1], self.dtype, name="output")(y))

    def _attend(self, x):
        height, width = x.shape[1:3]
        shift = self.window // 2 if self.shifted and min(height, width) > self.window else 0
        x = jnp.pad(x, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0)))
        filled = x.shape[1:3]
        groups = regions(*filled, self.window, shift) if shift else None
        windows = to_windows(jnp.roll(x, (-shift, -shift), (1, 2)), self.window)
        windows = Attention(self.heads, self.window, self.dtype, name="attention")(windows, groups)
        return jnp.roll(from_windows(windows, self.window, *filled), (shift, shift), (1, 2))[:, :height, :width]


class PatchMerging(nn.Module):
    """Halves rows and columns and doubles the channels; a row or column of zeros makes their number even."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w 2C"]:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        n, height, width, c = x.shape
        # Of the four, the first column's two come first.
        x = x.reshape(n, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        x = _norm(_EPS, self.dtype, "norm")(x.reshape(n, height // 2, width // 2, 4 * c))
        return _dense(2 * c, self.dtype, "reduction", bias=False)(x)


class Stage(nn.Module):
    """A block for each of `drop_rates`, every second one shifted; then `visit`, and the merging if `downsample`."""

    heads: int
    downsample: bool
    drop_rates: tuple[float, ...]
    remat: str
    block: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], train: bool, visit: Callable[[Array], Array]
    ) -> Float[Array, "N h w c"]:
        block = nn.remat(Block, static_argnums=(2,)) if self.remat == "block" else Block
        for i, rate in enumerate(self.drop_rates):
            x = block(self.heads, shifted=i % 2 == 1, drop_rate=rate, name=f"blocks_{i}", **self.block)(x, train)
        x = visit(x)
        return PatchMerging(self.block["dtype"], name="downsample")(x) if self.downsample else x


class Embeddings(nn.Module):
    """Patches of 4 x 4 pixels, then LayerNorm; zeros below and on the right fill the last patches."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _PATCH), (0, -x.shape[2] % _PATCH), (0, 0)))
        x = PatchEmbeddings(self.features, self.dtype, name="patch_embeddings")(x)
        return _norm(_EPS, self.dtype, "norm")(x)


class PatchEmbeddings(nn.Module):
    """Patches to features, at the place that checkpoints have it."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        return Patches(self.features, _PATCH, self.dtype, name="projection")(x)


class Encoder(nn.Module):
    """The stages; each one's map goes through `visit(name, map)` before it is merged for the next."""

    sizes: Variant
    drop_path_rate: float
    remat: str
    block: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], train: bool, visit: Callable[[str, Array], Array]
    ) -> Float[Array, "N h w c"]:
        _, depths, heads = self.sizes
        total = sum(depths)
        for i, depth in enumerate(depths):
            first = sum(depths[:i])
            rates = tuple(self.drop_path_rate * j / max(total - 1, 1) for j in range(first, first + depth))
            stage = Stage(heads[i], i + 1 < len(depths), rates, self.remat, self.block, name=f"layers_{i}")
            x = stage(x, train, lambda x, name=f"stage{i + 1}": visit(name, x))
        return x


class Swin(nn.Module):
    """Images of any size to pooled features and the maps of five stages: "stem" (the patches), "stage1" to "stage4".

    Attributes:
        variant: "tiny", "small", "base" or "large".
        width, depths, heads: in place of the variant's (see `Variant`), for small networks.
        window: side of a window, in tokens.
        drop_path_rate: of the last block, growing linearly from 0 at the first; the paper has 0.2 for "tiny", 0.3 for
            "small", 0.5 for "base", the configs of transformers 0.1.
        layer_norm_eps: of the norms in the blocks and of the last one.
        remat: what the backward pass computes again: "none", or a whole "block" at a time.
        dtype: of products and activations; parameters, LayerNorm, softmax and pooling are float32.
    """

    variant: str = "tiny"
    width: int | None = None
    depths: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    window: int = 7
    drop_path_rate: float = 0.1
    layer_norm_eps: float = 1e-5
    remat: str = "none"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        check_choices("Swin", self, {"variant": VARIANTS, "remat": REMAT})
        width, depths, heads = self.sizes
        if len(depths) != len(heads):
            raise UserError(
                f"Swin has depths={depths} for {len(depths)} stages and heads={heads} for {len(heads)}: "
                "give as many of both."
            )
        for i, count in enumerate(heads):
            if width * 2**i % count:
                raise UserError(f"Swin's stage {i + 1} has {width * 2**i} channels: no multiple of its {count} heads.")
        if self.window < 1:
            raise UserError(f"Swin's window={self.window} must be at least 1.")

    @property
    def sizes(self) -> Variant:
        """The variant's, where no option says else."""
        published = VARIANTS[self.variant]
        return Variant(
            self.width or published.width, tuple(self.depths or published.depths), tuple(self.heads or published.heads)
        )

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on."""
        return ("stem", *(f"stage{i}" for i in range(1, len(self.sizes.depths) + 1)))

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of any size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1).
        Cells are squares that tile the image from its first pixel on; the last ones may reach beyond it.
        """
        strides = [_PATCH, *(_PATCH * 2**i for i in range(len(self.sizes.depths)))]
        return {name: (stride, (stride / 2,) * 2) for name, stride in zip(self.stage_names, strides, strict=True)}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """Pooled features (float32), the mean of the last stage's LayerNorm, and the named stage maps.

        A stage's map is what its blocks leave, before it is merged for the next stage and before the last LayerNorm.
        Training with `drop_path_rate` needs the "dropout" generator. `offsets` are added to the stage maps of their
        names; their gradient at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage.
        """
        stages = Stages("Swin", self.stage_names, offsets)
        x = stages.keep("stem", Embeddings(self.sizes.width, self.dtype, name="embeddings")(x))
        block = dict(window=self.window, eps=self.layer_norm_eps, dtype=self.dtype)
        x = Encoder(self.sizes, self.drop_path_rate, self.remat, block, name="encoder")(x, train, stages.keep)
        x = _norm(self.layer_norm_eps, None, "layernorm")(x)
        return GlobalPool(name="pool")(x), stages.maps


def _dense(features, dtype, name, bias=True):
    return Dense(features, use_bias=bias, dtype=dtype, kernel_init=_init, name=name)


def _norm(eps, dtype, name):
    """Statistics in float32; result in `dtype`, or for None in that of the parameters."""
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)
