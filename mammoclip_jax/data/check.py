"""The dry run of `prepare`: what a source holds, and all that does not fit together, without writing anything."""

import collections
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data import increment
from mammoclip_jax.data.build import content, kinds
from mammoclip_jax.data.identity import line
from mammoclip_jax.data.manifest import Problem, SourceTable, breast_keys
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.private import settled
from mammoclip_jax.data.text import duplicates
from mammoclip_jax.data.text.label_values import names_of

_THREADS = 8
_EXAMPLES, _LETTERS = 3, 60      # of a section
_NEARLY = 0.9           # TF-IDF cosine from which on two reports say the same


def check(table: SourceTable, root: Path | str, headers: bool = True, names: bool = False,
          header_identities: bool = True, recogniser: str = "") -> dict:
    """Counts a source and lists its mismatches.

    Args:
        table: what an adapter read.
        root: folder of the files.
        headers: read the header of each DICOM file that is there, and compare it with the tables.
        names: show the names of files and images of a private source as well.
        header_identities, recogniser: as in `private.settled`: what takes identities out of the examples.

    Returns:
        table_rows, images_in, images (rows that hold together, whether or not their files are there), studies,
        patients, boxes, texts, splits, views, lateralities, vendors {value: images}, labels {split: {label:
        {value: images}}}, box_labels {split: {label: boxes}}, files {found, missing}, header_flags {flag: images},
        reports {breasts, different, nearly_different} (the texts of a breast; alike ones are no negatives),
        sections {kept, dropped: {section: {reports, examples}}} (what becomes of the reports, without identities),
        without_findings (reports of an impression alone), deidentification (what ran), passed_over {kind: files that
        are no images of the set} and passed_over_files (as mismatches),
        quarantined (without missing files of a partial copy, and without mismatches that cost no image), reasons
        {class: number}, mismatches (list of {row, file, image, stage, reason, remedy}; of a private source without
        names).
    """
    root = Path(table.root or root)
    images_in = len(table.rows) + len(table.problems)
    done = settled(table, root, header_identities, recogniser, parts=True)
    table = done.table
    there, _ = increment.present(table, root)
    differing, flags = _headers(there.rows, root) if headers else ([], {})
    lost = [problem for problem in there.problems if problem.stage != "absent"]
    lost += [problem for problem in differing if problem.stage != "differs"]
    problems = lost + table.remarks + [problem for problem in differing if problem.stage == "differs"]
    rows = table.rows
    counts = {
        "table_rows": table.table_rows, "images_in": images_in, "images": len(rows), **content(rows),
        **{name: _values(rows[column]) for name, column in
           (("views", "view"), ("lateralities", "laterality"), ("vendors", "vendor"))},
        "labels": {split: _labels(part["labels"]) for split, part in rows.groupby("split")},
        "box_labels": {split: _box_labels(part["boxes"]) for split, part in rows.groupby("split")},
        "files": {"found": len(there.rows), "missing": sum(p.kind == "file missing" for p in there.problems)},
        "header_flags": flags,
        "reports": _reports(rows), "sections": _sections(rows), "without_findings": _without_findings(rows),
        "deidentification": done.ran,
        "passed_over": kinds(table.passed_over),
        "passed_over_files": [_shown(problem, table.public_ids or names) for problem in table.passed_over],
        "quarantined": len(lost), "reasons": _values(problem.kind for problem in problems),
    }
    return counts | {"mismatches": [_shown(problem, table.public_ids or names) for problem in problems]}


def _values(values: Iterable) -> dict:
    return dict(sorted(collections.Counter(map(str, values)).items()))


def _labels(column: Iterable[str]) -> dict[str, dict[str, int]]:
    """How many images have each value of each label; of many-valued ones (age) only how many have it."""
    found: dict[str, collections.Counter] = {}
    for labels in column:
        for name, value in json.loads(labels).items():
            found.setdefault(name, collections.Counter())[str(value)] += 1
    return {name: dict(sorted(values.items())) if len(values) <= 12 else {"known": values.total()}
            for name, values in sorted(found.items())}


def _box_labels(column: Iterable[str]) -> dict[str, int]:
    """How many boxes carry each label; one with several ("labels") counts for each."""
    found = (box for boxes in column for box in json.loads(boxes))
    return _values(label for box in found for label in names_of(box))


def _reports(rows: pd.DataFrame) -> dict[str, int]:
    breasts = rows[~breast_keys(rows).duplicated()]
    exact, near = duplicates.groups(breasts), duplicates.groups(breasts, _NEARLY)
    return {"breasts": int((exact >= 0).sum()), "different": len(set(exact) - {-1}),
            "nearly_different": len(set(near) - {-1})}


def _sections(rows: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Of each section that became a text, or part of one, and of each that did not: how many reports have it, and
    beginnings of some. The images of a study share a report."""
    found: dict[str, dict[str, dict]] = {"kept": {}, "dropped": {}}
    for row in rows.itertuples():
        parts = {what: list(named.items()) for what, named in json.loads(row.parts).items()}
        for what, named in ({"kept": list(zip(row.sections, row.texts))} | parts).items():
            for name, text in named:
                found[what].setdefault(name, {})[row.study, text] = None
    return {what: {name: _examples([text for _, text in texts]) for name, texts in sorted(named.items())}
            for what, named in found.items()}


def _examples(texts: list[str]) -> dict:
    some = list(dict.fromkeys(" ".join(text.split()) for text in texts))[:_EXAMPLES]
    return {"reports": len(texts), "examples": [text if len(text) <= _LETTERS else f"{text[:_LETTERS - 3]}..."
                                                for text in some]}


def _without_findings(rows: pd.DataFrame) -> int:
    return len({(row.study, *row.texts) for row in rows.itertuples()
                if "impression" in row.sections and "findings" not in row.sections})


def _headers(rows: pd.DataFrame, root: Path) -> tuple[list[Problem], dict[str, int]]:
    """The files that are no images by their header or say something else than the tables, and the flags counted."""
    jobs = [(row, root / row.file) for row in rows.itertuples() if not row.file.lower().endswith(dicom.PICTURES)]
    problems, flags = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda job: _header(*job), jobs)
        for problem, found in tqdm(results, total=len(jobs), desc="headers", unit="file", disable=None):
            problems += problem
            flags += found
    return problems, _values(flags)


def _header(row, path: Path) -> tuple[list[Problem], tuple[str, ...]]:
    try:
        fields = dicom.read_fields(path)
    except dicom.Unreadable as error:
        return [Problem(row.file, error.stage, error.reason, error.remedy, row.image, row.row)], ()
    problems = [
        Problem(row.file, "differs", f"{name} differs: {told} in the table, {found} in the file",
                "one of the two is wrong; the table's is used", row.image, row.row)
        for name, told, found in (("laterality", row.laterality, fields.laterality), ("view", row.view, fields.view))
        if told and found and told != found
    ]
    return problems, fields.flags


def _shown(problem: Problem, public: bool) -> dict:
    shown = problem._asdict()
    return shown if public else shown | {"file": "", "image": "", "reason": problem.kind, "row": line(problem.row)}
