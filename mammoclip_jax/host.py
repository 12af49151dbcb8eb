"""Settings of this process, made once before the first computation: devices, memory, compilation cache."""

import ctypes
import sys
from pathlib import Path

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4     # of mallopt, <malloc.h>


def configure(config) -> None:
    """Follows `config.cpu_devices` and `config.compilation_cache`."""
    if config.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    keep_freed_memory()
    enable_compilation_cache(config.compilation_cache)


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next one.

    By default it returns large blocks to the kernel, which clears every page anew at the next step: on CPU that is
    up to half the time. Does nothing where there is no glibc; GLIBC_TUNABLES in the environment can do the same.
    """
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)


def enable_compilation_cache(folder: str) -> None:
    """Compiled programs are kept in `folder`, so that the next start does not compile again; '' switches it off."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
