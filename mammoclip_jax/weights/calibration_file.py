"""`calibration.json` of a run or model folder: what its scores were found to mean (`inference.calibration`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text

FILE, FORMAT = "calibration.json", 1
KEY = ("fingerprint", "looks", "prompts")  # of which there is one entry each


def folder_of(name: str | Path) -> Path:
    """The folder whose file speaks of a model: of a checkpoint its run's."""
    path = Path(name)
    path = path.parent if path.name.isdigit() and path.parent.name == "checkpoints" else path
    path = path.parent if path.name == "checkpoints" else path
    return path.parent if path.name == "best" else path


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a folder, oldest first; [] where there is no file.

    Raises:
        UserError: the file is damaged, or of a newer version.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version, entries = document["format"], document["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it, and calibrate again.") from error
    if version != FORMAT:
        raise UserError(f"{path} is of format {version}, this program knows {FORMAT}: update mammoclip_jax.")
    return entries


def text_of(entries: Sequence[Mapping[str, Any]]) -> str:
    """The file's content."""
    return json.dumps({"format": FORMAT, "entries": list(entries)}, allow_nan=False) + "\n"


def store(folder: str | Path, entry: Mapping[str, Any]) -> Path:
    """Adds an entry to the file, in the place of the one with its KEY; the file changes whole or not at all."""
    kept = [old for old in read(folder) if any(old[name] != entry[name] for name in KEY)]
    path = Path(folder, FILE)
    write_text(path, text_of([*kept, entry]))
    return path
