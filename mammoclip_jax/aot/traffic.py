"""Bytes and FLOPs of a compiled program by instruction, so that loops can be counted as often as they run.

XLA's own figures count a loop's body once and do not say which instruction moves how much. These sums follow the same
rules (an instruction reads its operands and writes its result; a fusion reads of an operand what its slices take), on
the padded arrays as they lie in memory, and serve as ratios: XLA's figure times (sum with passes / sum without).
"""

import math
import re
from typing import NamedTuple

from mammoclip_jax.aot.hlo import Array, Instruction, Program, source

# These move nothing by themselves; what loops and calls run is counted where it stands.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "copy-done",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
    "all-reduce-done",
    "all-gather-done",
    "collective-permute-done",
    "async-done",
    "async-update",
    "slice-done",
    "dynamic-slice-done",
    "domain",
}
_SLICES = {"dynamic-slice", "slice", "gather"}


class Cost(NamedTuple):
    """Of one instruction in one pass."""

    instruction: Instruction
    passes: int
    bytes: int  # read and written
    hbm: int  # the part of it in the device's main memory; the rest stays on the chip
    flops: int  # 2 for each multiply-add of products and convolutions, inside fusions too; nothing else


class Sums(NamedTuple):
    """Over a program: each instruction once, as XLA counts, or as often as it runs."""

    bytes: int
    hbm: int
    flops: int


def costs(program: Program) -> list[Cost]:
    """Of all instructions that run by themselves."""
    inside, entries = fused(program), []
    for name, computation in program.computations.items():
        if not program.passes[name] or name in inside:
            continue
        for instruction in computation.values():
            if instruction.opcode not in _FREE:
                moved = _moved(instruction, computation, program)
                entries.append(
                    Cost(
                        instruction,
                        program.passes[name],
                        sum(array.padded for array in moved),
                        sum(array.padded for array in moved if array.space == 0),
                        _flops(instruction, computation, program),
                    )
                )
    return entries


def fused(program: Program) -> set[str]:
    """Names of the computations inside fusions, whose instructions do not run by themselves."""
    return {
        callee
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for callee in _fusion(instruction)
    }


def total(costs: list[Cost], loops: bool = True) -> Sums:
    """`loops`: whether what loops run counts as often as it runs."""
    times = [cost.passes if loops else 1 for cost in costs]
    return Sums(*(sum(getattr(cost, field) * n for cost, n in zip(costs, times)) for field in Sums._fields))


def heaviest(costs: list[Cost], count: int) -> list[dict]:
    """Where the most HBM traffic is, by the operation of the model: {source, bytes, passes}, bytes in one step."""
    sums = {}
    for cost in costs:
        entry = sums.setdefault(source(cost.instruction) or cost.instruction.name, [0, 0])
        entry[0] += cost.hbm * cost.passes
        entry[1] += cost.passes
    rows = sorted(sums.items(), key=lambda item: -item[1][0])[:count]
    return [{"source": name, "bytes": moved, "passes": passes} for name, (moved, passes) in rows]


def _fusion(instruction):
    name = re.search(r"calls=%?([\w.-]+)", instruction.text)
    return [name[1]] if name else []


def _moved(instruction, computation, program) -> list[Array]:
    """The arrays that an instruction reads and writes, each cut down to what it touches."""
    result = list(instruction.result)
    operands = [list(computation[name].result) if name in computation else [] for name in instruction.operands]
    opcode = instruction.opcode
    if opcode in ("copy-start", "slice-start"):
        return result[:2]  # (to, from, signal)
    if opcode in _SLICES:
        return result + result
    if opcode == "dynamic-update-slice":
        return operands[1] + operands[1]
    if opcode != "fusion":
        return result + [array for each in operands for array in each]
    inner = program.computations[_fusion(instruction)[0]]
    parameters = {int(re.match(r"(\d+)", i.text)[1]): i for i in inner.values() if i.opcode == "parameter"}
    users = {}
    for each in inner.values():
        for name in each.operands:
            users.setdefault(name, []).append(each)
    moved = []
    for place, arrays in enumerate(operands):
        parameter = parameters.get(place)
        moved += arrays if parameter is None else _read(parameter, arrays, users, inner)
    return moved + _written(result, inner)


def _read(parameter, arrays, users, inner):
    """What a fusion reads of a parameter: the slices alone where nothing else looks at it."""
    readers = users.get(parameter.name, [])
    if readers and all(user.opcode in _SLICES and user.operands[0] == parameter.name for user in readers):
        return [array._replace(space=arrays[0].space) for user in readers for array in user.result]
    if readers and all(
        user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name for user in readers
    ):
        return []  # written in place
    return arrays


def _written(result, inner):
    """What a fusion writes: of an array that is updated in place, the update."""
    root = next((i for i in inner.values() if i.root), None)
    parts = [inner[name] for name in root.operands if name in inner] if root and root.opcode == "tuple" else [root]
    if len(parts) != len(result) or None in parts:
        return result
    return [
        inner[part.operands[1]].result[0]._replace(space=array.space)
        if part.opcode == "dynamic-update-slice" and part.operands[1] in inner
        else array
        for part, array in zip(parts, result)
    ]


def _flops(instruction, computation, program) -> int:
    if instruction.opcode == "fusion":
        inner = program.computations[_fusion(instruction)[0]]
        return sum(_flops(each, inner, program) for each in inner.values())
    if instruction.opcode not in ("dot", "convolution") or instruction.operands[0] not in computation:
        return 0
    outputs = math.prod(instruction.result[0].shape)
    left = computation[instruction.operands[0]].result[0].shape
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)[1]
        return 2 * outputs * math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    kernel = computation[instruction.operands[1]].result[0].shape
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.text)[1]
    window = re.search(r"window=\{([^}]*)\}", instruction.text)
    return 2 * _products(instruction, left, kernel, labels, window[1] if window else "")


def _products(instruction, left, kernel, labels, window):
    """Multiply-adds of a convolution: only taps that meet an input, neither pads nor zeros between dilated inputs."""
    spatial = [i for i, label in enumerate(labels) if label.isdigit()]
    order = sorted(spatial, key=lambda i: labels[i])
    dims = re.search(r"dim_labels=(\w+)_\w+->(\w+)", instruction.text)
    inputs = [left[dims[1].index(labels[i])] for i in order]
    outputs = [instruction.result[0].shape[dims[2].index(labels[i])] for i in order]
    options = dict(part.split("=") for part in window.split())

    def values(name, default):
        return (
            [
                tuple(map(int, re.split(r"[x_]", side))) if "_" in side else int(side)
                for side in options[name].split("x")
            ]
            if name in options
            else [default] * len(order)
        )

    product = 1
    settings = zip(
        inputs,
        outputs,
        values("size", 1),
        values("stride", 1),
        values("pad", (0, 0)),
        values("lhs_dilate", 1),
        values("rhs_dilate", 1),
    )
    for length, out, size, stride, (low, _), dilate, spread in settings:
        product *= sum(
            1
            for o in range(out)
            for tap in range(size)
            if 0 <= (at := o * stride + tap * spread - low) <= (length - 1) * dilate and at % dilate == 0
        )
    batch_and_features = math.prod(n for i, n in enumerate(instruction.result[0].shape) if not dims[2][i].isdigit())
    return product * batch_and_features * kernel[labels.index("i")]
