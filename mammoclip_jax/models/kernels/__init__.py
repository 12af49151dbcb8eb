"""Hand-written kernels, each with the same result as the formulation of the models that it stands for."""

import importlib

import jax

# config.model.image.kernels -> the module that has `fits(block, x, padding)` and `wide_part(block, x)`, which replaces
# an MBConv block from its expand product to its project product in training. None: XLA compiles it.
MBCONV = {"auto": None, "xla": None, "pallas": "mammoclip_jax.models.kernels.mbconv_pallas"}


def mbconv_fits(block, x: jax.Array, padding) -> bool:
    """Whether `block.kernels` names kernels that take this block (mbconv.Block) and input."""
    return MBCONV[block.kernels] is not None and _module(block).fits(block, x, padding)


def mbconv(block, x: jax.Array) -> jax.Array:
    """The wide part of a block by its kernels; its running statistics are updated."""
    return _module(block).wide_part(block, x)


def _module(block):
    return importlib.import_module(MBCONV[block.kernels])  # kernels' languages take seconds to import
