"""The three ways in which devices compare all queries of a global batch with all keys.

plain     an array program under `jit`: every device gets all keys, computes its rows of logits once for both
          directions, and keeps them for the backward pass. The fastest.
gathered  the same with the collectives written out in `shard_map`, independent of what the partitioner chooses.
ring      keys go from device to device in `shard_map`, and logits exist for one chunk of them at a time
          (losses/ring.py). Memory grows with the rows of a device, not with the global batch.

All give the summaries (losses/objectives.py) of every row and every column of the logits, equal up to rounding.
"""

from collections.abc import Callable
from math import prod

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.losses.objectives import Objective, Vectors, summarise
from mammoclip_jax.losses.ring import ring
from mammoclip_jax.names import check_name

FORMS = ("auto", "plain", "gathered", "ring")
PLAIN_BYTES = 2**26  # of a device's fp32 logits; above, "auto" takes the ring


def compare(
    objective: Objective,
    vectors: Vectors,
    rows,
    pairs: Callable,
    labels=None,
    *,
    form: str,
    mesh,
    axes=None,
    chunk: int = 512,
):
    """Summaries `(of the rows [B], of the columns [B])` of all logits.

    Args:
        rows: what is known of the rows beside their vectors: a NamedTuple of arrays [B ...], `index` among them, that
            goes where queries and keys go. A row of zeros must count neither as a query nor as a key.
        pairs: `(rows [n], rows [m], labels [n m]) -> (counts [n m], weights of the objective)`: `pairs.pair_mask`.
        labels: [B B], its rows split like the queries, or None.
        form: one of `FORMS`.
        mesh: of the devices; with None the form is plain, on one device.
        axes: of the mesh, over which rows are split; None: `row_axes`.
        chunk: keys that the ring looks at together.

    Raises:
        UserError: there is no such form, it needs a mesh, or rows do not split evenly over the mesh.
    """
    size = vectors.queries.shape[0]
    form = choose(form, size, mesh)
    labels = None if labels is None else jax.lax.stop_gradient(labels)
    if form == "plain":
        return summarise(objective, _with_all_keys(vectors, mesh), *pairs(rows, rows, labels))
    axes = row_axes(size, mesh) if axes is None else axes
    if form == "gathered":
        return gathered(objective, vectors, rows, pairs, labels, mesh, axes)
    return ring(objective, vectors, rows, pairs, labels, mesh, axes, chunk)


def choose(form: str, size: int, mesh) -> str:
    """The form for `size` rows: the one place that decides it.

    "auto" is plain up to 64 MiB of logits a device (16,384 rows on 16 devices, 4,096 on one), beyond that the ring.
    Up to there plain is as fast as any and needs little (106 MiB a chip at 16,384 rows on 16 v5e, and up to six times
    that for the six pairs of `mammo_clip`); beyond, its memory grows with the square of the batch.
    """
    check_name(form, FORMS, "form of the contrastive loss")
    if form in ("gathered", "ring") and mesh is None:
        raise UserError(f"the form {form!r} of a contrastive loss needs a mesh of devices: take 'plain' without one.")
    if form != "auto":
        return form
    return "plain" if mesh is None or 4 * size**2 <= PLAIN_BYTES * mesh.size else "ring"


def row_axes(size: int, mesh) -> tuple[str, ...]:
    """The axes of the mesh that `size` rows are split over: all, or without the last ones where that is not even.

    So breasts whose image rows lie over the last axis, `space`, may be fewer than devices: each is then compared on
    all devices of that axis.
    """
    axes = tuple(mesh.axis_names)
    while axes and size % prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    if not axes:
        raise UserError(
            f"{size} rows do not split evenly over the mesh {dict(mesh.shape)}: change "
            "config.train.batch_size, or take the form 'plain'."
        )
    return axes


def _with_all_keys(vectors: Vectors, mesh) -> Vectors:
    """Keys on every device, gathered once: left to itself the partitioner gathers queries too, and again for gradients."""
    if mesh is None:
        return vectors
    everywhere = NamedSharding(mesh, PartitionSpec())
    return vectors._replace(keys=jax.lax.with_sharding_constraint(vectors.keys, everywhere))


def gathered(objective: Objective, vectors: Vectors, rows, pairs: Callable, labels, mesh, axes):
    """Every device gathers all keys, computes its rows of logits, and sends what it saw of a column to its owner."""
    split, everywhere = PartitionSpec(axes), PartitionSpec()

    def on_device(vectors, rows, labels):
        keys, all_rows = jax.lax.all_gather((vectors.keys, rows), axes, tiled=True)
        of_rows, of_columns = summarise(objective, vectors._replace(keys=keys), *pairs(rows, all_rows, labels))
        parts = jax.tree.map(lambda x: x.reshape(jax.lax.axis_size(axes), -1), of_columns)
        return of_rows, objective.merge(jax.lax.all_to_all(parts, axes, split_axis=0, concat_axis=0))

    specs = Vectors(split, split, everywhere, everywhere), split, split
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=split)(vectors, rows, labels)
