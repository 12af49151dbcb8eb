"""VinDr-Mammo 1.0.0: 5,000 four-view screening exams, double read, with boxes around the findings.

Files, as PhysioNet distributes them: `breast-level_annotations.csv` (20,000 lines, one an image) and
`finding_annotations.csv` (20,486 lines, one a finding, or "No Finding"), both in the root or in a folder below it, and
images/{study_id}/{image_id}.dicom (or .dcm). `metadata.csv` is optional: it adds vendor and age. The findings may also
be the 33 columns that are distributed with folds, under that name or as `vindr_detection_v1_folds.csv`.

- The set has no patient ids: a study is a patient.
- A line of the findings table describes one finding; 271 lines of other findings belong to images with a mass. The
  lines of an image are merged here: a label is 1 if any line says so.
- The radiologists marked everything worth a box, so what they did not mark is 0.
- One box may have several categories: `label` is the first, `labels` has them all where there are several, and it counts
  for each in training and evaluation. So there are
  2,254 boxes, and more when counted by label. Some reach a few pixels beyond the image; they are clipped when placed.
- BI-RADS and density are the breast's and equal in its views; a box has the category of its finding, if it has one.

A line with a cell that cannot be read, or that contradicts another line, is a problem, never a guess. An image of which
a findings line had to be left out keeps what the other lines say is there; what is not there is then unknown. Where
only BI-RADS, density or view differ between lines, the image and its boxes stay: what the lines of a breast disagree on
is unknown, and a findings line gives way to the breast table.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import fields
from mammoclip_jax.data.pixels.published import vindr_box
from mammoclip_jax.data.sources import faults, tables
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

LICENCE = "PhysioNet Restricted Health Data License 1.5.0"
CITATION = (
    "Pham, H. H., Nguyen Trung, H., & Nguyen, H. Q. (2022). VinDr-Mammo: A large-scale benchmark dataset for "
    "computer-aided detection and diagnosis in full-field digital mammography (version 1.0.0). PhysioNet. "
    "https://doi.org/10.13026/br2v-7517. Nguyen et al., Scientific Data 10, 277 (2023)."
)
BREASTS = "breast-level_annotations.csv"
LINES = "finding_annotations.csv"
FOLDS = "vindr_detection_v1_folds.csv"
METADATA = "metadata.csv"
FINDINGS = {
    "Mass": "mass",
    "Suspicious Calcification": "suspicious_calcification",
    "Asymmetry": "asymmetry",
    "Focal Asymmetry": "focal_asymmetry",
    "Global Asymmetry": "global_asymmetry",
    "Architectural Distortion": "architectural_distortion",
    "Skin Thickening": "skin_thickening",
    "Skin Retraction": "skin_retraction",
    "Nipple Retraction": "nipple_retraction",
    "Suspicious Lymph Node": "suspicious_lymph_node",
}
NO_FINDING = "No Finding"
DECISIVE = ("study_id", "laterality", "height", "width", "split")  # a findings line must agree with the image's
SHARED = (*DECISIVE, "view_position", "breast_birads", "breast_density")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
BOXES = ("correct", "published")
BIRADS = {f"BI-RADS {category}": category for category in range(7)} | {"": None}
DENSITY = {f"DENSITY {letter}": letter for letter in "ABCD"} | {"": None}
WHOLE = "[1-9][0-9]{0,5}"
REMEDY = "compare the line with the table as distributed"


def read(root: str | Path, val: float = 0.1, boxes: str = "correct") -> SourceTable:
    """The 20,000 images of the tables.

    Args:
        val: expected fraction of the training studies to validate on; 0 leaves the official split as it is.
        boxes: "correct"; or "published": with the swapped clamp of Mammo-CLIP's released preprocessing, which cuts 61
            boxes (and loses 12) that lie low in a tall image.

    Raises:
        UserError: a table is missing or is another one; unknown `boxes`.
    """
    root = Path(root)
    check_boxes(boxes)
    breasts = tables.read(locate(root, BREASTS), ("image_id", *SHARED))
    path = next((path for path in (locate(root, LINES), locate(root, FOLDS)) if path.is_file()), root / LINES)
    lines = findings(tables.read(path), path)
    clamp = vindr_box if boxes == "published" else None
    rows, problems, remarks = assemble(breasts, lines, val, clamp)
    known = _metadata(locate(root, METADATA))
    for row in rows:
        vendor, age = known.get(row["image"], ("", None))
        row |= {"file": dicom_file(row["study"], row["image"]), "vendor": vendor}
        row["labels"] |= {} if age is None else {"age": age}
    return SourceTable(
        frame(rows),
        problems,
        LICENCE,
        CITATION,
        public_ids=True,
        partial=True,
        table_rows=len(breasts) + len(lines),
        remarks=remarks,
    )


def check_boxes(boxes: str) -> None:
    """Raises UserError unless `boxes` is one of BOXES."""
    if boxes not in BOXES:
        near = suggestion(str(boxes), BOXES)
        raise UserError(f"there is no --option=boxes={boxes}.{near} Known: {', '.join(BOXES)}.")


def locate(root: Path, name: str) -> Path:
    """The table `name` in root or in a folder below it; root / name where there is none."""
    return next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()), root / name)


def findings(lines: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The findings table from `path` with the owner's names of columns and images, whichever of the two forms it has.

    In the form with folds some "No Finding" lines have boxes, which mean nothing.

    Raises:
        UserError: a column is missing.
    """
    folds = "fold" in lines
    if folds:
        lines = lines.rename(columns={"patient_id": "study_id", "view": "view_position"})
    tables.require(lines, path, ("image_id", *SHARED, "finding_categories", "finding_birads", *CORNERS))
    if folds:
        lines = lines.assign(image_id=lines["image_id"].str.removesuffix(".png"))
        lines.loc[lines["finding_categories"].str.contains(NO_FINDING), list(CORNERS)] = ""
    return lines


