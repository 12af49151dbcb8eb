"""Softmax attention whose memory does not grow with the square of the number of tokens."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ATTENTIONS = ("auto", "plain", "chunked")
CHUNK = 256  # queries at a time, at most
PLAIN_LENGTH = 512  # up to here "auto" makes all weights at once
_RECORDED = "queries_and_keys"


def attention(
    query: Float[Array, "N heads Q d"], key: Float[Array, "N heads K d"], value: Float[Array, "N heads K d"],
    how: str = "auto", chunk: int = CHUNK,
) -> Float[Array, "N heads Q d"]:
    """softmax(q k^T / sqrt(d)) v in each head; products in the input's dtype, softmax in at least float32.

    Args:
        how: "plain" makes all weights [N heads Q K] at once and keeps them for the backward pass; "chunked" goes
            through the queries `chunk` at a time and computes the weights again in the backward pass (Rabe and Staats
            2021, arXiv:2112.05682, over queries alone), so that [N heads chunk K] is the most that is ever held;
            "auto" is "chunked" above 512 queries.
        chunk: the most queries at a time; they are shared out evenly, so that few rows are filled up.
    """
    length = query.shape[2]
    if how == "plain" or (how == "auto" and length <= PLAIN_LENGTH):
        return _plain(query, key, value)
    parts = -(-length // chunk)
    size = -(-length // parts)
    filled = jnp.pad(query, ((0, 0), (0, 0), (0, parts * size - length), (0, 0)))
    stacked = jnp.moveaxis(filled.reshape(*query.shape[:2], parts, size, -1), 2, 0)
    out = lax.map(jax.checkpoint(lambda part: _plain(part, key, value), prevent_cse=False), stacked)
    return jnp.moveaxis(out, 0, 2).reshape(filled.shape)[:, :, :length]


def weights(
    query: Float[Array, "N heads Q d"], key: Float[Array, "N heads K d"]
) -> Float[Array, "N heads Q K"]:
    """softmax(q k^T / sqrt(d)) in each head, in at least float32: how much each query takes from each key."""
    scores = jnp.einsum("nhqd,nhkd->nhqk", query, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) / query.shape[-1] ** 0.5
    return jax.nn.softmax(scores, axis=-1)


def record(module: nn.Module, query: Float[Array, "N heads L d"], key: Float[Array, "N heads L d"]) -> None:
    """Hands queries and keys to whoever applies the model with `mutable=["intermediates"]`; does nothing otherwise."""
    module.sow("intermediates", _RECORDED, (query, key))


def recorded(intermediates) -> list[tuple[Float[Array, "N heads L d"], Float[Array, "N heads L d"]]]:
    """Queries and keys of every layer that was recorded, by the numbers in the layers' names."""
    found = {}
    for path, array in jax.tree_util.tree_leaves_with_path(intermediates):
        names = "/".join(str(getattr(part, "key", "")) for part in path)
        if _RECORDED in names:
            found.setdefault(tuple(map(int, re.findall(r"\d+", names))), []).append(array)
    return [tuple(found[layer]) for layer in sorted(found)]


def _plain(query, key, value):
    return jnp.einsum("nhqk,nhkd->nhqd", weights(query, key).astype(value.dtype), value)
