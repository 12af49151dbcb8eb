"""The text of a compiled program (optimised HLO) as instructions, with how often each runs in one call.

XLA's cost analysis counts the body of a loop once, so everything here carries its number of passes.
"""

import math
import re
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "f8": 8,
    "s16": 16,
    "u16": 16,
    "f16": 16,
    "bf16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "u64": 64,
    "f64": 64,
    "c64": 64,
    "c128": 128,
}

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
_NAME = re.compile(r"\s+(ROOT )?%?([\w.-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_METADATA = re.compile(r"kernel_metadata=\{[^{}]*\}")  # of Pallas kernels, on several lines
_REFERENCE = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"(?:calls|body|condition|true_computation|false_computation|called_computations|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.-]+))"
)


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int  # of the elements alone
    padded: int  # as it lies in memory, filled up to the layout's tiles
    space: int  # memory it lies in: 0 is the device's main memory (HBM), others are on the chip


class Instruction(NamedTuple):
    name: str
    opcode: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str  # from the operands on: attributes, metadata
    root: bool


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: name -> its instructions, in the order of execution.
        passes: name -> how often it runs in one call of the program; those that are inside fusions and reductions too.
        unknown_loops: names of while loops whose number of passes the text does not tell; they are counted once.
    """

    computations: dict[str, dict[str, Instruction]]
    passes: dict[str, int]
    unknown_loops: tuple[str, ...]


def parse(text: str) -> Program:
    """The program in `text`, as `jax.stages.Compiled.as_text()` prints it.

    Raises:
        ValueError: it has no entry computation.
    """
    computations, entry, body = {}, None, None
    text = _METADATA.sub(lambda match: "".join(match[0].splitlines()), text)
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            if header := _HEADER.match(line):
                body = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith(" ") and body is not None:
            if instruction := _instruction(line):
                body[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is no HLO text: it has no ENTRY computation")
    return Program(computations, *_passes(computations, entry))


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays of a type: `f32[8,128]{1,0:T(8,128)}` or a tuple of such. Tokens and the like are left out."""
    return tuple(_array(*match) for match in _ARRAY.findall(text) if match[0] in BITS or match[0].startswith("f8"))


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction runs: bodies, branches, fusions; not what reductions add up by."""
    names = [
        name
        for group, single in _CALLED.findall(instruction.text)
        for name in (_REFERENCE.findall(group) if group else [single])
    ]
    if instruction.opcode == "call":
        names += re.findall(r"to_apply=%?([\w.-]+)", instruction.text)
    return names


def source(instruction: Instruction) -> str:
    """The operation of the model that an instruction comes from, the first of those that were merged into it; or ""."""
    name = re.search(r'op_name="([^"]*)"', instruction.text)
    return re.split("[;:]", name[1])[0] if name else ""


def _array(dtype, dimensions, order, details) -> Array:
    shape = tuple(int(n.lstrip("<=")) for n in dimensions.split(",") if n)
    bits = BITS.get(dtype, 8)
    space = re.search(r"S\((\d+)\)", details)
    tile = re.match(r"T\(([\d,]+)\)", details)
    physical = [shape[int(axis)] for axis in order.split(",") if axis][::-1] or list(shape)
    if tile and physical:
        sides = [int(side) for side in tile[1].split(",")]
        for axis, side in zip(range(-len(sides), 0), sides):
            if -axis <= len(physical):
                physical[axis] = -(-physical[axis] // side) * side
    return Array(
        dtype, shape, math.prod(shape) * bits // 8, math.prod(physical) * bits // 8, int(space[1]) if space else 0
    )


def _instruction(line) -> Instruction | None:
    start = _NAME.match(line)
    if not start:
        return None
    at = start.end()
    end = _closing(line, at) if line[at] == "(" else line.find(" ", at)
    opcode = re.compile(r"\s*([\w-]+)\(").match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    operands = tuple(_REFERENCE.findall(line, opcode.end(), close))
    return Instruction(start[2], opcode[1], arrays(line[at:end]), operands, line[opcode.end() :], bool(start[1]))


def _closing(line, at):
    """Behind the parenthesis that closes the one at `at`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, at):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(line)


def _passes(computations, entry):
    passes, unknown = dict.fromkeys(computations, 0), []
    passes[entry] = 1
    for name in reversed(_callees_first(computations, entry)):
        for instruction in computations[name].values():
            times = 1
            if instruction.opcode == "while":
                times = _trips(instruction, computations[name], computations)
                if times is None:
                    unknown.append(instruction.name)
                    times = 1
            for callee in called(instruction):
                passes[callee] += passes[name] * times
    return passes, tuple(unknown)


def _callees_first(computations, entry):
    """Names of what the entry reaches, each after all that it calls."""
    order, seen = [], set()

    def visit(name):
        seen.add(name)
        for instruction in computations[name].values():
            for callee in called(instruction):
                if callee not in seen:
                    visit(callee)
        order.append(name)

    visit(entry)
    return order


def _trips(loop, caller, computations):
    """Passes of a while loop: what the compiler noted, else the one whole number that its condition compares with.

    The loops of jax (scan, fori_loop) count from 0 by 1. The number stands in the condition, or comes with what the
    loop carries.
    """
    noted = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]\s*"?(\d+)', loop.text)
    if noted:
        return int(noted[1])
    name = re.search(r"condition=%?([\w.-]+)", loop.text)[1]
    condition = list(computations[name].values())
    inside = [i for each in condition for callee in called(each) for i in computations[callee].values()]
    if not any("direction=LT" in i.text for i in condition + inside if i.opcode == "compare"):
        return None
    numbers = {_constant(i) for i in condition + inside} - {None}
    carried = caller.get(loop.operands[0])
    if not numbers and carried is not None:
        places = [int(re.search(r"index=(\d+)", i.text)[1]) for i in condition if i.opcode == "get-tuple-element"]
        numbers = {_constant(_source(caller, carried.operands[place])) for place in places} - {None, 0}
    return numbers.pop() if len(numbers) == 1 else None


def _source(computation, name):
    """The instruction behind copies."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "copy-start", "copy-done", "bitcast") and instruction.operands:
        instruction = computation[instruction.operands[0]]
    return instruction


def _constant(instruction):
    """The value of a whole scalar constant, else None."""
    if instruction.opcode == "constant" and instruction.result and instruction.result[0].dtype in ("s32", "s64", "u32"):
        number = re.match(r"(-?\d+)\)", instruction.text)
        return int(number[1]) if number else None
    return None
