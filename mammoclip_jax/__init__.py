"""Mammography vision-language models in JAX: see README.md."""

__all__ = ["load"]


def load(path, **options):
    """The model of a run or checkpoint folder, for use in Python: see `mammoclip_jax.inference.loading.load`."""
    from mammoclip_jax.inference.loading import load as load_model  # jax is imported only when a model is wanted

    return load_model(path, **options)
