"""Which pairs of a query and a key count, and which of them are positive."""

import functools
import operator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mammoclip_jax.names import check_name
from mammoclip_jax.types import Batch

DUPLICATES = ("negative", "positive", "ignore", "partner")


class Rows(NamedTuple):
    """What is known of n rows of the batch beside their vectors; query i and key i are of the same row."""

    index: Int[Array, " n"]  # in the global batch
    valid: Bool[Array, " n"]
    ids: Int[Array, "n K"] | None  # rows that have one of them in common are duplicates

    @classmethod
    def of_batch(cls, size: int, mask: Bool[Array, " B"] | None, ids: Int[Array, "B K"] | None, duplicates: str):
        """All rows of a batch; `ids` may be [B] too, and go where duplicates are negatives like any other.

        Raises:
            UserError: `duplicates` is none of `DUPLICATES`.
        """
        check_name(duplicates, DUPLICATES, "treatment of duplicates")
        if ids is not None:
            ids = None if duplicates == "negative" else jnp.reshape(ids, (size, -1))
        return cls(jnp.arange(size), jnp.ones(size, bool) if mask is None else mask, ids)


def pair_mask(
    queries: Rows, keys: Rows, labels: Float[Array, "n m"] | None, duplicates: str
) -> tuple[Bool[Array, "n m"], Shaped[Array, "n m"]]:
    """Which pairs count, and their weights as positives (0 or False: a negative).

    A pair of rows that are not valid never counts. With `labels` a label is the weight, and a pair whose label is below
    0 does not count. Without, the pair of a row with itself has the weight 1, and that of duplicates the weight 1
    ("positive") or does not count ("ignore"); as "partner" duplicates are the only positives, and a row does not meet
    itself. The relation is the same seen from the keys.
    """
    counts = queries.valid[:, None] & keys.valid
    if labels is not None:
        return counts & (labels >= 0), jnp.maximum(labels, 0)
    positive = queries.index[:, None] == keys.index
    if queries.ids is not None:
        shared = [a[:, None] == b for a in queries.ids.T for b in keys.ids.T]
        duplicate = functools.reduce(operator.or_, shared)
        if duplicates == "partner":
            counts, positive = counts & ~positive, duplicate & ~positive
        elif duplicates == "positive":
            positive |= duplicate
        else:
            counts &= positive | ~duplicate
    return counts, positive


def there(batch: Batch, views: tuple[int, ...] = (), more: tuple[str, ...] = ()) -> Bool[Array, " B"] | None:
    """The rows that hold a view of their own in each of these slots, and that other masks of the batch (`more`) let
    count: "paired" for an image that meets its own text, "has_text" for a text. None: all."""
    masks = [batch[name] for name in ("mask", *more) if batch.get(name) is not None]
    masks += [batch["view_mask"][:, view] for view in views] if "view_mask" in batch else []
    return jnp.stack(masks).all(axis=0) if masks else None


def text_ids(token_ids: Int[Array, "B T L"]) -> Int[Array, "B T"]:
    """The same number for equal texts, another for others: equal in every token, the padding included.

    Texts are told apart by two multilinear hashes of 32 bits with fixed odd factors: among 2^15 different texts, two
    agree in both with a probability of about 3e-11, were the hashes ideal.
    """
    breasts, texts, length = token_ids.shape
    factors = np.random.default_rng(0).integers(2**32, size=(2, length), dtype=np.uint32) | np.uint32(1)
    tokens = jnp.asarray(token_ids).reshape(-1, 1, length).astype(jnp.uint32)
    hashes = jnp.sum(tokens * factors, axis=-1, dtype=jnp.uint32)
    _, ids = jnp.unique(hashes, axis=0, return_inverse=True, size=breasts * texts)
    return ids.reshape(breasts, texts).astype(jnp.int32)
