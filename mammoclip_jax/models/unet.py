"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597): logits of binary channels at every pixel.

Two convolutions of 3 x 3 with batch norm and ReLU at each level, padded, so that the output is as large as the image;
halved by maxima on the way down, doubled on the way up by a transposed convolution of 2 x 2 or linearly, then joined
with the map of the same level. That is the plain U-Net of most PyTorch code; weights/names/unet.py has its names.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mammoclip_jax.models.layers import BatchNorm, Conv, GlobalPool, Stages
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices

UPSAMPLINGS = ("transposed", "bilinear")
_NORM = functools.partial(BatchNorm, eps=1e-5)
_PADS = ((1, 1), (1, 1))


class DoubleConv(nn.Module):
    """Twice: 3 x 3 convolution without bias, batch norm, ReLU. `middle` is the width between the two."""

    features: int
    middle: int = 0  # 0: as wide as the output
    dtype: Any = jnp.float32
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"], train: bool) -> Float[Array, "N H W out"]:
        for i, features in enumerate((self.middle or self.features, self.features), start=1):
            x = Conv(features, 3, 1, self.dtype, name=f"conv{i}")(x, _PADS)
            x = nn.relu(_NORM(momentum=self.momentum, name=f"bn{i}")(x, train))
        return x


class Contracting(nn.Module):
    """The way down, with what image encoders have: maps "level0" (as large as the image) to "level4", and their names.

    Attributes:
        width: channels of level0; each further level has twice as many.
        depth: levels below level0.
        halved: the last level has no more channels than the one before, as where the way up is linear.
        dtype: of products and activations; parameters and statistics are float32.
        batch_norm_momentum: of the running statistics; torch counts the other way round and calls it 0.1.
    """

    width: int = 64
    depth: int = 4
    halved: bool = False
    dtype: Any = jnp.float32
    batch_norm_momentum: float = 0.9

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the maps, from the input on."""
        return tuple(f"level{i}" for i in range(self.depth + 1))

    @property
    def pooled_stage(self) -> str:
        """The stage whose mean is the pooled vector."""
        return self.stage_names[-1]

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """{name: (stride, (row, column) of the first cell's centre)}: cells cover squares of their stride."""
        return {name: (2**i, (2**i / 2, 2**i / 2)) for i, name in enumerate(self.stage_names)}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """The mean of the last map, float32, and the maps by name; `offsets` are added to those of their names.

        Training needs a mutable "batch_stats". UserError: an offset names no map.
        """
        stages = Stages("the U-Net", self.stage_names, offsets)
        for i, name in enumerate(self.stage_names):
            if i:
                x = nn.max_pool(x, (2, 2), (2, 2))
            features = self.width * 2**i // (2 if self.halved and i == self.depth else 1)
            block = DoubleConv(features, 0, self.dtype, self.batch_norm_momentum, name=f"down{i}" if i else "inc")
            x = stages.keep(name, block(x, train))
        return GlobalPool(name="pool")(x), stages.maps


class Doubled(nn.Module):
    """Transposed convolution of 2 x 2 with stride 2 and bias; parameters kernel [2, 2, in, out], bias [out]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N 2H 2W out"]:
        n, height, width, channels = x.shape
        # Every output pixel comes of one input pixel: its variance is that of a dense layer.
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=2, out_axis=3, batch_axis=(0, 1))
        kernel = self.param("kernel", initial, (2, 2, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("nhwc,abcd->nhawbd", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(n, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)


def enlarged(x: Float[Array, "N h w C"], size: tuple[int, int]) -> Float[Array, "N H W C"]:
    """Linear interpolation in which the corners' centres stay corners (torch's align_corners=True)."""
    rows, columns = (_between_corners(n, m) for n, m in zip(x.shape[1:3], size))
    return jnp.einsum("ah,nhwc,bw->nabc", rows.astype(x.dtype), x, columns.astype(x.dtype))


def _between_corners(n: int, m: int) -> np.ndarray:
    """[m, n]: weights of n cells at m places from the first to the last."""
    place = np.linspace(0, n - 1, m)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(n)))


def fitted(x: Float[Array, "N h w C"], size: tuple[int, int]) -> Float[Array, "N H W C"]:
    """Padded by 0 to a size, the odd pixel at the end: a side that halves unevenly comes back too short."""
    short = [(size[0] - x.shape[1]), (size[1] - x.shape[2])]
    return jnp.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in short), (0, 0)])


class UNet(nn.Module):
    """The whole network.

    Attributes:
        image_encoder: the way down.
        classes: channels of the output.
        upsampling: "transposed" or "bilinear"; with the latter the levels are half as wide on the way up.
        prior: probability of each channel at the start, the output's bias; (): one half.
    """

    image_encoder: Contracting
    classes: int
    upsampling: str = "transposed"
    dtype: Any = jnp.float32
    prior: tuple[float, ...] = ()

    def setup(self):
        below = self.image_encoder
        bilinear = self.upsampling == "bilinear"
        for i in range(1, below.depth + 1):
            level = below.depth - i
            joined = below.width * 2 ** (level + 1)
            features = joined // 2 // (2 if bilinear and level else 1)
            block = DoubleConv(features, joined // 2 if bilinear else 0, self.dtype, below.batch_norm_momentum)
            setattr(self, f"up{i}", block)
            if not bilinear:
                setattr(self, f"up{i}_double", Doubled(joined // 2, self.dtype))
        self.outc = Dense(self.classes, dtype=self.dtype, bias_init=log_odds(self.prior))

    def __call__(self, image: Float[Array, "N H W C"], *, train: bool = False) -> Float[Array, "N H W classes"]:
        """Logits, whose sigmoids are the probabilities, float32. Training needs a mutable "batch_stats"."""
        return self._outputs(image, train, {})[0]

    def encode_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N classes"], Mapping[str, Array]]:
        """Each channel's highest logit, and the maps of the way down; `offsets` are added to those of their names."""
        logits, maps = self._outputs(image, train, offsets)
        return logits.max(axis=(1, 2)), maps

    def _outputs(self, image, train, offsets):
        _, maps = self.image_encoder(image, train=train, offsets=offsets)
        *skips, x = maps.values()
        for i, skip in enumerate(reversed(skips), start=1):
            if self.upsampling == "bilinear":
                x = enlarged(x, (2 * x.shape[1], 2 * x.shape[2]))
            else:
                x = getattr(self, f"up{i}_double")(x)
            x = getattr(self, f"up{i}")(jnp.concatenate([skip, fitted(x, skip.shape[1:3])], axis=-1), train)
        logits = self.outc(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), maps


def log_odds(prior: Sequence[float]) -> nn.initializers.Initializer:
    """Of a bias: what makes these the probabilities of a logit that is else 0; of () zeros."""
    if not prior:
        return nn.initializers.zeros
    return lambda _, shape, dtype=jnp.float32: jax.scipy.special.logit(jnp.asarray(prior, dtype)).reshape(shape)


def from_options(
    dtype,
    classes: int,
    width: int = 64,
    depth: int = 4,
    upsampling: str = "transposed",
    batch_norm_momentum: float = 0.9,
) -> UNet:
    """The U-Net of `config.model.image`, but its name. UserError: no such upsampling."""
    halved = upsampling == "bilinear"
    model = UNet(Contracting(width, depth, halved, dtype, batch_norm_momentum), classes, upsampling, dtype)
    check_choices("a U-Net", model, {"upsampling": UPSAMPLINGS})
    return model
