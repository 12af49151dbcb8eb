"""ModernBERT encoder (Warner et al. 2024, arXiv 2412.13663) for any Hugging Face `ModernBertConfig`.

Unlike BERT: no biases, LayerNorm before each part instead of behind it, rotary positions, gated feed-forward, and
attention to near tokens alone in all but every third layer. Parameters are named as in Hugging Face checkpoints, dots
turned into slashes and list numbers joined to the name: `layers.3.attn.Wqkv.weight` is `layers_3/attn/Wqkv/kernel`,
transposed; `norm.weight` is `norm/scale`. The first layer has no `attn_norm`. Heads of those checkpoints (`head`,
`decoder`) have no counterpart here. `pooling.pool` reads the states.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.bert import ACTIVATIONS, REMAT
from mammoclip_jax.models.elementwise import Dropout
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices, check_options

Rotation = tuple[Float[Array, "L half"], Float[Array, "L half"]]


@dataclass(frozen=True)
class ModernBertConfig:
    """The fields of a Hugging Face `ModernBertConfig` that shape the encoder; the defaults are ModernBERT-base's.

    `local_attention` is the whole window: a local layer's token sees `local_attention // 2` tokens on either side.
    `final_norm` is ours: False leaves the last LayerNorm and its parameter out. Mammo-FM is so: it reads
    `hidden_states[-1]` of transformers 4.48, which is the tensor before that LayerNorm; the `final_norm.weight` of its
    checkpoints is unused.
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    global_attn_every_n_layers: int = 3
    local_attention: int = 128
    global_rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    final_norm: bool = True

    def __post_init__(self):
        if self.hidden_activation not in ACTIVATIONS:
            raise UserError(
                f"ModernBERT's hidden_activation={self.hidden_activation!r} is not known: "
                f"choose one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"ModernBERT's hidden_size={self.hidden_size} must be an even multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.global_attn_every_n_layers < 1 or self.local_attention < 0:
            raise UserError(
                f"ModernBERT's global_attn_every_n_layers={self.global_attn_every_n_layers} must be at "
                f"least 1 and local_attention={self.local_attention} at least 0"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModernBertConfig":
        """From the content of a `config.json`, of transformers 4 or 5.

        Raises UserError for another model type, scaled rotary positions, or layer types in another order than one
        global layer before every `global_attn_every_n_layers - 1` local ones.
        """
        if config.get("model_type", "modernbert") != "modernbert":
            raise UserError(
                f"model_type={config['model_type']!r} is not ModernBERT: choose the text encoder of that name"
            )
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        if "local_rope_theta" in config and config["local_rope_theta"] is None:  # transformers 4: as the global one
            known["local_rope_theta"] = known.get("global_rope_theta", cls.global_rope_theta)
        if config.get("rope_scaling"):
            raise UserError(
                f"rope_scaling={config['rope_scaling']!r} is not supported: only plain rotary positions are"
            )
        for layer_type, field in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
            rope = (config.get("rope_parameters") or {}).get(layer_type) or {}
            if rope.get("rope_type", "default") != "default":
                raise UserError(f"rope_type={rope['rope_type']!r} is not supported: only plain rotary positions are")
            if "rope_theta" in rope:
                known[field] = rope["rope_theta"]
        if config.get("layer_types"):
            known["global_attn_every_n_layers"] = _period(list(config["layer_types"]))
        return cls(**known)


def _period(layer_types: list[str]) -> int:
    """The layers from one global layer to the next. Raises UserError where they do not come at even distances."""
    full = [i for i, layer_type in enumerate(layer_types) if layer_type == "full_attention"]
    period = full[1] if len(full) > 1 else len(layer_types)
    if full != list(range(0, len(layer_types), period)):
        raise UserError(
            f"layer_types with full_attention at {full} are not supported: only one global layer every n "
            "layers, beginning with the first"
        )
    return period


class ModernBert(nn.Module):
    """Token ids to token states.

    Parameters are float32; `dtype` is that of the matrix products and of the result, while the residual stream,
    LayerNorm, rotation and softmax work in float32. The states of real tokens do not depend on what or how much padding
    follows them: they are those of the text alone.

    `remat` is what the backward pass computes again: "none", or a whole "block" at a time.
    """

    config: ModernBertConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choices("ModernBERT", self, {"remat": REMAT})

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        """With `train`, dropout is on (published models have none: then no PRNG is needed), by the PRNG "dropout".

        Raises UserError where L exceeds the positions that the model was trained for.
        """
        c = self.config
        if ids.shape[1] > c.max_position_embeddings:
            raise UserError(
                f"text length {ids.shape[1]} exceeds this ModernBERT's {c.max_position_embeddings} "
                "positions: lower data.text_length"
            )
        width = c.hidden_size // c.num_attention_heads
        near = make_rotation(ids.shape[1], width, c.local_rope_theta)
        far = make_rotation(ids.shape[1], width, c.global_rope_theta)
        x = Embeddings(c, name="embeddings")(ids, train=train)
        layer = nn.remat(Layer, static_argnums=4) if self.remat == "block" else Layer
        for i in range(c.num_hidden_layers):
            local = i % c.global_attn_every_n_layers != 0
            x = layer(c, self.dtype, first=i == 0, local=local, name=f"layers_{i}")(
                x, mask, near if local else far, train
            )
        if c.final_norm:
            x = _norm(c, "final_norm")(x)
        return x.astype(self.dtype)


def from_options(vocab_size: int, dtype: Any = jnp.float32, remat: str = "none", **options: Any) -> ModernBert:
    """The encoder for a tokenizer's vocabulary and `options`, fields of ModernBertConfig. UserError for others."""
    check_options(ModernBertConfig, options, "text encoder modernbert")
    return ModernBert(ModernBertConfig(vocab_size=vocab_size, **options), dtype, remat)


class Embeddings(nn.Module):
    """Word vectors, LayerNorm and dropout, in float32."""

    config: ModernBertConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        c = self.config
        x = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=_normal(c), name="tok_embeddings")(ids)
        return Dropout(c.embedding_dropout, deterministic=not train)(_norm(c, "norm")(x))


class Layer(nn.Module):
    """Self-attention and feed-forward, each with LayerNorm before it and residual around both (pre-norm).

    The first layer's attention has no LayerNorm: that of the embeddings is just before it.
    """

    config: ModernBertConfig
    dtype: Any
    first: bool
    local: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], rotation: Rotation, train: bool
    ) -> Float[Array, "N L C"]:
        c = self.config
        normed = x if self.first else _norm(c, "attn_norm")(x)
        x = x + Attention(c, self.dtype, self.local, name="attn")(normed, mask, rotation, train=train)
        return x + FeedForward(c, self.dtype, name="mlp")(_norm(c, "mlp_norm")(x), train=train)


