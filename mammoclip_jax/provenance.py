"""What a checkpoint or report says about where it came from: data sets, licences, versions."""

import importlib.metadata
import platform

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
