"""mini-MIAS: PGM films of 1024 x 1024 pixels and Info.txt, as distributed.

Facts about the set that this adapter rests on: film 2k - 1 and film 2k are a patient's pair; all are MLO; a circle's
origin is the bottom left corner. Info.txt says which of a pair is left, and the burned-in markers contradict it, so
laterality stays unknown and each film is a breast of its own.
"""

import re
from pathlib import Path
from typing import NamedTuple

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

LICENCE = "research use only (see Licence.txt of the mini-MIAS database)"
CITATION = (
    "J Suckling et al. (1994): The Mammographic Image Analysis Society Digital Mammogram Database. "
    "Excerpta Medica, International Congress Series 1069, 375-378."
)
SIZE = 1024
LABELS = {
    "CALC": "calcification",
    "CIRC": "mass",
    "SPIC": "mass",
    "MISC": "mass",
    "ARCH": "architectural_distortion",
    "ASYM": "asymmetry",
}
_FILM = re.compile(r"mdb\d")
_LINE = re.compile(
    r"mdb(?P<number>[0-9]{3})\s+(?P<tissue>[FGD])\s+(?P<finding>NORM|CALC|CIRC|SPIC|MISC|ARCH|ASYM)"
    r"(?P<rest>(?:\s.*)?)"
)


class Finding(NamedTuple):
    """A line of Info.txt."""

    film: str  # "mdb001"
    tissue: str  # F, G or D
    finding: str  # NORM or a key of LABELS
    severity: str  # B, M or ""
    circle: tuple[int, int, int] | None  # x, y from the bottom left corner, radius
    row: str  # "Info.txt:105"


def read(root: str | Path, val: float = 0.1, test: float = 0.2) -> SourceTable:
    """The films of Info.txt in `root`; `val` and `test` are the expected fractions of patients.

    Raises:
        UserError: `root` has no Info.txt.
    """
    root = Path(root)
    if not (root / "Info.txt").is_file():
        raise UserError(f"{root} has no Info.txt. Give --root, the folder of the mini-MIAS files as distributed.")
    films, problems = parse(root / "Info.txt")
    table_rows = sum(map(len, films.values())) + len(problems)
    rows = [_row(film, findings, val, test) for film, findings in films.items()]
    for name in sorted(path.name for path in root.iterdir()):
        film = name.lower().removesuffix(".pgm")
        if film != name.lower() and _FILM.match(film) and film not in films:
            problems.append(Problem(name, "source", "no line in Info.txt", "complete Info.txt", film))
    return SourceTable(frame(rows), problems, LICENCE, CITATION, public_ids=True, partial=True, table_rows=table_rows)


def parse(path: Path) -> tuple[dict[str, list[Finding]], list[Problem]]:
    """Info.txt -> the findings of each film, in the order of the file; and the lines of films that say nothing known.

    A film whose tissue differs between its lines has the first line's.
    """
    films: dict[str, list[Finding]] = {}
    problems = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        if not _FILM.match(line.strip()):
            continue  # the description above the lines of films
        row = f"{path.name}:{number}"
        match = _LINE.fullmatch(line.strip())
        if not match:
            problems.append(Problem("", "source", "malformed line", "restore the line as distributed", row=row))
            continue
        rest = match["rest"].split()
        severity = rest[0] if rest and rest[0] in ("B", "M") else ""
        numbers = tuple(int(value) for value in rest if value.isascii() and value.isdigit() and len(value) < 7)
        circle = numbers if len(numbers) == 3 and box(numbers) else None
        film = f"mdb{match['number']}"
        films.setdefault(film, []).append(Finding(film, match["tissue"], match["finding"], severity, circle, row))
    return films, problems


def box(circle: tuple[int, int, int]) -> list[int]:
    """A circle (x, y up from the bottom left, radius) -> [x0, y0, x1, y1] with y down from the top left.

    Clipped to the film: some circles reach over its edge. [] for one that lies beside it.
    """
    x, y, radius = circle
    row = SIZE - y
    corners = (x - radius, row - radius, x + radius, row + radius)
    x0, y0, x1, y1 = (min(max(value, 0), SIZE) for value in corners)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else []


def _row(film: str, findings: list[Finding], val: float, test: float) -> dict:
    patient = f"mias{(int(film[3:]) + 1) // 2:03d}"
    texts = captions.mias([finding._asdict() for finding in findings])
    abnormal = [finding for finding in findings if finding.finding in LABELS]
    labels = {"density": findings[0].tissue, "abnormal": int(bool(abnormal))}
    if abnormal:
        labels |= {LABELS[finding.finding]: 1 for finding in abnormal}
        labels["abnormality"] = ",".join(dict.fromkeys(finding.finding for finding in abnormal))
        labels["cancer"] = int(any(finding.severity == "M" for finding in abnormal))
    else:
        labels |= dict.fromkeys(LABELS.values(), 0) | {"cancer": 0}
    return {
        "dataset": "mias",
        "patient": patient,
        "study": patient,
        "image": film,
        "file": f"{film}.pgm",
        "row": findings[0].row,
        "size": f"{SIZE} {SIZE}",
        "view": "MLO",
        "split": split_of(patient, val, test),
        "texts": texts,
        "sections": ["findings", "impression"][: len(texts)],
        "labels": labels,
        "boxes": [{"label": LABELS[f.finding], "box": box(f.circle)} for f in abnormal if f.circle],
    }
