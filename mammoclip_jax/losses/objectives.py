"""InfoNCE, its kin and the sigmoid loss as sums that may be taken block by block over the pairs of queries and keys.

Logits come in blocks [n m] with `counts` (bool) and `weights`, as `pairs.pair_mask` gives them; `SOFT` has a `Target` for
weights. A summary holds, for each row (axis 1) or column (axis 0) of a block, what the loss needs of it; summaries of
blocks that share their rows merge into one, so no device must see all logits of a row at once (Milakov & Gimelshein
2018, arXiv:1805.02867).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LOWEST = -1e30  # below any logit, and finite: differences of two are no NaN


class Objective(NamedTuple):
    """The three functions of a loss."""

    summarise: Callable  # (logits, counts, weights, axis, seen=None) -> summary of this block [n]
    merge: Callable  # summaries [K n] of K blocks -> summary [n]
    empty: Callable  # (n, dtype) -> summary [n] of no pairs


class Vectors(NamedTuple):
    """What the logits are made of."""

    queries: Float[Array, "n D"]
    keys: Float[Array, "m D"]
    scale: Float[Array, ""]
    bias: Float[Array, ""] | None = None


def summarise(objective: Objective, vectors: Vectors, counts, weights, seen=(None, None)):
    """Summaries `(of the rows [n], of the columns [m])` of the block `scale * queries @ keys.T + bias`, in fp32.

    Args:
        seen: the summaries of all blocks, where they are known already.
    """
    dtype = logits_dtype(vectors)
    queries, keys = vectors.queries.astype(dtype), vectors.keys.astype(dtype)
    logits = vectors.scale * jnp.matmul(queries, keys.T, precision="highest")
    if vectors.bias is not None:
        logits += vectors.bias
    weights = jax.tree.map(lambda x: x.astype(dtype), weights)
    return tuple(objective.summarise(logits, counts, weights, axis, s) for axis, s in zip((1, 0), seen))


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """x / ||x||, in at least fp32; a zero row stays zero instead of turning into NaN (torch's normalize)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def contrast(logits: Float[Array, "n n"], valid: Bool[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the rows, and of the columns, of logits that are there already; the target is the diagonal.

    Rows and columns that are not valid count neither as queries nor as keys; 0 without any that are.
    """
    counts, weights, objective = valid[:, None] & valid, jnp.eye(len(valid), dtype=logits.dtype), softmax(0.0)
    return tuple(cross_entropy(objective.summarise(logits, counts, weights, axis), 0.0) for axis in (1, 0))


def logits_dtype(vectors: Vectors):
    """fp32, or float64 where a test computes in it."""
    return jnp.promote_types(vectors.queries.dtype, jnp.float32)


class Highest(NamedTuple):
    """The highest logits. Without a gradient: they serve the numerics and metrics."""

    positive: Any  # of a positive pair
    negative: Any


class SoftmaxSummary(NamedTuple):
    highest: Highest
    exponentials: Any  # sum of exp(logit - max(*highest))
    positives: Any  # sum of weight * logit
    weights: Any  # sum of the weights
    logits: Any  # sum of the logits, where labels are smoothed
    count: Any  # number of pairs that count


class MarginalSummary(NamedTuple):
    highest: Highest
    exponentials: Any  # sum of exp(logit - max(*highest))
    positives: Any  # sum of exp(logit - highest.positive) over the positive pairs


class Target(NamedTuple):
    """Of a block of pairs: what the targets of soft cross-entropy are made of."""

    own: Any  # 1 for the pair of a row with itself, else 0
    logits: Any  # whose softmax is the soft target


class SoftSummary(NamedTuple):
    highest: Highest  # positive: of the pair itself
    exponentials: Any  # sum of exp(logit - max(*highest))
    own: Any  # logit of the pair itself
    owns: Any  # 1, or 0 where it does not count
    nearest: Any  # the highest logit of the target. Without a gradient
    shares: Any  # sum of exp(target logit - nearest)
    shared: Any  # sum of exp(target logit - nearest) * logit


class SigmoidSummary(NamedTuple):
    highest: Highest
    loss: Any  # sum over the pairs that count
    count: Any


def _highest(logits, counts, weights, axis) -> Highest:
    logits = jax.lax.stop_gradient(logits)
    positive = weights > 0
    return Highest(
        *(jnp.where(counts & pairs, logits, LOWEST).max(axis, initial=LOWEST) for pairs in (positive, ~positive))
    )


def _common(parts):
    """The highest logits of all parts, and the sum of their exponentials below the highest."""
    highest = Highest(*(x.max(0) for x in parts.highest))
    rescale = jnp.exp(jnp.maximum(*parts.highest) - jnp.maximum(*highest))
    return highest, (parts.exponentials * rescale).sum(0)


def _merge_softmax(parts):
    return SoftmaxSummary(*_common(parts), *(x.sum(0) for x in parts[2:]))


def _merge_marginal(parts):
    highest, exponentials = _common(parts)
    rescale = jnp.exp(parts.highest.positive - highest.positive)
    return MarginalSummary(highest, exponentials, (parts.positives * rescale).sum(0))


def _merge_soft(parts):
    nearest = parts.nearest.max(0)
    rescale_target = jnp.exp(parts.nearest - nearest)
    return SoftSummary(
        *_common(parts),
        parts.own.sum(0),
        parts.owns.sum(0),
        nearest,
        (parts.shares * rescale_target).sum(0),
        (parts.shared * rescale_target).sum(0),
    )


def _merge_sigmoid(parts):
    return SigmoidSummary(Highest(*(x.max(0) for x in parts.highest)), *(x.sum(0) for x in parts[1:]))


def _empty(kind):
    def empty(n, dtype):
        lowest, zero = jnp.full(n, LOWEST, dtype), jnp.zeros(n, dtype)
        return kind(Highest(lowest, lowest), *(zero for _ in kind._fields[1:]))

    return empty


def softmax(label_smoothing: float) -> Objective:
    """What `cross_entropy` needs. The logits are only summed where there is smoothing."""

    def summarise(logits, counts, weights, axis, seen=None):
        # Relative to the highest logit of all blocks, once that is known, the exponentials of blocks just add.
        highest = _highest(logits, counts, weights, axis) if seen is None else seen.highest
        reference = jnp.expand_dims(jnp.maximum(*highest), axis)
        weights = jnp.where(counts, weights, 0)
        return SoftmaxSummary(
            highest,
            exponentials=jnp.exp(jnp.where(counts, logits - reference, -jnp.inf)).sum(axis),
            positives=(weights * logits).sum(axis),
            weights=weights.sum(axis),
            logits=jnp.where(counts, logits, 0).sum(axis) if label_smoothing else jnp.zeros_like(highest.positive),
            count=counts.sum(axis, dtype=logits.dtype),
        )

    return Objective(summarise, _merge_softmax, _empty(SoftmaxSummary))


def sigmoid(label_smoothing: float) -> Objective:
    """-y log sigmoid(logit) - (1 - y) log sigmoid(-logit), where y is the weight w, smoothed: (1 - e) w + e / 2."""

    def summarise(logits, counts, weights, axis, seen=None):
        highest = _highest(logits, counts, weights, axis) if seen is None else seen.highest
        target = (1 - label_smoothing) * weights + label_smoothing / 2
        loss = jnp.where(counts, jax.nn.softplus(logits) - target * logits, 0)
        return SigmoidSummary(highest, loss.sum(axis), counts.sum(axis, dtype=logits.dtype))

    return Objective(summarise, _merge_sigmoid, _empty(SigmoidSummary))


def _marginal(logits, counts, weights, axis, seen=None):
    highest = _highest(logits, counts, weights, axis) if seen is None else seen.highest
    sums = [
        jnp.exp(jnp.where(pairs, logits - jnp.expand_dims(reference, axis), -jnp.inf)).sum(axis)
        for pairs, reference in ((counts, jnp.maximum(*highest)), (counts & (weights > 0), highest.positive))
    ]
    return MarginalSummary(highest, *sums)


def _soft(logits, counts, target, axis, seen=None):
    if seen is None:
        highest = _highest(logits, counts, target.own, axis)
        nearest = jnp.where(counts, target.logits, LOWEST).max(axis, initial=LOWEST)
    else:
        highest, nearest = seen.highest, seen.nearest
    reference, target_reference = (jnp.expand_dims(x, axis) for x in (jnp.maximum(*highest), nearest))
    own = jnp.where(counts, target.own, 0)
    shares = jnp.exp(jnp.where(counts, target.logits - target_reference, -jnp.inf))
    return SoftSummary(
        highest,
        exponentials=jnp.exp(jnp.where(counts, logits - reference, -jnp.inf)).sum(axis),
        own=(own * logits).sum(axis),
        owns=own.sum(axis),
        nearest=nearest,
        shares=shares.sum(axis),
        shared=(shares * logits).sum(axis),
    )


def _empty_soft(n, dtype):
    return _empty(SoftSummary)(n, dtype)._replace(nearest=jnp.full(n, LOWEST, dtype))


MARGINAL = Objective(_marginal, _merge_marginal, _empty(MarginalSummary))  # what `marginal_cross_entropy` needs
SOFT = Objective(_soft, _merge_soft, _empty_soft)  # what `soft_cross_entropy` needs; weights are a `Target`


def marginal_cross_entropy(summary: MarginalSummary) -> Float[Array, ""]:
    """Mean over the rows that have a positive of -log sum_{p positive} softmax_p, 0 where there is no such row."""
    has_positive = summary.highest.positive > LOWEST
    positive, negative, exponentials, positives = (
        jnp.where(has_positive, x, 1) for x in (*summary.highest, summary.exponentials, summary.positives)
    )
    gap = jax.lax.stop_gradient(jnp.maximum(positive, negative) - positive)
    loss = jnp.where(has_positive, gap + jnp.log(exponentials) - jnp.log(positives), 0)
    return _mean(loss, has_positive)


def soft_cross_entropy(summary: SoftSummary, share: Float[Array, " n"]) -> Float[Array, ""]:
    """Mean over the rows that have a target of -sum_j t_ij log softmax_j, 0 where there is no such row.

    t_ij is `share` on the pair itself, and the rest by the softmax of the target's logits; without the pair, all by that.
    A row whose share is 1 and that lacks its pair has no target.
    """
    has_pair = summary.owns > 0
    counts = (summary.shares > 0) & (has_pair | (share < 1))
    share = jnp.where(has_pair, share, 0)
    own, shares, shared, exponentials, highest = (
        jnp.where(counts, x, 1)
        for x in (
            summary.own,
            summary.shares,
            summary.shared,
            summary.exponentials,
            jax.lax.stop_gradient(jnp.maximum(*summary.highest)),
        )
    )
    gap = share * (highest - own) + (1 - share) * (highest - shared / shares)
    loss = jnp.where(counts, gap + jnp.log(exponentials), 0)
    return _mean(loss, counts)


def cross_entropy(summary: SoftmaxSummary, label_smoothing: float) -> Float[Array, ""]:
    """Mean over the rows that have a positive of -sum_j t_ij log softmax_j, 0 where there is no such row.

    t_ij = (1 - e) w_ij / sum_j w_ij + e / n_i over the n_i pairs that count.
    """
    has_positive = summary.weights > 0
    positives, weights, logits, count, exponentials = (
        jnp.where(has_positive, x, 1)
        for x in (summary.positives, summary.weights, summary.logits, summary.count, summary.exponentials)
    )
    highest = jnp.where(has_positive, jax.lax.stop_gradient(jnp.maximum(*summary.highest)), 1)
    # Differences to the highest logit, which are exact where a positive is the highest.
    gap = (1 - label_smoothing) * (highest - positives / weights)
    if label_smoothing:
        gap += label_smoothing * (highest - logits / count)
    loss = jnp.where(has_positive, gap + jnp.log(exponentials), 0)
    return _mean(loss, has_positive)


def _mean(loss, rows):
    """Of a loss that is 0 outside of the rows."""
    return loss.sum() / jnp.maximum(rows.sum(), 1)


def accuracy(summary) -> Float[Array, ""]:
    """Share of the rows that have a positive in which it is more similar than every negative (a tie is a miss)."""
    positive, negative = summary.highest
    has_positive = positive > LOWEST
    return (has_positive & (positive > negative)).sum() / jnp.maximum(has_positive.sum(), 1)
