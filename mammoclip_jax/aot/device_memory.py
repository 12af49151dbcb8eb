"""What a compiled program needs of a chip's memory, by kind, and what the compiler says when that is too much."""

import math
import re

import jax
import numpy as np

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"
_REPORTS = (
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"total memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
)


def shard_bytes(tree) -> int:
    """Bytes on one device of the arrays in a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x.dtype) for x in jax.tree.leaves(tree))


def arguments(state, batch) -> dict[str, int]:
    """Bytes on one device of what a training step is given: params, batch_stats, opt_state, ema, batch."""
    kinds = {name: shard_bytes(getattr(state, name)) for name in ("params", "batch_stats", "opt_state", "ema")}
    return kinds | {"batch": shard_bytes(batch)}


def of_program(compiled) -> dict[str, int]:
    """XLA's figures in bytes a device; {} where the backend has none.

    arguments and outputs share `aliased` bytes (donated). `peak` is the most that is in use at a time, without the
    code; temporaries alone may exceed it, since they are placed in one piece with holes.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {}
    names = {
        "arguments": "argument_size_in_bytes",
        "outputs": "output_size_in_bytes",
        "aliased": "alias_size_in_bytes",
        "temporaries": "temp_size_in_bytes",
        "code": "generated_code_size_in_bytes",
        "peak": "peak_memory_in_bytes",
    }
    figures = {name: int(getattr(analysis, field, 0)) for name, field in names.items()}
    figures["total"] = (
        figures["arguments"] + figures["outputs"] - figures["aliased"] + figures["temporaries"] + figures["code"]
    )
    return figures


def shortage(message: str) -> tuple[int, int] | None:
    """(bytes that the program needs, bytes that there are), as an error of the compiler says; None for other errors."""
    for pattern in _REPORTS:
        if match := re.search(pattern, message):
            needed, unit, there, unit_there = match.groups()
            return int(float(needed) * _UNITS[unit]), int(float(there) * _UNITS[unit_there])
    return None


def _itemsize(dtype):
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize
