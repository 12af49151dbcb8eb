"""What the C library does with freed memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, <malloc.h>


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next image or step.

    By default it returns large blocks to the kernel, which clears every page anew when it is wanted again: on CPU that
    is up to half the time. Does nothing where there is no glibc; GLIBC_TUNABLES in the environment can do the same.
    """
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
