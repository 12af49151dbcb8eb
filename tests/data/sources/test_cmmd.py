"""CMMD: a table by breast joined to files by their headers."""

import json
from pathlib import Path

import pandas as pd
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from tiny_dicom import breast, write

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import cmmd
from mammoclip_jax.errors import UserError

HEADER = ["ID1", "LeftRight", "Age", "number", "abnormality", "classification", "subtype"]
LINES = [
    ["D1-0001", "R", "44", "2", "calcification", "Benign", ""],
    ["D1-0002", "L", "40Y", "2", "mass", "Benign", ""],
    ["D1-0002", "L", "40", "2", "calcification", "Malignant", ""],
    ["D1-0002", "R", "40", "2", "both", "Malignant", ""],
    ["D2-0001", "L", "50", "4", "mass", "Malignant", "Luminal A"],
    ["D2-0002", "L", "50", "4", "mass", "Malignant", "Luminal A"],
    ["", "L", "50", "4", "mass", "Malignant", ""],
    ["D2-0003", "up", "50", "4", "mass", "Malignant", ""],
    ["D2-0004", "L", "50", "4", "lump", "Malignant", ""],
    ["D2-0005", "L", "50", "4", "mass", "Maybe", ""],
]
VIEWS = {"CC": "399162004", "MLO": "399368009"}


def folder(root: Path, files: list[tuple], lines: list[list] = LINES) -> Path:
    pd.DataFrame(lines, columns=HEADER).to_csv(root / "CMMD_clinicaldata_revision.csv", index=False)
    for number, (patient, side, view, name) in enumerate(files):
        code = Dataset()
        code.CodeValue = VIEWS[view]
        path = root / f"CMMD/{patient}/07-18-2010-NA-NA-{number // 4}/1.000000-NA-1/{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, breast(20, 10), PatientID=patient, ImageLaterality=side, ViewCodeSequence=Sequence([code]))
    return root


def test_files_are_joined_by_header_and_not_by_name(tmp_path):
    root = folder(
        tmp_path,
        [
            ("D1-0001", "R", "CC", "1-1"),
            ("D1-0001", "R", "MLO", "1-2"),
            ("D1-0002", "R", "CC", "1-1"),
            ("D1-0002", "L", "CC", "1-2"),
            ("D2-0001", "L", "MLO", "1-1"),
            ("D2-0001", "R", "MLO", "1-2"),
            ("D3-0001", "R", "MLO", "1-1"),
            ("D2-0001", "", "MLO", "1-3"),
        ],
    )
    table = checked(cmmd.read(root))
    rows = table.rows.set_index("image")
    assert list(rows.index) == [
        f"{patient}/1-{number}" for patient in ("D1-0001", "D1-0002", "D2-0001") for number in (1, 2)
    ]
    assert list(rows["laterality"]) == ["R", "R", "R", "L", "L", "R"] and rows["view"].iloc[1] == "MLO"
    labels = rows["labels"].map(json.loads)
    assert labels["D1-0001/1-1"] == {"age": 44, "cancer": 0, "biopsy": 1, "calcification": 1}
    assert labels["D1-0002/1-1"] == {"age": 40, "cancer": 1, "biopsy": 1, "mass": 1, "calcification": 1}
    assert labels["D1-0002/1-2"] == {"age": 40, "cancer": 1, "biopsy": 1, "mass": 1, "calcification": 1}
    assert labels["D2-0001/1-1"]["subtype"] == "Luminal A"
    assert labels["D2-0001/1-2"] == {"age": 50}  # the other breast: unknown, not healthy
    assert rows.loc["D2-0001/1-2", "texts"] == [] and rows.loc["D2-0001/1-2", "row"] == ""
    assert rows.loc["D1-0002/1-2", "row"] == "CMMD_clinicaldata_revision.csv:3"
    assert "mass" in rows.loc["D2-0001/1-1", "texts"][0] and "cancer" not in str(rows["texts"].tolist()).lower()
    assert (rows.groupby("patient")["split"].nunique() == 1).all()
    assert table.partial and table.public_ids and table.table_rows == len(LINES)
    found = sorted((problem.stage, problem.kind) for problem in table.problems)
    assert found == [
        ("absent", "no image"),
        ("source", "empty identifier"),
        ("source", "no laterality in the header"),
        ("source", "no row in the table"),
        ("source", "unknown abnormality"),
        ("source", "unknown classification"),
        ("source", "unknown laterality"),
    ]


def test_without_files_every_line_is_listed(tmp_path):
    table = cmmd.read(folder(tmp_path, []))
    assert len(table.rows) == 0 and table.table_rows == len(LINES)
    assert sorted(problem.row for problem in table.problems) == sorted(
        f"CMMD_clinicaldata_revision.csv:{line}" for line in range(2, len(LINES) + 2)
    )
    assert [problem.stage for problem in table.problems].count("absent") == 6


def test_files_of_the_same_name_keep_ids_of_their_own(tmp_path):
    root = folder(tmp_path, [("D1-0001", "R", "CC", "1-1")] * 3 + [("D1-0001", "R", "MLO", "1-2")] * 2)
    rows = checked(cmmd.read(root)).rows
    assert len(rows) == 3 and rows["image"].is_unique  # 0/1-1, 0/1-2 and 1/1-2


def test_the_table_may_be_excel_or_have_semicolons(tmp_path):
    root = folder(tmp_path, [("D1-0001", "R", "CC", "1-1")])
    expected = cmmd.read(root).rows
    path = root / "CMMD_clinicaldata_revision.csv"
    data = pd.read_csv(path, dtype=str, keep_default_na=False)
    data.to_csv(path, index=False, sep=";")
    pd.testing.assert_frame_equal(cmmd.read(root).rows, expected)
    pytest.importorskip("openpyxl")
    path.unlink()
    data.replace("", None).to_excel(path.with_suffix(".xlsx"), index=False)
    pd.testing.assert_frame_equal(cmmd.read(root).rows.drop(columns="row"), expected.drop(columns="row"))
    path.with_suffix(".xlsx").write_bytes(b"no workbook")
    with pytest.raises(UserError, match="no Excel table"):
        cmmd.read(root)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no CMMD_clinicaldata_revision.xlsx"):
        cmmd.read(tmp_path)
    (tmp_path / "CMMD_clinicaldata_revision.csv").write_text("ID1,LeftRight\nD1-0001,L\n")
    with pytest.raises(UserError, match="no column 'Age'"):
        cmmd.read(tmp_path)
