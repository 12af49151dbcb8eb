"""Mammography vision-language models in JAX: see README.md."""

import sys

__all__ = ["__version__", "load"]

if getattr(sys, "argv", [])[:1] == [
    "-m"
]:  # `python -m mammoclip_jax...` starts: until `command.run` does, who answers Ctrl-C
    from mammoclip_jax.errors import in_one_line

    sys.excepthook = in_one_line


def load(path, **options):
    """The model of a run or checkpoint folder, for use in Python: see `mammoclip_jax.inference.loading.load`."""
    from mammoclip_jax.inference.loading import load as load_model  # jax is imported only when a model is wanted

    return load_model(path, **options)


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mammoclip_jax.provenance import version

    return version(__name__)
