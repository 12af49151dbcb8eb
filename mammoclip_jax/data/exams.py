"""Whose and which exam's an image is, and which images of an exam are screening views: for `images_only` and predict.

Of a DICOM file the header gives patient, study, image, laterality, view, date and maker. What it lacks, and all of a
picture, comes from the file's name and folder:

- with a pattern, from its named groups patient, study, laterality, view, searched in the path below the root;
- else laterality and view are words of the name ("p7_L_CC.png", "L-MLO.png", "RCC.tif", "SEIN GAUCHE.png"), or of the
  folders that are named after them alone, and the patient is what stands before them;
- where neither names a patient, all files of a folder are one patient's: too few patients can be seen in the counts of
  `prepare --check`, a patient in two splits could not. A pattern helps.

A study is the header's, else the pattern's, else the patient's files of one folder. Two patients are never one exam.
"""

import collections
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mammoclip_jax.data import image_files
from mammoclip_jax.data.batches import units
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import SIDES, Fields, view_of
from mammoclip_jax.data.sources import tables

COPY = "copy of another file"
_SIDE = f"(?P<laterality>{'|'.join(sorted(SIDES, key=len, reverse=True))})"
_VIEW = r"(?P<view>XCCL|XCCM|XCC|CC|MLO|LMO|ML|LM)"  # others (AT, FB) are ordinary words as well
# Of a name without the patient's: "SEIN GAUCHE", "img_L_CC".
_NOBODY = re.compile(
    r"(?:[\W_]|breasts?|seins?|brust|mammae?|mamas?|mammella|seno|borst|piers|mg|images?|img|views?|vue|"
    r"mammo(?:gra(?:ms?|phy|phie|fia))?)*",
    re.IGNORECASE,
)
_BREAK = r"(?:^|[\W_]+)"
_WORDS = [
    re.compile(rf"{_BREAK}{words}(?![^\W_])", re.IGNORECASE)
    for words in (rf"{_SIDE}[\W_]*{_VIEW}", rf"{_VIEW}[\W_]+{_SIDE}", _SIDE, _VIEW)
]


class Exam(NamedTuple):
    """The images of one study of one patient."""

    name: str  # of the folder that holds them, numbered where several are in it
    files: tuple[str, ...]  # in order of name; none where all that should be images in the folder is unreadable


def read(root: Path | str, pattern: re.Pattern | None = None) -> image_files.Found:
    """As `image_files.find`; each image has its patient, study and image id, and copies are no images of their own.

    A picture whose path does not match the pattern is a problem.
    """
    listing = image_files.find(root, pattern)
    problems = list(listing.problems)
    images: dict[str, Fields] = {}
    for name, fields in listing.images.items():
        if pattern and not fields.patient and not pattern.search(name):
            remedy = "mend --option=pattern, or the name"
            problems.append(Problem(name, "source", "path does not match the pattern", remedy, name))
        else:
            images[name] = fields
    return without_copies(Path(root), image_files.Found(identified(images, pattern), problems, listing.others))


def identified(images: Mapping[str, Fields], pattern: re.Pattern | None = None) -> dict[str, Fields]:
    """Headers -> the same with what they lack by the top of this file; "" only where laterality or view are unknown."""
    said = {name: _said(name, pattern) for name in images}
    studies: dict[str, list[str]] = {}
    for name, fields in images.items():
        if fields.study:
            studies.setdefault(fields.study, []).append(name)
    owners = {study: {images[name].patient for name in names} - {""} for study, names in studies.items()}
    known = {
        name: (
            fields.patient
            or _owner(owners.get(fields.study, set()))
            or _owner({said[other].get("patient", "") for other in studies.get(fields.study, [name])})
            or _folder(studies.get(fields.study, [name]))
        )
        for name, fields in images.items()
    }
    for study, names in studies.items():
        owners[study] = {known[name] for name in names}
    return {
        name: _whole(name, fields, said[name], known[name], len(owners.get(fields.study, ())) > 1)
        for name, fields in images.items()
    }


def _owner(patients: set[str]) -> str:
    return next(iter(patients)) if len(patients) == 1 else ""


def _whole(name: str, fields: Fields, said: Mapping[str, str], patient: str, shared: bool) -> Fields:
    """`shared`: files of other patients claim the same study."""
    # A pattern's study ("1") is one of the patient's, who may have files in several folders.
    own = f"{patient}/{said['study']}" if said.get("study") else f"{_above(name)}/{patient}"
    study = f"{patient}/{fields.study}" if shared else fields.study or own
    return fields._replace(
        patient=patient,
        study=study,
        image=fields.image or name,
        laterality=fields.laterality or tables.SIDES.get(said.get("laterality", "").lower(), ""),
        view=fields.view or view_of(said.get("view", "")),
    )


def _said(name: str, pattern: re.Pattern | None) -> dict[str, str]:
    """What a file's path says: the groups of the pattern that match, else those of the first of _WORDS that does."""
    match = pattern.search(name) if pattern else None
    if match:
        return {key: text or "" for key, text in match.groupdict().items()}
    stem = PurePosixPath(name).stem
    match = _words(stem)
    before = stem[: match.start()] if match else ""
    said = match.groupdict() | {"patient": "" if _NOBODY.fullmatch(before) else before} if match else {}
    for folder in _named_after_views(name):
        said = _words(folder).groupdict() | {key: value for key, value in said.items() if value}
    return said


