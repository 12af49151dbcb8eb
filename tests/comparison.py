"""How features and gradients are compared with those of the originals, and those of eight devices with one's."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def close(ours, theirs, tolerance=1e-4, absolute=0.0):
    """Largest difference relative to the largest value: float32 rounding, unless told otherwise."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max() + absolute


def close_gradients(ours, theirs, tolerance, absolute=1e-12):
    """Every parameter's gradient by name, in float64: some are zero but for rounding (a bias before a norm).

    `absolute` is relative to the largest of all.
    """
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(value).max() for value in theirs.values())
    for name, value in ours.items():
        assert value.dtype == np.float64 and np.isfinite(value).all(), name
        close(value, theirs[name], tolerance, absolute * largest)


def one_and_eight(program, copied, *split):
    """What a jitted program gives on one device, and on eight with the rows of `split` over a mesh of two axes."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data", "fsdp"), None))
    one = jax.device_get(program(copied, *split))
    return one, jax.device_get(program(jax.device_put(copied, whole), *jax.device_put(split, rows)))
