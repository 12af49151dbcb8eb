"""BERT encoder (Devlin et al. 2019) for any Hugging Face `BertConfig`.

Parameters are named as in Hugging Face checkpoints, dots turned into slashes and list numbers joined to the name:
`encoder.layer.0.attention.self.query.weight` is `encoder/layer_0/attention/self/query/kernel`, transposed. The pooler
of those checkpoints has no counterpart here: `pooling.pool` reads the states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.elementwise import Dropout, gelu
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices, check_options

ACTIVATIONS = {"gelu": gelu, "gelu_new": lambda x: nn.gelu(x, approximate=True), "relu": nn.relu}
REMAT = ("none", "block")


@dataclass(frozen=True)
class BertConfig:
    """The fields of a Hugging Face `BertConfig` that shape the encoder; the defaults are BERT-base's."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"BERT's hidden_act={self.hidden_act!r} is not known: choose one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"BERT's hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BertConfig":
        """From the content of a `config.json`. Raises UserError for another model type or relative positions."""
        if config.get("model_type", "bert") != "bert":
            raise UserError(f"model_type={config['model_type']!r} is not BERT: choose the text encoder of that name")
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"position_embedding_type={config['position_embedding_type']!r} is not supported: "
                "only absolute positions are"
            )
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})


class Bert(nn.Module):
    """Token ids to token states.

    Parameters are float32; `dtype` is that of the matrix products, while softmax and LayerNorm work in float32.
    The states of real tokens do not depend on what or how much padding follows them.

    Attributes:
        average_layers: the states are the mean of those hidden states, counted as transformers' `hidden_states`: 0 is
            what the embeddings give, 1 the first layer's, -1 the last's. MedCLIP's are (1, 2, -1). None: the last.
        remat: what the backward pass computes again: "none", or a whole "block" at a time.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    average_layers: tuple[int, ...] = ()
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choices("BERT", self, {"remat": REMAT})
        depth = self.config.num_hidden_layers
        if any(not -depth - 1 <= i <= depth for i in self.average_layers):
            raise UserError(f"BERT's average_layers={self.average_layers} must be from 0, the embeddings, to {depth}.")

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        """With `train`, dropout is on and needs the PRNG "dropout". Raises UserError where L exceeds the positions."""
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids, train=train)
        states = Encoder(self.config, self.dtype, self.remat, name="encoder")(x, mask, train=train)
        if not self.average_layers:
            return states[-1]
        picked = [states[i].astype(jnp.float32) for i in self.average_layers]
        return (sum(picked) / len(picked)).astype(self.dtype)


def from_options(
    vocab_size: int, dtype: Any = jnp.float32, average_layers: Sequence[int] = (), remat: str = "none", **options: Any
) -> Bert:
    """The encoder for a tokenizer's vocabulary and `options`, fields of BertConfig. Raises UserError for others."""
    check_options(BertConfig, options, "text encoder bert")
    return Bert(BertConfig(vocab_size=vocab_size, **options), dtype, tuple(average_layers), remat)


class Embeddings(nn.Module):
    """Word + position + token type (always the first), then LayerNorm and dropout."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        c = self.config
        if ids.shape[1] > c.max_position_embeddings:
            raise UserError(
                f"text length {ids.shape[1]} exceeds this BERT's {c.max_position_embeddings} positions: "
                "lower data.text_length"
            )

        def table(size: int, name: str) -> nn.Embed:
            return nn.Embed(size, c.hidden_size, embedding_init=nn.initializers.normal(c.initializer_range), name=name)

        x = table(c.vocab_size, "word_embeddings")(ids)
        x = x + table(c.max_position_embeddings, "position_embeddings")(jnp.arange(ids.shape[1]))
        x = x + table(c.type_vocab_size, "token_type_embeddings")(jnp.zeros((), jnp.int32))
        x = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="LayerNorm")(x).astype(self.dtype)
        return Dropout(c.hidden_dropout_prob, deterministic=not train)(x)


class Encoder(nn.Module):
    """The stack of layers; what went in and what each of them gave."""

    config: BertConfig
    dtype: Any
    remat: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], *, train: bool
    ) -> list[Float[Array, "N L C"]]:
        layer = nn.remat(Layer, static_argnums=3) if self.remat == "block" else Layer
        states = [x]
        for i in range(self.config.num_hidden_layers):
            states.append(layer(self.config, self.dtype, name=f"layer_{i}")(states[-1], mask, train))
        return states


class Layer(nn.Module):
    """Self-attention and feed-forward, each with residual and LayerNorm behind it (post-norm)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], train: bool) -> Float[Array, "N L C"]:
        c = self.config
        x = Attention(c, self.dtype, name="attention")(x, mask, train=train)
        hidden = Intermediate(c, self.dtype, name="intermediate")(x)
        return Output(c, self.dtype, name="output")(hidden, x, train=train)


class Attention(nn.Module):
    """Multi-head self-attention with its output projection."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        context = SelfAttention(self.config, self.dtype, name="self")(x, mask, train=train)
        return Output(self.config, self.dtype, name="output")(context, x, train=train)


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each head; padded keys get a weight of exactly zero."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        c = self.config
        heads, width = c.num_attention_heads, c.hidden_size // c.num_attention_heads

        # Heads before tokens: XLA:CPU runs the products on this layout two to three times faster forward.
        def project(name: str) -> Float[Array, "N heads L width"]:
            y = _dense(c, c.hidden_size, self.dtype, name)(x)
            return y.reshape(*x.shape[:2], heads, width).transpose(0, 2, 1, 3)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / width**0.5
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(c.attention_probs_dropout_prob, deterministic=not train)(weights)
        return jnp.einsum("nhqk,nhkd->nhqd", weights, value).transpose(0, 2, 1, 3).reshape(x.shape)


class Intermediate(nn.Module):
    """The feed-forward's first half."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L F"]:
        c = self.config
        return ACTIVATIONS[c.hidden_act](_dense(c, c.intermediate_size, self.dtype, "dense")(x))


class Output(nn.Module):
    """Projection back to the hidden size, dropout, residual, LayerNorm."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "N L F"], residual: Float[Array, "N L C"], *, train: bool
    ) -> Float[Array, "N L C"]:
        c = self.config
        x = _dense(c, c.hidden_size, self.dtype, "dense")(x)
        x = Dropout(c.hidden_dropout_prob, deterministic=not train)(x) + residual
        return nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False, name="LayerNorm")(x).astype(self.dtype)


def _dense(config: BertConfig, features: int, dtype: Any, name: str) -> nn.Dense:
    return Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name)
