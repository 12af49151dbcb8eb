"""Hand-written kernels, each with the same result as the formulation of the models that it stands for."""

import importlib

import jax

# config.model.image.kernels -> the module that has `fits(block, x, padding)` and `wide_part(block, x, padding)`, which replaces
# an MBConv block from its expand product to its project product in training, and may `check(encoder)`. None: XLA compiles it.
MBCONV = {
    "auto": None,
    "xla": None,
    "native": "mammoclip_jax.models.kernels.mbconv_native",
    "pallas": "mammoclip_jax.models.kernels.mbconv_pallas",
}
AUTO = {}  # platform -> what "auto" is there; "xla" elsewhere


def check(encoder) -> None:
    """Raises UserError where the kernels that an encoder names do not go with its other options."""
    module = importlib.import_module(MBCONV[encoder.kernels]) if MBCONV[encoder.kernels] else None
    if hasattr(module, "check"):
        module.check(encoder)


def mbconv_fits(block, x: jax.Array, padding) -> bool:
    """Whether `block.kernels` names kernels that take this block (mbconv.Block) and input."""
    module = _module(block)
    return module is not None and module.fits(block, x, padding)


def mbconv(block, x: jax.Array, padding) -> jax.Array:
    """The wide part of a block by its kernels; its running statistics are updated."""
    return _module(block).wide_part(block, x, padding)


def platform() -> str:
    """Of the devices of `jax.set_mesh`, which need not be there; without a mesh, jax's default."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device else jax.default_backend()


def _module(block):
    name = AUTO.get(platform(), "xla") if block.kernels == "auto" else block.kernels
    return importlib.import_module(MBCONV[name]) if MBCONV[name] else None  # kernels' languages take seconds to import