def _words(name: str) -> re.Match | None:
    return next(filter(None, (words.search(name) for words in _WORDS)), None)


def _named_after_views(name: str) -> list[str]:
    """The innermost folders of a file that are named after a side or a view alone: "p1/SEIN GAUCHE/CC/1.png"."""
    folders = []
    for folder in map(str, reversed(PurePosixPath(name).parent.parts)):
        match = _words(folder)
        if not match or match.end() < len(folder) or not _NOBODY.fullmatch(folder[: match.start()]):
            return folders
        folders.append(folder)
    return folders


def _above(name: str) -> PurePosixPath:
    """The folder of a file that may stand for a patient or an exam."""
    folders = PurePosixPath(name).parent.parts
    return PurePosixPath(*folders[: len(folders) - len(_named_after_views(name))])


def _folder(names: Iterable[str]) -> str:
    """The innermost folder that holds all of the files, "." for the root."""
    return os.path.commonpath([PurePosixPath("/", _above(name)) for name in names])[1:] or "."


def without_copies(root: Path, listing: image_files.Found) -> image_files.Found:
    """The same without the files that are an image of the same patient, study, side, view and size once more: the same
    SOP instance, or where there is no such number the same bytes."""
    groups: dict[tuple, list[str]] = {}
    for name, fields in listing.images.items():
        content = fields.image if fields.image not in ("", name) else (root / name).stat().st_size
        key = (fields.patient, fields.study, fields.laterality, fields.view, fields.size, content)
        groups.setdefault(key, []).append(name)
    firsts: dict[tuple, str] = {}
    others = list(listing.others)
    for key, names in groups.items():
        for name in names if len(names) > 1 else ():
            same = hashlib.sha256((root / name).read_bytes()).digest() if isinstance(key[-1], int) else b""
            first = firsts.setdefault((key, same), name)
            if first != name:
                others.append(image_files.other(name, f"{COPY}: {first}"))
    gone = {other.file for other in others}
    return listing._replace(
        images={name: fields for name, fields in listing.images.items() if name not in gone}, others=sorted(others)
    )


def grouped(root: Path | str, listing: image_files.Found) -> list[Exam]:
    """The exams of what `read` found, in order of name."""
    studies: dict[tuple[str, str], list[str]] = {}
    for name, fields in listing.images.items():
        studies.setdefault((fields.patient, fields.study), []).append(name)
    folders = [(_folder(names), tuple(names)) for names in studies.values()]
    there = tuple(f"{folder}/" for folder, _ in folders)
    lost = {_folder([problem.file]) for problem in listing.problems}
    folders += [(folder, ()) for folder in sorted(lost) if "./" not in there and not f"{folder}/".startswith(there)]
    named = [(Path(root).resolve().name if folder == "." else folder, files) for folder, files in folders]
    several = {name for name, number in collections.Counter(name for name, _ in named).items() if number > 1}
    seen: collections.Counter = collections.Counter()
    exams = []
    for name, files in named:
        seen[name] += 1
        exams.append(Exam(f"{name} ({seen[name]})" if name in several else name, files))
    return sorted(exams)


def of_files(files: Iterable[Path | str]) -> dict[str, Fields]:
    """File -> whose and what it is, by its header, name and folder, of files given one by one.

    Raises:
        dicom.Unreadable: a DICOM file's header cannot be read.
    """
    names = [str(file) for file in files]
    return identified({name: Fields() if image_files.is_picture(name) else dicom.read_fields(name) for name in names})


def other_views(images: Mapping[str, Fields]) -> dict[str, tuple[str, ...]]:
    """File -> the other files of its breast, but those of other views than CC and MLO; of images as `read` finds them.

    As `manifest.other_views` does of the rows of a table.
    """
    breasts: dict[tuple, list[str]] = {}
    for name, fields in images.items():
        if fields.view in ("CC", "MLO", ""):
            breasts.setdefault(_breast(name, fields), []).append(name)
    return {
        name: tuple(other for other in breasts.get(_breast(name, fields), ()) if other != name)
        for name, fields in images.items()
    }


def _breast(name: str, fields: Fields) -> tuple[str, str, str]:
    return fields.patient, fields.study, fields.laterality or f"?{name}"


def left_out(images: Mapping[str, Fields], every_view: bool = False) -> dict[str, str]:
    """File -> why it is no screening view, of the images of an exam that are none. A view that nothing names is one.

    With `every_view` only those that are no mammograms are left out.
    """
    if every_view:
        return {name: _other_modality(fields) for name, fields in images.items() if "other_modality" in fields.flags}
    reasons = dict(zip(images, units.not_screening([_view(fields) for fields in images.values()])))
    for name, fields in images.items():
        if reasons[name] == "other_modality":
            reasons[name] = _other_modality(fields)
    return {name: reason for name, reason in reasons.items() if reason}


def _view(fields: Fields) -> units.View:
    """A secondary capture that names its view, as a digitised film does, has no flag."""
    flags = (*fields.flags, "secondary_capture") if "Secondary Capture" in fields.kind else fields.flags
    return units.View(fields.laterality, fields.view, flags)


def _other_modality(fields: Fields) -> str:
    return f"other_modality: {fields.kind}".removesuffix(": ")
