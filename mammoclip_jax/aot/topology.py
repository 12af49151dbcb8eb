"""Devices of a TPU topology without hardware, by libtpu's compiler; or this CPU with the memory of another device."""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup

GIB = 2**30
LARGEST = 256  # chips
CPU = "cpu:"


class Generation(NamedTuple):
    """What a topology's name begins with."""

    accelerator: str  # Google Cloud's name of a single host, as libtpu wants it in its environment
    hbm: float  # GiB that a program may use, as the compiler says when one does not fit
    host: tuple[int, ...]  # chips of a host along each axis of the topology
    options: dict = {}  # further arguments of get_topology_desc


# `hbm` of libtpu 0.0.42.1 (jax 0.10.2). A v4 chip has two cores, which are one device as "megacore".
GENERATIONS = {
    "v4": Generation("v4-8", 30.75, (2, 2, 1), {"chip_config_name": "megacore", "wrap": (False,) * 3}),
    "v5e": Generation("v5litepod-4", 15.75, (2, 2)),
    "v5p": Generation("v5p-8", 95.74, (2, 2, 1)),
    "v6e": Generation("v6e-4", 31.25, (2, 2)),
}


class Topology(NamedTuple):
    """The devices of one topology; nothing can be computed on them."""

    name: str
    devices: list  # of jax.Device
    hbm: int  # bytes a chip that a program may use
    refuses: bool = True  # whether its compiler refuses what needs more


def prepare(name: str) -> None:
    """Sets the environment that libtpu reads when it is loaded; call it before jax computes anything.

    Raises:
        UserError: libtpu is not installed, or `name` is no topology.
    """
    if name.startswith(CPU):
        _budget(name)
        os.environ["JAX_PLATFORMS"] = "cpu"
        return
    generation, _ = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, the compiler for TPUs, is not installed: run pip install -e .[aot]. It needs no TPU, "
            "Linux on x86-64, and 700 MB of disk."
        )
    os.environ.update(
        {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # no question to the metadata server of a cloud
            "TPU_ACCELERATOR_TYPE": generation.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock file is for those who use the hardware
            "TPU_MIN_LOG_LEVEL": "3",  # it would complain of the missing TPU
            "TPU_STDERR_LOG_LEVEL": "3",
            "TPU_LOG_DIR": "disabled",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    )
    import jax

    jax.config.update("jax_platforms", "cpu")  # should jax have been imported before


def parse(name: str) -> tuple[Generation, tuple[int, ...]]:
    """`v5e:4x4` -> (its generation, (4, 4)).

    Raises:
        UserError: there is no such topology, or it has too many chips.
    """
    family, _, sides = name.partition(":")
    generation = lookup(GENERATIONS, family, "TPU generation")
    axes = len(generation.host)
    if not re.fullmatch("x".join([r"[1-9]\d*"] * axes), sides):
        raise UserError(
            f"--topology={name}: write the chips along its {axes} axes, such as {family}:{'x'.join('2' * axes)}."
        )
    shape = tuple(map(int, sides.split("x")))
    if math.prod(shape) > LARGEST:
        raise UserError(f"--topology={name} has {math.prod(shape)} chips; up to {LARGEST} are supported.")
    return generation, shape


def _budget(name: str) -> int:
    """Bytes of `cpu:6`, in GiB.

    Raises:
        UserError: that is no number above 0.
    """
    gib = name.removeprefix(CPU)
    if not re.fullmatch(r"\d+(\.\d+)?", gib) or not float(gib):
        raise UserError(f"--topology={name}: write the memory of the device in GiB, such as {CPU}6.")
    return int(float(gib) * GIB)


def load(name: str) -> Topology:
    """The topology of this name, after `prepare`; `cpu:6` is one device of 6 GiB, whose compiler is that of this CPU.

    Raises:
        UserError: the generation has no such topology.
    """
    if name.startswith(CPU):
        import jax

        return Topology(name, jax.devices("cpu")[:1], _budget(name), refuses=False)
    from jax.experimental import topologies

    generation, shape = parse(name)
    # A slice smaller than a host is part of one.
    host = tuple(min(whole, side) for whole, side in zip(generation.host, shape)) + (1,) * (3 - len(shape))
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host, **generation.options
        )
    except Exception as error:  # jax raises RuntimeErrors of several kinds here
        raise UserError(f"--topology={name}: libtpu does not have it: {str(error).splitlines()[0]}") from error
    return Topology(name, list(description.devices), int(generation.hbm * GIB))
