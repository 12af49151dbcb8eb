"""The mobile inverted bottleneck (MBConv) of EfficientNet (Sandler et al. 2018, arXiv:1801.04381; Tan and Le 2019)."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from mammoclip_jax.models import kernels
from mammoclip_jax.models.depthwise import Pads
from mammoclip_jax.models.layers import BatchNorm, Depthwise, Place, Pointwise, SqueezeExcite, drop_path


class BlockSpec(NamedTuple):
    """One mobile inverted bottleneck: its stage (from 1), kernel size, stride, and numbers of channels.

    `squeezed` is 0 where there is no squeeze-excite, in the Lite networks, which have ReLU6 too.
    """

    stage: int
    size: int
    stride: int
    inputs: int
    expanded: int
    squeezed: int
    outputs: int


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection; shortcut where the shapes allow it."""

    spec: BlockSpec
    dtype: Any
    formulation: str | None
    momentum: float = 0.99
    eps: float = 1e-3
    place: Place = Place()
    kernels: str = "xla"

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W inputs"], train: bool, padding: Pads, drop: tuple[Array, Array] | None = None
    ) -> Float[Array, "N h w outputs"]:
        """`drop` is the rate of drop-connect and its PRNG key; None is without."""
        spec, shortcut = self.spec, x
        norm = functools.partial(BatchNorm, eps=self.eps, momentum=self.momentum)
        columns = self.place.columns // spec.stride if self.place.columns > 1 else 1
        if train and not self.is_initializing() and kernels.mbconv_fits(self, x, padding):
            x = kernels.mbconv(self, x, padding)
        else:
            x = self._wide_part(x, train, padding, norm, columns)
        x = norm(columns=columns, name="project_bn")(x, train)
        if spec.stride != 1 or spec.inputs != spec.outputs:
            return x
        return (x if drop is None else drop_path(x, *drop)) + shortcut

    def _wide_part(self, x, train, padding, norm, columns):
        """All but the last normalisation, whose input has so many `columns` in a cell."""
        spec, place, name = self.spec, self.place, act(lite=not self.spec.squeezed)
        if spec.expanded != spec.inputs:
            x = Pointwise(spec.expanded, self.dtype, place, "expand", name="expand")(x)
            x = norm(name, columns=place.columns, name="expand_bn")(x, train)
        x = Depthwise(spec.size, spec.stride, self.dtype, self.formulation, place, name="depthwise")(x, padding)
        x = norm(name, columns=columns, name="depthwise_bn")(x, train)
        if spec.squeezed:
            x = SqueezeExcite(spec.squeezed, columns, name="se")(x)
        return Pointwise(spec.outputs, self.dtype, place._replace(columns=columns), name="project")(x)


def act(lite: bool) -> str:
    """The activation of a network or block: the Lite ones have ReLU6."""
    return "relu6" if lite else "swish"
