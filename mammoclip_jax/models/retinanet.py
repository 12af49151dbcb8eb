"""RetinaNet (Lin et al. 2017, arXiv:1708.02002) on three stage maps of any image encoder.

Built as Mammo-CLIP's detector (Detectors/retinanet/{detector_model,anchors}.py, Detectors/detectors_utils.py), so that
its published weights give the published boxes. Pyramid level l has cells of 2^l pixels and anchors of 2^(l + 2).
Boxes are (left, top, right, bottom) in pixels of the network's input.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.heads import labels_of
from mammoclip_jax.names import suggestion

LEVELS = (3, 4, 5, 6, 7)
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of the level's size; the ratios keep the area
CELL_ANCHORS = len(RATIOS) * len(SCALES)
PRIOR = 0.01  # probability of every class at the start
_RARE = -math.log((1 - PRIOR) / PRIOR)  # its logit
FIELDS = ("image", "stages", "labels", "dtype")


def input_size(options, canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the network sees: `options.input_size`, of `config.model`, or the canvas."""
    return tuple(options.input_size) or canvas


def grid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of each pyramid level of an image: its sides over 2^level, rounded up."""
    return [(-(-height // 2**level), -(-width // 2**level)) for level in LEVELS]


def anchors(height: int, width: int) -> Float[np.ndarray, "A 4"]:
    """Anchor boxes (float32) of an image, in the order of the network's outputs.

    Level by level; within a level by rows, columns, ratios, scales. Every cell's are centred on it; those at the rim
    reach out of the image. 49,104 at 512 x 512.
    """
    ratios, scales = np.repeat(RATIOS, len(SCALES)), np.tile(SCALES, len(RATIOS))
    boxes = []
    for level, (rows, columns) in zip(LEVELS, grid_sizes(height, width)):
        stride = 2**level
        widths = 4 * stride * scales / np.sqrt(ratios)
        half = np.stack([widths, widths * ratios], axis=-1) / 2
        y, x = np.meshgrid((np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride, indexing="ij")
        centre = np.stack([x, y], axis=-1)[:, :, None]
        boxes.append(np.concatenate([centre - half, centre + half], axis=-1).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


class Conv(nn.Module):
    """k x k convolution with bias and pads of k // 2; parameters kernel [k, k, in, out], bias [out]."""

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N h w out"]:
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride,) * 2,
            [(self.size // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype)


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017, arXiv:1612.03144) of maps C3, C4, C5, with P6 and P7 from C5.

    `strides` are the maps', in pixels: multiples of 8, 16 and 32. A map of a larger stride than its level (the
    published C3 has 16, C4 32) is repeated to the level's grid.
    """

    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "N h w c"]], strides: Sequence[int], grids: Sequence[tuple[int, int]]
    ) -> list[Float[Array, "N h w features"]]:
        def conv(name, size=3, stride=1):
            return Conv(self.features, size, stride, self.dtype, name=name)

        c3, c4, c5 = maps
        side3, side4, side5 = (stride // 2**level for stride, level in zip(strides, LEVELS))
        c5 = repeat_to(c5, side5, grids[2])
        p5 = conv("P5_1", 1)(c5)
        p4 = repeat_to(conv("P4_1", 1)(c4), side4, grids[1]) + repeat_to(p5, 2, grids[1])
        p3 = repeat_to(conv("P3_1", 1)(c3), side3, grids[0]) + repeat_to(p4, 2, grids[0])
        p6 = conv("P6", stride=2)(c5)
        p7 = conv("P7_2", stride=2)(nn.relu(p6))
        return [conv("P3_2")(p3), conv("P4_2")(p4), conv("P5_2")(p5), p6, p7]


def repeat_to(x: Float[Array, "N h w c"], times: int, grid: tuple[int, int]) -> Float[Array, "N rows columns c"]:
    """Every cell `times` by `times`, which is nearest upsampling; then cut, or its rim repeated, to the grid.

    At sides that are multiples of 32, the only ones that the original takes, nothing is cut or added.
    """
    x = x.repeat(times, axis=1).repeat(times, axis=2)[:, : grid[0], : grid[1]]
    return jnp.pad(x, [(0, 0), (0, grid[0] - x.shape[1]), (0, grid[1] - x.shape[2]), (0, 0)], mode="edge")


class Subnet(nn.Module):
    """Four 3 x 3 convolutions with ReLU and one for the output; the same parameters for all levels.

    The output's weights start at zero, or as `output_init` says, and its bias at `bias`.
    """

    outputs: int
    bias: float = 0.0
    features: int = 256
    dtype: Any = jnp.float32
    output_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "N h w c"]) -> Float[Array, "N h w outputs"]:
        for i in range(1, 5):
            x = nn.relu(Conv(self.features, dtype=self.dtype, name=f"conv{i}")(x))
        return Conv(
            self.outputs,
            dtype=self.dtype,
            kernel_init=self.output_init,
            bias_init=nn.initializers.constant(self.bias),
            name="output",
        )(x)


class Texts(nn.Module):
    """Class logits of anchors' features: their cosines with text vectors over a temperature, plus a bias that all classes
    share, which is the logit of what is like no text (RegionCLIP, arXiv:2112.09106, has a background of vector 0 instead,
    whose softmax a focal loss of independent classes does not have).

    The text vectors are not learnt: they lie beside the batch statistics, as `texts/prompts`, and come from a dual encoder.
    Parameter: bias.
    """

    classes: int
    dim: int
    temperature: float

    @nn.compact
    def __call__(self, x: Float[Array, "N h w A*dim"]) -> Float[Array, "N h w A*classes"]:
        prompts = self.variable("batch_stats", "prompts", lambda: {"vectors": jnp.zeros((self.classes, self.dim))})
        bias = self.param("bias", nn.initializers.constant(_RARE), ())
        x = x.reshape(*x.shape[:3], CELL_ANCHORS, self.dim).astype(jnp.float32)
        x = x * lax.rsqrt((x**2).sum(axis=-1, keepdims=True) + 1e-12)
        logits = (
            jnp.einsum("nhwad,kd->nhwak", x, prompts.value["vectors"], precision="highest") / self.temperature + bias
        )
        return logits.reshape(*x.shape[:3], CELL_ANCHORS * self.classes)


class RetinaNet(nn.Module):
    """Class logits and box regressions of every anchor.

    Attributes:
        text_dim: of the vectors of an anchor that are compared with texts; 0: classes have weights of their own.
        temperature: of those cosines.
        stages: names of the encoder's stage maps that are C3, C4 and C5. Their strides must be multiples of 8, 16, 32.
        features: channels of the pyramid and of the subnets.
        dtype: of products and activations; outputs and parameters are float32.
    """

    image_encoder: nn.Module
    stages: Sequence[str]
    classes: int
    features: int = 256
    dtype: Any = jnp.float32
    text_dim: int = 0
    temperature: float = 0.07

    def setup(self):
        self.fpn = Pyramid(self.features, self.dtype)
        self.regression = Subnet(4 * CELL_ANCHORS, 0.0, self.features, self.dtype)
        if self.text_dim:
            init = nn.initializers.normal(0.01)  # a vector of zeros has no direction
            self.classification = Subnet(self.text_dim * CELL_ANCHORS, 0.0, self.features, self.dtype, init)
            self.texts = Texts(self.classes, self.text_dim, self.temperature)
        else:
            self.classification = Subnet(self.classes * CELL_ANCHORS, _RARE, self.features, self.dtype)

    def __call__(
        self, image: Float[Array, "N H W C"], *, train: bool = False
    ) -> tuple[Float[Array, "N A classes"], Float[Array, "N A 4"]]:
        """Logits, whose sigmoids are the probabilities, and regressions for `boxes.decode`; anchors as `anchors(H, W)`.

        Training needs the "dropout" generator and a mutable "batch_stats".

        Raises:
            UserError: the encoder has no such stages, or their strides do not fit.
        """
        logits, regressions, _ = self._outputs(image, train, {})
        return logits, regressions

    def encode_image(
        self, image: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N classes"], Mapping[str, Array]]:
        """Each class's highest logit of all anchors, and the image encoder's named stage maps; `offsets` are added to
        the stages of their name."""
        logits, _, maps = self._outputs(image, train, offsets)
        return logits.max(axis=1), maps

    def _outputs(self, image, train, offsets):
        height, width = image.shape[1:3]
        strides = strides_of(self.image_encoder, self.stages, (height, width))
        _, maps = self.image_encoder(image, train=train, offsets=offsets)
        levels = self.fpn([maps[stage] for stage in self.stages], strides, grid_sizes(height, width))
        return (self._flat(self._classes, levels, self.classes), self._flat(self.regression, levels, 4), maps)

    def _classes(self, level):
        found = self.classification(level)
        return self.texts(found) if self.text_dim else found

    @staticmethod
    def _flat(subnet, levels, values):
        outputs = [subnet(level) for level in levels]
        flat = jnp.concatenate([x.reshape(len(x), -1, values) for x in outputs], axis=1)
        return flat.astype(jnp.promote_types(flat.dtype, jnp.float32))


def strides_of(image_encoder, stages: Sequence[str], size: tuple[int, int]) -> list[int]:
    """The strides of an encoder's stages that are to be C3, C4 and C5 of a pyramid, for images of `size`.

    Raises:
        UserError: the encoder has no such stages, or their strides do not fit.
    """
    grids = image_encoder.stage_grids(*size)
    strides = []
    for stage, level in zip(stages, LEVELS):
        if stage not in grids:
            raise UserError(
                f"config.model.stages names {stage!r}, which the image encoder does not have."
                f"{suggestion(stage, grids)} Known: {', '.join(grids)}."
            )
        strides.append(grids[stage][0])
        if strides[-1] % 2**level:
            raise UserError(
                f"stage {stage!r} has a stride of {strides[-1]} pixels, which is no multiple of "
                f"{2**level}: it cannot be C{level} of config.model.stages."
            )
    return strides


def three(stages: Sequence[str]) -> tuple[str, ...]:
    """The stages of a pyramid. UserError: they are not three."""
    if len(stages) != 3:
        raise UserError(
            f"config.model.stages is {tuple(stages)}: it must name three stages of the image encoder, "
            "of strides that are multiples of 8, 16 and 32."
        )
    return tuple(stages)


def from_options(options: Mapping[str, Any], image_encoder: Callable[..., nn.Module]) -> RetinaNet:
    """The detector of {"image": options of an image encoder, "stages": three names, "labels": names, "dtype"}, and
    perhaps "features", the channels of the pyramid.

    "text_classifier" of a "dim" above 0 makes classes the cosines to text vectors, over its "temperature".
    Other fields of `config.model` are those of a dual encoder, and are not looked at. `image_encoder` makes the encoder
    of options and a dtype (`models.image_encoder`).

    Raises:
        UserError: a field is missing, or the stages are not three.
    """
    labels = labels_of(options, FIELDS, "a detector")
    stages = three(options["stages"])
    dtype = jnp.dtype(options["dtype"])
    texts = options.get("text_classifier", {})
    return RetinaNet(
        image_encoder(options["image"], dtype),
        stages,
        len(labels),
        options.get("features", 256),
        dtype,
        texts.get("dim", 0),
        texts.get("temperature", RetinaNet.temperature),
    )