def dicom_file(study: str, image: str) -> str:
    """The path of an image below root as distributed."""
    return f"images/{study}/{image}.dicom"


def assemble(
    images: pd.DataFrame, lines: pd.DataFrame, val: float, clamp: Callable[[list, tuple[int, int]], list] | None = None
) -> tuple[list[dict], list[Problem], list[Problem]]:
    """Manifest rows (without file) of a table of images and one of findings; what could not be used; remarks.

    Args:
        images: `image_id` and SHARED, a line an image.
        lines: the same, with finding_categories, finding_birads and CORNERS.
        clamp: (box, (height, width)) -> box in original pixels.
    """
    images = images.assign(split=images["split"].str.lower().replace(tables.SPLITS))
    lines = lines.assign(split=lines["split"].str.lower().replace(tables.SPLITS))
    fault = _image_faults(images)
    problems = [_problem(line, reason) for line, reason in zip(images.itertuples(), fault) if reason]
    images = images[fault == ""]
    images, remarks = _agreed(images)
    contents, line_problems, line_remarks = _merge(images, lines, clamp)
    rows = [_row(line, contents.get(line.image_id, _Found(whole=False)), val) for line in images.itertuples()]
    return rows, problems + line_problems, remarks + line_remarks


def _problem(line: Any, reason: str) -> Problem:
    """A line (with `row` and `image_id`) that cannot be used."""
    return Problem("", "source", reason, REMEDY, line.image_id, line.row)


def _agreed(images: pd.DataFrame) -> tuple[pd.DataFrame, list[Problem]]:
    """The images without the breast labels that their breast's lines disagree on, and a remark for each line."""
    breast = images["study_id"] + "/" + images["laterality"]
    remarks = []
    for name in ("breast_birads", "breast_density"):
        differs = faults.disagree(breast, images[name])
        remarks += [_problem(line, f"contradiction: {name} of a breast") for line in images[differs].itertuples()]
        images = images.assign(**{name: images[name].mask(differs, "")})
    return images, remarks


def _image_faults(images: pd.DataFrame) -> pd.Series:
    unreadable = {
        "height": ~images["height"].str.fullmatch(WHOLE),
        "width": ~images["width"].str.fullmatch(WHOLE),
        "breast_birads": ~images["breast_birads"].isin(BIRADS),
        "breast_density": ~images["breast_density"].isin(DENSITY),
    }
    split = images["split"].where(images["split"].isin(SPLITS), "")
    return faults.first(
        images.index,
        [
            *((bad, f"unreadable cell: {name}") for name, bad in unreadable.items()),
            (faults.disagree(images["study_id"], split), "contradiction: splits of a study"),
        ],
    )


@dataclasses.dataclass
class _Found:
    """What the lines of an image say."""

    whole: bool = True  # it has lines, and every one could be used
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    boxes: list[dict] = dataclasses.field(default_factory=list)
    denials: list[Any] = dataclasses.field(default_factory=list)  # the lines that say "No Finding"


