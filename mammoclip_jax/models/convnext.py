"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545) with named stages.

Parameters are named as in transformers' `ConvNextModel`, dots turned into slashes and list numbers joined to the name:
`encoder.stages.0.layers.1.pwconv1.weight` is `encoder/stages_0/layers_1/pwconv1/kernel`, transposed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.depthwise import depthwise_conv
from mammoclip_jax.models.elementwise import gelu
from mammoclip_jax.models.layers import GlobalPool, Stages, drop_path
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices


class Variant(NamedTuple):
    """Blocks of each stage, and channels of the first; they double at each further one."""

    depths: tuple[int, ...]
    width: int


VARIANTS = {
    "tiny": Variant((3, 3, 9, 3), 96),
    "small": Variant((3, 3, 27, 3), 96),
    "base": Variant((3, 3, 27, 3), 128),
    "large": Variant((3, 3, 27, 3), 192),
}
REMAT = ("none", "block")

_PATCH = 4
_KERNEL = 7
_EPS = 1e-6
_LAYER_SCALE = 1e-6  # initial
_init = nn.initializers.truncated_normal(0.02)


class Patches(nn.Module):
    """Convolution whose stride is its size, as a matrix product; parameters kernel [k, k, in, out], bias [out].

    Rows and columns that fill no whole patch are left out.
    """

    features: int
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N h w out"]:
        n, height, width, c = x.shape
        k, h, w = self.size, height // self.size, width // self.size
        kernel = self.param("kernel", _init, (k, k, c, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x[:, : h * k, : w * k].astype(self.dtype).reshape(n, h, k, w, k, c).transpose(0, 1, 3, 2, 4, 5)
        y = jnp.dot(x.reshape(n * h * w, k * k * c), kernel.reshape(k * k * c, self.features))
        return y.reshape(n, h, w, self.features) + bias


class Depthwise(nn.Module):
    """7 x 7 depthwise convolution with bias; parameters kernel [7, 7, C], bias [C]."""

    dtype: Any
    formulation: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        kernel = self.param("kernel", _init, (_KERNEL, _KERNEL, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(self.dtype)
        return depthwise_conv(x.astype(self.dtype), kernel, 1, ((_KERNEL // 2,) * 2,) * 2, self.formulation) + bias


class Layer(nn.Module):
    """x + drop_path(layer scale * MLP(LayerNorm(depthwise(x)))), the MLP four times as wide inside."""

    drop_rate: float
    dtype: Any
    formulation: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N H W C"]:
        c = x.shape[-1]
        y = Depthwise(self.dtype, self.formulation, name="dwconv")(x)
        y = _norm(y, self.dtype, "layernorm")
        y = gelu(_dense(4 * c, self.dtype, "pwconv1")(y))
        y = _dense(c, self.dtype, "pwconv2")(y)
        scale = self.param("layer_scale_parameter", nn.initializers.constant(_LAYER_SCALE), (c,))
        y = y * scale.astype(y.dtype)
        if train and self.drop_rate:
            y = drop_path(y, self.drop_rate, self.make_rng("dropout"))
        return x + y


class Stage(nn.Module):
    """Halves rows and columns if `downsample`, then a layer for each of `drop_rates`."""

    features: int
    downsample: bool
    drop_rates: tuple[float, ...]
    remat: str
    dtype: Any
    formulation: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"], train: bool) -> Float[Array, "N h w out"]:
        if self.downsample:
            x = _norm(x, self.dtype, "downsampling_layer_0")
            x = Patches(self.features, 2, self.dtype, name="downsampling_layer_1")(x)
        layer = nn.remat(Layer, static_argnums=2) if self.remat == "block" else Layer
        for i, rate in enumerate(self.drop_rates):
            x = layer(rate, self.dtype, self.formulation, name=f"layers_{i}")(x, train)
        return x


class Embeddings(nn.Module):
    """Patches of 4 x 4 pixels, then LayerNorm."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N h w c"]:
        x = Patches(self.features, _PATCH, self.dtype, name="patch_embeddings")(x)
        return _norm(x, self.dtype, "layernorm")


class Encoder(nn.Module):
    """The stages; each one's output goes through `visit(name, map)` to the next."""

    width: int
    depths: tuple[int, ...]
    drop_path_rate: float
    remat: str
    dtype: Any
    formulation: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], train: bool, visit: Callable[[str, Array], Array]
    ) -> Float[Array, "N h w c"]:
        total = sum(self.depths)
        for i, depth in enumerate(self.depths):
            first = sum(self.depths[:i])
            rates = tuple(self.drop_path_rate * j / max(total - 1, 1) for j in range(first, first + depth))
            stage = Stage(self.width * 2**i, i > 0, rates, self.remat, self.dtype, self.formulation, name=f"stages_{i}")
            x = visit(f"stage{i + 1}", stage(x, train))
        return x


class ConvNext(nn.Module):
    """Images to pooled features and the maps of five stages: "stem" (the patches), "stage1" to "stage4".

    Attributes:
        variant: "tiny", "small", "base" or "large".
        width, depths: channels of the first stage and blocks of each, in place of the variant's, for small networks.
        drop_path_rate: of the last block, growing linearly from 0 at the first; 0.1 is the published one of "tiny".
        layer_norm_eps: of the norm behind the pooling; the configs of transformers say 1e-12, the authors' code 1e-6.
        remat: what the backward pass computes again: "none", or a whole "block" at a time.
        dtype: of products and activations; parameters, LayerNorm and pooling are float32.
        depthwise: formulation of the depthwise convolutions; None lets the platform decide.
    """

    variant: str = "tiny"
    width: int | None = None
    depths: tuple[int, ...] | None = None
    drop_path_rate: float = 0.1
    layer_norm_eps: float = _EPS
    remat: str = "none"
    dtype: Any = jnp.float32
    depthwise: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choices("ConvNeXt", self, {"variant": VARIANTS, "remat": REMAT})

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on."""
        return ("stem", *(f"stage{i}" for i in range(1, len(self._depths) + 1)))

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of any size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1).
        Cells are squares that tile the image from its first pixel on.
        """
        strides = [_PATCH, *(_PATCH * 2**i for i in range(len(self._depths)))]
        return {name: (stride, (stride / 2,) * 2) for name, stride in zip(self.stage_names, strides, strict=True)}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """Pooled features (float32), the LayerNorm of the last stage's mean, and the named stage maps.

        Training with `drop_path_rate` needs the "dropout" generator. `offsets` are added to the stage maps of their
        names; their gradient at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage, or the image is smaller than one cell of the last stage.
        """
        stages = Stages("ConvNeXt", self.stage_names, offsets)
        cell = _PATCH * 2 ** (len(self._depths) - 1)
        if min(x.shape[1:3]) < cell:
            raise UserError(
                f"ConvNeXt needs images of at least {cell} x {cell} pixels, not {x.shape[1]} x {x.shape[2]}"
            )

        width = self.width or VARIANTS[self.variant].width
        x = stages.keep("stem", Embeddings(width, self.dtype, name="embeddings")(x))
        encoder = Encoder(
            width, self._depths, self.drop_path_rate, self.remat, self.dtype, self.depthwise, name="encoder"
        )
        pooled = GlobalPool(name="pool")(encoder(x, train, stages.keep))
        return nn.LayerNorm(self.layer_norm_eps, use_fast_variance=False, name="layernorm")(pooled), stages.maps

    @property
    def _depths(self):
        return VARIANTS[self.variant].depths if self.depths is None else tuple(self.depths)


def _norm(x, dtype, name):
    return nn.LayerNorm(_EPS, use_fast_variance=False, name=name)(x).astype(dtype)


def _dense(features, dtype, name):
    return Dense(features, dtype=dtype, kernel_init=_init, name=name)
