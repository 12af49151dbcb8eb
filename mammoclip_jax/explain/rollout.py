"""Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, section 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mammoclip_jax.models import attention

_CHUNK = 256  # queries at a time: the weights of all, [L, L], do not fit at full resolution


def attention_rollout(subject, pixels, direction, stage: str, *, residual: float = 0.5) -> Float[Array, "h w"]:
    """How much of what is pooled comes from each patch, if every layer mixed tokens by its attention alone.

    The product of r I + (1 - r) A over the layers, A the mean of the heads' attention weights and r `residual`, which
    stands for the residual connection; of it the rows of the pooled tokens, and the columns of the patches. The
    direction has no part in it: the map is the same for every text.
    """
    maps = jax.eval_shape(lambda: subject.encode(pixels)[1])
    height, width = next(iter(maps.values())).shape[1:3]  # that of the patches, at every stage
    row = jnp.asarray(subject.tokens(height * width), jnp.float32)
    for query, key in reversed(subject.attention(pixels)):
        row = residual * row + (1 - residual) * mixed(row, query[0], key[0])
    return row[-height * width :].reshape(height, width)


def mixed(
    row: Float[Array, " L"], query: Float[Array, "heads L d"], key: Float[Array, "heads L d"]
) -> Float[Array, " L"]:
    """`row` times the mean of the heads' attention weights."""
    heads, length, d = query.shape
    parts = -(-length // _CHUNK)
    fill = parts * _CHUNK - length
    queries = jnp.pad(query, ((0, 0), (0, fill), (0, 0))).reshape(heads, parts, _CHUNK, d).swapaxes(0, 1)
    shares = jnp.pad(row, (0, fill)).reshape(parts, _CHUNK)  # no share for what fills up

    def part(queries_and_shares):
        queries, shares = queries_and_shares
        weights = attention.weights(queries[None], key[None])[0].mean(axis=0)
        return jnp.dot(shares, weights, precision="highest")

    return jax.lax.map(part, (queries, shares)).sum(axis=0)
