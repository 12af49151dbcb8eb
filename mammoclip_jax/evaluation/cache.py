"""Image vectors kept on disk between runs: one file for each model, data set and kind of vector.

    NAME-KIND-KEY.npz       positions int64 [n] in the data set's index, vectors float32 [n, c]

The key is of all that the vectors depend on: the model's weights and normalisation, the data set's fingerprint and
preprocessing. A file is written whole or not at all; one that is damaged is computed again. After a change to an
encoder's code, delete the folder.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mammoclip_jax.files import whole


def path_of(folder: str | Path, model, dataset, kind: str) -> Path:
    """The file of `dataset` under `model` as it is now; `kind` is a key of `features.KINDS`."""
    depends = [model.fingerprint(), dataset.info["fingerprint"], dict(dataset.info["preprocessing"]), kind]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f"{dataset.info['name']}-{kind}-{key}.npz"


def load(path: Path) -> dict[int, np.ndarray]:
    """{position: vector}; {} where there is no file, or a damaged one."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(zip(file["positions"].tolist(), file["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged (%s): its vectors are computed again", path, error)
        return {}


def save(path: Path, vectors: Mapping[int, np.ndarray]) -> None:
    """Writes all `vectors`; a folder that cannot be written costs the file, not the evaluation."""
    positions = sorted(vectors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial, open(partial, "wb") as file:
            np.savez(file, positions=np.array(positions, np.int64), vectors=np.stack([vectors[p] for p in positions]))
    except OSError as error:
        logging.warning("%s was not written (%s): its vectors will be computed again", path, error)
