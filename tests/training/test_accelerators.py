"""What is said where jax computes on the CPU beside an accelerator or a plugin for one."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import jax

from mammoclip_jax.training.accelerators import KINDS, idle, warn_if_idle

NVIDIA, TPU = KINDS
ROOT = Path(__file__).parents[2]


def package(folder, name, version):
    """Metadata as a wheel leaves it."""
    path = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    path.parent.mkdir(parents=True)
    path.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def file(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def installed(monkeypatch, **versions):
    found = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name):
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_without_either_nothing_is_said(tmp_path, monkeypatch):
    installed(monkeypatch)
    file(tmp_path / "dev" / "null")
    # A network card of Google's, and a graphics card that is nobody's.
    file(tmp_path / "sys/bus/pci/devices/0000:00:04.0/vendor", "0x1ae0\n")
    file(tmp_path / "sys/bus/pci/devices/0000:00:04.0/device", "0x0042\n")
    assert idle(NVIDIA, "0.10.2", tmp_path) == idle(TPU, "0.10.2", tmp_path) == ""


def test_a_device_without_a_plugin(tmp_path, monkeypatch):
    installed(monkeypatch)
    file(tmp_path / "dev" / "nvidia0")
    file(tmp_path / "sys/bus/pci/devices/0000:00:05.0/vendor", "0x1ae0\n")
    file(tmp_path / "sys/bus/pci/devices/0000:00:05.0/device", "0x0063\n")
    said = idle(NVIDIA, "0.10.2", tmp_path)
    assert "an NVIDIA GPU is here" in said and "dev/nvidia0" in said and ".[cuda13]" in said
    said = idle(TPU, "0.10.2", tmp_path)
    assert "a TPU is here" in said and "its plugin is not installed: pip install -e .[tpu]" in said


def test_a_plugin_for_another_jax(tmp_path, monkeypatch):
    """As it is left when the pins of an installation pull jax back."""
    installed(monkeypatch, jax_cuda13_plugin="0.12.0")
    said = idle(NVIDIA, "0.10.2", tmp_path)
    assert "jax-cuda13-plugin 0.12.0 is not for this jax: pip install -e .[cuda13]" in said
    file(tmp_path / "dev" / "nvidiactl")
    assert "an NVIDIA GPU is here" in idle(NVIDIA, "0.10.2", tmp_path)


def test_a_plugin_that_finds_nothing(tmp_path, monkeypatch):
    installed(monkeypatch, jax_cuda12_plugin="0.10.2", libtpu="0.0.42.1")
    assert "does not show on this machine" in idle(NVIDIA, "0.10.2", tmp_path)
    assert "libtpu 0.0.42.1 is installed, but a TPU does not show" in idle(TPU, "0.10.2", tmp_path)
    file(tmp_path / "dev" / "nvidia1")
    file(tmp_path / "dev" / "accel0")
    assert "look at what nvidia-smi says" in idle(NVIDIA, "0.10.2", tmp_path)
    assert "look whether another process has it" in idle(TPU, "0.10.2", tmp_path)


def test_a_cpu_that_was_chosen_is_no_fault(monkeypatch, caplog):
    installed(monkeypatch, jax_cuda13_plugin="99.0")
    assert jax.config.jax_platforms == "cpu"  # tests/conftest.py
    warn_if_idle()
    assert not caplog.records


def test_training_says_it_at_the_start(tmp_path):
    """With a plugin whose metadata alone is there; GPUs that there may be are hidden."""
    package(tmp_path, "jax-cuda13-plugin", "99.0")
    code = (
        "from mammoclip_jax.config import defaults; from mammoclip_jax.training import distributed; "
        "distributed.configure(defaults()); print('configured')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, timeout=100)
    assert run.stdout == "configured\n", run.stderr
    assert "computes on the CPU" in run.stderr and "set JAX_PLATFORMS=cpu" in run.stderr
    assert "jax-cuda13-plugin 99.0 is not for this jax: pip install -e .[cuda13]" in run.stderr
