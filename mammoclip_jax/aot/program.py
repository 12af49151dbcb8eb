"""A config's training step compiled for a topology, from a cache where it was compiled before.

What the compiler gave is kept as it was (text, memory, cost), not what we make of it: the analysis may improve without
a compilation anew. The key is the lowered program itself with the topology, the versions and the compiler's options,
so a change in the code that changes the program is another entry.
"""

import gzip
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mammoclip_jax import provenance
from mammoclip_jax.aot import device_memory, topology
from mammoclip_jax.files import whole, write_text
from mammoclip_jax.tasks.pretrain import make_trainer
from mammoclip_jax.tasks.trainer import Trainer
from mammoclip_jax.training.mesh import make_mesh

PACKAGES = ("jax", "jaxlib", "libtpu")  # that decide what is compiled


class Compiled(NamedTuple):
    """What the compiler said of one program."""

    fits: bool
    memory: dict[str, int]  # device_memory.of_program; {"needed", "available"} where it does not fit
    cost: dict[str, float]  # flops, bytes: XLA's cost analysis of one device; {} where it does not fit
    text: str  # optimised HLO; "" where it does not fit
    seconds: float  # of the compilation, when it was done
    key: str
    versions: dict[str, str]


def trainer_for(config, devices, preprocessing: dict, vocab_size: int) -> Trainer:
    """The config's Trainer on `devices`, which need not be there."""
    return make_trainer(config, vocab_size, preprocessing, make_mesh(config.mesh, devices))


def compile_step(trainer: Trainer, target: topology.Topology, cache: str | Path, options: dict[str, Any]) -> Compiled:
    """The training step of `trainer`, compiled for `target` or taken from the folder `cache` ("": no cache).

    Args:
        options: XLA's compiler options, name -> value.

    Raises:
        jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    with jax.set_mesh(trainer.mesh):
        lowered = trainer.jitted().lower(trainer.state, trainer.batch)
    return compile_lowered(lowered, target, cache, options)


def compile_lowered(lowered, target: topology.Topology, cache: str | Path, options: dict[str, Any]) -> Compiled:
    """The same of any lowered program."""
    known = provenance.versions(PACKAGES)
    facts = json.dumps([target.name, known, options, lowered.as_text()])
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    return _within(target, read(cache, key) or _write(cache, _compile(lowered, options, key, known)))


def _within(target: topology.Topology, compiled: Compiled) -> Compiled:
    """Not fitting, where it needs more than there is and the compiler refuses nothing."""
    needed = compiled.memory.get("total", 0)
    if target.refuses or not compiled.fits or needed <= target.hbm:
        return compiled
    return compiled._replace(fits=False, memory={"needed": needed, "available": target.hbm}, cost={}, text="")


def read(cache: str | Path, key: str) -> Compiled | None:
    """The entry of the cache, or None."""
    path = Path(cache, f"{key}.json").expanduser()
    if not cache or not path.exists():
        return None
    entry = json.loads(path.read_text())
    text = path.with_suffix(".hlo.gz")
    logging.info("%s: compiled before, in %.0f s", path, entry["seconds"])
    return Compiled(text=gzip.decompress(text.read_bytes()).decode() if entry["fits"] else "", **entry)


def _compile(lowered, options, key, known) -> Compiled:
    started = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        shortage = device_memory.shortage(str(error))
        if shortage is None:
            raise
        seconds = time.monotonic() - started
        return Compiled(False, dict(zip(("needed", "available"), shortage)), {}, "", seconds, key, known)
    cost = compiled.cost_analysis() or {}
    figures = {"flops": cost.get("flops", 0.0), "bytes": cost.get("bytes accessed", 0.0)}
    return Compiled(
        True, device_memory.of_program(compiled), figures, compiled.as_text(), time.monotonic() - started, key, known
    )


def _write(cache, compiled: Compiled) -> Compiled:
    """The text first: an entry is there when its JSON is."""
    if cache:
        folder = Path(cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        entry = compiled._asdict()
        with whole(folder / f"{compiled.key}.hlo.gz") as partial:
            partial.write_bytes(gzip.compress(entry.pop("text").encode(), 6))
        write_text(folder / f"{compiled.key}.json", json.dumps(entry, indent=2))
    return compiled
