"""What a checkpoint or report says about where it came from: data sets, licences, versions."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pydicom", "opencv-python-headless")
MISSING = "not installed"


def collect(datasets) -> dict:
    """JSON: the data sets {name: fingerprint, licence, citation, real, counts} and the versions of all that ran."""
    import jax      # not where versions alone are wanted: processes that decode images would load it too

    kept = ("fingerprint", "licence", "citation", "real", "counts")
    return {
        "data": {name: {key: dataset.info.get(key) for key in kept} for name, dataset in datasets.items()},
        "versions": {"mammoclip_jax": version("mammoclip_jax"), "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def versions(packages) -> dict[str, str]:
    """{package: version} of those of `packages` that are installed."""
    found = {name: version(name) for name in packages}
    return {name: known for name, known in found.items() if known != MISSING}


def version(package: str) -> str:
    """Version of an installed package; 'not installed' for a checkout that was never installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def code() -> dict:
    """JSON: the version of this program, and of a git checkout the commit and whether its files were changed since."""
    found = {"version": version("mammoclip_jax"), "commit": "", "changed": False}
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return found        # installed, or below someone else's checkout
    changed = bool(_git("status", "--porcelain", "--", "."))
    return found | {"commit": _git("rev-parse", "HEAD") or "", "changed": changed}


def _git(*arguments: str) -> str | None:
    """What git says of the folder of this package; None where it fails or is not there."""
    try:
        found = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
                               check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
