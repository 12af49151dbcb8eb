"""All queries against all keys, chunk by chunk: keys travel around a ring of devices.

Every device keeps its queries. Keys go once around, with what has been seen of their columns; the rows' summaries stay
and grow. The backward pass is written out: it sends the keys around again, with the gradient that has come together for
them, and computes each block of logits again. So it keeps nothing of the forward pass but the summaries, and no device
ever holds more than its share of the vectors and one block of logits. (Blocks as in ring attention, Liu et al. 2023,
arXiv:2310.01889.)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mammoclip_jax.losses.objectives import Objective, Vectors, logits_dtype, summarise


def ring(objective: Objective, vectors: Vectors, rows, pairs: Callable, labels, mesh, axes, chunk: int):
    """Summaries `(of the rows [B], of the columns [B])` of all logits; gradients go to the vectors.

    Args:
        rows, pairs, labels: as of `forms.compare`.
        axes: of the mesh, over which rows are split, in the order of the ring.
        chunk: keys in a block, at most; the last block of a device's keys may hold fewer.
    """
    split, everywhere = PartitionSpec(axes), PartitionSpec()
    vector_specs = Vectors(split, split, everywhere, everywhere)

    def masks_of(rows, columns, labels):
        block = None if labels is None else jnp.take(labels, columns.index, axis=1, mode="clip")
        return pairs(rows, columns, block)

    def look(vectors, rows, labels):
        """The summaries, on one device."""
        dtype = logits_dtype(vectors)

        def meet(of_rows, block):
            (keys, columns), of_columns = block
            new = summarise(objective, vectors._replace(keys=keys), *masks_of(rows, columns, labels))
            return tuple(
                objective.merge(jax.tree.map(lambda *x: jnp.stack(x), *pair))
                for pair in zip((of_rows, of_columns), new)
            )

        size = len(vectors.queries)
        keys = chunks((vectors.keys, rows), chunk)
        empty = jax.lax.pcast(objective.empty(size, dtype), axes, to="varying")
        of_rows, of_columns = around(meet, empty, keys, chunks(empty, chunk), axes)
        return of_rows, whole(of_columns, size)

    def pull_back(vectors, rows, labels, seen, cotangents):
        """Gradients of the vectors, on one device."""
        # Each device has a gradient of its own for what all share: they are added once, at the end.
        scale, bias = jax.lax.pcast((vectors.scale, vectors.bias), axes, to="varying")
        vectors = vectors._replace(scale=scale, bias=bias)
        (rows_seen, columns_seen), (rows_pull, columns_pull) = seen, cotangents

        def meet(gradients, block):
            (keys, columns, chunk_seen, chunk_pull), keys_gradient = block
            masks = masks_of(rows, columns, labels)
            _, pull = jax.vjp(
                lambda vectors: summarise(objective, vectors, *masks, seen=(rows_seen, chunk_seen)),
                vectors._replace(keys=keys),
            )
            (new,) = pull((rows_pull, chunk_pull))
            gradients = jax.tree.map(jnp.add, gradients, new._replace(keys=None))
            return gradients, keys_gradient + new.keys

        gradients, keys_gradient = around(
            meet,
            jax.tree.map(jnp.zeros_like, vectors._replace(keys=None)),
            chunks((vectors.keys, rows, columns_seen, columns_pull), chunk),
            chunks(jnp.zeros_like(vectors.keys), chunk),
            axes,
        )
        scale, bias = jax.lax.psum((gradients.scale, gradients.bias), axes)
        return Vectors(gradients.queries, whole(keys_gradient, len(vectors.keys)), scale, bias)

    on_devices = functools.partial(jax.shard_map, mesh=mesh)
    forward = on_devices(look, in_specs=(vector_specs, split, split), out_specs=split)
    backward = on_devices(pull_back, in_specs=(vector_specs, split, split, split, split), out_specs=vector_specs)

    summaries = jax.custom_vjp(forward)

    def run(vectors, rows, labels):
        seen = forward(vectors, rows, labels)
        return seen, (vectors, rows, labels, seen)

    summaries.defvjp(run, lambda kept, cotangents: (backward(*kept, cotangents), None, None))
    return summaries(vectors, rows, labels)


def around(meet, staying, visitors, marks, axes):
    """`meet(staying, (visitor, mark)) -> (staying, mark)` with all visitors, `[chunks c ...]` on each device.

    Visitors and the marks that are left on them go around the ring of `axes`, and end where they began.
    """
    devices = jax.lax.axis_size(axes)
    onwards = [(i, (i + 1) % devices) for i in range(devices)]

    def stop(state, _):
        staying, visitors, marks = state
        # Sent before they are looked at, so that the way overlaps with the arithmetic.
        sent = jax.lax.ppermute(visitors, axes, onwards)
        staying, marks = jax.lax.scan(meet, staying, (visitors, marks))
        return (staying, sent, jax.lax.ppermute(marks, axes, onwards)), None

    (staying, _, marks), _ = jax.lax.scan(stop, (staying, visitors, marks), length=devices)
    return staying, marks


def chunks(tree, size: int):
    """[n ...] as [n/size size ...]; filled up with zeros, which make rows that are not valid."""

    def split(x):
        length = min(size, len(x))
        fill = -len(x) % length
        return jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, length, *x.shape[1:])

    return jax.tree.map(split, tree)


def whole(tree, size: int):
    """The first `size` rows of [chunks c ...] as [size ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
