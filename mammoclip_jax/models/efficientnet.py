"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv:1905.11946) and Lite0 to Lite4, with explicit pads and named stages.

The Lite networks (github.com/tensorflow/tpu, models/official/efficientnet/lite) have no squeeze-excite, ReLU6 in place
of swish, a stem and a head that are not scaled, and first and last stages whose repeats are not scaled.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import kernels, layers, packed
from mammoclip_jax.models.depthwise import Pads
from mammoclip_jax.models.efficientnet_variants import VARIANTS, Variant
from mammoclip_jax.models.elementwise import Dropout
from mammoclip_jax.models.layers import BatchNorm, Conv, Place, Pointwise, Stages
from mammoclip_jax.models.mbconv import Block, BlockSpec, act
from mammoclip_jax.names import check_choices

# Repeats, kernel size, stride of the first, expansion, input and output channels of B0's seven stages.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_STEM = (3, 2)  # kernel size and stride

PADS = ("nominal", "detector", "symmetric", "same")
STRIDES = (8, 16, 32)
REMAT = ("none", "block", "expand", "conv")
# Names of what is kept (layers.py). Expansions are half of what convolutions make, and cheap to make again.
_POLICIES = {"block": ("moments",), "expand": ("moments", "conv"), "conv": ("moments", "conv", "expand")}


