"""CLIP's ResNets with attention pool (Radford et al. 2021, arXiv:2103.00020, sec. 2.4), and what RegionCLIP makes of them.

A stem of three 3 x 3 convolutions and a mean in place of the max pooling; bottlenecks that take the mean of 2 x 2 cells
where others stride; CLIP's attention pool, whose output lies in the space of images and texts already. Parameters are
named as OpenAI's below `visual.`, dots turned into slashes and list numbers joined to the name: the kernel of
`layer1.0.downsample.0` is `layer1_0/downsample_0/kernel`. Kernels are [k, k, in, out], or [in, out] where k is 1.

RegionCLIP (Zhong et al. 2022, arXiv:2112.09106) pools regions of "stage3", 14 x 14 cells each, and gives them to the same
last stage and attention pool (a "C4" head): `of_regions`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.models.attention_pool import AttentionPool
from mammoclip_jax.models.layers import BatchNorm, Conv, Stages
from mammoclip_jax.models.resnet import EPS, REMAT, Block, mean_of_cells
from mammoclip_jax.models.roi_align import roi_align
from mammoclip_jax.names import check_choices


class Variant(NamedTuple):
    """Channels of the stem, blocks in each stage, length of the pooled vector, side of the nominal image in pixels."""

    width: int
    depths: tuple[int, int, int, int]
    dim: int
    size: int


VARIANTS = {
    "RN50": Variant(64, (3, 4, 6, 3), 1024, 224),
    "RN101": Variant(64, (3, 4, 23, 3), 512, 224),
    "RN50x4": Variant(80, (4, 6, 10, 6), 640, 288),
    "RN50x16": Variant(96, (6, 8, 18, 8), 768, 384),
    "RN50x64": Variant(128, (3, 15, 36, 10), 1024, 448),
}
REGION_STRIDE = 16  # of "stage3", where regions are cut out
STRIDE = 32  # of the last stage, whose cells the attention pool looks at
_HEAD = 64  # channels of each head of the attention pool
_PADS = ((1, 1), (1, 1))


class ClipResNet(nn.Module):
    """Images to pooled features and the maps of five stages: "stem" (after the mean) and "stage1" to "stage4".

    Any number of channels and any size: rows and columns that do not fill a cell are left out, and the attention pool's
    positions are resampled for other grids than the nominal one.

    Attributes:
        variant: "RN50", "RN101", "RN50x4", "RN50x16" or "RN50x64".
        width, depths, dim, size: in place of the variant's; the width a multiple of 2.
        frozen_norms: batch norms use their running statistics in training too, and leave them, as in RegionCLIP; their
            scales and biases stay as well with config.train.frozen=("image_encoder/.*(bn[0-9]|downsample_1)/",).
        remat: what the backward pass computes again: "none", or a whole "block" at a time.
        dtype: of products and activations; parameters and statistics are float32.
        batch_norm_momentum: of the running statistics; torch counts the other way round and calls it 0.1.
    """

    variant: str = "RN50"
    width: int | None = None
    depths: tuple[int, ...] | None = None
    dim: int | None = None
    size: int | None = None
    frozen_norms: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32
    batch_norm_momentum: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        check_choices("CLIP's ResNet", self, {"variant": VARIANTS, "remat": REMAT})

    @property
    def sizes(self) -> Variant:
        """The variant's, with what is set in their place."""
        given = {name: getattr(self, name) for name in Variant._fields if getattr(self, name) is not None}
        return VARIANTS[self.variant]._replace(**given)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on."""
        return ("stem", "stage1", "stage2", "stage3", "stage4")

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of any size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1). The
        first convolution's cells lie on every other pixel, and each mean moves the centre by half a cell.
        """
        strides = (4, 4, 8, REGION_STRIDE, STRIDE)
        return {name: (stride, (stride / 2 - 0.5,) * 2) for name, stride in zip(self.stage_names, strides, strict=True)}

    def setup(self):
        sizes, momentum = self.sizes, self.batch_norm_momentum
        stem = ((sizes.width // 2, 2), (sizes.width // 2, 1), (sizes.width, 1))
        self.conv1, self.conv2, self.conv3 = (Conv(features, 3, stride, self.dtype) for features, stride in stem)
        self.bn1, self.bn2, self.bn3 = (BatchNorm(eps=EPS, momentum=momentum) for _ in stem)
        block = nn.remat(Block, static_argnums=2) if self.remat == "block" else Block

        def stage(i: int, stride: int) -> list[Block]:
            """By its attribute's name, the blocks are called layer1_0, layer1_1, ..."""
            width = sizes.width * 2**i
            return [
                block(width, stride if j == 0 else 1, True, self.dtype, momentum, smoothed=True)
                for j in range(sizes.depths[i])
            ]

        self.layer1, self.layer2, self.layer3, self.layer4 = (stage(i, 1 if i == 0 else 2) for i in range(4))
        heads, side = STRIDE * sizes.width // _HEAD, sizes.size // STRIDE
        self.attnpool = AttentionPool(heads, sizes.dim, self.dtype, grid=(side, side))

    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """What the attention pool says of the last stage (float32), and the named stage maps.

        Training needs a mutable "batch_stats" unless the norms are frozen. `offsets` are added to the stage maps of
        their names; their gradient at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage.
        """
        stages = Stages("CLIP's ResNet", self.stage_names, offsets)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = nn.relu(norm(conv(x, _PADS), train and not self.frozen_norms))
        x = stages.keep("stem", mean_of_cells(x, 2))
        for name, layer in zip(self.stage_names[1:], (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = stages.keep(name, self._through(layer, x, train))
        return self._pooled(x), stages.maps

    def of_regions(self, features: Float[Array, "N h w c"], *, train: bool = False) -> Float[Array, "N D"]:
        """The same pooled features of regions of the map "stage3", through the last stage and the attention pool.

        RegionCLIP's regions are RoIAlign's 14 x 14 cells (RN50x4: 18 x 18), which the last stage halves to the grid that
        the positions are learnt for. Of the whole map of a nominal image that gives what `__call__` gives.
        """
        return self._pooled(self._through(self.layer4, features, train))

    def of_boxes(
        self, maps: Mapping[str, Array], boxes: Float[Array, "N R 4"], *, train: bool = False
    ) -> Float[Array, "N R D"]:
        """`of_regions` of boxes (left, top, right, bottom) in pixels of the images that the maps are of."""
        side, mask = self.sizes.size // REGION_STRIDE, jnp.ones(boxes.shape[:2], bool)
        cells = roi_align(maps["stage3"], boxes, mask, stride=REGION_STRIDE, size=(side, side))
        return self.of_regions(cells.reshape(-1, *cells.shape[2:]), train=train).reshape(*boxes.shape[:2], -1)

    def _through(self, layer, x, train):
        for block in layer:
            x = block(x, train and not self.frozen_norms)
        return x

    def _pooled(self, x):
        pooled = self.attnpool(x)
        return pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
