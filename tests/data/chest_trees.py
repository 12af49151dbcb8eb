"""Small trees of MIMIC-CXR-JPG and of CheXpert as their owners distribute them: tables, generated images, made-up reports.

A patient shows one of the five classes; its picture has a bright bar of its own, so that a model could tell them apart.
"""

import gzip
from pathlib import Path

import cv2
import numpy as np

from mammoclip_jax.data.sources.chest_labels import FINDINGS, FIVE

SENTENCES = {
    "atelectasis": ("There is atelectasis at the left base.", "Linear atelectasis is seen in the right lower lobe."),
    "cardiomegaly": ("The heart is moderately enlarged.", "Cardiomegaly is unchanged."),
    "consolidation": (
        "There is a consolidation in the right upper zone.",
        "Focal consolidation is seen at the left base.",
    ),
    "edema": ("There is mild pulmonary edema.", "Interstitial edema has increased."),
    "pleural_effusion": ("There is a small left pleural effusion.", "A right pleural effusion is seen."),
}
DENIED, NORMAL = "No pneumothorax.", "No acute cardiopulmonary process."
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with cough  // eval for pneumonia

 FINDINGS:

 {finding}  {denied}

 IMPRESSION:

 {impression}
"""


def picture(path: Path, kind: int, rng: np.random.Generator, size=(72, 60)) -> None:
    """A grey thorax with two dark lungs, and one bright bar whose height says which class it is of."""
    image = rng.integers(90, 110, size).astype(np.uint8)
    for left in (10, 34):
        cv2.ellipse(image, (left + 8, 36), (9, 24), 0, 0, 360, 45, -1)
    image[8 + 11 * kind : 14 + 11 * kind, 12:48] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def nothing(number: int) -> bool:
    """Whether a patient has no finding."""
    return number % 25 == 7


def _cells(kind: int, number: int) -> str:
    """The 14 cells: the class alone is there (of one in 25 nothing), another column uncertain, two denied, the rest empty."""
    others = [key for key in FINDINGS.values() if key not in (*FIVE, "no_finding", "pneumothorax")]
    there = "no_finding" if nothing(number) else FIVE[kind]
    told = {there: "1.0", "pneumothorax": "0.0", others[number % 7]: "0.0", others[(number + 3) % 7]: "-1.0"}
    return ",".join(told.get(key, "") for key in FINDINGS.values())


def mimic_tree(root: Path, patients: int = 20) -> Path:
    """`patients` with a study of a PA and a lateral view and a report; a fifth each are of the parts validate and test."""
    rng = np.random.default_rng(0)
    metadata = ["dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime"]
    split, labels = ["dicom_id,study_id,subject_id,split"], ["subject_id,study_id," + ",".join(FINDINGS)]
    for number in range(patients):
        patient, study, kind = f"{10000000 + 7919 * number}", f"{50000000 + number}", number % 5
        part = ("train", "train", "train", "validate", "test")[number // 5 % 5]
        folder = root / "files" / f"p{patient[:2]}" / f"p{patient}"
        for view in ("PA", "LATERAL"):
            image = f"{number:08d}-{view.lower()}"
            picture(folder / f"s{study}" / f"{image}.jpg", kind, rng)
            metadata.append(f"{image},{patient},{study},{view},72,60,2180{1 + number % 9:02d}06,213014.531")
            split.append(f"{image},{study},{patient},{part}")
        labels.append(f"{patient},{study},{_cells(kind, number)}")
        finding, impression = (NORMAL, NORMAL) if nothing(number) else SENTENCES[FIVE[kind]]
        (folder / f"s{study}.txt").write_text(REPORT.format(finding=finding, denied=DENIED, impression=impression))
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join(metadata) + "\n")
    for name, lines in (("split", split), ("chexpert", labels)):
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    return root


def chexpert_tree(root: Path, patients: int = 20) -> Path:
    """`patients` in train.csv with two studies each, the second with a lateral view, and five in valid.csv."""
    rng = np.random.default_rng(1)
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(FINDINGS)
    for part, count, first in (("train", patients, 1), ("valid", 5, 64541)):
        lines = [header]
        for number in range(count):
            for study in (1, 2) if part == "train" else (1,):
                views = ("frontal", "lateral") if study == 2 else ("frontal",)
                for place, view in enumerate(views, 1):
                    file = f"{part}/patient{first + number:05d}/study{study}/view{place}_{view}.jpg"
                    picture(root / file, number % 5, rng)
                    about = f"Female,{40 + number},{view.title()},{'AP' if view == 'frontal' else ''}"
                    cells = _cells(number % 5, number)
                    if part == "valid":  # read by radiologists: nothing is empty or uncertain
                        cells = ",".join("1.0" if key == FIVE[number % 5] else "0.0" for key in FINDINGS.values())
                    lines.append(f"CheXpert-v1.0-small/{file},{about},{cells}")
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root
