"""Where a model comes from: a run, a checkpoint of it, a model folder, a published file, or a name on the hub."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mammoclip_jax import provenance
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.data.text.tokenizer import load as load_tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import HUB, lookup, on_hub
from mammoclip_jax.training import checkpoint
from mammoclip_jax.weights import calibration_file, folder, layouts, licences, weight_files

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
# Key of a torch file of ours: JSON text of licences, overrides, data and trained_on.
PROVENANCE = "mammoclip_jax_provenance"


class Imported(NamedTuple):
    """A published checkpoint in our terms; `variables` and `meta` as in a checkpoint of ours."""

    variables: dict
    meta: dict
    layout: str
    notes: list[str]
    unused: list[str]  # keys of the file without a counterpart here, all of them known


def open_weights(name: str | Path) -> tuple[dict, dict]:
    """(variables, meta) of whatever `name` says, the files already here before the hub.

    `meta` holds kind, step, config (the sections that use needs), tokenizer, preprocessing, provenance and trained_on; of ours
    also calibration, the entries of `calibration_file`.

    Raises:
        UserError: there is nothing of that name, or it cannot be read.
    """
    if not is_ours(name):
        imported = import_weights(name)
        return imported.variables, imported.meta
    path = Path(name)
    step, variables, meta = folder.read(path) if folder.is_folder(path) else checkpoint.load(path)
    known = calibration_file.read(calibration_file.folder_of(path))
    return variables, {"kind": "dual_encoder"} | meta | {"step": step, "calibration": known}


def is_ours(name: str | Path) -> bool:
    """Whether it is a run, a checkpoint of one or a model folder; else `import_weights` reads it."""
    path = Path(name)
    in_run = path.name == "checkpoints" or (path.name.isdigit() and (path / "meta").exists())
    return in_run or (path / "checkpoints").is_dir() or folder.is_folder(path)


def import_weights(
    name: str | Path,
    *,
    layout: str = "",
    licence: str = "",
    origin: str = "",
    tokenizer: str = "",
    labels: Sequence[str] = (),
) -> Imported:
    """Reads a published checkpoint or hub folder; nothing in it is run, and nothing is left out silently.

    Args:
        name: path of the file or folder, or a name on the hub ("hf://OWNER/NAME"; what its local cache has, without
            the "hf://" too).
        layout: a name in `weights.layouts.LAYOUTS`; by default the first that the keys fit.
        licence: of the weights: a key of `weights.licences`, or any text; by default what the weights of this layout
            were published under. Terms that our own export wrote into the file hold in any case.
        origin: where they come from, in words or as an address; by default the name on the hub.
        tokenizer: path or hub name; by default the one in the folder, else the one the layout's weights were trained
            with, where it is within reach.
        labels: of the outputs of a classifier, detector or segmentation.

    Raises:
        UserError: there is nothing of that name; the file is damaged, not trusted, of no known layout, or does not
            fit it; or it has no use for labels or a tokenizer.
    """
    path = Path(name)
    if is_ours(path):
        raise UserError(
            f"{path} is a model of this program already: load it as it is, or copy it with `weights "
            f"export --workdir={path}`."
        )
    if not path.exists():
        origin = origin or on_hub(str(name))[0]
    path = located(name)
    file = weight_files.read(path)
    if layout:
        lookup({known: known for known in layouts.LAYOUTS}, layout, "layout")
    try:
        layout = layout or layouts.detect(file.state)
        chosen = layouts.layout(layout)
        model = chosen.read(file.state, file.rest | {"labels": list(labels)}, file.config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for option, given, used in (
        ("labels", labels, "labels" in model.model),
        ("tokenizer", tokenizer, model.kind == "dual_encoder"),
    ):
        if given and not used:
            raise UserError(f"{path}: its weights, of the kind {model.kind}, have no use for --{option}: leave it out.")
    tokenize, notes = None, list(model.notes)
    if model.kind == "dual_encoder":
        tokenize, problem = _tokenizer(tokenizer, path, model)
        notes += [problem] if problem else []
    terms, kept = licences.find(licence or chosen.licence), _kept(path, file.rest)
    if not licence and not kept and chosen.licence != "unknown":
        notes.append(
            f"The licence is taken to be that of the published weights of this layout: {terms.title}. "
            "Say so if these are others (--licence, --origin)."
        )
    entry = {
        "weights": origin or chosen.title,
        "licence": terms.key,
        "title": terms.title,
        "stated": bool(licence),
        "layout": layout,
        "file": path.name,
        "sha256": _sha256(file.path),
    }
    meta = {
        "kind": model.kind,
        "step": int(file.rest.get("epoch") or 0) if isinstance(file.rest.get("epoch"), int) else 0,
        "config": {
            "name": origin or chosen.title,
            "image": model.image,
            "model": model.model,
            "data": {"text_length": model.text_length},
        },
        "tokenizer": tokenize.to_json() if tokenize else None,
        "preprocessing": model.preprocessing,
        "provenance": provenance.collect({})
        | {
            "licences": ([entry] if licence or not kept else []) + licences.inherit(kept),
            "overrides": licences.inherit_overrides(kept),
            "notes": notes,
        },
        "trained_on": kept[0].get("trained_on") if kept else None,
    }
    return Imported(model.variables, meta, layout, notes, sorted(model.unused))


def _kept(path: Path, rest: Mapping[str, Any]) -> list[dict]:
    """The provenance that `weights export --format=torch` wrote into a file; [] where somebody else made the file."""
    if PROVENANCE not in rest:
        return []
    try:
        provenance = json.loads(rest[PROVENANCE])
        licences.terms(provenance)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: its {PROVENANCE}, which says under which terms it may be used, cannot be read "
            f"({error}): export the model again."
        ) from error
    return [provenance]


def _has_weights(folder: Path) -> bool:
    """Whether files of weights, or an index of them, are in the folder, as many as there may be."""
    return any(file.suffix in weight_files.SUFFIXES or file.name.endswith(".index.json") for file in folder.iterdir())


def _tokenizer(wanted: str, path: Path, model) -> tuple[Tokenize | None, str]:
    """(the tokenizer, "") or (None, what is missing). One that was asked for has to be there."""
    own = str(path) if path.is_dir() and any((path / name).exists() for name in TOKENIZER_FILES) else ""
    name = wanted or own or (HUB + model.tokenizer if model.tokenizer else "")
    try:
        tokenize = load_tokenizer(name)
    except UserError:
        if wanted or own:
            raise
        return None, (
            f"Without its tokenizer ({model.tokenizer}), which is not within reach: embed_tokens takes token "
            "ids; import again with --tokenizer=FOLDER to embed texts."
        )
    rows = model.model["text"].get("vocab_size", tokenize.vocab_size)
    if tokenize.vocab_size > rows:
        raise UserError(
            f"the tokenizer {name} has {tokenize.vocab_size} tokens, the text encoder {rows} token "
            "vectors: it is not the tokenizer of these weights."
        )
    return tokenize, ""


def located(name: str | Path) -> Path:
    """Where the weights of that name are, files here before the hub; nothing of them is read.

    Raises:
        UserError: there is nothing of that name, or a folder without weights.
    """
    path = Path(name)
    if not path.exists():
        path = _from_hub(str(name))
    if path.is_dir() and not is_ours(path) and not _has_weights(path):
        raise UserError(
            f"{path}: there is no finished checkpoint in it, and no weights: name the folder of a run, one "
            "of its checkpoints, a model folder, or a published file."
        )
    return path


def _from_hub(name: str) -> Path:
    """The files of a model on the hub, or the one that OWNER/NAME/FILE names; from the local cache where it has them.

    Only with "hf://" before it the hub itself is asked: a mistyped path is nobody else's business.
    """
    name, ask = on_hub(name)
    owner, model, file = (*name.split("/", 2), "", "")[:3]
    is_file = Path(name).suffix in weight_files.SUFFIXES
    if not model or name.startswith((".", "/")) or is_file != bool(file):
        raise UserError(f"{name}: there is no such file or folder, and no model on the hub can have that name.")
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.md", "*.bin", "*.tar", "*.pth"]
    repository = f"{owner}/{model}"
    problem = None
    for local in (True, False) if ask else (True,):
        try:
            if not local:
                HfApi().model_info(repository, timeout=10)  # asks once; a download would try for half a minute
            if file:
                return Path(hf_hub_download(repository, file, local_files_only=local))
            path = Path(snapshot_download(repository, local_files_only=local, allow_patterns=wanted))
        except Exception as error:  # of many kinds: not cached, no network, no such model, no permission
            problem = error
            continue
        if not local or _has_weights(path):  # the cache may hold its tokenizer alone
            return path
    if not ask:
        raise UserError(
            f"{name}: there is no such file or folder here, and the hub's local cache has no model of that "
            f"name. Correct the path; if it is a model on the hub, name it {HUB}{name}."
        )
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    raise UserError(
        f"{name}: there is no such file or folder, and the hub could not be asked for it ({reason}). "
        "Copy the model's folder here and give its path."
    ) from problem


def _sha256(path: Path) -> str:
    """Of the weights file; of a folder, of all its weights files in order."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else weight_files.in_folder(path):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
