"""A process's peak resident memory between two moments."""

import ctypes
import re
import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")  # writing 5 there sets VmHWM to what is resident now; see man proc
_STATUS = Path("/proc/self/status")


def give_back() -> None:
    """Returns what was freed to the kernel, such as a compiler's memory, so that it does not count as resident."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


class Peak:
    """The peak since this was made.

    `since` says what it counts: "reset", or, where the kernel does not let a process reset it, "start" of the process.
    """

    def __init__(self):
        try:
            _CLEAR.write_text("5")
            self.since = "reset"
        except OSError:
            self.since = "start"

    def bytes(self) -> int:
        """Bytes of this process, with all of its libraries."""
        if self.since == "reset":
            return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
