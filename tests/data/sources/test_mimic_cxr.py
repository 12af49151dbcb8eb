"""MIMIC-CXR: the three tables of PhysioNet and the report files, in small."""

import gzip
import json
from pathlib import Path

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import chest_labels, mimic_cxr
from mammoclip_jax.errors import UserError

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
    "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
    "PatientOrientationCodeSequence_CodeMeaning"
)
IMAGES = [
    ("aa-1", "10000032", "50414267", "PA", 3056, 2544, "21800506"),
    ("aa-2", "10000032", "50414267", "LATERAL", 3056, 2544, "21800506"),
    ("bb-1", "10000032", "53189527", "AP", 2544, 3056, "21800626"),
    ("cc-1", "11000011", "59999999", "LL", 100, 200, "21230101"),
    ("dd-1", "12000012", "58888888", "", "", "", ""),
]
SPLITS = {"aa-1": "train", "aa-2": "train", "bb-1": "train", "cc-1": "validate", "dd-1": "test"}
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 FINDINGS:

 There is no focal consolidation, pleural effusion or
 pneumothorax.

 IMPRESSION:

 No acute cardiopulmonary process.
"""


def make(root: Path) -> Path:
    lines = [f"{i},{p},{s},CHEST,{view},{h},{w},{day},213014.531,CHEST,x,Erect" for i, p, s, view, h, w, day in IMAGES]
    (root / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join([METADATA, *lines]) + "\n")
    splits = [f"{image},{study},{patient},{SPLITS[image]}" for image, patient, study, *_ in IMAGES]
    (root / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(["dicom_id,study_id,subject_id,split", *splits]) + "\n")
    labels = {
        "50414267": {"No Finding": "1.0"},
        "53189527": {"Edema": "-1.0", "Pleural Effusion": "1.0", "Pneumothorax": "0.0"},
    }
    cells = [
        ["10000032", study, *(found.get(name, "") for name in chest_labels.FINDINGS)] for study, found in labels.items()
    ]
    text = "\n".join(",".join(line) for line in [["subject_id", "study_id", *chest_labels.FINDINGS], *cells])
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").write_bytes(gzip.compress(text.encode()))
    return root


def test_rows_of_tables_alone(tmp_path):
    table = checked(mimic_cxr.read(make(tmp_path)))
    rows = table.rows.set_index("image")
    assert not table.problems and table.table_rows == 5 + 5 + 2 and table.partial and table.public_ids
    assert "credentialed" in table.licence
    first = rows.loc["aa-1"]
    assert first["file"] == "files/p10/p10000032/s50414267/aa-1.jpg" and first["size"] == "3056 2544"
    assert (first["patient"], first["study"], first["view"], first["split"]) == ("10000032", "50414267", "PA", "train")
    assert json.loads(first["labels"]) == {"no_finding": 1, "study_day": 0}
    assert json.loads(rows.loc["bb-1", "labels"]) == {
        "edema_uncertain": 1,
        "pleural_effusion": 1,
        "pneumothorax": 0,
        "study_day": 51,
    }
    assert dict(rows["split"]) == {"aa-1": "train", "aa-2": "train", "bb-1": "train", "cc-1": "val", "dd-1": "test"}
    assert list(rows["view"]) == ["PA", "LATERAL", "AP", "LL", ""] and rows.loc["dd-1", "size"] == ""
    assert first["row"] == "mimic-cxr-2.0.0-metadata.csv:2" and not first["texts"]


@pytest.mark.parametrize("folder, option", [("mimic-cxr-reports/files", False), ("files", False), ("elsewhere", True)])
def test_reports_become_findings_and_impression(tmp_path, folder, option):
    base = make(tmp_path) / folder / "p10" / "p10000032"
    base.mkdir(parents=True)
    (base / "s50414267.txt").write_text(REPORT)
    (base / "s53189527.txt").write_text("     FINAL REPORT\n Chest, single view.  Mild pulmonary edema.\n")
    table = mimic_cxr.read(tmp_path, reports=str(tmp_path / folder) if option else "")
    rows = table.rows.set_index("image")
    assert rows.loc["aa-2", "sections"] == ["findings", "impression"]
    assert rows.loc["aa-2", "texts"] == [
        "There is no focal consolidation, pleural effusion or pneumothorax.",
        "No acute cardiopulmonary process.",
    ]
    assert rows.loc["bb-1", "texts"] == ["Chest, single view. Mild pulmonary edema."]
    assert rows.loc["cc-1", "texts"] == []


@pytest.mark.parametrize("suffix", mimic_cxr.IMAGE_SUFFIXES)
def test_the_kind_of_image_is_what_is_there(tmp_path, suffix):
    path = make(tmp_path) / "files" / "p10" / "p10000032" / "s53189527" / f"bb-1{suffix}"
    path.parent.mkdir(parents=True)
    path.touch()
    assert {Path(file).suffix for file in mimic_cxr.read(tmp_path).rows["file"]} == {suffix}


def test_lines_that_fit_nothing_are_problems(tmp_path):
    make(tmp_path)
    with open(tmp_path / "mimic-cxr-2.0.0-split.csv", "a") as file:
        file.write("aa-1,50414267,10000032,test\nzz-9,5,1,train\n")
    with open(tmp_path / "mimic-cxr-2.0.0-metadata.csv", "a") as file:
        file.write("ee-1,1,../../x,,PA,1,1,,,,,\nff-1,10000033,50000000,,PA,1,1,,,,,\n")
    table = checked(mimic_cxr.read(tmp_path))
    assert len(table.rows) == 5 and set(table.rows.loc[:2, "split"]) == {"train"}
    assert sorted((problem.reason, problem.row.split("-")[-1]) for problem in table.problems) == [
        ("malformed identifier", "metadata.csv:7"),
        ("no image in the metadata table", "split.csv:8"),
        ("not in the split table", "metadata.csv:8"),
        ("second line of the same dicom_id", "split.csv:7"),
    ]
    assert table.table_rows == 7 + 7 + 2


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(UserError, match="mimic-cxr-2.0.0-metadata.csv.gz is missing"):
        mimic_cxr.read(tmp_path)
    (make(tmp_path) / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(UserError, match="mimic-cxr-2.0.0-split.csv.gz is missing"):
        mimic_cxr.read(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        mimic_cxr.read(make(tmp_path), reports=str(tmp_path / "nowhere"))
