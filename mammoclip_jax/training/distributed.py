"""Settings of this process, made once before the first computation: its place among others, devices, memory, cache."""

import contextlib
import itertools
import logging
import os
import random
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mammoclip_jax.errors import UserError
from mammoclip_jax.locks import locked
from mammoclip_jax.memory import keep_freed_memory
from mammoclip_jax.names import lookup
from mammoclip_jax.training import logs
from mammoclip_jax.training.accelerators import warn_if_idle
from mammoclip_jax.training.processes import barrier

ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PATIENCE = 300  # seconds until all processes must have come
LOCK = ".lock"  # in a run's folder
VISIBLE = 60  # seconds until a new file must be seen by all; NFS keeps a folder's listing that long


def configure(config) -> None:
    """Follows `config.cpu_devices` and `config.compilation_cache`, and says which accelerators lie idle; before the first
    computation."""
    if config.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    # A CPU is not kept waiting by the host, which it is. Dispatched ahead, a step would take its memory while the step
    # before still has its own: gigabytes more, and pages cleared anew.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    choose_products(config.model.matmul)
    keep_freed_memory()
    enable_compilation_cache(config.compilation_cache)
    warn_if_idle()


# config.model.matmul -> jax_default_matmul_precision; models/products.py makes of "bfloat16" what a CPU does not know.
MATMUL = {"default": "", "bf16": "bfloat16", "tf32": "tensorfloat32", "float32": "float32"}


def choose_products(name: str) -> None:
    """The precision of float32 products in all programs that are traced from now on.

    Raises:
        UserError: there is no such name.
    """
    chosen = lookup(MATMUL, name, "config.model.matmul") or os.environ.get("JAX_DEFAULT_MATMUL_PRECISION") or None
    jax.config.update("jax_default_matmul_precision", chosen)


def enable_compilation_cache(folder: str) -> None:
    """Compiled programs are kept in `folder`, so that the next start does not compile again; '' switches it off."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class Launcher(NamedTuple):
    """What starts the processes of a job, and the environment variables in which it tells each its place."""

    title: str
    count: str
    index: str
    address: str  # is there where jax finds the coordinator by itself


LAUNCHERS = (
    Launcher("SLURM", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),  # of srun, not of the batch script
    Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri"),
)


class Place(NamedTuple):
    """Of one process among several; the coordinator is process 0's HOST:PORT."""

    coordinator: str
    processes: int
    process: int


def connect(coordinator: str = "", processes: str = "", process: str = "", patience: float = PATIENCE) -> None:
    """Makes this process one of the several of a job; nothing happens where it is the only one.

    Must come before anything that touches a device. On CPU the processes then talk by Gloo, which is jax's default
    (`jax_cpu_collectives_implementation`).

    Args:
        coordinator, processes, process: HOST:PORT of process 0, the number of processes and this one's, from 0. What
            is "" is taken from the variables of `ENVIRONMENT`, then from the launcher (`LAUNCHERS`, TPUs of GKE).
            `processes` may be "auto": jax asks SLURM, Open MPI or the TPU's metadata, or the start fails.
        patience: seconds until all processes must have come; then this one ends with status 2.

    Raises:
        UserError: an argument is missing, wrong or out of range, or the place cannot be found out.
    """
    values = (
        os.environ.get(name, "") if value == "" else str(value)
        for value, name in zip((coordinator, processes, process), ENVIRONMENT)
    )
    place = find_place(*values, environment=os.environ)
    if place is None:
        return
    if place == "auto":
        where, options = "the coordinator that jax found", {}
    else:
        where = place.coordinator
        options = dict(
            coordinator_address=place.coordinator,
            num_processes=place.processes,
            process_id=place.process,
            cluster_detection_method="deactivate",
        )
    # jax would abort with a stack trace when its time is up: ours is up before.
    timer = threading.Timer(patience, _give_up, (place, where, patience))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=int(patience) + 60)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the processes of this job could not be joined at {where}: {error}") from error
    finally:
        timer.cancel()


