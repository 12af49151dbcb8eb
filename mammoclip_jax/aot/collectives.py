"""The collectives of a compiled program: what the devices send each other in one step."""

import re
from typing import NamedTuple

from mammoclip_jax.aot.hlo import Array, Program, called, source

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """One collective, or several arrays that travel together.

    `arrays` are what a device holds before or after, whichever is larger: the sum of an all-reduce, what an all-gather
    has gathered, what a reduce-scatter takes.
    """

    name: str
    kind: str
    arrays: tuple[Array, ...]
    passes: int  # in one step
    groups: str  # devices that take part together, as XLA writes them
    source: str  # the operation of the model that it comes from

    @property
    def bytes(self) -> int:
        """On a device, in one pass."""
        return sum(array.bytes for array in self.arrays)

    @property
    def total(self) -> int:
        """On a device, in one step."""
        return self.bytes * self.passes

    def __str__(self):
        shapes = [f"{array.dtype}[{','.join(map(str, array.shape))}]" for array in self.arrays[:3]]
        more = f" and {len(self.arrays) - 3} more" if len(self.arrays) > 3 else ""
        times = f" x {self.passes} passes" if self.passes > 1 else ""
        return f"{self.kind} {', '.join(shapes)}{more}{times}, {self.total / 2**20:.3f} MiB, {self.source or self.name}"


def find(program: Program) -> list[Collective]:
    """All collectives that the program runs, largest first."""
    collectives, channels = [], set()
    fused = {
        name
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for name in called(instruction)
    }
    for name, computation in program.computations.items():
        if not program.passes[name]:
            continue
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # An asynchronous collective may stand in the fusion that starts it and in the one that ends it.
            channel = re.search(r"channel_id=(\d+)", instruction.text)
            if name in fused and channel:
                if channel[1] in channels:
                    continue
                channels.add(channel[1])
            taken = [
                array
                for operand in instruction.operands
                if operand in computation
                for array in computation[operand].result
            ]
            given = [array for array in instruction.result if array.shape or not instruction.opcode.endswith("-start")]
            if instruction.opcode.endswith("-start") and kind != "all-reduce":
                given = given[len(taken) :]  # (what goes in, what comes out, ...)
            arrays = max((taken, given), key=lambda side: sum(array.bytes for array in side))
            collectives.append(
                Collective(
                    instruction.name,
                    kind,
                    tuple(arrays),
                    program.passes[name],
                    _groups(instruction.text),
                    source(instruction),
                )
            )
    return sorted(collectives, key=lambda collective: -collective.total)


def by_kind(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> how many run in a step (`count`), and the `bytes` on a device."""
    sums = {}
    for collective in collectives:
        entry = sums.setdefault(collective.kind, {"count": 0, "bytes": 0})
        entry["count"] += collective.passes
        entry["bytes"] += collective.total
    return sums


def _groups(text):
    pairs = re.search(r"source_target_pairs=(\{\{.*?\}\}|\{\})", text)
    forms = (r"mesh\[.*?\] \{.*?\}", r"\{\{.*?\}\}", r"\{\}", r"\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?")
    groups = re.search(f"replica_groups=({'|'.join(forms)})", text)
    return (groups or pairs)[1] if groups or pairs else ""
