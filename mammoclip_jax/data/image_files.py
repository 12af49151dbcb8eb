"""Which files below a folder are images, and of what kind the others are: one answer for every source and for predict.

A picture is known by its suffix, a DICOM file by its first bytes, whatever it is called. Linked folders are followed,
each folder once. What is not taken is listed by kind; kinds are fixed words, which name nobody.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from mammoclip_jax.data.manifest import Problem, SourceTable
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.data.pool import in_threads

HIDDEN, LINK, EMPTY = "hidden", "link without end or special file", "empty file"
AGAIN, BESIDE = "folder linked a second time", "picture beside DICOM images"
OTHER = "other file"
# Of what often lies beside images; another suffix may be a name.
_SUFFIXES = tuple(
    ".txt .csv .tsv .json .xml .htm .html .md .pdf .rtf .doc .docx .odt .xls .xlsx .ods .ppt .pptx .log .ini .inf .cfg "
    ".db .dat .bak .tmp .zip .gz .bz2 .tar .7z .rar .iso .exe .dll .jar .js .css .py .ipynb .gif .webp .jp2 .svg .nii "
    ".npy .npz .mat .h5 .parquet .mp4 .avi".split()
)
_THREADS = 16  # a network file system answers many at a time


class Found(NamedTuple):
    """All that lies below a folder; names are relative to it, with slashes."""

    images: dict[str, Fields]  # in order of name; of a picture nothing is known
    problems: list[Problem]  # what should be an image and is none, or cannot be looked at
    others: list[Problem]  # no images: stage "other", the reason is their kind


def other(name: str, kind: str, remedy: str = "none: it is no image") -> Problem:
    """What is not taken, though nothing is wrong with it. In `kind` no name but behind a colon, nor in `remedy`."""
    return Problem(shown(name), "other", kind, remedy, shown(name))


def shown(name: str) -> str:
    """A name as text; of one that is not UTF-8 the odd bytes are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def find(root: Path | str, wanted: re.Pattern | None = None) -> Found:
    """The images below `root`.

    Pictures are no images of their own where DICOM images lie in the same folder of `root`, or in `root` itself: they
    are masks, thumbnails or key images. `wanted` says which are taken all the same, by a search in their name.
    """
    root = Path(root)
    files, problems, others = walk(root)
    with dicom.quiet():
        found = in_threads(lambda name: _look(root, name), files, _THREADS)
        looked = list(tqdm(found, total=len(files), desc="headers", unit="file", disable=None))
    images: dict[str, Fields] = {}
    for name, what in zip(files, looked):
        if isinstance(what, Fields) and shown(name) != name:
            problems.append(_problem(name, "file", "name is not UTF-8", "rename it"))
        elif isinstance(what, Fields):
            images[name] = what
        elif isinstance(what, Problem):
            problems.append(what)
        else:
            others.append(other(name, what))
    tops = {_top(name) for name in images if not is_picture(name)}
    for name in [name for name in images if is_picture(name) and not (wanted and wanted.search(name))]:
        if "" in tops or _top(name) in tops or (tops and not _top(name)):
            del images[name]
            others.append(other(name, BESIDE, "give pictures that are images in a folder of their own"))
    return Found(images, problems, sorted(others))


def is_picture(name: str) -> bool:
    """Whether the file is read as PNG, TIFF, ..."""
    return name.lower().endswith(dicom.PICTURES)


def _top(name: str) -> str:
    """The folder of the root that a file lies in; "" for the root itself."""
    return name.partition("/")[0] if "/" in name else ""


def walk(root: Path) -> tuple[list[str], list[Problem], list[Problem]]:
    """The names of all files below `root`, sorted; folders that cannot be read; what is hidden or no file at all."""
    files, problems, others = [], [], []
    folders, linked, seen = [root], [], set()
    while folders or linked:
        folder = (folders or linked).pop(0)  # links last: a file goes by its own name where it has one
        name = folder.relative_to(root).as_posix()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            problems.append(_unreadable(name, error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            others.append(other(name, AGAIN))
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(root).as_posix()
            if entry.name.startswith("."):
                others.append(other(name, HIDDEN))
            elif os.path.isdir(path) if entry.is_symlink() else entry.is_dir():
                (linked if entry.is_symlink() else folders).append(path)
            elif os.path.isfile(path) if entry.is_symlink() else entry.is_file():
                files.append(name)
            else:
                others.append(other(name, LINK))
    return sorted(files), problems, others


def _problem(name: str, stage: str, reason: str, remedy: str) -> Problem:
    return Problem(shown(name), stage, reason, remedy, shown(name))


def _unreadable(name: str, error: OSError) -> Problem:
    return _problem(name, "file", f"cannot read: {type(error).__name__}", "check the permissions and the disk")


def _look(root: Path, name: str) -> Fields | Problem | str:
    """What the header says, nothing for a picture; what is wrong with an image; or the kind of what is none."""
    path, suffix = root / name, PurePosixPath(name).suffix.lower()
    none = suffix if suffix in _SUFFIXES else OTHER
    try:
        if not path.stat().st_size:
            return EMPTY
        if is_picture(name):
            return Fields()
        if suffix not in dicom.SUFFIXES and not dicom.looks_like(path):
            return none
        fields = dicom.read_fields(path)
    except dicom.Unreadable as error:
        if error.reason == dicom.NOT_DICOM and suffix not in dicom.SUFFIXES:  # its first bytes were chance
            return none
        return _problem(name, error.stage, error.reason, error.remedy)
    except OSError as error:
        return _unreadable(name, error)
    return fields if fields.size or not fields.kind or "Image" in fields.kind else fields.kind


def as_there(table: SourceTable, root: Path) -> SourceTable:
    """The table with its files `located` below its root, or the one that was asked for."""
    return table._replace(rows=table.rows.assign(file=located(table.root or root, table.rows["file"].tolist())))


def located(root: Path, names: Sequence[str]) -> list[str]:
    """Names as tables give them -> as the files below `root` are called, where only the capitals, or a DICOM suffix
    that is there, missing or another one, differ; the name as given where there is no such file."""

    @functools.cache
    def files(folder: PurePosixPath) -> dict[str, str]:
        try:
            return {_core(name): name for name in sorted(os.listdir(root / folder), reverse=True)}
        except (OSError, ValueError):
            return {}

    def found(name: str) -> str:
        if not name or os.path.exists(root / name):
            return name
        path = PurePosixPath(name)
        return (path.parent / files(path.parent).get(_core(path.name), path.name)).as_posix()

    return list(in_threads(found, names, _THREADS))


def _core(name: str) -> str:
    """A file's name without capitals and DICOM suffix."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in dicom.SUFFIXES if name.endswith(suffix)), name)
