"""CheXpert: chest radiographs with 14 labels, for region-aware work; with CheXpert Plus also the reports.

Files in the root, or in a CheXpert-v1.0* folder in it, as Stanford has them:

    train.csv, valid.csv        Path, Sex, Age, Frontal/Lateral, AP/PA, and the 14 labels; either may be left out
    test.csv                    optional: Path and labels, as released later
    train/patient00001/study1/view1_frontal.jpg
    df_chexpert_plus_240401.csv optional: path_to_image, section_findings, section_impression, race, ethnicity, ...

What becomes of uncertain and empty cells is said by policies (chest_labels.py). The official parts stay apart: train.csv is
the training part, of which `val` may be taken by patient, valid.csv (200 patients, read by three radiologists) is for
validation or, as in many papers, the test, test.csv (500 patients) is the test.
"""

import re
from pathlib import Path

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.sources import chest_labels, tables
from mammoclip_jax.data.sources.chest_labels import FINDINGS
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.errors import UserError

LICENCE = "Stanford University School of Medicine CheXpert Dataset Research Use Agreement: research only; do not share"
CITATION = (
    "J Irvin, P Rajpurkar, M Ko et al. (2019): CheXpert: a large chest radiograph dataset with uncertainty "
    "labels and expert comparison. AAAI 33, 590-597. https://doi.org/10.1609/aaai.v33i01.3301590"
)
PLUS = "df_chexpert_plus*.csv"
_PATH = re.compile(
    r"(?:.*/)?(?P<file>(?P<part>train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"(?P<view>view\d+_(?P<plane>frontal|lateral))\.\w+)",
    re.ASCII,
)


def read(
    root: str | Path,
    reports: str = "",
    valid: str = "val",
    val: float = 0.0,
    uncertain: str = "ignore",
    unmentioned: str = "ignore",
    views: str = "all",
    five_x: str | int = "",
) -> SourceTable:
    """The images of train.csv, valid.csv and test.csv.

    Args:
        reports: the table of CheXpert Plus, if it is not in the root.
        valid: what the 200 patients of valid.csv are: "val", or "test" as in many papers.
        val: expected fraction of the training patients to validate on.
        uncertain, unmentioned: what becomes of such cells, a name in `chest_labels.UNCERTAIN` and `UNMENTIONED`.
        views: "frontal" leaves lateral ones out.
        five_x: the list 5x200 (`chest_labels.five_x`), by number or CSV. All images of its patients leave the training
            for the test; those on the list have the label "five_x".

    Raises:
        UserError: there is no table, one lacks a column, or an option has no such value.
    """
    if valid not in ("val", "test"):
        raise UserError(f"--option=valid={valid} is neither val nor test.")
    chest_labels.check_policy(uncertain, unmentioned, views)
    root = _folder(Path(root))
    written, problems = _plus(root, reports)
    table_rows, rows = len(written) + len(problems), []
    for part in ("train", "valid", "test"):
        if not (root / f"{part}.csv").is_file():
            continue
        needed = [*FINDINGS, *([] if part == "test" else ["Sex", "Age", "Frontal/Lateral", "AP/PA"])]
        data = tables.read(root / f"{part}.csv", ["Path", *needed])
        table_rows += len(data)
        for line in data.to_dict("records"):
            match = _PATH.fullmatch(line["Path"])
            if not match or match["part"] != part:
                remedy = f"paths are {part}/patient00001/study1/view1_frontal.jpg; copy the table again"
                problems.append(Problem("", "source", "malformed path", remedy, row=line[ROW]))
                continue
            report = written.pop(_key(match), {})
            row = _row(line, match, report, chest_labels.labels(line, uncertain, unmentioned))
            if views == "frontal" and match["plane"] != "frontal":
                problems.append(chest_labels.other_view(row["view"], row["image"], line[ROW]))
                continue
            split = {"train": split_of(match["patient"], val, 0), "valid": valid, "test": "test"}[part]
            rows.append(row | {"split": split})
    rows = _listed(rows, five_x)
    remedy = "give the table of its image, or leave it"
    problems += [Problem("", "source", "report without image", remedy, row=line[ROW]) for line in written.values()]
    return SourceTable(
        frame(rows), problems, LICENCE, CITATION, public_ids=True, root=root, partial=True, table_rows=table_rows
    )


def _folder(root: Path) -> Path:
    for folder in (root, *sorted(root.glob("CheXpert-v1.0*"))):
        if any((folder / f"{part}.csv").is_file() for part in ("train", "valid", "test")):
            return folder
    raise UserError(
        f"{root} has no train.csv and no valid.csv. Give --root, the folder CheXpert-v1.0 or CheXpert-v1.0-small."
    )


def _plus(root: Path, reports: str) -> tuple[dict[str, dict], list[Problem]]:
    """Image -> its line of the CheXpert Plus table; and the lines that name no image or one again."""
    paths = [Path(reports)] if reports else sorted(path for folder in (root, root.parent) for path in folder.glob(PLUS))
    if not paths:
        return {}, []
    data = tables.read(paths[0], ["path_to_image", "section_findings", "section_impression"])
    lines: dict[str, dict] = {}
    problems = []
    for line in data.to_dict("records"):
        match = _PATH.fullmatch(line["path_to_image"])
        key = _key(match) if match else ""
        if match and key not in lines:
            lines[key] = line
            continue
        fault = "second report of an image" if match else "malformed path"
        problems.append(Problem("", "source", fault, "the first is used; copy the table again", row=line[ROW]))
    return lines, problems


def _key(match: re.Match) -> str:
    """An image of either release, whose files end differently."""
    return f"{match['part']}/{match['patient']}/{match['study']}/{match['view']}"


def _listed(rows: list[dict], asked: str | int) -> list[dict]:
    """The rows with the label "five_x" of those on the list, and their patients in the test."""
    chosen = chest_labels.five_x(rows, asked, [row["view"] != "LATERAL" for row in rows], "train")
    patients = {rows[place]["patient"] for place in chosen}
    moved = [row | {"split": "test"} if row["patient"] in patients else row for row in rows]
    return [chest_labels.listed(row, chosen.get(place)) for place, row in enumerate(moved)]


def _row(line: dict, match: re.Match, report: dict, labels: dict[str, int]) -> dict:
    sections = {name: report.get(f"section_{name}", "") for name in ("findings", "impression")}
    texts = {name: text for name, text in sections.items() if text}
    age = tables.number(line.get("Age", ""))
    about = {
        "age": age if isinstance(age, int) and 0 < age < 130 else None,  # 0: not known
        "sex": {"female": "F", "male": "M"}.get(line.get("Sex", "").lower()),
    }
    about |= {name: report.get(name) for name in ("race", "ethnicity")}
    view = "LATERAL" if match["plane"] == "lateral" else line.get("AP/PA", "").upper() or "FRONTAL"
    return {
        "dataset": "chexpert",
        "patient": match["patient"],
        "study": f"{match['patient']}/{match['study']}",
        "image": f"{match['patient']}/{match['study']}/{match['view']}",
        "file": match["file"],
        "row": line[ROW],
        "view": view,
        "texts": list(texts.values()),
        "sections": list(texts),
        "labels": labels | {name: value for name, value in about.items() if value not in (None, "")},
    }
