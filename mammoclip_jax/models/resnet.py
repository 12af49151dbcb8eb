"""ResNet-18 to 152 (He et al. 2016, arXiv:1512.03385) with named stages.

The bottleneck strides in its 3 x 3 convolution ("v1.5"), as torchvision, timm and transformers have it. Parameters are
named as in torchvision and timm, dots turned into slashes and list numbers joined to the name: the kernel of
`layer1.0.downsample.0` is `layer1_0/downsample_0/kernel`. Kernels are [k, k, in, out], or [in, out] where k is 1.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.models.layers import BatchNorm, Conv, GlobalPool, Pointwise, Stages
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices


class Variant(NamedTuple):
    """Blocks in each stage, and whether they are bottlenecks, whose output is four times as wide as their middle."""

    depths: tuple[int, ...]
    bottleneck: bool


VARIANTS = {
    "18": Variant((2, 2, 2, 2), False),
    "34": Variant((3, 4, 6, 3), False),
    "50": Variant((3, 4, 6, 3), True),
    "101": Variant((3, 4, 23, 3), True),
    "152": Variant((3, 8, 36, 3), True),
}
REMAT = ("none", "block")

EPS = 1e-5  # of every batch norm
EXPANSION = 4


class Block(nn.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 in a bottleneck, beside a shortcut that is projected if it must.

    Attributes:
        width: channels of the 3 x 3 convolutions.
        smoothed: the stride is that of a mean over cells before the last convolution and the shortcut's, as in CLIP.
    """

    width: int
    stride: int
    bottleneck: bool
    dtype: Any
    momentum: float
    smoothed: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"], train: bool) -> Float[Array, "N h w out"]:
        norm = functools.partial(BatchNorm, eps=EPS, momentum=self.momentum)
        stride = 1 if self.smoothed else self.stride
        layers = [(self.width, 3, stride), (self.width, 3, 1)]
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, stride), (self.width * EXPANSION, 1, 1)]
        y = x
        for i, (features, size, step) in enumerate(layers, start=1):
            if i == len(layers) and self.smoothed:
                y = mean_of_cells(y, self.stride)
            y = _conv(y, features, size, step, self.dtype, f"conv{i}")
            y = norm(name=f"bn{i}")(y, train)
            y = nn.relu(y) if i < len(layers) else y
        if self.stride != 1 or x.shape[-1] != y.shape[-1]:
            x = mean_of_cells(x, self.stride) if self.smoothed else x
            x = _conv(x, y.shape[-1], 1, stride, self.dtype, "downsample_0")
            x = norm(name="downsample_1")(x, train)
        return nn.relu(x + y)


def mean_of_cells(x: Float[Array, "N H W C"], size: int) -> Float[Array, "N h w C"]:
    """Of each size x size cells; rows and columns that are left over are left out."""
    return x if size == 1 else nn.avg_pool(x, (size, size), (size, size))


def _conv(x, features, size, stride, dtype, name):
    """Convolution with torch's pads of size // 2 on each side; a 1 x 1 one is a matrix product."""
    if size == 1:
        return Pointwise(features, dtype, name=name)(x[:, ::stride, ::stride])
    return Conv(features, size, stride, dtype, name=name)(x, ((size // 2,) * 2,) * 2)


class ResNet(nn.Module):
    """Images to pooled features and the maps of five stages: "stem" (after max pooling), "stage1" to "stage4".

    Attributes:
        variant: "18", "34", "50", "101" or "152".
        width: channels of the stem and of the first stage's 3 x 3 convolutions; they double at each further stage.
        depths: blocks of each stage in place of the variant's, for small networks.
        fc: None, or the size of a linear map without bias behind the pooling, as MedCLIP's ResNet-50 has it (512).
        remat: what the backward pass computes again: "none", or a whole "block" at a time.
        dtype: of products and activations; parameters and statistics are float32.
        batch_norm_momentum: of the running statistics; torch counts the other way round and calls it 0.1.
    """

    variant: str = "50"
    width: int = 64
    depths: tuple[int, ...] | None = None
    fc: int | None = None
    remat: str = "none"
    dtype: Any = jnp.float32
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_choices("ResNet", self, {"variant": VARIANTS, "remat": REMAT})

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on."""
        return ("stem", *(f"stage{i}" for i in range(1, len(self._depths) + 1)))

    @property
    def pooled_stage(self) -> str | None:
        """The stage whose cells lie in the space of the pooled vector; None where `fc` stands between."""
        return self.stage_names[-1] if self.fc is None else None

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of any size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1).
        All kernels are odd and padded evenly, so the first cell stays on the first pixel.
        """
        strides = [4, *(4 * 2**i for i in range(len(self._depths)))]
        return {name: (stride, (0.5, 0.5)) for name, stride in zip(self.stage_names, strides, strict=True)}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """Pooled features (float32), the mean of the last stage, and the named stage maps.

        Training needs a mutable "batch_stats". `offsets` are added to the stage maps of their names; their gradient
        at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage.
        """
        stages = Stages("ResNet", self.stage_names, offsets)

        momentum = self.batch_norm_momentum
        x = _conv(x, self.width, 7, 2, self.dtype, "conv1")
        x = nn.relu(BatchNorm(eps=EPS, momentum=momentum, name="bn1")(x, train))
        x = stages.keep("stem", nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))
        block = nn.remat(Block, static_argnums=2) if self.remat == "block" else Block
        bottleneck = VARIANTS[self.variant].bottleneck
        for i, depth in enumerate(self._depths):
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                x = block(self.width * 2**i, stride, bottleneck, self.dtype, momentum, name=f"layer{i + 1}_{j}")(
                    x, train
                )
            x = stages.keep(f"stage{i + 1}", x)
        pooled = GlobalPool(name="pool")(x)
        if self.fc is not None:
            pooled = Dense(self.fc, use_bias=False, name="fc")(pooled)
        return pooled, stages.maps

    @property
    def _depths(self):
        return VARIANTS[self.variant].depths if self.depths is None else tuple(self.depths)