def find_place(coordinator: str, processes: str, process: str, environment) -> Place | str | None:
    """The place that the arguments and the launcher's variables say; "auto" where jax finds it out; None alone."""
    launcher = next(
        (
            row
            for row in LAUNCHERS
            if environment.get(row.count, "1") != "1"
            and row.index in environment
            and (row.title != "SLURM" or row.address in environment)
        ),
        None,
    )
    several_tpus = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    if processes == "auto":
        return "auto"
    if not (coordinator or processes or process):
        if launcher and launcher.address not in environment:
            raise UserError(
                f"{launcher.title} started {environment[launcher.count]} processes, and does not say where "
                "they meet: give --coordinator=HOST:PORT with the host of process 0 and a free port."
            )
        return "auto" if launcher or several_tpus else None
    if launcher:
        processes, process = processes or environment[launcher.count], process or environment[launcher.index]
    if processes == "1":
        return None
    for name, value in (("coordinator", coordinator), ("processes", processes), ("process", process)):
        if not value:
            raise UserError(
                f"--{name} is missing: several processes need --coordinator=HOST:PORT --processes=N "
                f"--process=I (or {', '.join(ENVIRONMENT)}); HOST:PORT is a free port of process 0's host."
            )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT, the host of process 0 and a free port there.")
    for name, value, lowest in (("processes", processes, 1), ("process", process, 0)):
        if not value.isdigit() or int(value) < lowest:
            raise UserError(
                f"--{name}={value} must be a whole number from {lowest} on"
                + (", or auto." if name == "processes" else ".")
            )
    if int(process) >= int(processes):
        raise UserError(
            f"--process={process} is out of range: {processes} processes are numbered 0 to {int(processes) - 1}."
        )
    return Place(coordinator, int(processes), int(process))


def _give_up(place, where: str, patience: float) -> None:
    """Ends the process, with the reason as far as it can be seen from here."""
    if place == "auto":
        reason = "Look whether every process of the job was started and runs the same versions"
    elif place.process == 0:
        reason = (
            f"This is process 0, and not all of the other {place.processes - 1} came: look whether they run, "
            "were given the same --coordinator and --processes, and have a --process of their own each"
        )
    else:
        host, _, port = place.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            reason = "Process 0 answers there: look whether all other processes run, each with a --process of its own"
        except OSError as error:
            reason = (
                f"It cannot be reached ({error}): look whether process 0 runs, whether this host knows that "
                "name, and whether a firewall or another --coordinator of process 0 closes the port"
            )
    print(f"error: not all processes met at {where} within {patience:g} s. {reason}.", file=sys.stderr, flush=True)
    os._exit(2)


def is_main() -> bool:
    """Whether this is process 0, the one that writes files."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_first(name: str):
    """The block is run by process 0, and by the others once it is done there: they find what it wrote."""
    if not is_main():
        barrier(name)
    yield
    if is_main():
        barrier(name)


@contextlib.contextmanager
def failing_together():
    """An error ends this process at once, and with it the job: a normal end would wait for the others at jax's last
    barrier, and they for this process at theirs. Alone, errors go their usual way."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not jax.distributed.is_initialized():
            raise
        message = f"error: {error}" if isinstance(error, UserError) else traceback.format_exc()
        print(message, file=sys.stderr)
        if any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers):
            logging.error("%s", message)  # the log of its own, where people look
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def meet(mesh) -> None:
    """Lets the devices of all processes connect, group by group, while the processes are together.

    Gloo gives up when a process comes half a minute late to the first collective of a group of devices, and one
    process may compile its step, or read its data, that much longer than another.
    """
    if jax.process_count() == 1:
        return
    barrier("devices")
    names = tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1)
    ones = jax.make_array_from_callback(
        (mesh.size,),
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
        lambda index: np.ones(mesh.size, np.float32)[index],
    )
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):
            total = jax.shard_map(
                lambda x, axes=axes: jax.lax.psum(x, axes),
                mesh=mesh,
                in_specs=PartitionSpec(mesh.axis_names),
                out_specs=PartitionSpec(tuple(name for name in mesh.axis_names if name not in axes)),
            )
            jax.block_until_ready(jax.jit(total)(ones))


def alone_in(workdir) -> contextlib.AbstractContextManager[None]:
    """Keeps other jobs out of a run's folder; process 0 holds the lock for all processes of this one.

    Raises:
        UserError: on entering, where another job trains there.
    """
    if not is_main():
        return contextlib.nullcontext()
    return locked(Path(workdir, LOCK), f"training in {workdir}", "use another --workdir")


def share_workdir(workdir) -> None:
    """What several processes need of a run's folder: that it is one, and for each a log of its own.

    Process 0 goes on writing to the terminal; process N writes to `workdir/log_process_N.txt`.

    Raises:
        UserError: this process sees another folder than process 0.
    """
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.int32(random.randrange(2**31))))
    mark = Path(workdir, f".process_0_was_here_{token:08x}")
    with main_first("workdir"):
        if is_main():
            mark.touch()
    latest = time.monotonic() + VISIBLE
    while mark.name not in os.listdir(workdir):
        if time.monotonic() > latest:
            raise UserError(
                f"{workdir} on {socket.gethostname()} is not the folder that process 0 has: give a "
                "--workdir on a disk that all hosts share."
            )
        time.sleep(1)
    barrier("workdir is shared")
    if is_main():
        mark.unlink()
    else:
        own = logging.FileHandler(Path(workdir, f"log_process_{jax.process_index()}.txt"))
        own.setFormatter(logging.Formatter(logs.FORMAT))
        logging.getLogger().handlers[:] = [own]