def _merge(images: pd.DataFrame, lines: pd.DataFrame, clamp) -> tuple[dict[str, _Found], list[Problem], list[Problem]]:
    known = images.drop_duplicates("image_id").set_index("image_id")[list(SHARED)]
    home = known.reindex(lines["image_id"]).set_axis(lines.index)
    fault = faults.first(
        lines.index,
        [
            (home["study_id"].isna(), "finding without image"),
            *((lines[name] != home[name], f"contradiction: {name} of an image") for name in DECISIVE),
            (~lines["finding_birads"].isin(BIRADS), "unreadable cell: finding_birads"),
        ],
    )
    categories = {cell: _categories(cell) for cell in lines["finding_categories"].unique()}
    contents: dict[str, _Found] = {}
    problems = []
    for line, reason in zip(lines.itertuples(), fault):
        image = contents.setdefault(line.image_id, _Found())
        labels, unreadable = categories[line.finding_categories]
        box, bad_box = (None, "") if reason or unreadable else _box(line, labels, clamp)
        if reason or unreadable:
            image.whole = False
        else:
            image.labels |= dict.fromkeys(labels, 1)
            image.boxes += [box] if box else []
            image.denials += [] if labels else [line]
        if reason or unreadable or bad_box:
            problems.append(_problem(line, reason or unreadable or bad_box))
    problems += [
        _problem(line, "contradiction: No Finding in an image with findings")
        for image in contents.values()
        if image.labels
        for line in image.denials
    ]
    used = fault == ""
    remarks = [
        _problem(line, f"contradiction: {name} of an image")
        for name in SHARED
        if name not in DECISIVE
        for line in lines[used & (home[name] != "") & (lines[name] != home[name])].itertuples()
    ]
    return contents, problems, remarks


def _categories(cell: str) -> tuple[list[str], str]:
    """The labels of a list of categories, none for "No Finding"; and what is wrong with it."""
    try:
        names = tables.literal(cell)
    except ValueError:
        return [], "unreadable cell: finding_categories"
    if names == [NO_FINDING]:
        return [], ""
    if not names or any(name not in FINDINGS for name in map(str, names)):
        return [], "unknown finding: not one of the ten, or not alone"
    return list(dict.fromkeys(FINDINGS[name] for name in names)), ""


def _box(line: Any, labels: list[str], clamp) -> tuple[dict | None, str]:
    """The box of a line, and what is wrong with it."""
    cells = [getattr(line, corner) for corner in CORNERS]
    if not labels:
        return None, "No Finding with a box" if any(cells) else ""
    box = [tables.number(cell) for cell in cells]
    if None in box:
        return None, "unreadable cell: box"
    height, width = int(line.height), int(line.width)
    box = clamp(box, (height, width)) if clamp else box
    if not (box[0] < box[2] and box[1] < box[3]):
        return None, "malformed box"
    if box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height:
        return None, "box outside image"
    entry = {"label": labels[0], "box": box}
    entry |= {"labels": labels} if len(labels) > 1 else {}
    category = BIRADS[line.finding_birads]
    return entry | ({} if category is None else {"birads": category}), ""


def _row(line: Any, image: _Found, val: float) -> dict:
    split = split_of(line.study_id, val, 0) if line.split == "train" else line.split
    side, view = tables.SIDES.get(line.laterality.lower(), line.laterality), line.view_position.upper()
    absent = dict.fromkeys(FINDINGS.values(), 0) if image.whole else {}
    breast = {"birads": BIRADS[line.breast_birads], "density": DENSITY[line.breast_density]}
    labels = absent | image.labels | {key: value for key, value in breast.items() if value is not None}
    texts = captions.findings(labels, image.boxes, side, view)
    return {
        "dataset": "vindr",
        "patient": line.study_id,
        "study": line.study_id,
        "image": line.image_id,
        "row": line.row,
        "size": f"{line.height} {line.width}",
        "laterality": side,
        "view": view,
        "split": split,
        "texts": texts,
        "sections": ["findings", "impression"][: len(texts)],
        "labels": labels,
        "boxes": image.boxes,
    }


def _metadata(path: Path) -> dict[str, tuple[str, int | None]]:
    """Image -> vendor and age in years, "057Y"; nothing where there is no such table."""
    if not path.is_file():
        return {}
    data = tables.read(path, ("SOP Instance UID",))
    ages = data.get("Patient's Age", pd.Series("", index=data.index)).str.extract(r"^0*(\d{1,3})Y?$")[0]
    makers = data.get("Manufacturer", pd.Series("", index=data.index))
    vendors = {maker: fields.vendor_of(maker) for maker in makers.unique()}
    return {
        image: (vendors[maker], None if pd.isna(age) or not 0 < int(age) < 120 else int(age))
        for image, maker, age in zip(data["SOP Instance UID"], makers, ages)
    }
