"""Settings of this process, made once before the first computation: devices, memory, compilation cache."""

from pathlib import Path

import jax

from mammoclip_jax.memory import keep_freed_memory


def configure(config) -> None:
    """Follows `config.cpu_devices` and `config.compilation_cache`."""
    if config.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    keep_freed_memory()
    enable_compilation_cache(config.compilation_cache)


def enable_compilation_cache(folder: str) -> None:
    """Compiled programs are kept in `folder`, so that the next start does not compile again; '' switches it off."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
