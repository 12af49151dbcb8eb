"""Layers of the convolutional encoders, channels last.

Parameters and statistics are float32; `dtype` is what the products and stored activations are in. Squeeze-excite and
all statistics are computed in float32 (float64 for float64 input).
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import packed
from mammoclip_jax.models.depthwise import Pads, depthwise_conv
from mammoclip_jax.models.packed import on_lanes
from mammoclip_jax.models.products import product
from mammoclip_jax.names import suggestion

# Normal with variance 2 / fan_out, as TensorFlow's EfficientNet. The last axis counts the outputs.
_fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def sigmoid(x):
    """Logistic function through tanh, which the CPU backend turns into vector instructions."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def swish(x):
    """x * sigmoid(x), also called SiLU."""
    return x * sigmoid(x)


def quick_gelu(x):
    """x * sigmoid(1.702 x): what CLIP has for GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415, sec. 2)."""
    return x * sigmoid(1.702 * x)


def relu6(x):
    """x between 0 and 6."""
    return jnp.clip(x, 0, 6)


class Place(NamedTuple):
    """How the maps of a layer lie in memory and on devices; results do not depend on it."""

    rows: str | None = None  # mesh axis that the rows are split over; None: whole images
    lanes: bool = False  # channels along a TPU's lanes (packed.on_lanes)
    columns: int = 1  # columns in a cell of the layer's input (packed.py)

    def put(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """A convolution's output where it belongs, under the name by which it may be kept.

        Rows are pinned after every convolution, because jax's partitioner (0.10.2, and 0.12.0.1 still) otherwise doubles
        kernel gradients where a stage's number of rows does not divide by the axis. Needs `jax.set_mesh`.
        """
        if self.rows:
            others = tuple(axis for axis in jax.sharding.get_abstract_mesh().axis_names if axis != self.rows)
            x = lax.with_sharding_constraint(x, PartitionSpec(others, self.rows))
        return on_lanes(x) if self.lanes else x


class Conv(nn.Module):
    """Dense k x k convolution without bias; parameter kernel [k, k, in, out]."""

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32
    place: Place = Place()

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"], padding: Pads) -> Float[Array, "N h w out"]:
        columns = self.place.columns
        kernel = self.param("kernel", _fan_out_normal, (self.size, self.size, x.shape[-1] // columns, self.features))
        y = packed.convolve(x.astype(self.dtype), kernel, self.stride, padding, columns)
        return checkpoint_name(self.place.put(y), "conv")


class Depthwise(nn.Module):
    """Depthwise k x k convolution without bias; parameter kernel [k, k, C]. `formulation` as in `depthwise_conv`."""

    size: int
    stride: int = 1
    dtype: Any = jnp.float32
    formulation: str | None = None
    place: Place = Place()

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], padding: Pads) -> Float[Array, "N h w C"]:
        deviation, columns = (2 / self.size**2) ** 0.5, self.place.columns
        shape = (self.size, self.size, x.shape[-1] // columns)
        kernel = self.param("kernel", nn.initializers.normal(deviation), shape)
        x = self.place.put(x.astype(self.dtype))
        if columns > 1:
            y = packed.depthwise(x, kernel, self.stride, padding, columns)
        else:
            y = depthwise_conv(x, kernel, self.stride, padding, self.formulation)
        return checkpoint_name(self.place.put(y), "conv")


class Pointwise(nn.Module):
    """1 x 1 convolution without bias as one matrix product; parameter kernel [in, out].

    The backward pass may keep its output under `kept`, the name that a `jax.checkpoint` policy looks for.
    """

    features: int
    dtype: Any = jnp.float32
    place: Place = Place()
    kept: str = "conv"

    @nn.compact
    def __call__(self, x: Float[Array, "N H W in"]) -> Float[Array, "N H W out"]:
        columns = self.place.columns
        kernel = self.param("kernel", _fan_out_normal, (x.shape[-1] // columns, self.features))
        kernel = packed.pointwise(kernel, columns).astype(self.dtype)
        x = self.place.put(x.astype(self.dtype))
        if self.place.lanes:
            y = packed.convolve(x, kernel[None, None], 1, ((0, 0), (0, 0)), 1)  # a product would lose the layout
        else:
            y = product(x, kernel)
        return checkpoint_name(self.place.put(y), self.kept)


class Affine(nn.Module):
    """x @ kernel + bias in float32; parameters kernel [in, out], bias [out]."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N in"]) -> Float[Array, "N out"]:
        kernel = self.param("kernel", _fan_out_normal, (x.shape[-1], self.features))
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))


class SqueezeExcite(nn.Module):
    """Scales channels by a function of their means; `features` is the width of the bottleneck."""

    features: int
    columns: int = 1  # in a cell (packed.py)

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        wide = _accumulator(x)
        means = jnp.mean(x.astype(wide), axis=(1, 2))
        if self.columns > 1:
            means = jnp.mean(means.reshape(len(x), self.columns, -1), axis=1)
        squeezed = swish(Affine(self.features, name="reduce")(means))
        scale = checkpoint_name(sigmoid(Affine(means.shape[-1], name="expand")(squeezed)), "moments")
        scale = jnp.tile(scale, (1, self.columns))
        return (x.astype(wide) * scale[:, None, None, :]).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation, then `act` ("swish", "relu6" or None); parameters scale and bias, batch_stats mean and var.

    The statistics are those of the whole (global) batch. As in torch, the batch is normalised by its biased variance
    and the running variance is updated with the unbiased one. eps and momentum default to EfficientNet's.
    """

    act: str | None = None
    eps: float = 1e-3
    momentum: float = 0.99
    columns: int = 1  # in a cell (packed.py)

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], train: bool) -> Float[Array, "N H W C"]:
        c = x.shape[-1] // self.columns
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        if not train:
            deviation = lax.rsqrt(running_var.value + self.eps)
            values = (jnp.tile(v, self.columns) for v in (running_mean.value, deviation, scale, bias))
            return _affine_act(x, *values, self.act)
        y, mean, var = batch_norm_act(x, scale, bias, self.eps, self.act, self.columns)
        if not self.is_initializing():
            count = x.size // c
            var = var * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm_act(
    x: Float[Array, "N H W C"],
    scale: Float[Array, " C"],
    bias: Float[Array, " C"],
    eps: float,
    act: str | None,
    columns: int = 1,
) -> tuple[Float[Array, "N H W C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalises by the batch's own statistics: act((x - mean) / sqrt(var + eps) * scale + bias), mean, biased var.

    The backward pass keeps x, mean and 1 / sqrt(var + eps), and computes the rest again. No gradient flows through
    the returned mean and variance: they are for running statistics. With `columns`, x is [N H W/columns columns*C].
    """
    return _batch_norm_forward(x, scale, bias, eps, act, columns)[0]


def _batch_norm_forward(x, scale, bias, eps, act, columns):
    mean, var = (checkpoint_name(moment, "moments") for moment in _moments(x, columns))
    deviation = lax.rsqrt(var + eps)
    y = _affine_act(x, *(jnp.tile(v, columns) for v in (mean, deviation, scale, bias)), act)
    return (y, mean, var), (x, mean, deviation, scale, bias)


def _batch_norm_backward(eps, act, columns, saved, gradients):
    # Without the barrier the compiler finds the forward pass's tanh here, and keeps that map too until now.
    x, mean, deviation, scale, bias = lax.optimization_barrier(saved) if act else saved
    count = x.size // len(mean)
    factor = scale * deviation

    def everywhere(v):
        return jnp.tile(v, columns)

    wide = x.astype(mean.dtype)
    gradient = gradients[0].astype(mean.dtype)
    if act is not None:
        z = wide * everywhere(factor) + everywhere(bias - mean * factor)
        gradient = gradient * _SLOPES[act](z)
    to_bias = _sum(gradient, columns)
    to_scale = deviation * (_sum(gradient * wide, columns) - mean * to_bias)
    # factor * (gradient - to_bias / count - (x - mean) * deviation * to_scale / count), x's terms gathered
    slope = factor * deviation * to_scale / count
    to_x = (
        gradient * everywhere(factor) - wide * everywhere(slope) + everywhere(mean * slope - factor * to_bias / count)
    )
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_bias.astype(bias.dtype)


batch_norm_act.defvjp(_batch_norm_forward, _batch_norm_backward)


def _moments(x, columns):
    """Mean and biased variance.

    In two passes: E[x^2] - E[x]^2 loses digits where the mean is far from zero, 7e-4 of the variance at 100 deviations,
    and saves nothing on CPU, where each of its sums is a pass too (same bytes accessed, same time). In 16 bits x itself
    has lost more than that, and a TPU makes both sums while it writes x: there in one.
    """
    count, narrow = x.size // (x.shape[-1] // columns), x.dtype.itemsize < 4
    x = x.astype(_accumulator(x))
    mean = _sum(x, columns) / count
    if narrow:
        return mean, jnp.maximum(_sum(x * x, columns) / count - mean * mean, 0)
    return mean, _sum(jnp.square(x - jnp.tile(mean, columns)), columns) / count


def _sum(x, columns):
    """Over all but the channels."""
    total = jnp.sum(x, axis=(0, 1, 2))
    return jnp.sum(total.reshape(columns, -1), axis=0) if columns > 1 else total


def _affine_act(x, mean, deviation, scale, bias, act):
    # As x * factor + offset: with x - mean here too, the compiler would keep that difference in memory.
    factor = deviation * scale
    z = x.astype(_accumulator(x)) * factor + (bias - mean * factor)
    return _ACTIVATIONS[act](z).astype(x.dtype)


def _swish_slope(z):
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


_ACTIVATIONS = {None: lambda z: z, "swish": swish, "relu6": relu6}
_SLOPES = {"swish": _swish_slope, "relu6": lambda z: (z > 0) & (z < 6)}


def _accumulator(x):
    return jnp.promote_types(x.dtype, jnp.float32)


POOLING = ("avg", "max", "gem")


class GlobalPool(nn.Module):
    """One vector per map, in float32: its mean, maximum, or generalised mean ("gem", Radenovic 2018).

    The generalised mean has one parameter, exponent, which starts at 3.
    """

    kind: str = "avg"

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N C"]:
        x = x.astype(_accumulator(x))
        if self.kind == "max":
            return jnp.max(x, axis=(1, 2))
        if self.kind == "avg":
            return jnp.mean(x, axis=(1, 2))
        exponent = self.param("exponent", nn.initializers.constant(3.0), ())
        return jnp.mean(jnp.maximum(x, 1e-6) ** exponent, axis=(1, 2)) ** (1 / exponent)


def drop_path(x: Float[Array, "N H W C"], rate: float | Array, key: Array) -> Float[Array, "N H W C"]:
    """Zeroes whole samples with probability `rate` and divides the others by 1 - rate: drop-connect."""
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


class Stages:
    """The named stage maps of one forward pass, kept as they are passed: `x = stages.keep("stage1", x)`.

    `offsets` are added to the maps of their names; their gradient at zero is the gradient of the map. What was kept
    is in `maps`.

    Raises:
        UserError: an offset names none of `known`; `what` is the encoder for people.
    """

    def __init__(self, what: str, known: Iterable[str], offsets: Mapping[str, Array]):
        for name in set(offsets) - set(known):
            raise UserError(f"{what} has no stage {name!r}.{suggestion(name, known)} Known: {', '.join(known)}.")
        self.offsets, self.maps = offsets, {}

    def keep(self, name: str, x: Float[Array, "N h w c"]) -> Float[Array, "N h w c"]:
        self.maps[name] = x + self.offsets[name].astype(x.dtype) if name in self.offsets else x
        return self.maps[name]
