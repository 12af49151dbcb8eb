"""What a checkpoint or report says about where it came from: data sets, the patients in them, licences, versions."""

import base64
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pydicom", "opencv-python-headless")
MISSING = "not installed"
# Options of an image encoder that change how it is computed and not what.
SPEED = re.compile("remat|scan|lanes|depthwise|attention|rows|kernels")

# An absolute path, or one below a home folder, in a text; addresses (https://...) are none.
_PATH = re.compile(
    r"""(?<![\w.:/\\])(?:file://)?(?:(?:~|[A-Za-z]:)(?:[/\\][^\s/\\,;:'"()<>|`]+)+"""
    r"""|(?:/[^\s/\\,;:'"()<>|`]+){2,})/?"""
)


def collect(datasets) -> dict:
    """JSON: the data sets {name: fingerprint, licence, citation, real, counts} and the versions of all that ran."""
    import jax  # not where versions alone are wanted: processes that decode images would load it too

    kept = ("fingerprint", "licence", "citation", "real", "counts")
    return {
        "data": {name: {key: dataset.info.get(key) for key in kept} for name, dataset in datasets.items()},
        "versions": {"mammoclip_jax": version("mammoclip_jax"), "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def patients(dataset, rows) -> np.ndarray:
    """Uint64 [n]: a digest of the patient of each of `rows` of the data set's index.

    Private patients, whose keys are keyed hashes already, have the same one in every data set of the same key, public
    ones in every data set of the same name; it says nothing to those who do not have such a data set.
    """
    names = rows["patient"].astype(str)
    if dataset.info.get("public_ids", True):
        names = rows["dataset"].astype(str) + "\0" + names
    known = {name: hashlib.sha256(name.encode()).digest()[:8] for name in names.unique()}
    return np.frombuffer(b"".join(known[name] for name in names), "<u8")


def trained_on(datasets, *before: str | None) -> str:
    """The record of the patients that a model is trained on, in the split "train" of `datasets` and in records `before`.

    Eleven characters a patient, for `patients_in`.
    """
    parts = [patients(dataset, dataset.index[dataset.index["split"] == "train"]) for dataset in datasets]
    return _recorded(*parts, *(patients_in(record) for record in before if record))


def trained_on_rows(dataset, rows, *before: str | None) -> str:
    """As `trained_on`, of the patients of these rows of a data set's index, and those in records `before`."""
    return _recorded(patients(dataset, rows), *(patients_in(record) for record in before if record))


def _recorded(*digests: np.ndarray) -> str:
    return base64.b64encode(np.unique(np.concatenate([np.zeros(0, "<u8"), *digests])).tobytes()).decode()


def patients_in(record: str) -> np.ndarray:
    """The digests of a record of `trained_on`, sorted, without repeats."""
    return np.frombuffer(base64.b64decode(record), "<u8")


def encoder_fingerprint(config, variables: Mapping[str, Any]) -> str:
    """16 hex digits of all that the maps of a model's image encoder depend on beside the images: its weights and
    statistics, its options, the normalisation of the images."""
    import jax

    model = config.model
    options = {name: value for name, value in model.image.to_dict().items() if not SPEED.fullmatch(name)}
    said = {"image": config.image.to_dict(), "model": options, "dtype": str(model.dtype)}
    if model.get("matmul", "default") != "default":
        said["matmul"] = model.matmul
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    parts = [variables["params"]["image_encoder"], variables.get("batch_stats", {}).get("image_encoder", {})]
    for path, value in jax.tree_util.tree_leaves_with_path(parts):
        value = np.asarray(value)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]


def fingerprint(config, variables: Mapping[str, Any]) -> str:
    """16 hex digits of all that a model's vectors depend on beside the images: weights, module, normalisation."""
    import jax

    parts = {section: config[section] for section in ("image", "model")}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=lambda part: part.to_dict()).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(variables):
        value = np.asarray(value)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]


def versions(packages) -> dict[str, str]:
    """{package: version} of those of `packages` that are installed."""
    installed = {name: version(name) for name in packages}
    return {name: known for name, known in installed.items() if known != MISSING}


def version(package: str) -> str:
    """Version of an installed package; 'not installed' for a checkout that was never installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def code() -> dict:
    """JSON: the version of this program, and of a git checkout the commit and whether its files were changed since."""
    record = {"version": version("mammoclip_jax"), "commit": "", "changed": False}
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return record  # installed, or below someone else's checkout
    changed = bool(_git("status", "--porcelain", "--", "."))
    return record | {"commit": _git("rev-parse", "HEAD") or "", "changed": changed}


def _git(*arguments: str) -> str | None:
    """What git says of the folder of this package; None where it fails or is not there."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def without_paths(value: Any) -> Any:
    """JSON in which every path of this machine, in whatever text, is cut to its last part."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/"))[-1], value)
    return value
