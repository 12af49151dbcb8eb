"""Accelerators that lie idle: jax computes on the CPU where its plugin is missing, or is made for another jax."""

import importlib.metadata
import logging
from pathlib import Path
from typing import NamedTuple

import jax

# PCI devices of Google that are TPUs; its network cards have the same vendor.
GOOGLE, TPUS = "0x1ae0", ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


class Accelerator(NamedTuple):
    """A kind of accelerator: its name, what shows one, the packages by which jax uses it, how to get them."""

    name: str
    files: tuple[str, ...]  # patterns below /
    plugins: tuple[str, ...]
    same_version: bool  # whether a plugin has the version of its jax
    install: str
    look: str  # what helps where the plugin is right and finds nothing


KINDS = (
    Accelerator(
        "an NVIDIA GPU",
        ("dev/nvidia[0-9]*", "dev/nvidiactl", "dev/dxg"),
        ("jax-cuda13-plugin", "jax-cuda12-plugin"),
        True,
        "pip install -e .[cuda13], or .[cuda12] with a driver older than 580",
        "at what nvidia-smi says",
    ),
    Accelerator(
        "a TPU", ("dev/accel[0-9]*",), ("libtpu",), False, "pip install -e .[tpu]", "whether another process has it"
    ),
)


def warn_if_idle() -> None:
    """Logs a warning where jax computes on the CPU although an accelerator, or a plugin for one, is here.

    Nothing where the CPU was chosen (JAX_PLATFORMS=cpu). Starts jax's devices: not before `distributed.connect`.
    """
    if jax.config.jax_platforms == "cpu" or jax.default_backend() != "cpu":
        return
    for kind in KINDS:
        if problem := idle(kind, jax.__version__):
            logging.warning(
                "WARNING: jax %s computes on the CPU, which is much slower: %s. To compute on the CPU on purpose, set "
                "JAX_PLATFORMS=cpu.",
                jax.__version__,
                problem,
            )


def idle(kind: Accelerator, version: str, root: Path = Path("/")) -> str:
    """What keeps jax of this version from using an accelerator of this kind; "" where there is neither it nor a plugin.

    Args:
        root: where the files that the drivers make are looked for.
    """
    found = next((path for pattern in kind.files for path in root.glob(pattern)), None)
    if found is None and kind.name == "a TPU":
        found = _tpu_on_the_bus(root)
    plugins = {name: _version(name) for name in kind.plugins if _version(name)}
    here = f"{kind.name} is here ({found})" if found else ""
    if not plugins:
        return here and f"{here}, and its plugin is not installed: {kind.install}"
    listed = ", ".join(f"{name} {its}" for name, its in plugins.items())
    if kind.same_version and version not in plugins.values():
        return f"{here or f'a plugin for {kind.name} is installed'}, but {listed} is not for this jax: {kind.install}"
    if found:
        return f"{here}, and {listed} cannot use it: look {kind.look}, and at jax's lines above"
    return f"{listed} is installed, but {kind.name} does not show on this machine"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tpu_on_the_bus(root: Path) -> Path | None:
    """The PCI device that is a TPU: newer ones have no file of their own in /dev."""
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        device = vendor.with_name("device")
        if vendor.read_text().strip() == GOOGLE and device.read_text().strip() in TPUS:
            return vendor.parent
    return None
