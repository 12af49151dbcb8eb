"""The 14 labels that CheXpert and MIMIC-CXR share: from cells to labels by a named policy, and the list 5x200.

A cell is 1 (there), 0 (said not to be there), -1 (uncertain) or empty (not mentioned). Whatever the policy, `NAME_uncertain`
is 1 where the cell is -1, so that nothing is lost.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mammoclip_jax.data import leave_out
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.sources import tables
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

# Column of the tables -> key of the labels.
FINDINGS = {
    name: name.lower().replace(" ", "_")
    for name in (
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    )
}
_EACH = tuple(FINDINGS.values())
# What an uncertain cell becomes, by finding; one that is not named stays unknown. "ignore", "ones" and "zeros" are U-Ignore,
# U-Ones and U-Zeros of Irvin et al. 2019 (section 3.1). "mixed": ones of atelectasis and edema, for which that paper found
# U-Ones best among these three, and zeros of all others, as LibAUC's loader of CheXpert has it (Yuan et al. 2021,
# arXiv:2012.03173).
UNCERTAIN: dict[str, dict[str, int]] = {
    "ignore": {},
    "ones": dict.fromkeys(_EACH, 1),
    "zeros": dict.fromkeys(_EACH, 0),
    "mixed": {key: int(key in ("atelectasis", "edema")) for key in _EACH},
}
# What an empty cell becomes: unknown, or 0, as MedCLIP, LibAUC and most who train on these tables have it.
UNMENTIONED: dict[str, int | None] = {"ignore": None, "zeros": 0}
VIEWS = ("all", "frontal")
# CheXpert's competition tasks (Irvin et al. 2019), of which 5x200 has so many images each.
FIVE = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion")
FIVE_X = "five_x"  # key of the labels of an image on that list: which of FIVE it shows


def check_policy(uncertain: str, unmentioned: str, views: str) -> None:
    """Raises UserError for a policy or a choice of views that there is not."""
    check_name(uncertain, UNCERTAIN, "policy --option=uncertain")
    check_name(unmentioned, UNMENTIONED, "policy --option=unmentioned")
    check_name(views, VIEWS, "choice --option=views")


def labels(line: Mapping[str, str], uncertain: str = "ignore", unmentioned: str = "ignore") -> dict[str, int]:
    """The labels of a line with the columns FINDINGS, by the policies of these names.

    Cells that are none of 1, 0, -1 and "" are unknown under every policy, as is a column that is not there.
    """
    cells = {key: line[column].strip() for column, key in FINDINGS.items() if column in line}
    values: dict[str, int] = {}
    for key, cell in cells.items():
        value = UNMENTIONED[unmentioned] if not cell else tables.number(cell)
        if value == -1:
            values[f"{key}_uncertain"] = 1
            value = UNCERTAIN[uncertain].get(key)
        if value in (0, 1):
            values[key] = int(value)
    return values


def other_view(view: str, image: str, row: str) -> Problem:
    """That a view is no frontal one, which was asked for."""
    remedy = "none; --option=views=all takes all views"
    return Problem("", leave_out.STAGE, f"{leave_out.STAGE}, no frontal view: {view or 'unknown'}", remedy, image, row)


def only_one(values: Mapping[str, int]) -> str:
    """The one of FIVE that an image shows: 1, and the four others neither 1 nor uncertain. "" where there is no such one."""
    there = [key for key in FIVE if values.get(key) == 1]
    doubtful = any(values.get(f"{key}_uncertain") for key in FIVE)
    return there[0] if len(there) == 1 and not doubtful else ""


def five_x(rows: Sequence[dict], asked: str | int, frontal: Iterable[bool], split: str) -> dict[int, str]:
    """Place among the rows -> its class, of those on the list 5x200.

    Huang et al. 2021 (GLoRIA, ICCV) took 200 images a class from CheXpert's training part that show one of the five
    alone, and published which; MedCLIP evaluates on these. Given their CSV (a column "Path" or "imgpath", and the five),
    these are taken. Given a number, so many a class are: frontal views in `split` for which `only_one` has an answer, one a
    patient, in the order of a hash of the image's identifier; a patient counts for the rarest class first.

    Args:
        asked: a number, or the path of a CSV; "" or 0: none.
        frontal: of each row, whether it is a frontal view.

    Raises:
        UserError: no such file, or a column or all its images are missing.
    """
    if not asked:
        return {}
    if not str(asked).isdigit():
        return _listed(rows, Path(str(asked)))
    candidates: dict[str, list[int]] = {key: [] for key in FIVE}
    for place, (row, good) in enumerate(zip(rows, frontal, strict=True)):
        key = only_one(row["labels"]) if good and row["split"] == split else ""
        if key:
            candidates[key].append(place)
    chosen: dict[int, str] = {}
    patients: set[str] = set()
    for key in sorted(FIVE, key=lambda key: (len(candidates[key]), key)):
        taken = 0
        for place in sorted(candidates[key], key=lambda place: _hashed(rows[place]["image"])):
            if taken < int(asked) and rows[place]["patient"] not in patients:
                chosen[place], taken = key, taken + 1
                patients.add(rows[place]["patient"])
    return chosen


def listed(row: dict, five: str | None) -> dict:
    """The row of an image, with its class on the list where it is on it."""
    return row | {"labels": row["labels"] | {FIVE_X: five}} if five else row


def _listed(rows: Sequence[dict], path: Path) -> dict[int, str]:
    data = tables.read(path)
    column = next((name for name in ("Path", "imgpath") if name in data), "Path")
    names = {key: name for name, key in FINDINGS.items() if key in FIVE}
    tables.require(data, path, [column, *names.values()])
    places = {_stem(row["file"]): place for place, row in enumerate(rows)}
    chosen = {}
    for line in data.to_dict("records"):
        there = [key for key, name in names.items() if tables.number(line[name]) == 1]
        place = places.get(_stem(line[column]))
        if place is not None and len(there) == 1:
            chosen[place] = there[0]
    if not chosen:
        raise UserError(
            f"{path} lists no image of this data set with one of the five: give GLoRIA's chexpert_5x200.csv."
        )
    return chosen


def _stem(path: str) -> str:
    """patient00001/study1/view1_frontal, or the last three parts of any other path, without its suffix."""
    return re.sub(r"\.\w+$", "", "/".join(path.replace("\\", "/").split("/")[-3:]))


def _hashed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