def block_specs(width: float, depth: float, lite: bool = False, output_stride: int = 32) -> list[BlockSpec]:
    """The blocks of all stages for these multipliers; squeeze-excite has a quarter of the block's input channels.

    Stages that would take the whole network's stride beyond `output_stride` keep the resolution of the one before.
    """
    specs, total = [], _STEM[1]
    for stage, (repeats, size, stride, expansion, inputs, outputs) in enumerate(STAGES, start=1):
        stride = stride if total * stride <= output_stride else 1
        total *= stride
        fixed = lite and stage in (1, len(STAGES))
        inputs = inputs if lite and stage == 1 else round_channels(inputs, width)
        outputs = round_channels(outputs, width)
        for _ in range(repeats if fixed else math.ceil(depth * repeats)):
            squeezed = 0 if lite else max(1, inputs // 4)
            specs.append(BlockSpec(stage, size, stride, inputs, inputs * expansion, squeezed, outputs))
            inputs, stride = outputs, 1
    return specs


def round_channels(channels: int, width: float) -> int:
    """Scaled channels to a multiple of 8, at least 8, never more than 10 % below the scaled number."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def outer_channels(channels: int, scaling: Variant, width: float | None = None) -> int:
    """Of the stem (32 in B0) and of the head (1280), which the Lite networks do not scale."""
    return channels if scaling.lite else round_channels(channels, width or scaling.width)


def same_pad(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME zeros (before, after) along one axis, for ceil(length / stride) outputs."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def pads(variant: str, kind: str = "nominal", depth: float | None = None, output_stride: int = 32) -> dict[str, Pads]:
    """Zeros around every spatial convolution, by layer: {"stem": ((top, bottom), (left, right)), "block00": ...}.

    Published weights were trained with amounts fixed for a square input of the nominal size, and used at all sizes.

    Args:
        kind: "nominal" follows the nominal size through the strides, as `efficientnet_pytorch` and the Mammo-CLIP
            pretraining do; "detector" takes the nominal size at every layer anew, as Mammo-CLIP's detector does
            ((0, 1) for every stride-2 3 x 3, (1, 2) for every stride-2 5 x 5); "symmetric" puts (k - 1) / 2 on all
            sides, as torchvision and timm's networks of PyTorch origin do.
    """
    scaling = VARIANTS[variant]
    length = scaling.size
    table = {}
    specs = block_specs(1.0, depth or scaling.depth, scaling.lite, output_stride)
    layers = [("stem", *_STEM)] + [(block_name(i), spec.size, spec.stride) for i, spec in enumerate(specs)]
    for name, size, stride in layers:
        table[name] = (((size - 1) // 2,) * 2 if kind == "symmetric" else same_pad(length, size, stride),) * 2
        if kind == "nominal":
            length = -(-length // stride)
    return table


def block_name(index: int) -> str:
    return f"block{index:02d}"


class EfficientNet(nn.Module):
    """Image encoder; any number of input channels, any input size.

    Attributes:
        variant: "b0" to "b7", "lite0" to "lite4": scaling, nominal size and dropout as published.
        pads: "nominal", "detector" or "symmetric" (see `pads`), or "same" for TensorFlow's SAME at the real input size.
        width, depth: multipliers in place of the variant's, for small networks.
        pooling: of the head map, "avg", "max" or "gem" (generalised mean, learnable exponent from 3).
        drop_rate: dropout after pooling in place of the variant's.
        drop_connect_rate: of the last block; earlier ones in proportion to their index.
        output_stride: of the head map, in pixels; 16 or 8 for smaller things. Late stages then do not stride, and are
            not dilated: weights trained at 32 see their neighbours nearer than they did.
        remat: what the backward pass computes again: "none", a whole "block" at a time, all but the outputs of convolutions
            ("conv"), or of those but the expansions ("expand"); one for all, or one a stage with commas between.
        scan: blocks of equal shape run as a loop: much faster to compile, and with `remat` the only way to save memory
            on CPU, whose compiler else merges the recomputation with the first pass. Names and results are the same.
        rows: mesh axis that the rows of the images are split over (mesh.batch_shardings), None for whole images.
        lanes: maps are laid out for a TPU's 128 lanes (packed.py); results are the same, elsewhere it costs time.
        dtype: of products and activations; parameters and statistics are float32.
        depthwise: formulation of the depthwise convolutions; None lets the platform decide.
        kernels: of blocks in training: "xla"; "pallas" on TPUs; "native", without stride, on CPUs (kernels/); "auto" is "xla".
        batch_norm_momentum: of the running statistics; a run of a few hundred steps needs less than the published one.
        taps: numbers of blocks (from 0) whose outputs are stage maps too, as "block37", from the middle of a stage.
        batch_norm_eps: added to the variances; torchvision (to B4) and timm's networks of PyTorch origin take 1e-5.
    """

    variant: str = "b0"
    pads: str = "nominal"
    width: float | None = None
    depth: float | None = None
    pooling: str = "avg"
    drop_rate: float | None = None
    drop_connect_rate: float = 0.2
    output_stride: int = 32
    remat: str = "none"
    scan: bool = False
    rows: str | None = None
    lanes: bool = False
    dtype: Any = jnp.float32
    depthwise: str | None = None
    kernels: str = "auto"
    taps: Sequence[int] = ()
    batch_norm_momentum: float = 0.99
    batch_norm_eps: float = 1e-3

    def __post_init__(self):
        self.taps = tuple(self.taps)  # a list, from JSON, has no hash
        super().__post_init__()
        choices = {"variant": VARIANTS, "pads": PADS, "pooling": layers.POOLING, "output_stride": STRIDES}
        choices["kernels"] = kernels.MBCONV
        check_choices("EfficientNet", self, choices)
        if len(self._remats()) != len(STAGES) or not set(self._remats()) <= set(REMAT):
            raise UserError(
                f"EfficientNet's remat={self.remat!r} must be one of {', '.join(REMAT)}, or "
                f"{len(STAGES)} of them with commas between, one a stage."
            )
        kernels.check(self)
        blocks = len(self._specs())
        if absent := [tap for tap in self.taps if not 0 <= tap < blocks]:
            raise UserError(f"EfficientNet {self.variant} has no block {absent[0]} to tap: {blocks} blocks from 0.")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stage maps, from the input on."""
        specs = self._specs()
        return ("stem", *(name for i in range(len(specs)) for name in self._names_after(i, specs)), "head")

    @property
    def pooled_stage(self) -> str:
        """The stage whose cells lie in the space of the pooled vector."""
        return "head"

    def stage_grids(self, height: int, width: int) -> dict[str, tuple[int, tuple[float, float]]]:
        """Where the cells of each stage map lie in an input of this size: {name: (stride, (row, column))}.

        Cell (i, j) is centred on pixel coordinates (stride i + row, stride j + column); pixel k covers [k, k + 1).
        Pads that differ before and after move a map by up to half a cell, which matters when it is laid over the image.
        """
        specs, table = self._specs(), self._pads()
        layers = [(["stem"], "stem", *_STEM)] + [
            (self._names_after(i, specs), block_name(i), spec.size, spec.stride) for i, spec in enumerate(specs)
        ]
        grids, total, lengths, centre = {}, 1, [height, width], [0.5, 0.5]
        for kept, name, size, stride in layers:
            padding = table[name] if table else [same_pad(length, size, stride) for length in lengths]
            for axis in (0, 1):
                centre[axis] += total * ((size - 1) / 2 - padding[axis][0])
                lengths[axis] = (lengths[axis] + sum(padding[axis]) - size) // stride + 1
            total *= stride
            grids |= {stage: (total, tuple(centre)) for stage in kept}
        return grids | {"head": grids["stage7"]}

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W C"], *, train: bool = False, offsets: Mapping[str, Array] = {}
    ) -> tuple[Float[Array, "N c"], dict[str, Array]]:
        """Pooled features (float32) and the named stage maps.

        Training needs the "dropout" generator and a mutable "batch_stats". `offsets` are added to the stage maps of
        their names; their gradient at zero is the gradient of the map.

        Raises:
            UserError: an offset names no stage.
        """
        scaling = VARIANTS[self.variant]
        specs, table = self._specs(), self._pads()
        stages = Stages("EfficientNet", self.stage_names, offsets)
        norm = functools.partial(
            BatchNorm, act(scaling.lite), eps=self.batch_norm_eps, momentum=self.batch_norm_momentum
        )
        padding = self._padding(table, "stem", x.shape, *_STEM)
        outputs = outer_channels(32, scaling, self.width)
        place = self._place(outputs, x.shape, *_STEM, padding, before=True)
        x = Conv(outputs, *_STEM, self.dtype, place, name="stem")(packed.repack(x, 1, place.columns), padding)
        columns = max(place.columns // 2, 1)
        x = norm(columns=columns, name="stem_bn")(x, train)
        x = stages.keep("stem", packed.repack(x, columns, 1))
        for group in self._groups(specs, table):
            spec = specs[group[0]]
            padding = self._padding(table, block_name(group[0]), x.shape, spec.size, spec.stride)
            drops = [self._drop(i / len(specs), train) for i in group]
            place = self._place(spec.expanded, x.shape, spec.size, spec.stride, padding)
            options = (
                spec,
                self.dtype,
                self.depthwise,
                self.batch_norm_momentum,
                self.batch_norm_eps,
                place,
                self.kernels,
            )
            x = packed.repack(x, 1, place.columns)
            if len(group) > 1 and not self.is_initializing():
                x = self._scanned(group, options, x, train, padding, drops)
            else:
                for i, drop in zip(group, drops):
                    x = self._remat_block(spec)(*options, name=block_name(i))(x, train, padding, drop)
            x = packed.repack(x, max(place.columns // spec.stride, 1), 1)
            for name in self._names_after(group[-1], specs):
                x = stages.keep(name, x)
        place = Place(self.rows, self.lanes)
        x = Pointwise(outer_channels(1280, scaling, self.width), self.dtype, place, name="head")(x)
        x = stages.keep("head", norm(name="head_bn")(x, train))
        pooled = layers.GlobalPool(self.pooling, name="pool")(x)
        rate = scaling.drop_rate if self.drop_rate is None else self.drop_rate
        return Dropout(rate, not train)(pooled), stages.maps

    def _names_after(self, i, specs):
        """Names under which the output of block i is kept."""
        is_last = i + 1 == len(specs) or specs[i + 1].stage != specs[i].stage
        return [block_name(i)] * (i in self.taps) + [f"stage{specs[i].stage}"] * is_last

    def _specs(self):
        scaling = VARIANTS[self.variant]
        width, depth = self.width or scaling.width, self.depth or scaling.depth
        return block_specs(width, depth, scaling.lite, self.output_stride)

    def _pads(self):
        return None if self.pads == "same" else pads(self.variant, self.pads, self.depth, self.output_stride)

    @staticmethod
    def _padding(table, name, shape, size, stride):
        if table is not None:
            return table[name]
        return same_pad(shape[1], size, stride), same_pad(shape[2], size, stride)

    def _place(self, channels, shape, size, stride, padding, before=False) -> Place:
        """Of a block whose widest map has so many channels; `before` a stride they count after it, in the stem."""
        columns = packed.columns(channels, shape[2], size, stride, padding[1], before) if self.lanes else 1
        return Place(self.rows, self.lanes, columns)

    def _remats(self) -> tuple[str, ...]:
        given = self.remat.split(",")
        return tuple(given * len(STAGES) if len(given) == 1 else given)

    def _groups(self, specs, table) -> list[list[int]]:
        """Numbers of consecutive blocks that are run as one loop; each by itself without `scan`."""
        groups = []
        for i, spec in enumerate(specs):
            same = i and specs[i - 1] == spec and (not table or table[block_name(i - 1)] == table[block_name(i)])
            if self.scan and same and not self._names_after(i - 1, specs):
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _drop(self, depth: float, train: bool):
        """Drop-connect of the block at this depth, from 0 to 1: (rate, key), or None."""
        if not train or self.drop_connect_rate == 0 or self.is_initializing():
            return None
        return jnp.float32(self.drop_connect_rate * depth), self.make_rng("dropout")

    def _remat_block(self, spec: BlockSpec):
        remat = self._remats()[spec.stage - 1]
        if remat == "none":
            return Block
        policy = jax.checkpoint_policies.save_only_these_names(*_POLICIES[remat])
        return nn.remat(Block, static_argnums=(2, 3), policy=policy)

    def _scanned(self, group, options, x, train, padding, drops):
        """The blocks of `group`, which are equal but for their weights and drop-connect, as one loop."""
        block, remat = Block(*options, parent=None), self._remats()[options[0].stage - 1]
        names = [block_name(i) for i in group]

        def run(x, variables, drop):
            if not train:
                return block.apply(variables, x, train, padding, drop), {}
            return block.apply(variables, x, train, padding, drop, mutable=["batch_stats"])

        if remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*_POLICIES[remat])
            run = jax.checkpoint(run, policy=policy, prevent_cse=False)  # a loop's passes are not merged
        variables = [{kind: self.variables[kind][name] for kind in ("params", "batch_stats")} for name in names]
        items = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(variables, drops))
        x, updated = jax.lax.scan(lambda x, item: run(x, *item), x, items)
        if train:
            for i, name in enumerate(names):
                self.put_variable(
                    "batch_stats", name, jax.tree.map(lambda stack, i=i: stack[i], updated["batch_stats"])
                )
        return x
