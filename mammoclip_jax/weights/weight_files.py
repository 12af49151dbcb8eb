"""A published file or folder of weights, of whichever format, as one state dict and what lies beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import safetensors_file, torch_file
from mammoclip_jax.weights.unpickle import Opaque

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".ckpt")
# Where in the object of a torch file its state dict may be; in the order they are tried.
_PLACES = ("model", "state_dict", "model_state_dict", "module", "ema")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel; of torch.compile
_HUB_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class File(NamedTuple):
    """What a file or folder holds.

    Attributes:
        state: {key: array} in the file's dtypes, read-only; a prefix that wrappers add to all keys is taken off.
        rest: what else the object of a torch file has (config, epoch, ...), by key; "metadata" of a safetensors file.
        config: content of the folder's config.json, or None.
        path: of the file, or of the folder.
    """

    state: dict[str, np.ndarray]
    rest: dict
    config: dict | None
    path: Path


def read(path: str | Path) -> File:
    """The weights at `path`: a torch or safetensors file, a hub folder, or a folder with one weights file.

    Raises:
        UserError: nothing is there, a shard is missing, the file is damaged or refused, or no state dict is in it.
    """
    path = Path(path)
    state: dict[str, np.ndarray] = {}
    rest: dict = {}
    files = in_folder(path) if path.is_dir() else [path]
    for file in files:
        part, more = _read_one(file)
        if repeated := state.keys() & part.keys():
            raise UserError(f"{file}: {min(repeated)} is also in another shard of {path}.")
        state |= part
        rest |= more
    config = path / "config.json"
    if path.is_dir():
        _check_index(path, state)
    return File(_unwrapped(state), rest, _json(config) if path.is_dir() and config.is_file() else None, path)


def bare_array(path: str | Path) -> np.ndarray | None:
    """The array that a torch file holds and nothing else, as RegionCLIP's vectors of concepts; None of other files."""
    path = Path(path)
    if not path.is_file() or path.suffix == ".safetensors":
        return None
    value = torch_file.read(path)
    return value if isinstance(value, np.ndarray) else None


def in_folder(folder: str | Path) -> list[Path]:
    """The files that hold a folder's weights: a hub folder's (safetensors before PyTorch's), or the only one in it.

    Raises:
        UserError: there is none, there are several, or a shard that the index names is missing.
    """
    folder = Path(folder)
    chosen = next((folder / name for name in _HUB_NAMES if (folder / name).is_file()), None)
    if chosen and chosen.suffix == ".json":
        return _shards(chosen)
    if chosen:
        return [chosen]
    files = sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES and file.is_file())
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:8])
        raise UserError(
            f"{folder}: "
            + (
                f"there are {len(files)} weights files ({names}). Give the path of one."
                if files
                else f"there is no weights file ({', '.join(SUFFIXES)})."
            )
        )
    return files


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index}: {outside[0]!r} is no name of a file beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index.parent}: {index.name} names {len(names)} shards; missing: "
            f"{', '.join(missing) or 'all'}. Copy them there."
        )
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    table = _json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'{index}: has no "weight_map" of keys and file names. Download it again.')
    return table


def _check_index(folder: Path, state: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if the index that was followed names a key that no shard has."""
    index = next((folder / name for name in _HUB_NAMES if (folder / name).is_file()), None)
    if index and index.suffix == ".json":
        missing = [key for key in _weight_map(index) if key not in state]
        if missing:
            raise UserError(
                f"{folder}: {index.name} names {missing[0]} and {len(missing) - 1} more keys that no shard "
                "has. Index and shards are of different models."
            )


def _read_one(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """(state, rest) of one file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file or folder.")
    if path.suffix == ".safetensors":
        state, metadata = safetensors_file.read(path)
        return state, {"metadata": metadata} if metadata else {}
    return _divided(path, torch_file.read(path))


def _divided(path: Path, value: Any) -> tuple[dict[str, np.ndarray], dict]:
    """The state dict in a torch file's object, and the rest of it."""
    if isinstance(value, Opaque):
        raise _whole_module(path, value)
    if isinstance(value, dict):
        for place in _PLACES:
            inside = value.get(place)
            if isinstance(inside, dict) and (state := _arrays(inside)):
                others = {key: item for key, item in inside.items() if key not in state}
                return state, {key: item for key, item in value.items() if key != place} | (
                    {place: others} if others else {}
                )
        if state := _arrays(value):
            return state, {key: item for key, item in value.items() if key not in state}
        for place in _PLACES:
            if isinstance(value.get(place), Opaque):
                raise _whole_module(path, value[place])
    holds = f"a dict with {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else type(value).__name__
    raise UserError(
        f"{path}: there is no state dict in it, at the top or under {', '.join(_PLACES)}; it holds "
        f"{holds or 'nothing'}."
    )


def _whole_module(path: Path, module: Opaque) -> UserError:
    return UserError(
        f"{path}: it holds a whole {module.name} object, not its state dict; that needs its code to be "
        "read. Where you have that: torch.save(model.state_dict(), OTHER), and give that."
    )


def _arrays(values: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    return {key: value for key, value in values.items() if isinstance(key, str) and isinstance(value, np.ndarray)}


def _unwrapped(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in _WRAPPERS * 2:  # one may be around the other
        if state and all(key.startswith(prefix) and key != prefix for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__} in place of an object.")
    return value
