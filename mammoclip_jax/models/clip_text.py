"""CLIP's text tower (Radford et al. 2021, arXiv 2103.00020) for any Hugging Face `CLIPTextConfig`.

Parameters are named as in Hugging Face's CLIPTextModel, without the leading `text_model.` of checkpoints, dots turned
into slashes and list numbers joined to the name: `encoder.layers.3.self_attn.q_proj.weight` is
`encoder/layers_3/self_attn/q_proj/kernel`, transposed. `text_projection` is not here: it is the dual encoder's.

Attention is causal, so a text's vector is the state of its end-of-text token, which alone has seen all of it:
the pooling "eot". Where that is the last real token, as in all texts of a tokenizer, "eos" gives the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.bert import ACTIVATIONS as BERT_ACTIVATIONS
from mammoclip_jax.models.bert import REMAT
from mammoclip_jax.models.elementwise import Dropout
from mammoclip_jax.models.layers import quick_gelu
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices, check_options

ACTIVATIONS = {**BERT_ACTIVATIONS, "quick_gelu": quick_gelu}


@dataclass(frozen=True)
class ClipTextConfig:
    """The fields of a Hugging Face `CLIPTextConfig` that shape the encoder; the defaults are those of CLIP ViT-B/32."""

    vocab_size: int = 49408
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "quick_gelu"
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"CLIP's hidden_act={self.hidden_act!r} is not known: choose one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"CLIP's hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ClipTextConfig":
        """From the content of a `config.json` of a whole CLIP or of its text tower. UserError for another model."""
        text = text_config(config)
        return cls(**{f.name: text[f.name] for f in fields(cls) if f.name in text})


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text tower's part of a `config.json`. Raises UserError for another model type."""
    kind = config.get("model_type", "clip_text_model")
    if kind == "clip":
        return {**(config.get("text_config") or {}), **(config.get("text_config_dict") or {})}
    if kind != "clip_text_model":
        raise UserError(f"model_type={kind!r} is not CLIP: choose the text encoder of that name")
    return config


class ClipText(nn.Module):
    """Token ids to token states, behind the final LayerNorm.

    Parameters are float32; `dtype` is that of the matrix products and of the result, while the residual stream,
    LayerNorm and softmax work in float32. A token sees itself and the real ones before it, so that no padding behind a
    text changes the states of its tokens.

    `remat` is what the backward pass computes again: "none", or a whole "block" at a time.
    """

    config: ClipTextConfig
    dtype: Any = jnp.float32
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choices("CLIP's text tower", self, {"remat": REMAT})

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        """With `train`, dropout is on (published models have none: then no PRNG is needed), by the PRNG "dropout".

        Raises UserError where L exceeds the positions.
        """
        c = self.config
        x = Embeddings(c, name="embeddings")(ids)
        x = Encoder(c, self.dtype, self.remat, name="encoder")(x, mask, train=train)
        return _norm(c, "final_layer_norm")(x).astype(self.dtype)


def from_options(vocab_size: int, dtype: Any = jnp.float32, remat: str = "none", **options: Any) -> ClipText:
    """The encoder for a tokenizer's vocabulary and `options`, fields of ClipTextConfig. UserError for others."""
    check_options(ClipTextConfig, options, "text encoder clip_text")
    return ClipText(ClipTextConfig(vocab_size=vocab_size, **options), dtype, remat)


class Embeddings(nn.Module):
    """Word + position, in float32."""

    config: ClipTextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"]) -> Float[Array, "N L C"]:
        c = self.config
        if ids.shape[1] > c.max_position_embeddings:
            raise UserError(
                f"text length {ids.shape[1]} exceeds this CLIP's {c.max_position_embeddings} positions: "
                "lower data.text_length"
            )

        def table(size: int, name: str) -> nn.Embed:
            return nn.Embed(size, c.hidden_size, embedding_init=nn.initializers.normal(0.02), name=name)

        x = table(c.vocab_size, "token_embedding")(ids)
        return x + table(c.max_position_embeddings, "position_embedding")(jnp.arange(ids.shape[1]))


class Encoder(nn.Module):
    """The stack of layers."""

    config: ClipTextConfig
    dtype: Any
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        layer = nn.remat(Layer, static_argnums=3) if self.remat == "block" else Layer
        for i in range(self.config.num_hidden_layers):
            x = layer(self.config, self.dtype, name=f"layers_{i}")(x, mask, train)
        return x


class Layer(nn.Module):
    """Self-attention and feed-forward, each with LayerNorm before it and residual around both (pre-norm)."""

    config: ClipTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], train: bool) -> Float[Array, "N L C"]:
        c = self.config
        x = x + Attention(c, self.dtype, name="self_attn")(_norm(c, "layer_norm1")(x), mask, train=train)
        return x + FeedForward(c, self.dtype, name="mlp")(_norm(c, "layer_norm2")(x))


class Attention(nn.Module):
    """Causal multi-head self-attention with its output projection; padded keys get a weight of exactly zero."""

    config: ClipTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        c = self.config
        heads, width = c.num_attention_heads, c.hidden_size // c.num_attention_heads

        # Heads before tokens, as in bert.py.
        def project(name: str) -> Float[Array, "N heads L width"]:
            y = _dense(c.hidden_size, self.dtype, name, _small(c))(x)
            return y.reshape(*x.shape[:2], heads, width).transpose(0, 2, 1, 3)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / width**0.5
        visible = jnp.tri(x.shape[1], dtype=bool) & mask[:, None, None, :]
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(c.attention_dropout, deterministic=not train)(weights)
        context = jnp.einsum("nhqk,nhkd->nhqd", weights, value).transpose(0, 2, 1, 3).reshape(x.shape)
        return _dense(c.hidden_size, self.dtype, "out_proj", c.hidden_size**-0.5)(context)


class FeedForward(nn.Module):
    """Two linear maps and the activation between them."""

    config: ClipTextConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        c = self.config
        hidden = _dense(c.intermediate_size, self.dtype, "fc1", (2 * c.hidden_size) ** -0.5)(x)
        return _dense(c.hidden_size, self.dtype, "fc2", _small(c))(ACTIVATIONS[c.hidden_act](hidden))


def _norm(config: ClipTextConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.layer_norm_eps, use_fast_variance=False, name=name)


def _dense(features: int, dtype: Any, name: str, deviation: float) -> nn.Dense:
    return Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(deviation), name=name)


def _small(config: ClipTextConfig) -> float:
    """Initial deviation of q, k, v and fc2, in CLIP smaller with more layers."""
    return (2 * config.hidden_size * config.num_hidden_layers) ** -0.5
