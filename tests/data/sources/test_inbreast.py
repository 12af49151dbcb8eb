"""INbreast: its table, the names of its files and its outlines."""

import json
import plistlib
from pathlib import Path

import pandas as pd
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import inbreast
from mammoclip_jax.errors import UserError

HEADER = "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"
LINES = [
    "removed;removed;R;CC;201001;22678622;4;4a",
    "removed;removed;L;MLO;201001;22678646;4;1",
    "removed;removed;L;CC;201103;22678670;     ;6",
    "removed;removed;R;MLO;200801;20586908;1;2",
    "removed;removed;R;CC;201001;30000001;2;2",
    "removed;removed;L;XX;201001;30000002;2;2",
    "removed;removed;;CC;201001;30000003;2;2",
    "removed;removed;L;CC;201001;;2;2",
]
FILES = [
    "22678622_61b13c59bcba149e_MG_R_CC_ANON",
    "22678646_61b13c59bcba149e_MG_L_ML_ANON",
    "22678670_61b13c59bcba149e_MG_L_CC_ANON",
    "30000001_aaaa3c59bcba149e_MG_L_CC_ANON",
    "99999999_aaaa3c59bcba149e_MG_L_CC_ANON",
]


def outline(path: Path, *rois: tuple[str, list[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    content = [{"Name": name, "NumberOfPoints": len(points), "Point_px": points, "Area": 1.0} for name, points in rois]
    path.write_bytes(plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": content}]}))


def folder(root: Path) -> Path:
    (root / "INbreast.csv").write_text("\n".join([HEADER, *LINES]) + "\n")
    (root / "AllDICOMs").mkdir()
    for name in FILES:
        write(root / "AllDICOMs" / f"{name}.dcm", breast(60, 50))
    outline(
        root / "AllXML" / "22678622.xml",
        ("Mass", ["(10.5, 20.25)", "(30.9, 21)", "(20, 44.0)"]),
        ("Calcification", ["(3.0, 4.0)"]),
        ("Calcifications", ["(5.5, 4.0)"]),
        ("Cluster", ["(-1.5, 0)", "(6, 0)", "(6, 8.2)"]),
        ("Espiculated Region", ["(8, 8)", "(40, 8)", "(40, 48)"]),
        ("Assymetry", ["(1, 1)", "(2, 1)", "(2, 2)"]),
    )
    outline(root / "AllXML" / "22678670.xml", ("Unnamed", ["(1, 1)", "(9, 1)", "(9, 9)"]), ("Mass", ["nowhere"]))
    (root / "AllXML" / "20586908.xml").write_bytes(b"<plist><dict>")
    return root


def test_rows_boxes_and_problems(tmp_path):
    table = checked(inbreast.read(folder(tmp_path), val=0, test=0))
    rows = table.rows.set_index("image")
    assert list(rows.index) == ["22678622", "22678646", "22678670", "20586908"]
    assert list(rows["view"]) == ["CC", "MLO", "CC", "MLO"] and list(rows["laterality"]) == ["R", "L", "L", "R"]
    assert list(rows["patient"]) == ["61b13c59bcba149e"] * 3 + ["unknown-20586908"]
    assert rows.loc["22678646", "file"] == "AllDICOMs/22678646_61b13c59bcba149e_MG_L_ML_ANON.dcm"
    assert rows.loc["20586908", "file"] == ""
    labels = rows["labels"].map(json.loads)
    assert labels["22678622"] == {
        "birads": 4,
        "birads_detail": "4a",
        "density": "D",
        "mass": 1,
        "calcification": 1,
        "asymmetry": 1,
        "calcification_points": 2,
        "study_day": 0,
    }
    assert labels["22678646"] == {"birads": 1, "density": "D", "study_day": 0} | dict.fromkeys(inbreast.FINDINGS, 0)
    assert labels["22678670"] == {"birads": 6, "mass": 1, "study_day": 424}
    assert not any("cancer" in entry for entry in labels)
    assert json.loads(rows.loc["22678622", "boxes"]) == [
        {"label": "mass", "box": [10, 20, 31, 45]},
        {"label": "calcification", "box": [0, 0, 7, 9]},
        {"label": "spiculated_region", "box": [8, 8, 41, 49]},
        {"label": "asymmetry", "box": [1, 1, 3, 3]},
    ]
    assert (rows.groupby("patient")["split"].nunique() == 1).all() and table.table_rows == len(LINES)
    found = sorted((problem.stage, problem.kind, problem.row[-1:]) for problem in table.problems)
    assert found == [
        ("boxes", "malformed outline", "4"),
        ("boxes", "outlines cannot be read", "5"),
        ("boxes", "unknown finding", "4"),
        ("source", "empty identifier", "9"),
        ("source", "laterality contradicts", "6"),
        ("source", "no row in the table", ""),
        ("source", "unknown laterality", "8"),
        ("source", "unknown view", "7"),
    ]


def test_boxes_lie_in_their_images(tmp_path):
    rows = inbreast.read(folder(tmp_path)).rows
    for boxes in rows["boxes"].map(json.loads):
        for x0, y0, x1, y1 in (item["box"] for item in boxes):
            assert 0 <= x0 < x1 <= 50 and 0 <= y0 < y1 <= 60


def test_the_table_alone_counts_its_images(tmp_path):
    (tmp_path / "INbreast.csv").write_text("\n".join([HEADER, *LINES[:4]]) + "\n")
    table = checked(inbreast.read(tmp_path))
    assert len(table.rows) == table.table_rows == 4 and not table.problems and set(table.rows["file"]) == {""}
    with pytest.raises(UserError, match="no INbreast.csv"):
        inbreast.read(tmp_path / "nowhere")


def test_the_excel_table_names_findings_too(tmp_path):
    pytest.importorskip("openpyxl")
    columns = [*HEADER.split(";"), "Mass ", "Micros", "Distortion", "Asymmetry"]
    first = ["removed", "removed", "R", "CC", "201001", 22678622.0, 4, "4a", "X", "X", None, None]
    lines = [first, ["a note"] + [None] * 11]
    pd.DataFrame(lines, columns=columns).to_excel(tmp_path / "INbreast.xlsx", index=False)
    table = inbreast.read(tmp_path)
    labels = json.loads(table.rows["labels"][0])
    assert labels["mass"] == labels["calcification"] == 1 and "asymmetry" not in labels and labels["density"] == "D"
    assert table.rows["image"][0] == "22678622" and [problem.kind for problem in table.problems] == ["empty identifier"]


def test_a_view_from_below(tmp_path):
    line = "removed;removed;L;FB;201001;30000002;2;2"
    (tmp_path / "INbreast.csv").write_text(f"{HEADER}\n{line}\n")
    (tmp_path / "AllDICOMs").mkdir()
    write(tmp_path / "AllDICOMs" / "30000002_aaaa3c59bcba149e_MG_L_FB_ANON.dcm", breast(60, 50))
    table = checked(inbreast.read(tmp_path))
    assert not table.problems and list(table.rows["view"]) == ["FB"]
