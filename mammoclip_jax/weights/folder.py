"""The open model folder: everything that using a model needs, in formats that any program reads.

    model.safetensors   all arrays by their slash-named path, "params/image_encoder/...": bit for bit
    config.json         format and its version, kind, step, config, preprocessing, tokenizer, provenance, checksums
    trained_on.txt      digests of the patients it was trained on, so that they are not scored by mistake; where known
    tokenizer.json      as the Hugging Face libraries read it; only where the model has one
    calibration.json    what its scores were found to mean, where that was measured (`inference.calibration`)
    README.md           the model card

Written beside its place and renamed: a folder of that name is always whole.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup
from mammoclip_jax.provenance import without_paths
from mammoclip_jax.weights import calibration_file

FORMAT, VERSION = "mammoclip_jax", 1
KINDS = ("dual_encoder", "image_encoder", "text_encoder", "classifier", "detector", "segmenter", "attributes")
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
PATIENTS, CALIBRATION = "trained_on.txt", calibration_file.FILE
MORE = ("attributes",)  # what models of one kind alone say of themselves: sentences, grids, the encoder's fingerprint

# What using a model reads of its config; the rest describes the training run, its data and its machine.
_WHOLE = ("image", "model")
_FIELDS = {
    "data": ("text_length", "leave_out"),
    "predict": ("prompts", "stage", "method", "mirror", "windows", "pool", "calibrated", "percentile"),
    "task": ("kind", "label", "unit", "folds", "fold", "fraction"),
}


def is_folder(path: str | Path) -> bool:
    """Whether a model folder of ours is there, whole or not."""
    return _document(Path(path)).get("format") == FORMAT or _is_our_weights(Path(path, WEIGHTS))


def write(out: str | Path, variables: Mapping[str, Any], meta: Mapping[str, Any], *, card: str) -> Path:
    """Writes a model folder at `out`, in the place of an earlier one if there is one; returns its path.

    Paths of this machine do not go along: of the config only what use needs is kept, and a path in a text of the
    provenance or the card is cut to its last part.

    Args:
        variables: {"params", "batch_stats"}: nested arrays of any dtype.
        meta: kind, step, config, preprocessing, tokenizer (JSON text or None) and provenance, all of them JSON; and
            perhaps trained_on (`provenance.trained_on`) and calibration (the entries of `calibration_file`).
        card: the model card, Markdown.

    Raises:
        UserError: something else is at `out`, or the kind is unknown.
    """
    out = Path(out)
    lookup({kind: kind for kind in KINDS}, meta["kind"], "kind of model")
    arrays = {name: np.asarray(value, order="C") for name, value in flatten_dict(dict(variables), sep="/").items()}
    with replacing(out, (CONFIG, WEIGHTS, TOKENIZER, PATIENTS, CALIBRATION, CARD), is_folder) as place:
        save_file(arrays, place / WEIGHTS, metadata={"format": FORMAT})
        tokenizer = _write_tokenizer(place, meta["tokenizer"])
        if meta.get("trained_on") is not None:
            (place / PATIENTS).write_text(meta["trained_on"] + "\n", encoding="utf-8")
        if meta.get("calibration"):
            text = calibration_file.text_of(without_paths(meta["calibration"]))
            (place / CALIBRATION).write_text(text, encoding="utf-8")
        document = {
            "format": FORMAT,
            "format_version": VERSION,
            "kind": meta["kind"],
            "step": int(meta["step"]),
            "config": _for_use(meta["config"]),
            "preprocessing": dict(meta["preprocessing"]),
            "tokenizer": tokenizer,
            "provenance": without_paths(meta["provenance"]),
            **{field: meta[field] for field in MORE if field in meta},
            "parameters": counts(variables),
            "sha256": {
                name: sha256(place / name) for name in (WEIGHTS, TOKENIZER, PATIENTS) if (place / name).exists()
            },
        }
        (place / CONFIG).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (place / CARD).write_text(without_paths(card), encoding="utf-8")
    return out


def read(path: str | Path) -> tuple[int, dict, dict]:
    """(step, variables, meta) of a model folder, as `training.checkpoint.load` returns them of a run.

    `variables` are NumPy arrays; `meta["config"]` holds only the sections that use needs: the caller adds defaults.
    Whether the arrays fit the model that the config describes shows when it is built.

    Raises:
        UserError: it is no model folder, a newer version wrote it, or a file is missing or damaged.
    """
    path = Path(path)
    document = _document(path)
    if document.get("format") != FORMAT:
        raise UserError(_what_it_is(path))
    version = document.get("format_version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{path / CONFIG} is of format version {version}, this program knows up to {VERSION}: update mammoclip_jax."
        )
    fields = ("kind", "step", "config", "preprocessing", "tokenizer", "provenance", "sha256")
    missing = [field for field in fields if field not in document]
    if missing or WEIGHTS not in document["sha256"]:
        raise UserError(
            f"{path / CONFIG} lacks {', '.join(missing) or f'the checksum of {WEIGHTS}'}: it was changed "
            "or cut off; copy or export the folder again."
        )
    for name, expected in document["sha256"].items():
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; copy the whole folder, or export the model again.")
        if sha256(path / name) != expected:
            raise UserError(f"{path / name} is damaged: its SHA-256 is not the one in {CONFIG}. Copy the folder again.")
    meta = {field: document[field] for field in ("kind", "step", "config", "preprocessing", "provenance")}
    meta |= {field: document[field] for field in MORE if field in document}
    meta["tokenizer"] = _read_tokenizer(path, document["tokenizer"])
    meta["trained_on"] = (
        (path / PATIENTS).read_text(encoding="utf-8").strip() if PATIENTS in document["sha256"] else None
    )
    return document["step"], _read_arrays(path / WEIGHTS), meta


def counts(variables: Mapping[str, Any]) -> dict[str, int]:
    """{top module: number of parameters}."""
    return {
        name: sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))
        for name, tree in sorted(variables["params"].items())
    }


@contextlib.contextmanager
def replacing(out: str | Path, files: Sequence[str], is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or vanishes on an error.

    Args:
        files: all that an earlier export may have left at `out`.
        is_ours: whether a folder is such an export.

    Raises:
        UserError: `out` is a file, or holds something else.
    """
    out = Path(out)
    _check_place(out, files, is_ours)
    out.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield place
        _open_to_others(place)
        if not out.exists():
            place.rename(out)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        try:
            out.rename(old / "model")
            try:
                place.rename(out)
            except OSError:
                (old / "model").rename(out)
                raise
        finally:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_to_others(place: Path) -> None:
    """As far as the umask lets them: mkdtemp and safetensors make what their owner alone can read."""
    umask = os.umask(0)
    os.umask(umask)
    for file in place.iterdir():
        file.chmod(0o666 & ~umask)
    place.chmod(0o777 & ~umask)


