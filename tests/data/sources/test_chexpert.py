"""CheXpert: the tables of both parts, and the reports of CheXpert Plus."""

import json
from pathlib import Path

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import chexpert
from mammoclip_jax.errors import UserError

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,"
    "Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
TRAIN = [
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Male,87,Frontal,PA,,,-1.0,1.0,,-1.0,,,,,0.0,,,",
    "CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Unknown,0,Lateral,,,,-1.0,1.0,,-1.0,,,,,,,,",
]
VALID = ["CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP" + ",0.0,1.0" * 7]
PLUS = [
    "path_to_image,path_to_dcm,section_findings,section_impression,race,ethnicity",
    'train/patient00002/study2/view1_frontal.png,x,"No mass, ""again"".","1. Edema.",White,Not Hispanic',
    "train/patient00002/study2/view2_lateral.png,x,,,,",
    "train/patient99999/study1/view1_frontal.png,x,A,B,,",
    "train/patient00002/study2/view1_frontal.png,x,again,,,",
    "nothing,x,A,B,,",
]


def make(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "train.csv").write_text("\n".join([HEADER, *TRAIN]) + "\n")
    (root / "valid.csv").write_text("\n".join([HEADER, *VALID]) + "\n")
    return root


def test_rows(tmp_path):
    table = checked(chexpert.read(make(tmp_path)))
    rows = table.rows
    assert not table.problems and table.table_rows == 4 and table.partial and table.public_ids
    assert list(rows["file"]) == [line.split(",")[0].removeprefix("CheXpert-v1.0-small/") for line in TRAIN + VALID]
    assert list(rows["view"]) == ["AP", "PA", "LATERAL", "AP"] and list(rows["split"]) == ["train"] * 3 + ["val"]
    labels = [json.loads(labels) for labels in rows["labels"]]
    assert labels[0] == {"no_finding": 1, "pneumothorax": 0, "support_devices": 1, "age": 68, "sex": "F"}
    assert labels[1] == {
        "cardiomegaly_uncertain": 1,
        "lung_opacity": 1,
        "edema_uncertain": 1,
        "pleural_effusion": 0,
        "age": 87,
        "sex": "M",
    }
    assert "age" not in labels[2] and "sex" not in labels[2]
    assert len([key for key in labels[3] if key in chexpert.FINDINGS.values()]) == 14
    assert rows["study"][1] == rows["study"][2] == "patient00002/study2" and rows["row"][3] == "valid.csv:2"


def test_the_official_valid_part_can_be_the_test(tmp_path):
    rows = chexpert.read(make(tmp_path), valid="test", val=1.0).rows
    assert list(rows["split"]) == ["val"] * 3 + ["test"]
    with pytest.raises(UserError, match="valid=train"):
        chexpert.read(tmp_path, valid="train")


def test_the_later_test_table_has_fewer_columns(tmp_path):
    header = "Path," + ",".join(chexpert.FINDINGS)
    (make(tmp_path) / "test.csv").write_text(f"{header}\ntest/patient64741/study1/view1_frontal.jpg{',0' * 14}\n")
    row = chexpert.read(tmp_path).rows.iloc[-1]
    assert (row["split"], row["view"], row["file"]) == ("test", "FRONTAL", "test/patient64741/study1/view1_frontal.jpg")


def test_reports_of_chexpert_plus(tmp_path):
    root = make(tmp_path / "CheXpert-v1.0-small")
    (tmp_path / "df_chexpert_plus_240401.csv").write_text("\n".join(PLUS) + "\n")
    table = chexpert.read(tmp_path)
    assert table.root == root and table.table_rows == 4 + 5
    row = table.rows.iloc[1]
    assert row["texts"] == ['No mass, "again".', "1. Edema."] and row["sections"] == ["findings", "impression"]
    assert json.loads(row["labels"])["race"] == "White" and table.rows["texts"][2] == []
    assert sorted((problem.reason, problem.row[-2:]) for problem in table.problems) == [
        ("malformed path", ":6"),
        ("report without image", ":4"),
        ("second report of an image", ":5"),
    ]


def test_a_path_of_another_part_is_a_problem(tmp_path):
    with open(make(tmp_path) / "train.csv", "a") as file:
        file.write(VALID[0] + "\n" + "x" + "," * 18 + "\n")
    table = checked(chexpert.read(tmp_path))
    assert len(table.rows) == 4 and [problem.row for problem in table.problems] == ["train.csv:5", "train.csv:6"]


def test_other_folders_and_tables_are_named(tmp_path):
    with pytest.raises(UserError, match="no train.csv"):
        chexpert.read(tmp_path)
    (tmp_path / "train.csv").write_text("Path,Sex\na,b\n")
    with pytest.raises(UserError, match="train.csv has no column 'No Finding'"):
        chexpert.read(tmp_path)
