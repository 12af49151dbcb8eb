"""The device mesh: who holds which rows of a batch and which part of the state, and the rule that keeps gradients right."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name, suggestion
from mammoclip_jax.training.optimizer import slash_name

AXES = ("data", "fsdp", "space")
STATES = ("replicated", "zero1", "fsdp")


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
        raise UserError(
            f"config.mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, "
            f"there are {len(devices)}: change the sizes, or give one axis -1."
        )
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh) -> str:
    """A line on what is computed on: how many devices of which platform and kind, the mesh, the processes."""
    first, shape = mesh.devices.flat[0], ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = "" if first.device_kind == first.platform else f" ({first.device_kind})"
    processes = jax.process_count()
    return (
        f"devices: {mesh.size} {first.platform}{kind}; mesh: {shape}; {processes} process{'es' * (processes != 1)}, "
        f"jax {jax.__version__}"
    )


def batch_sharding(mesh) -> NamedSharding:
    """Rows of a batch over every axis of the mesh.

    Over every axis, because jax's partitioner (0.10.2, and 0.12.0.1 still: tests/training/test_partitioner.py) multiplies
    the kernel gradient of a depthwise or grouped convolution by the size of each axis that its batch is replicated over,
    while the loss stays right.
    """
    return NamedSharding(mesh, PartitionSpec(AXES))


def batch_shardings(batch, mesh, rows: str | None = None) -> dict[str, NamedSharding]:
    """Of each array of a `Batch`: `batch_sharding`, or, with `rows`, the rows of the images over that mesh axis too.

    Then breasts are split over the other axes alone; texts, which have no rows, are on every device of the axis.
    """
    if rows is None:
        return dict.fromkeys(batch, batch_sharding(mesh))
    others = tuple(axis for axis in AXES if axis != rows)
    shardings = dict.fromkeys(batch, NamedSharding(mesh, PartitionSpec(others)))
    return shardings | {"image": NamedSharding(mesh, PartitionSpec(others, None, rows))}


def abstract(shapes, mesh, rows: str | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of {name: (shape, dtype)} as shapes, dtypes and shardings."""
    shardings = batch_shardings(shapes, mesh, rows)
    return {
        name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=shardings[name])
        for name, (shape, dtype) in shapes.items()
    }


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(config, mesh) -> None:
    """Raises UserError unless every (micro-)batch of a config splits evenly over the devices (`batch_sharding`)."""
    batch, rows = config.train.batch_size, config.model.image.get("rows")
    if rows is not None and rows not in mesh.shape:
        raise UserError(f"config.model.image.rows={rows!r} is no axis of the mesh: {', '.join(mesh.shape)}.")
    devices = mesh.size // (mesh.shape[rows] if rows else 1)
    if batch < 1 or batch % devices:
        raise UserError(
            f"config.train.batch_size={batch} does not split evenly over {devices} devices: "
            f"choose a multiple of {devices}."
        )
    for tower, each in (("image", config.data.views), ("text", config.data.texts)):
        parts = config.train.micro_batches[tower]
        if parts < 1 or batch * each % (parts * devices):
            raise UserError(
                f"config.train.micro_batches.{tower}={parts} does not split {batch} breasts with {each} "
                f"{tower}s evenly over {devices} devices: {batch * each} must be a multiple of "
                f"{parts} * {devices}."
            )


def process_rows(batch_size: int, mesh, rows: str | None = None) -> np.ndarray:
    """The places in a global batch, rising, that this process's devices hold by `batch_shardings`."""
    held = batch_shardings(("mask",), mesh, rows)["mask"].addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def put_batch(batch, mesh, rows: str | None = None):
    """This process's part of a batch (`process_rows`) -> global arrays on the mesh, split by `batch_shardings`."""
    shardings = batch_shardings(batch, mesh, rows)
    share = len(process_rows(mesh.size, mesh, rows))  # of mesh.size; the same in every process

    def put(sharding, x):
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * mesh.size // share, *x.shape[1:]))

    return {name: put(shardings[name], x) for name, x in batch.items()}


def state_shardings(state, mesh, config):
    """A tree like the (abstract) TrainState: on which devices each of its arrays lies.

    Args:
        config: `config.sharding`. `state` is "replicated", "zero1" (the optimiser's state and the average over the
            axis fsdp, as ZeRO stage 1; arXiv:1910.02054) or "fsdp" (parameters too). Of an array with `min_size`
            elements or more the largest dimension that the axis divides is split; others are replicated. `rules` is a
            list of (regular expression on the parameter's path, axis of the mesh for each dimension or None); the
            first that matches wins, for a parameter and for what the optimiser keeps of it.

    Raises:
        UserError: a rule matches nothing, or does not fit an array.
    """
    check_name(config.state, STATES, "config.sharding.state")
    paths = {slash_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state.params)}
    for rule, _ in config.rules:
        if not any(re.match(rule, path) for path in paths):
            raise UserError(
                f"config.sharding.rules: no parameter path matches {rule!r}.{suggestion(rule, paths)} The parameter table "
                "in a run's log.txt lists all paths."
            )
    specs = {path: _spec(path, shape, mesh, config) for path, shape in paths.items()}

    def of_parameter(path, x):
        name = slash_name(path)
        return NamedSharding(mesh, specs[name] if config.state == "fsdp" or _ruled(name, config) else PartitionSpec())

    def of_copy(path, x):
        """Moments and averages stand under the path of their parameter."""
        parts = slash_name(path).split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if paths.get(name) == x.shape and (config.state != "replicated" or _ruled(name, config)):
                return NamedSharding(mesh, specs[name])
        return replicated(mesh)

    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    return everywhere._replace(
        params=jax.tree_util.tree_map_with_path(of_parameter, state.params),
        opt_state=jax.tree_util.tree_map_with_path(of_copy, state.opt_state),
        ema=jax.tree_util.tree_map_with_path(of_copy, state.ema),
    )


def _ruled(path, config):
    return any(re.match(rule, path) for rule, _ in config.rules)


def _spec(path, shape, mesh, config) -> PartitionSpec:
    for rule, axes in config.rules:
        if re.match(rule, path):
            named = [axis for axis in axes if axis]
            if (
                len(axes) > len(shape)
                or len(set(named)) < len(named)
                or any(axis and n % mesh.shape[axis] for n, axis in zip(shape, axes))
            ):
                raise UserError(
                    f"config.sharding.rules: {tuple(axes)} does not split {path} of shape {shape} evenly "
                    f"on the mesh {dict(mesh.shape)}."
                )
            return PartitionSpec(*axes)
    size = mesh.shape["fsdp"]
    divisible = [i for i, n in enumerate(shape) if n % size == 0]
    if size == 1 or np.prod(shape) < config.min_size or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*(None,) * largest, "fsdp")
