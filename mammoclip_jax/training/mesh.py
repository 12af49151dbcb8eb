"""The device mesh, and the one rule that keeps gradients right on it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError

AXES = ("data", "fsdp", "space")


def make_mesh(shape, devices=None) -> jax.sharding.Mesh:
    """Mesh with the axes of `AXES`; `shape` maps an axis to its size, -1 (at most once) takes what is left.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    if -1 in sizes:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = len(devices) // known if known > 0 else 0
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"config.mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, "
                        f"there are {len(devices)}: change the sizes, or give one axis -1.")
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh) -> NamedSharding:
    """Rows of a batch over every axis of the mesh.

    Over every axis, because the partitioner of jax 0.10.2 multiplies the kernel gradient of a depthwise convolution
    by the size of each axis that its batch is replicated over, while the loss stays right.
    """
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh) -> None:
    """Raises UserError unless the global batch splits evenly over the devices (same reason as `batch_sharding`)."""
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(f"config.train.batch_size={batch_size} does not split evenly over {mesh.size} devices: "
                        f"choose a multiple of {mesh.size}.")


def put_batch(batch, mesh):
    """This process's part of a batch -> global arrays on the mesh, rows split by `batch_sharding`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), dict(batch))
