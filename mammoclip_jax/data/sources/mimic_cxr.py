"""MIMIC-CXR and MIMIC-CXR-JPG: chest radiographs with free-text reports, for region-aware work; credentialed access.

Files below the root, as PhysioNet has them (x is 0 or 1; each table also as .csv.gz):

    mimic-cxr-2.x.0-metadata.csv    dicom_id, subject_id, study_id, ViewPosition, Rows, Columns, StudyDate, ...
    mimic-cxr-2.x.0-split.csv       the official split by patient: train, validate, test
    mimic-cxr-2.x.0-chexpert.csv    optional: 14 labels a study, by CheXpert's labeller
    mimic-cxr-2.x.0-negbio.csv      optional: the same by NegBio
    files/p10/p10000032/s50414267/DICOM_ID.jpg or .dcm
    files/p10/p10000032/s50414267.txt, or the same below mimic-cxr-reports/: optional reports

Of a report the findings and the impression become texts; where it has neither, what stands under no heading. What becomes
of uncertain and empty cells is said by policies (chest_labels.py). Dates are shifted by the owner, by the same days for all
studies of a patient.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame
from mammoclip_jax.data.sources import chest_labels, tables
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.data.text.sections import Told, told
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

LICENCE = "PhysioNet Credentialed Health Data License 1.5.0: credentialed users only; do not share"
CITATION = (
    "A E W Johnson, T J Pollard, S J Berkowitz et al. (2019): MIMIC-CXR, a de-identified publicly available "
    "database of chest radiographs with free-text reports. Scientific Data 6, 317. "
    "https://doi.org/10.1038/s41597-019-0322-0"
)
LABELLERS = ("chexpert", "negbio")
FRONTAL = ("AP", "PA")  # of ViewPosition
IMAGE_SUFFIXES = (".dcm", ".jpg", ".png")
_THREADS = 16
_TITLE = re.compile(r"^\W*(?:(?:FINAL|WET|PRELIMINARY)\s+(?:REPORT|READ)\W*)+", re.IGNORECASE)


def read(
    root: str | Path,
    reports: str = "",
    labeller: str = "chexpert",
    uncertain: str = "ignore",
    unmentioned: str = "ignore",
    views: str = "all",
    five_x: int = 0,
) -> SourceTable:
    """The images of the metadata table.

    Args:
        reports: folder that holds p10/p10000032/s50414267.txt, if it is not below the root.
        labeller: whose labels, "chexpert" or "negbio".
        uncertain, unmentioned: what becomes of such cells, a name in `chest_labels.UNCERTAIN` and `UNMENTIONED`.
        views: "frontal" takes AP and PA alone.
        five_x: so many images a class of the official test part get the label "five_x" (`chest_labels.five_x`).

    Raises:
        UserError: the metadata or the split table is missing or is another one, `reports` is no folder, or an option has no
            such value.
    """
    chest_labels.check_policy(uncertain, unmentioned, views)
    check_name(labeller, LABELLERS, "choice --option=labeller")
    root = Path(root)
    metadata = tables.read(
        _path(root, "metadata"), ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate"]
    )
    splits, problems = _by(_path(root, "split"), ["dicom_id", "split"], "dicom_id")
    labelled = _path(root, labeller)
    labels, repeated = (
        _by(labelled, ["study_id", *chest_labels.FINDINGS], "study_id") if labelled.is_file() else ({}, [])
    )
    problems += repeated
    table_rows = len(metadata) + len(splits) + len(labels) + len(problems)
    stems = [_stem(line) for line in metadata.to_dict("records")]
    suffix = _suffix(root, stems)
    texts = _reports(_report_folder(root, reports), {stem.rpartition("/")[0] for stem in stems if stem})
    rows = []
    days = tables.study_days(metadata["subject_id"], metadata["StudyDate"], column="StudyDate")
    for line, stem, day in zip(metadata.to_dict("records"), stems, days):
        split = splits.get(line["dicom_id"], {}).get("split", "")
        split = tables.SPLITS.get(split, split)
        fault = (
            "malformed identifier"
            if not stem
            else ""
            if split in SPLITS
            else "not in the split table"
            if not split
            else "unknown split"
        )
        if fault:
            problems.append(Problem("", "source", fault, "copy the tables again", line["dicom_id"], line[ROW]))
            continue
        view = line["ViewPosition"].upper()
        if views == "frontal" and view not in FRONTAL:
            problems.append(chest_labels.other_view(view, line["dicom_id"], line[ROW]))
            continue
        values = chest_labels.labels(labels.get(line["study_id"], {}), uncertain, unmentioned)
        written = texts.get(stem.rpartition("/")[0], Told({}, {}, {}))
        rows.append(
            {
                "dataset": "mimic_cxr",
                "patient": line["subject_id"],
                "study": line["study_id"],
                "image": line["dicom_id"],
                "file": stem + suffix,
                "row": line[ROW],
                "size": _size(line),
                "view": view,
                "split": split,
                "texts": list(written.texts.values()),
                "sections": list(written.texts),
                "labels": values | ({} if day is None else {"study_day": day}),
                "parts": written.parts,
            }
        )
    chosen = chest_labels.five_x(rows, five_x, [row["view"] in FRONTAL for row in rows], "test")
    rows = [chest_labels.listed(row, chosen.get(place)) for place, row in enumerate(rows)]
    problems += _unused(splits, set(metadata["dicom_id"])) + _unused(labels, set(metadata["study_id"]))
    return SourceTable(frame(rows), problems, LICENCE, CITATION, public_ids=True, partial=True, table_rows=table_rows)


def _path(root: Path, kind: str) -> Path:
    """The newest of the tables of this kind; the name it should have where there is none."""
    paths = sorted(path for end in ("csv", "csv.gz") for path in root.glob(f"mimic-cxr-2.?.0-{kind}.{end}"))
    return paths[-1] if paths else root / f"mimic-cxr-2.0.0-{kind}.csv.gz"


def _by(path: Path, columns: list[str], key: str) -> tuple[dict[str, dict], list[Problem]]:
    """key -> line; of several with the same key the first, the others are problems."""
    data = tables.read(path, columns)
    again = data[key].duplicated()
    remedy = "the first line is used; copy the table again"
    problems = [Problem("", "source", f"second line of the same {key}", remedy, row=row) for row in data[again][ROW]]
    return data[~again].set_index(key).to_dict("index"), problems


def _unused(lines: dict[str, dict], known: set[str]) -> list[Problem]:
    return [
        Problem("", "source", "no image in the metadata table", "copy the tables again", row=line[ROW])
        for key, line in lines.items()
        if key not in known
    ]


def _stem(line: dict) -> str:
    """files/p10/p10000032/s50414267/DICOM_ID, or "" where an identifier is malformed."""
    patient, study, image = line["subject_id"], line["study_id"], line["dicom_id"]
    number = re.compile(r"[0-9]{8}")
    if not (number.fullmatch(patient) and number.fullmatch(study) and re.fullmatch(r"[A-Za-z0-9_-]{1,99}", image)):
        return ""
    return f"files/p{patient[:2]}/p{patient}/s{study}/{image}"


def _suffix(root: Path, stems: list[str]) -> str:
    """What the images end with: a copy holds one kind. That of the first one found, ".jpg" where there is none."""
    if (root / "files").is_dir():
        for stem in filter(None, stems):
            for suffix in IMAGE_SUFFIXES:
                if (root / (stem + suffix)).is_file():
                    return suffix
    return ".jpg"


def _size(line: dict) -> str:
    height, width = (tables.number(line[name]) for name in ("Rows", "Columns"))
    known = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    return f"{height} {width}" if known else ""


def _report_folder(root: Path, reports: str) -> Path | None:
    if reports and not Path(reports).is_dir():
        raise UserError(f"--option=reports={reports} is no folder. Give the one that holds p10, p11, ...")
    folders = (
        [Path(reports)]
        if reports
        else [root / "mimic-cxr-reports" / "files", root / "mimic-cxr-reports", root / "files"]
    )
    return next((folder for folder in folders if folder.is_dir()), None)


def _reports(folder: Path | None, studies: set[str]) -> dict[str, Told]:
    """files/p10/p10000032/s50414267 -> what its report says, of the studies whose report is there."""
    if folder is None:
        return {}
    names = sorted(studies)
    with ThreadPoolExecutor(_THREADS) as pool:
        reports = pool.map(lambda name: _report(folder / (name.removeprefix("files/") + ".txt")), names)
        return dict(zip(names, tqdm(reports, total=len(names), desc="reports", unit="file", disable=None)))


def _report(path: Path) -> Told:
    try:
        report = told(_TITLE.sub("", path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return Told({}, {}, {})
    if {"findings", "impression"} & set(report.texts):
        return report
    rest = {name: text for name, text in report.texts.items() if name == "report"}
    return Told(rest, rest, {name: text for name, text in report.kept.items() if name not in rest})