class Attention(nn.Module):
    """Multi-head self-attention over rotated queries and keys, with its output projection."""

    config: ModernBertConfig
    dtype: Any
    local: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], rotation: Rotation, *, train: bool
    ) -> Float[Array, "N L C"]:
        c = self.config
        dropout = Dropout(c.attention_dropout, deterministic=not train)
        qkv = _dense(3 * c.hidden_size, c.attention_bias, self.dtype, "Wqkv", _normal(c))(x)
        # Heads before tokens, as in bert.py.
        qkv = qkv.reshape(*x.shape[:2], 3, c.num_attention_heads, -1).transpose(2, 0, 3, 1, 4)
        query, key, value = _rotate(qkv[0], rotation), _rotate(qkv[1], rotation), qkv[2]
        if self.local:
            context = local_attention(query, key, value, mask, c.local_attention // 2, dropout)
        else:
            context = attention(query, key, value, mask[:, None, None, :], dropout)
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        return dropout(_dense(c.hidden_size, c.attention_bias, self.dtype, "Wo", _normal_out(c))(context))


class FeedForward(nn.Module):
    """GeGLU (Shazeer 2020, arXiv 2002.05202): the activation of one half of `Wi`'s outputs times the other."""

    config: ModernBertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], *, train: bool) -> Float[Array, "N L C"]:
        c = self.config
        wide = _dense(2 * c.intermediate_size, c.mlp_bias, self.dtype, "Wi", _normal(c))(x)
        hidden, gate = jnp.split(wide, 2, axis=-1)
        hidden = ACTIVATIONS[c.hidden_activation](hidden) * gate
        hidden = Dropout(c.mlp_dropout, deterministic=not train)(hidden)
        return _dense(c.hidden_size, c.mlp_bias, self.dtype, "Wo", _normal_out(c))(hidden)


