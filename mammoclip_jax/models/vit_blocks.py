"""The blocks of vision transformers: attention and feed-forward, each behind its LayerNorm (vit.py)."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.models.attention import attention, record
from mammoclip_jax.models.elementwise import gelu
from mammoclip_jax.models.layers import drop_path, quick_gelu
from mammoclip_jax.models.products import Dense

ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}
init = nn.initializers.truncated_normal(0.02)


class Attention(nn.Module):
    """Multi-head self-attention with its output projection."""

    heads: int
    how: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        context = SelfAttention(self.heads, self.how, self.dtype, name="attention")(x)
        return Output(x.shape[-1], self.dtype, name="output")(context)


class SelfAttention(nn.Module):
    """Queries, keys and values of every head, and what the attention makes of them."""

    heads: int
    how: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        def project(name: str) -> Float[Array, "N heads L d"]:
            y = dense(x.shape[-1], self.dtype, name)(x)
            return y.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

        query, key = project("query"), project("key")
        record(self, query, key)
        context = attention(query, key, project("value"), self.how)
        return context.transpose(0, 2, 1, 3).reshape(x.shape)


class Output(nn.Module):
    """One linear map, at the place that checkpoints have it."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        return dense(self.features, self.dtype, "dense")(x)


class FeedForward(nn.Module):
    """As "mlp" linear, `act`, linear; as "swiglu": silu(gate) * value, two thirds as wide (up to a multiple of 8)."""

    kind: str
    act: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        width = x.shape[-1]
        if self.kind == "mlp":
            hidden = ACTIVATIONS[self.act](dense(4 * width, self.dtype, "fc1")(x))
            return dense(width, self.dtype, "fc2")(hidden)
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        gate, value = jnp.split(dense(2 * hidden, self.dtype, "weights_in")(x), 2, axis=-1)
        return dense(width, self.dtype, "weights_out")(nn.silu(gate) * value)


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021, arXiv:2103.17239)."""

    value: float

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        return x * self.param("lambda1", nn.initializers.constant(self.value), (x.shape[-1],)).astype(x.dtype)


class Layer(nn.Module):
    """Attention and feed-forward, each behind its LayerNorm and with a residual (pre-norm)."""

    heads: int
    feed_forward: str
    act: str
    layer_scale: float | None
    drop_rate: float
    attention: str
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], train: bool) -> Float[Array, "N L C"]:
        def branch(x, i, module):
            y = module(layer_norm(self.eps, self.dtype, f"norm{i}")(x))
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=f"layer_scale{i}")(y)
            if train and self.drop_rate > 0:
                y = drop_path(y[:, None], self.drop_rate, self.make_rng("dropout"))[:, 0]
            return x + y

        x = branch(x, 1, Attention(self.heads, self.attention, self.dtype, name="attention"))
        return branch(x, 2, FeedForward(self.feed_forward, self.act, self.dtype, name="mlp"))


class Encoder(nn.Module):
    """The stack of blocks; `stage(name, x)` sees, and may change, what each leaves."""

    depth: int
    drop_rate: float
    remat: str
    layer: Mapping[str, Any]

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], train: bool, stage: Callable) -> Float[Array, "N L C"]:
        block = nn.remat(Layer, static_argnums=(2,)) if self.remat == "block" else Layer
        for i in range(self.depth):
            rate = self.drop_rate * i / max(self.depth - 1, 1)
            x = stage(f"block{i + 1}", block(drop_rate=rate, name=f"layer_{i}", **self.layer)(x, train))
        return x


def dense(features: int, dtype: Any, name: str) -> nn.Dense:
    """A linear map with bias, initialised as vision transformers are."""
    return Dense(features, dtype=dtype, kernel_init=init, name=name)


def layer_norm(eps: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Statistics in float32, result in `dtype`."""
    return nn.LayerNorm(eps, dtype=dtype, use_fast_variance=False, name=name)
