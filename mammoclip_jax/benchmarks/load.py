"""How much of the machine other processes take while something is timed.

A busy machine is not fair to both sides: OpenMP's threads wait for each other in loops, and lose more of a core that
they share than XLA's thread pool does. So each step knows what others took, and disturbed steps do not count.
"""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_STAT = Path("/proc/stat")
QUIET = 0.05  # of all cores' time; what others may take of a step that counts
FEWEST = 3  # steps that count at least, the quietest, however busy the machine was


class Others:
    """CPU seconds of other processes, and of other machines on the same cores, since this was made.

    `seconds()` is None where the kernel does not tell (it does on Linux, to a hundredth of a second a core).
    """

    def __init__(self):
        self._before = self._taken()

    def seconds(self) -> float | None:
        if self._before is None:
            return None
        return max(self._taken() - self._before, 0.0)

    @staticmethod
    def _taken():
        try:
            user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split()[1:9])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = resource.getrusage(resource.RUSAGE_SELF)
        return busy - own.ru_utime - own.ru_stime


def share(seconds: float, others: float | None) -> float | None:
    """What others took of all cores' time in so many seconds, 0 to 1."""
    return None if others is None else min(others / seconds / (os.cpu_count() or 1), 1.0)


def quiet(shares: Sequence[float | None]) -> np.ndarray:
    """Which of the steps count, bool [steps]: those of which others took at most `QUIET`, and at least the `FEWEST`
    quietest. Where nothing is known, all."""
    known = np.array([0.0 if each is None else each for each in shares])
    return known <= max(QUIET, np.sort(known)[min(FEWEST, len(known)) - 1])
