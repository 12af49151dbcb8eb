"""Mammography vision-language models in JAX: see README.md."""

__all__ = ["__version__", "load"]


def load(path, **options):
    """The model of a run or checkpoint folder, for use in Python: see `mammoclip_jax.inference.loading.load`."""
    from mammoclip_jax.inference.loading import load as load_model  # jax is imported only when a model is wanted

    return load_model(path, **options)


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mammoclip_jax.provenance import version

    return version(__name__)
