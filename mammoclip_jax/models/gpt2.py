"""GPT-2 (Radford et al. 2019) for any Hugging Face `GPT2Config`; BioMedLM is its 32 layers of width 2560.

Parameters are named as in Hugging Face's GPT2Model, without the leading `transformer.` of checkpoints with a language
model's head, dots turned into slashes and list numbers joined to the name: `h.0.attn.c_attn.weight` is
`h_0/attn/c_attn/kernel`. Those layers are `Conv1D`s, whose weights are [in, out] already: nothing is transposed.
Query, key and value stay one kernel, c_attn, as there, so that LoRA on c_attn means the same (models/lora.py).
The buffers `attn.bias` and `attn.masked_bias` of old checkpoints hold the causal mask and have no counterpart.

Attention is causal: only a text's last token has seen all of it. `pooling.pool` reads that one ("eos"), the mean of all
or of the separators, one a sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import bert
from mammoclip_jax.models.elementwise import Dropout
from mammoclip_jax.models.products import Dense
from mammoclip_jax.names import check_choices, check_options


@dataclass(frozen=True)
class Gpt2Config:
    """The fields of a Hugging Face `GPT2Config` that shape the encoder; the defaults are GPT-2 small's.

    n_inner None is 4 n_embd. scale_attn_by_inverse_layer_idx divides the scores of layer i by i + 1 too; BioMedLM's
    config.json sets it, with vocab_size=28896, n_embd=2560, n_layer=32, n_head=20.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    def __post_init__(self):
        if self.activation_function not in bert.ACTIVATIONS:
            raise UserError(
                f"GPT-2's activation_function={self.activation_function!r} is not known: "
                f"choose one of {', '.join(bert.ACTIVATIONS)}"
            )
        if self.n_embd % self.n_head:
            raise UserError(f"GPT-2's n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Gpt2Config":
        """From the content of a `config.json`. Raises UserError for another model type or cross-attention."""
        if config.get("model_type", "gpt2") != "gpt2":
            raise UserError(f"model_type={config['model_type']!r} is not GPT-2: choose the text encoder of that name")
        if config.get("add_cross_attention"):
            raise UserError("add_cross_attention=true is not supported: this GPT-2 reads text alone")
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})


class Gpt2(nn.Module):
    """Token ids to token states, behind the final LayerNorm.

    Parameters are float32; `dtype` is that of the matrix products and of the result, while the residual stream,
    LayerNorm and softmax work in at least float32.

    A real token sees itself and the real ones before it, and its position counts real tokens only, so that padding on
    either side, however much, leaves its state as it is. transformers' GPT2Model counts padding unless it is given
    `position_ids`; on texts padded on the right both are the same.

    `remat` is what the backward pass computes again: "none", or a whole "block" at a time.
    """

    config: Gpt2Config
    dtype: Any = jnp.float32
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        check_choices("GPT-2", self, {"remat": bert.REMAT})

    @nn.compact
    def __call__(self, ids: Int[Array, "N L"], mask: Bool[Array, "N L"], *, train: bool) -> Float[Array, "N L C"]:
        """With `train`, dropout is on and needs the PRNG "dropout". Raises UserError where L exceeds the positions."""
        c = self.config
        if ids.shape[1] > c.n_positions:
            raise UserError(
                f"text length {ids.shape[1]} exceeds this GPT-2's {c.n_positions} positions: lower data.text_length"
            )

        def table(size: int, name: str) -> nn.Embed:
            return nn.Embed(size, c.n_embd, embedding_init=nn.initializers.normal(c.initializer_range), name=name)

        x = table(c.vocab_size, "wte")(ids) + table(c.n_positions, "wpe")(positions(mask))
        x = Dropout(c.embd_pdrop, deterministic=not train)(x)
        visible = jnp.tri(ids.shape[1], dtype=bool) & mask[:, None, None, :]
        layer = nn.remat(Layer) if self.remat == "block" else Layer
        for i in range(c.n_layer):
            x = layer(c, self.dtype, i, train, name=f"h_{i}")(x, visible)
        return _norm(c, "ln_f")(x).astype(self.dtype)


def from_options(vocab_size: int, dtype: Any = jnp.float32, remat: str = "none", **options: Any) -> Gpt2:
    """The encoder for a tokenizer's vocabulary and `options`, fields of Gpt2Config. Raises UserError for others."""
    check_options(Gpt2Config, options, "text encoder gpt2")
    return Gpt2(Gpt2Config(vocab_size=vocab_size, **options), dtype, remat)


class Layer(nn.Module):
    """Self-attention and feed-forward, each with LayerNorm before it and residual around both (pre-norm)."""

    config: Gpt2Config
    dtype: Any
    index: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], visible: Bool[Array, "N 1 L L"]) -> Float[Array, "N L C"]:
        c = self.config
        x = x + Attention(c, self.dtype, self.index, self.train, name="attn")(_norm(c, "ln_1")(x), visible)
        return x + FeedForward(c, self.dtype, self.train, name="mlp")(_norm(c, "ln_2")(x))


class Attention(nn.Module):
    """Multi-head self-attention with its output projection; keys that are not visible get a weight of exactly zero."""

    config: Gpt2Config
    dtype: Any
    index: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"], visible: Bool[Array, "N 1 L L"]) -> Float[Array, "N L C"]:
        c = self.config
        width = c.n_embd // c.n_head
        scale = width**-0.5 if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            scale /= self.index + 1
        fused = _dense(3 * c.n_embd, self.dtype, "c_attn", c.initializer_range)(x)
        # Heads before tokens, as in bert.py.
        query, key, value = fused.reshape(*x.shape[:2], 3, c.n_head, width).transpose(2, 0, 3, 1, 4)
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * scale
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(c.attn_pdrop, deterministic=not self.train)(weights)
        context = jnp.einsum("nhqk,nhkd->nhqd", weights, value).transpose(0, 2, 1, 3).reshape(x.shape)
        context = _dense(c.n_embd, self.dtype, "c_proj", _small(c))(context)
        return Dropout(c.resid_pdrop, deterministic=not self.train)(context)


class FeedForward(nn.Module):
    """Two linear maps and the activation between them."""

    config: Gpt2Config
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        c = self.config
        hidden = _dense(c.n_inner or 4 * c.n_embd, self.dtype, "c_fc", c.initializer_range)(x)
        x = _dense(c.n_embd, self.dtype, "c_proj", _small(c))(bert.ACTIVATIONS[c.activation_function](hidden))
        return Dropout(c.resid_pdrop, deterministic=not self.train)(x)


def positions(mask: Bool[Array, "N L"]) -> Int[Array, "N L"]:
    """The number of real tokens before each one: 0 for the first, wherever it stands. Padding repeats a position."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def _norm(config: Gpt2Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.layer_norm_epsilon, use_fast_variance=False, name=name)


def _dense(features: int, dtype: Any, name: str, deviation: float) -> nn.Dense:
    return Dense(features, dtype=dtype, kernel_init=nn.initializers.normal(deviation), name=name)


def _small(config: Gpt2Config) -> float:
    """Initial deviation of both c_proj, in GPT-2 smaller with more layers: each adds to the residual stream."""
    return config.initializer_range * (2 * config.n_layer) ** -0.5
