"""NL-Breast-Screening: its table and the folders it names."""

import json
from pathlib import Path

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import nl_breast_screening
from mammoclip_jax.errors import UserError

HEADER = "File Path,Image Laterality,View Position,Age,Cancer,False Positive"
LINES = [
    r"abnormal\109430185503\left\CC\IM-0019-0002-0001.dcm,L,CC,61,1,0",
    r"\abnormal\109430185503\right\MLO\IM-0020-0003-0001.dcm,R,MLO,61,0,0",
    r"normal\109430185504\left\CC\IM-0019-0002-0001.dcm,L,CC,,0,1",
    r"images\normal\109430185505\left\CC\IM-0001.dcm,L,CC,55,,",
    r"normal\109430185506\left\CC\IM-0001.dcm,R,CC,55,0,0",
    r"normal\109430185506\left\CC\IM-0002.dcm,L,MLO,55,0,0",
    r"normal\109430185506\left\CC\IM-0003.dcm,L,CC,55,1,1",
    r"normal\109430185506\left\CC\IM-0004.dcm,L,CC,55,2,0",
    r"normal\..\left\CC\..,L,CC,55,0,0",
    r"IM-0001.dcm,L,CC,55,0,0",
    r"normal\109430185506\left\CC\IM-5.dcm,B,CC,55,0,0",
]


def folder(root: Path, lines: list[str] = LINES) -> Path:
    (root / "NLBSP-metadata.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return root


def test_rows_and_problems(tmp_path):
    table = checked(nl_breast_screening.read(folder(tmp_path)))
    rows = table.rows
    assert list(rows["file"]) == [
        "abnormal/109430185503/left/CC/IM-0019-0002-0001.dcm",
        "abnormal/109430185503/right/MLO/IM-0020-0003-0001.dcm",
        "normal/109430185504/left/CC/IM-0019-0002-0001.dcm",
        "normal/109430185505/left/CC/IM-0001.dcm",
    ]
    assert list(rows["patient"]) == ["109430185503"] * 2 + ["109430185504", "109430185505"]
    assert list(rows["laterality"]) == ["L", "R", "L", "L"] and list(rows["view"]) == ["CC", "MLO", "CC", "CC"]
    assert [json.loads(cell) for cell in rows["labels"]] == [
        {"cancer": 1, "false_positive": 0, "age": 61},
        {"cancer": 0, "false_positive": 0, "age": 61},
        {"cancer": 0, "false_positive": 1},
        {"age": 55},
    ]
    assert not any(rows["texts"].map(len)) and (rows.groupby("patient")["split"].nunique() == 1).all()
    assert len(rows) + len(table.problems) == table.table_rows == len(LINES) and table.partial
    assert [problem.kind for problem in table.problems] == [
        "laterality contradicts",
        "view contradicts",
        "label contradicts",
        "unknown label",
        "unknown path",
        "unknown path",
        "unknown laterality",
    ]
    assert not any("1094301855" in problem.reason for problem in table.problems)


def test_files_may_be_in_the_folder_images(tmp_path):
    (folder(tmp_path, LINES[:4]) / "images").mkdir()
    assert set(nl_breast_screening.read(tmp_path).rows["file"].str.split("/").str[0]) == {"images"}


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="NLBSP-metadata.csv is missing"):
        nl_breast_screening.read(tmp_path)
    (tmp_path / "NLBSP-metadata.csv").write_text("File Path,Image Laterality\na,L\n")
    with pytest.raises(UserError, match="no column 'View Position'"):
        nl_breast_screening.read(tmp_path)
