"""How long a compiled program takes by its compiler's own estimate.

XLA's compiler for TPUs notes with every fusion, copy and product the cycles that it expects of it (`estimated_cycles`),
memory included, and with loops nothing: those are counted as often as they run. One core runs one after the other, so
their sum is a second bound beside the memory's bandwidth. Kernels of our own bring their cycles in their metadata.
"""

import re
from typing import NamedTuple

from mammoclip_jax.aot.hlo import Instruction, Program
from mammoclip_jax.aot.traffic import fused

# `kernel_metadata` is what `pallas_call(metadata=...)` was given.
_NOTED = re.compile(r'estimated_cycles"?:\s*"?(\d+)"?')
_KERNEL = re.compile(r'kernel_metadata=\{[^}]*?cycles\\?"?:\s*\\?"?(\d+)')


class Estimate(NamedTuple):
    """Of one device and one step."""

    cycles: int
    noted: int  # instructions that have a note, each once; 0 for CPUs
    kernels: tuple[str, ...]  # names of kernels without one


def total(program: Program) -> Estimate:
    """The sum over all instructions that run by themselves."""
    inside, cycles, noted, kernels = fused(program), 0, 0, []
    for name, computation in program.computations.items():
        if not program.passes[name] or name in inside:
            continue
        for instruction in computation.values():
            expected = of_instruction(instruction)
            if expected is not None:
                noted += 1
                cycles += expected * program.passes[name]
            elif "tpu_custom_call" in instruction.text:
                kernels.append(instruction.name)
    return Estimate(cycles, noted, tuple(kernels))


def of_instruction(instruction: Instruction) -> int | None:
    """Cycles in one pass; None without a note."""
    found = (_KERNEL if instruction.opcode == "custom-call" else _NOTED).search(instruction.text)
    return int(found[1]) if found else None
