"""The dry run of `prepare`: what a source holds, and all that does not fit together, without writing anything."""

import collections
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data import increment, leave_out, reported
from mammoclip_jax.data.counts import content, kinds
from mammoclip_jax.data.identity import line
from mammoclip_jax.data.manifest import REMEDIES, Problem, SourceTable, box_fault, breast_keys, tuples
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.data.pool import in_threads
from mammoclip_jax.data.private import settled
from mammoclip_jax.data.text import duplicates
from mammoclip_jax.data.text.label_values import names_of

_THREADS = 8
_EXAMPLES, _LETTERS = 3, 60  # of a section
_NEARLY = 0.9  # TF-IDF cosine from which on two reports say the same


def check(
    table: SourceTable,
    root: Path | str,
    headers: bool = True,
    names: bool = False,
    header_identities: bool = True,
    recogniser: str = "",
    frames: str = "refuse",
) -> dict:
    """Counts a source and lists its mismatches.

    Args:
        table: what an adapter read.
        root: folder of the files.
        headers: read the header of each file that is there, for all that `prepare` would refuse by it or leave out, and
            compare it with the tables.
        names: show the names of files and images of a private source as well.
        header_identities, recogniser: as in `private.settled`: what takes identities out of the examples.
        frames: as in `Preprocessing`.

    Returns:
        table_rows, images_in, images (rows that hold together, whether or not their files are there), studies,
        patients, boxes, texts, splits, views, lateralities, vendors {value: images}, labels {split: {label:
        {value: images}}}, box_labels {split: {label: boxes}}, files {found, missing}, header_flags {flag: images},
        reports {breasts, different, nearly_different} (the texts of a breast; alike ones are no negatives),
        sections {kept, dropped: {section: {reports, examples}}} (what becomes of the reports, without identities),
        masks {channels, images} of a source that has any, lacking {findings, both: reports without them}
        (`reported.lacking`), deidentification (what ran), passed_over {kind: files that are no images of the set} and
        passed_over_files (as mismatches),
        quarantined (what is left out by its flags too; without missing files of a partial copy, and without mismatches
        that cost no image), reasons
        {class: number}, mismatches (list of {row, file, image, stage, reason, remedy}; of a private source without
        names).
    """
    root = Path(table.root or root)
    images_in = len(table.rows) + len(table.problems)
    done = settled(table, root, header_identities, recogniser, parts=True)
    table = done.table
    there, _ = increment.present(table, root)
    differing, flags = _headers(there, root, frames) if headers else ([], {})
    lost = [problem for problem in there.problems if problem.stage != "absent"]
    lost += [problem for problem in differing if problem.stage != "differs"]
    problems = lost + table.remarks + [problem for problem in differing if problem.stage == "differs"]
    rows = table.rows
    counts = {
        "table_rows": table.table_rows,
        "images_in": images_in,
        "images": len(rows),
        **content(rows),
        **{
            name: _values(rows[column].tolist())
            for name, column in (("views", "view"), ("lateralities", "laterality"), ("vendors", "vendor"))
        },
        "labels": {split: _labels(part["labels"].tolist()) for split, part in rows.groupby("split")},
        "box_labels": {split: _box_labels(part["boxes"].tolist()) for split, part in rows.groupby("split")},
        "files": {"found": len(there.rows), "missing": sum(p.kind == "file missing" for p in there.problems)},
        "header_flags": flags,
        "reports": _reports(rows),
        "masks": {"channels": list(table.masks.channels), "images": len(table.masks.of)} if table.masks else {},
        "lacking": reported.lacking(rows),
        "sections": {
            what: {name: _examples(texts) for name, texts in named.items()}
            for what, named in reported.by_section(rows).items()
        },
        "deidentification": done.ran,
        "passed_over": kinds(table.passed_over),
        "passed_over_files": [_shown(problem, table.public_ids or names) for problem in table.passed_over],
        "quarantined": len(lost),
        "reasons": _values(problem.kind for problem in problems),
    }
    return counts | {"mismatches": [_shown(problem, table.public_ids or names) for problem in problems]}