def _read_arrays(path: Path) -> dict:
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): export the model again.") from error
    return {"params": {}, "batch_stats": {}} | unflatten_dict(arrays, sep="/")


def _write_tokenizer(place: Path, text: str | None) -> dict[str, Any] | None:
    """Writes the tokenizer's own JSON; returns what else `data.text.tokenizer.Tokenize` is made of."""
    if not text:
        return None
    kept = json.loads(text)
    (place / TOKENIZER).write_bytes(kept["tokenizer"].encode())
    canonical = json.dumps(json.loads(kept["tokenizer"]), sort_keys=True)
    fingerprint = hashlib.sha256((canonical + kept.get("separator", "")).encode()).hexdigest()
    rest = {name: value for name, value in kept.items() if name != "tokenizer"}
    return {"file": TOKENIZER, **rest, "fingerprint": fingerprint}


def _read_tokenizer(path: Path, entry: Mapping[str, Any] | None) -> str | None:
    if entry is None:
        return None
    kept = {"pad_token": entry["pad_token"], "tokenizer": (path / entry["file"]).read_bytes().decode()}
    return json.dumps(kept | {name: entry[name] for name in ("separator",) if name in entry})


def _for_use(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {section: config[section] for section in _WHOLE if section in config}
    for section, fields in _FIELDS.items():
        if section in config:
            kept[section] = {field: config[section][field] for field in fields if field in config[section]}
    if str(kept.get("predict", {}).get("prompts", "")).endswith(".json"):
        del kept["predict"]["prompts"]  # a file of this machine
    if "attributes" in kept.get("model", {}):
        kept["model"] = kept["model"] | {"attributes": without_paths(kept["model"]["attributes"])}
    return (
        {"name": without_paths(config.get("name", ""))}
        | {name: config[name] for name in ("seed",) if name in config}
        | kept
    )


def _document(path: Path) -> dict[str, Any]:
    """The content of config.json; {} where there is none or it is no JSON object."""
    try:
        document = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_our_weights(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _what_it_is(path: Path) -> str:
    """Why a folder is no model folder, and what to do with it."""
    if not path.is_dir():
        return f"{path}: there is no such folder."
    if _is_our_weights(path / WEIGHTS):
        return f"{path / CONFIG} is missing or damaged: copy the folder again."
    if (path / "checkpoints").is_dir():
        return f"{path} is the folder of a run: load it as it is, or export it with `weights export --workdir={path}`."
    if _document(path):
        return f"{path} looks like a folder of the Hugging Face hub: run `weights import {path} --out=DIR` first."
    return f"{path} is no model folder: it has no {CONFIG}. Name the folder that `weights export` wrote."


def _check_place(out: Path, files: Sequence[str], is_ours: Callable[[Path], bool]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give the folder that is to be written another name.")
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name not in files]
    if foreign or (names and not is_ours(out)):
        raise UserError(
            f"{out} holds {', '.join((foreign or names)[:4])} and is no earlier export: give a new folder, "
            "so that nothing of yours is overwritten."
        )
