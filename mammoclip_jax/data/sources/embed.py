"""EMBED, the Emory breast imaging data set: one line an image, one line a finding, joined by exam and breast.

Files, as the AWS bucket has them: tables/EMBED_OpenData_metadata.csv and EMBED_OpenData_clinical.csv (or their
`_reduced` forms, which have no descriptors of masses and calcifications), images/cohort_*/PATIENT/EXAM/...dcm. The
tables may also lie in the root.

What this adapter rests on (README.md and AWS_Open_Data_Clinical_Legend.csv of Emory-HITI/EMBED_Open_Data):
- A finding's `side` is L, R, B (both breasts) or empty (both breasts).
- The assessment of a breast is that of one line: lines of its own side first, else lines of both breasts, else lines
  without a side; among them the highest BI-RADS category, except that 0 stands before 1 and 2. (The rule of MaMA, whose
  code counts in the lines that have a category and then picks from all of them.)
- Descriptors of the caption are those of that line; a finding is there if any line of the breast has it. Nothing is
  said to be absent but in breasts whose lines are all "negative" (BI-RADS 1) and free of descriptors.
- Density is the exam's: where its lines differ, the denser, and the other lines are among the problems. Exams of men
  (density 5) are left out and listed.
- Pathology: severity 0 and 1 are cancer, 2 to 5 are not, 6 is another cancer and says nothing; it counts for `bside`.
- `study_date_anon` is shifted per patient, so distances hold.
- Race and ethnicity that are not recorded stay unknown.
- ROI_coords are (ymin, xmin, ymax, xmax), see embed_rois.py.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import fields
from mammoclip_jax.data.sources import embed_rois, tables
from mammoclip_jax.data.sources.embed_codes import ABSENT, BIRADS, BREASTS, DENSITY, FINDINGS, MALE, RANK, TIER, WORDS
from mammoclip_jax.data.sources.tables import ROW
from mammoclip_jax.data.text import captions
from mammoclip_jax.errors import UserError

LICENCE = (
    "EMBED Research Use Agreement (Emory University): non-commercial research; clause 4: no redistribution of "
    "any part; clause 5: no public release or sale of models, weights or embedding spaces trained or "
    "fine-tuned on any part of it without written permission"
)
CITATION = (
    "J J Jeong et al. (2023): The EMory BrEast imaging Dataset (EMBED): A Racially Diverse, Granular Dataset "
    "of 3.4 Million Screening and Diagnostic Mammographic Images. Radiology: Artificial Intelligence 5(1), "
    "e220047."
)
METADATA = ("empi_anon", "acc_anon", "anon_dicom_path", "FinalImageType", "ImageLateralityFinal", "ViewPosition")
METADATA_MORE = (
    "study_date_anon",
    "StudyDescription",
    "spot_mag",
    "num_roi",
    *embed_rois.COLUMNS,
    "Manufacturer",
    "Rows",
    "Columns",
)
CLINICAL = ("empi_anon", "acc_anon", "side", "asses", "tissueden")
CLINICAL_MORE = (
    "bside",
    "path_severity",
    "massshape",
    "massmargin",
    "massdens",
    "calcfind",
    "calcdistri",
    "calcnumber",
    "otherfind",
    "implanfind",
    "age_at_study",
    "desc",
    "RACE_DESC",
    "ETHNICITY_DESC",
    "ETHNIC_GROUP_DESC",
)

UNSAID = ("age", "race", "ethnicity", "procedure", "study_day", "image_type")  # by captions.findings
UNKNOWN = ("unknown", "unavailable", "unreported", "not recorded", "declin")


def read(
    root: str | Path, tables: str = "", image_types: str = "2D", val: float = 0.1, test: float = 0.2
) -> SourceTable:
    """The images of the metadata table, with the findings of their breast.

    Args:
        tables: folder of the two tables, if it is neither `root`/tables nor `root`.
        image_types: which of FinalImageType, with commas: "2D", "2D,cview". Lines of other types are problems.
        val, test: expected fractions of patients; the owner gives no split.

    Raises:
        UserError: a table is missing or lacks a column.
    """
    root = Path(root)
    folders = [Path(tables)] if tables else [root / "tables", root]
    metadata = _table(folders, "metadata", METADATA, METADATA_MORE)
    clinical = _table(folders, "clinical", CLINICAL, CLINICAL_MORE)
    lines = len(metadata) + len(clinical)
    problems: list[Problem] = []
    clinical = _checked_clinical(clinical, metadata, problems)
    images = _checked_metadata(metadata, clinical, image_types, root, problems)
    findings = _by_breast(clinical, set(images["breast"]), problems)
    exams = _by_exam(clinical, metadata)
    breasts = _breast_labels(findings)
    for breast, pathology in _pathology(clinical).items():
        breasts.setdefault(breast, {}).update(pathology)
    rows = _rows(images, breasts, exams, root, val, test, problems)
    return SourceTable(frame(rows), problems, LICENCE, CITATION, public_ids=True, partial=True, table_rows=lines)


def _table(folders: list[Path], kind: str, needed: Iterable[str], more: Iterable[str]) -> pd.DataFrame:
    """The whole table where it is there, else the reduced one; columns that were asked for, the others empty."""
    names = [f"EMBED_OpenData_{kind}.csv", f"EMBED_OpenData_{kind}_reduced.csv"]
    paths = [folder / name for name in names for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folders[0]} has no {names[0]} and no {names[1]}. Give --root, the folder with tables/ and "
            "images/ of EMBED, or the tables' folder with --option=tables=DIR."
        )
    wanted = {*needed, *more}
    data = tables.read(path, list(needed), usecols=lambda name: name.strip() in wanted)
    for name in ("empi_anon", "acc_anon"):
        data[name] = data[name].str.removesuffix(".0")  # a column that was once read as floats
    return data.assign(**{name: "" for name in wanted - set(data)})


def _problems(rows: pd.DataFrame, stage: str, reason: str, remedy: str) -> list[Problem]:
    return [Problem("", stage, reason, remedy, "", row) for row in rows[ROW]]


def _checked_clinical(clinical: pd.DataFrame, metadata: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """With the columns side, birads (0 to 6 or NaN), density (of the exam, 1 to 5 or NaN) as numbers."""
    clinical = clinical.assign(
        side=clinical["side"].str.upper(),
        letter=clinical["asses"].str.upper().str[:1],
        density=pd.to_numeric(clinical["tissueden"], errors="coerce"),
    )
    bad = ~clinical["side"].isin(list(BREASTS))
    problems += _problems(clinical[bad], "source", "unknown side", "use L, R, B or an empty value")
    patients = metadata.drop_duplicates("acc_anon").set_index("acc_anon")["empi_anon"]
    theirs = clinical["acc_anon"].map(patients)
    torn = theirs.notna() & (theirs != clinical["empi_anon"]) & ~bad
    problems += _problems(clinical[torn], "source", "exam of two patients: the tables differ", "copy both tables again")
    clinical = clinical[~bad & ~torn].copy()
    odd = ~clinical["letter"].isin([*BIRADS, "X", ""])
    problems += _problems(clinical[odd], "source", "unknown assessment", f"use one of {', '.join(BIRADS)} or X")
    clinical["birads"] = clinical["letter"].map(BIRADS)
    known = clinical["density"].where(clinical["density"].isin([*DENSITY, MALE]))
    clinical["exam_density"] = known.groupby(clinical["acc_anon"]).transform("max")
    less = known.notna() & (known != clinical["exam_density"])
    problems += _problems(
        clinical[less],
        "source",
        "density contradicts: another line of the exam is denser",
        "the denser one is used; correct the table",
    )
    return clinical.reset_index(drop=True)


def _checked_metadata(
    metadata: pd.DataFrame, clinical: pd.DataFrame, image_types: str, root: Path, problems: list[Problem]
) -> pd.DataFrame:
    """The images that are wanted, with the columns laterality, view, breast (exam/side), file, image, day."""
    types = metadata["FinalImageType"].str.lower().str.replace("-", "")
    wanted = [name.strip().lower().replace("-", "") for name in image_types.split(",") if name.strip()]
    if not set(wanted) & set(types):
        raise UserError(
            f"--option=image_types={image_types} names none of FinalImageType. The table has: "
            f"{', '.join(sorted(set(metadata['FinalImageType'])))}."
        )
    for name in sorted(set(types) - set(wanted)):
        problems += _problems(
            metadata[types == name],
            "absent",
            f"image type left out: {name or 'unknown'}",
            "name it in --option=image_types",
        )
    exams = metadata.drop_duplicates("acc_anon")
    days = dict(
        zip(
            exams["acc_anon"], tables.study_days(exams["empi_anon"], exams["study_date_anon"], column="study_date_anon")
        )
    )
    men = set(clinical.loc[clinical["exam_density"] == MALE, "acc_anon"])
    images = metadata[types.isin(wanted)]
    male = images["acc_anon"].isin(men)
    problems += _problems(images[male], "absent", "male patient: tissue density 5", "none: the set is of women")
    images = images[~male]
    sides = images["ImageLateralityFinal"].str.lower().map(tables.SIDES)
    problems += _problems(images[sides.isna()], "source", "unknown laterality", "use L, R or an empty value")
    images, sides = images[sides.notna()], sides.dropna()
    path = images["anon_dicom_path"].str.replace("\\", "/").str.replace(r"^.*?(?=cohort_\d+/)", "", regex=True)
    bad = ~path.str.contains(r"^cohort_\d+/.*[^/]$") | path.str.contains(r"(?:^|/)\.\.(?:/|$)")
    problems += _problems(images[bad], "source", "unknown path: no cohort_N/... in anon_dicom_path", "copy it again")
    images, sides, path = images[~bad], sides[~bad], path[~bad]
    stem = path.str.rsplit("/", n=1).str[-1].str.replace(r"\.dcm$", "", regex=True)
    inner = "" if any(root.glob("cohort_*")) else "images/"
    return images.assign(
        laterality=sides,
        view=images["ViewPosition"].str.upper(),
        breast=images["acc_anon"] + "/" + sides,
        file=inner + path,
        image=stem.where(~stem.duplicated(keep=False), path),
        day=images["acc_anon"].map(days),
    )


def _by_breast(clinical: pd.DataFrame, breasts: set[str], problems: list[Problem]) -> pd.DataFrame:
    """One line a finding and breast that has an image; lines of both breasts stand for each."""
    findings = clinical.assign(tier=clinical["side"].map(TIER), one=clinical["side"].map(BREASTS)).explode("one")
    findings["breast"] = findings["acc_anon"] + "/" + findings["one"]
    findings = findings[findings["breast"].isin(breasts)]
    unused = clinical[~clinical.index.isin(findings.index)]
    problems += _problems(unused, "absent", "no image of this breast: in the metadata, of the chosen types", "none")
    return findings.reset_index(drop=True)


def assessed(findings: pd.DataFrame) -> pd.DataFrame:
    """The line that stands for each breast (see the top), index breast; columns breast, tier, birads are needed."""
    best = findings["tier"] == findings.groupby("breast")["tier"].transform("min")
    near = findings[best]
    return near.loc[near["birads"].map(RANK).fillna(-1).groupby(near["breast"]).idxmax()].set_index("breast")


def _codes(column: pd.Series, table: dict[str, str]) -> pd.Series:
    """Cells of codes with commas -> tuples of their meanings."""
    decoded = {
        cell: tuple(dict.fromkeys(table[code.strip()] for code in cell.split(",") if code.strip() in table))
        for cell in column.unique()
    }
    return column.map(decoded)


def _flags(findings: pd.DataFrame) -> pd.DataFrame:
    """A column of bool for each label of FINDINGS, "calcification" and "described" (by any code); one row a line."""
    flags: dict[str, pd.Series] = {}
    for column, table in FINDINGS.items():
        codes = _codes(findings[column], table)
        for label in dict.fromkeys(table.values()):
            there = codes.map({cell: label in cell for cell in codes.unique()})
            flags[label] = flags[label] | there if label in flags else there
    margins = (findings["massmargin"] != "") | (findings["massdens"] != "")
    flags["mass"] |= margins & (findings["massshape"] == "")  # an asymmetry may have a density too
    flags["calcification"] = (
        (findings["calcfind"] != "")
        | (findings["calcdistri"] != "")
        | (pd.to_numeric(findings["calcnumber"], errors="coerce") > 0)
    )
    flags["implant"] |= findings["implanfind"] != ""
    columns = ["massshape", "massmargin", "massdens", "calcfind", "calcdistri", "otherfind"]
    flags["described"] = (findings[columns] != "").any(axis=1) | flags["calcification"]
    return pd.DataFrame(flags).astype(bool)


def _breast_labels(findings: pd.DataFrame) -> dict[str, dict]:
    """By "exam/side" the labels: the category, what is there, and the words of the line that stands for the breast."""
    if findings.empty:
        return {}
    flags = _flags(findings)
    there = flags.groupby(findings["breast"]).any()
    negative = ((findings["birads"] == 1) & ~flags["described"]).groupby(findings["breast"]).all()
    chosen = assessed(findings).reindex(there.index)
    words = {name: _codes(chosen[column], table) for name, (column, table) in WORDS.items()}
    names = [name for name in there if name != "described"]
    labels = {}
    for position, breast in enumerate(there.index):
        entry: dict = dict.fromkeys(ABSENT, 0) if negative.iat[position] else {}
        category = chosen["birads"].iat[position]
        if not pd.isna(category):
            entry["birads"] = int(category)
        labels[breast] = entry
    for name in names:
        for breast in there.index[there[name]]:
            labels[breast][name] = 1
    for name, column in words.items():
        for breast, terms in column[column.map(len) > 0].items():
            labels[breast][name] = ", ".join(terms)
    return labels


def _pathology(clinical: pd.DataFrame) -> dict[str, dict]:
    """By "exam/side" cancer, biopsy, invasive, for breasts with tissue that was looked at."""
    severity = pd.to_numeric(clinical["path_severity"], errors="coerce")
    side = clinical["bside"].str.upper().where(clinical["bside"].str.upper().isin(["L", "R", "B"]), clinical["side"])
    seen = clinical.assign(severity=severity, one=side.map(BREASTS))[severity.notna() & (side != "")].explode("one")
    labels = {}
    for breast, severities in seen.groupby(seen["acc_anon"] + "/" + seen["one"])["severity"]:
        entry = {"biopsy": 1}
        if severities.isin([0, 1]).any():
            entry |= {"cancer": 1, "invasive": int((severities == 0).any())}
        elif severities.isin([2, 3, 4, 5]).all():
            entry |= {"cancer": 0, "invasive": 0}
        labels[breast] = entry
    return labels


def _known(value: str) -> str:
    """A race or ethnicity in plain form, "" where the hospital has recorded none."""
    return "" if any(word in value.lower() for word in UNKNOWN) else " ".join(value.split())


def _by_exam(clinical: pd.DataFrame, metadata: pd.DataFrame) -> dict[str, dict]:
    """Exam -> density, age, race, ethnicity, procedure, where known: each from its first line that says so."""
    race = clinical["RACE_DESC"].where(clinical["RACE_DESC"] != "", clinical["ETHNICITY_DESC"])
    columns = {
        "density": clinical["exam_density"].map(DENSITY),
        "age": pd.to_numeric(clinical["age_at_study"], errors="coerce").floordiv(1),
        "race": race.map({value: _known(value) for value in race.unique()}),
        "ethnicity": clinical["ETHNIC_GROUP_DESC"].map(_known),
        "procedure": clinical["desc"],
    }
    exams: dict[str, dict] = {exam: {} for exam in metadata["acc_anon"].unique()}
    for name, column in columns.items():
        column = column[column.notna() & (column != "")]
        first = column.groupby(clinical["acc_anon"]).first()
        for exam, value in first.items():
            if exam in exams:
                exams[exam][name] = int(value) if name == "age" else value
    studied = metadata[metadata["StudyDescription"] != ""].drop_duplicates("acc_anon")
    for exam, value in zip(studied["acc_anon"], studied["StudyDescription"]):  # of the device, as MaMA takes it
        exams[exam]["procedure"] = value
    return exams


def _rows(
    images: pd.DataFrame,
    breasts: dict[str, dict],
    exams: dict[str, dict],
    root: Path,
    val: float,
    test: float,
    problems: list[Problem],
) -> list[dict]:
    splits = {patient: split_of(patient, val, test) for patient in images["empi_anon"].unique()}
    vendors = {name: fields.vendor_of(name) for name in images["Manufacturer"].unique()}
    texts: dict[tuple, list[str]] = {}
    rows = []
    for line in images.astype(object).to_dict("records"):
        labels = exams[line["acc_anon"]] | breasts.get(line["breast"], {}) | {"image_type": line["FinalImageType"]}
        if not pd.isna(line["day"]):
            labels["study_day"] = int(line["day"])
        if tables.number(line["spot_mag"]) == 1:
            labels["spot_or_magnification"] = 1
        boxes, reason = embed_rois.boxes(line, root, _box_label(labels))
        if reason:
            problems.append(Problem(line["file"], "boxes", reason, "correct the table", line["image"], line[ROW]))
        key = (
            *(item for item in labels.items() if item[0] not in UNSAID),
            *(item["label"] for item in boxes),
            line["laterality"],
            line["view"],
        )
        if key not in texts:  # most breasts are alike
            texts[key] = captions.findings(labels, boxes, line["laterality"], line["view"])
        rows.append(
            {
                "dataset": "embed",
                "patient": line["empi_anon"],
                "study": line["acc_anon"],
                "image": line["image"],
                "file": line["file"],
                "row": line[ROW],
                "size": embed_rois.size(line),
                "laterality": line["laterality"],
                "view": line["view"],
                "split": splits[line["empi_anon"]],
                "vendor": vendors[line["Manufacturer"]],
                "texts": texts[key],
                "sections": ["findings", "impression"][: len(texts[key])],
                "labels": labels,
                "boxes": boxes,
            }
        )
    return rows


def _box_label(labels: dict) -> str:
    """What a box of the breast shows: regions are not linked to findings, so only a single finding names them."""
    kinds = [name for name in (*ABSENT, "lymph_node") if labels.get(name) == 1]
    kinds = [name for name in kinds if name != "suspicious_calcification"]
    return kinds[0] if len(kinds) == 1 else "finding"