def attention(
    query: Float[Array, "... Q width"],
    key: Float[Array, "... K width"],
    value: Float[Array, "... K width"],
    visible: Bool[Array, "... #Q K"],
    dropout: Callable[[Array], Array],
) -> Float[Array, "... Q width"]:
    """softmax(q k^T / sqrt(width)) v; keys that are not visible get a weight of exactly zero.

    A query that sees no key at all gets the mean of all values, so that nothing turns into NaN.
    """
    scores = jnp.einsum("...qd,...kd->...qk", query, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / query.shape[-1] ** 0.5
    scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype))
    return jnp.einsum("...qk,...kd->...qd", weights, value)


def local_attention(
    query: Float[Array, "N heads L width"],
    key: Float[Array, "N heads L width"],
    value: Float[Array, "N heads L width"],
    mask: Bool[Array, "N L"],
    reach: int,
    dropout: Callable[[Array], Array],
) -> Float[Array, "N heads L width"]:
    """Attention in which token i sees the real tokens j with |i - j| <= reach.

    A long text is cut into blocks of `reach` tokens, each of which needs its own and the two adjacent blocks alone, so
    that time and memory grow with L, not with its square: on CPU, with ModernBERT-base's heads, a gradient takes as
    long as the whole matrix at 256 tokens and an eighth of the time and a fifth of the memory at 2048.
    """
    length, block = query.shape[2], max(reach, 1)
    if length <= 4 * block:
        i = np.arange(length)
        return attention(query, key, value, mask[:, None, None, :] & (abs(i[:, None] - i) <= reach), dropout)

    count = -(-length // block)

    def in_blocks(x: Array, around: int) -> Array:
        """[N, h, L, c] to [N, h, blocks, block, c], zeros behind, and `around` blocks of zeros at either end."""
        behind = (count + around) * block - length
        x = jnp.pad(x, ((0, 0), (0, 0), (around * block, behind), (0, 0)))
        return x.reshape(*x.shape[:2], count + 2 * around, block, x.shape[-1])

    def with_neighbours(x: Array) -> Array:
        """[N, h, L, c] to [N, h, blocks, 3 * block, c]: before, own, behind."""
        x = in_blocks(x, 1)
        return jnp.concatenate([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], axis=3)

    band = abs(np.arange(block)[:, None] + block - np.arange(3 * block)) <= reach
    real = with_neighbours(mask[:, None, :, None])[..., 0]
    context = attention(
        in_blocks(query, 0), with_neighbours(key), with_neighbours(value), real[..., None, :] & band, dropout
    )
    return context.reshape(*query.shape[:2], count * block, -1)[:, :, :length]


def make_rotation(length: int, width: int, theta: float) -> Rotation:
    """Cosine and sine of position * theta^(-2 i / width), i < width / 2.

    Rounded to float32 where torch rounds, the power itself being exact: a frequency off by one bit shifts the angles at
    2048 tokens by 6e-5, which sharp attention has turned into a difference of 7e-4 in the states.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Float[Array, "N heads L width"], rotation: Rotation) -> Float[Array, "N heads L width"]:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): channel i turns with channel i + width / 2."""
    cos, sin = rotation
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _norm(config: ModernBertConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.norm_eps, use_bias=config.norm_bias, use_fast_variance=False, name=name)


def _dense(features: int, bias: bool, dtype: Any, name: str, init: Callable) -> nn.Dense:
    return Dense(features, use_bias=bias, dtype=dtype, kernel_init=init, name=name)


def _normal(config: ModernBertConfig, deviation: float | None = None) -> Callable:
    cutoff = config.initializer_cutoff_factor
    return nn.initializers.truncated_normal(deviation or config.initializer_range, lower=-cutoff, upper=cutoff)


def _normal_out(config: ModernBertConfig) -> Callable:
    """For what adds to the residual stream: smaller with more layers, so that its sum does not grow with them."""
    return _normal(config, config.initializer_range / (2 * config.num_hidden_layers) ** 0.5)