def _values(values: Iterable) -> dict:
    return dict(sorted(collections.Counter(map(str, values)).items()))


def _labels(column: Iterable[str]) -> dict[str, dict[str, int]]:
    """How many images have each value of each label; of many-valued ones (age) only how many have it."""
    counts: dict[str, collections.Counter] = {}
    for labels, images in collections.Counter(column).items():  # alike ones are read once
        for name, value in json.loads(labels).items():
            counts.setdefault(name, collections.Counter())[str(value)] += images
    return {
        name: dict(sorted(values.items())) if len(values) <= 12 else {"known": values.total()}
        for name, values in sorted(counts.items())
    }


def _box_labels(column: Iterable[str]) -> dict[str, int]:
    """How many boxes carry each label; one with several ("labels") counts for each."""
    items = (box for boxes in column if boxes != "[]" for box in json.loads(boxes))
    return _values(label for box in items for label in names_of(box))


def _reports(rows: pd.DataFrame) -> dict[str, int]:
    breasts = rows[~breast_keys(rows).duplicated()]
    exact, near = duplicates.groups(breasts), duplicates.groups(breasts, _NEARLY)
    return {
        "breasts": int((exact >= 0).sum()),
        "different": len(set(exact) - {-1}),
        "nearly_different": len(set(near) - {-1}),
    }


def _examples(texts: list[str]) -> dict:
    some = list(dict.fromkeys(" ".join(text.split()) for text in texts))[:_EXAMPLES]
    return {
        "reports": len(texts),
        "examples": [text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..." for text in some],
    }


def _headers(table: SourceTable, root: Path, frames: str) -> tuple[list[Problem], dict[str, int]]:
    """What is wrong with the files by their header, or differs from the tables; and the flags of those that can be read,
    counted."""
    problems, flags = [], []
    rows = list(tuples(table.rows[["file", "image", "row", "laterality", "view", "boxes"]]))
    results = in_threads(lambda row: _header(row, root / row.file, frames, table.leave_out), rows, _THREADS)
    for problem, names in tqdm(results, total=len(rows), desc="headers", unit="file", disable=None):
        problems += problem
        flags += names
    return problems, _values(flags)


def _header(row, path: Path, frames: str, left_out: Sequence[str]) -> tuple[list[Problem], tuple[str, ...]]:
    def problem(stage: str, reason: str, remedy: str) -> list[Problem]:
        return [Problem(row.file, stage, reason, remedy, row.image, row.row)]

    unreadable = None
    try:
        fields = dicom.look(path, frames)
    except dicom.Unreadable as error:
        unreadable, fields = error, _fields(path)
    if reason := leave_out.reason(fields.flags, left_out):
        return problem(leave_out.STAGE, reason, leave_out.REMEDY), fields.flags
    if unreadable:
        return problem(unreadable.stage, unreadable.reason, unreadable.remedy), fields.flags
    if fault := box_fault(row.boxes, fields.size):
        return problem("boxes", fault, REMEDIES[fault.split(":")[0]]), fields.flags
    differing = [
        problem(
            "differs",
            f"{name} differs: {told} in the table, {stored} in the file",
            "one of the two is wrong; the table's is used",
        )
        for name, told, stored in (("laterality", row.laterality, fields.laterality), ("view", row.view, fields.view))
        if told and stored and told != stored
    ]
    return sum(differing, []), fields.flags


def _fields(path: Path) -> Fields:
    """What the header of a file that is no image says; it may be left out for that."""
    try:
        return dicom.read_fields(path)
    except dicom.Unreadable:
        return Fields()


def _shown(problem: Problem, public: bool) -> dict:
    shown = problem._asdict()
    return shown if public else shown | {"file": "", "image": "", "reason": problem.kind, "row": line(problem.row)}
