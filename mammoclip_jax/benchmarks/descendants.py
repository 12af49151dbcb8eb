"""CPU time of the processes that this one has started, and they."""

import os
from pathlib import Path


def cpu_seconds(process: int | None = None) -> float:
    """Of all that are descended from a process (this one), as they are now; what has ended does not count.

    0 where there is no /proc.
    """
    root = process or os.getpid()
    fields = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
    found, below = set(), {root}
    while below:
        found |= below
        below = {number for number, own in fields.items() if int(own[1]) in found} - found
    ticks = sum(int(fields[number][11]) + int(fields[number][12]) for number in found - {root})
    return ticks / os.sysconf("SC_CLK_TCK")
