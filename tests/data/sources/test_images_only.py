"""A folder of images without a table: what headers and names say, and what is passed over."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data.manifest import breast_keys, checked
from mammoclip_jax.data.sources import images_only
from mammoclip_jax.errors import UserError

PIXELS = breast(40, 30)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), PIXELS)
    return path


def dicom(path: Path, uid: str, patient: str = "p1", study: str = "1.2", date: str = "20200101", **tags) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, PIXELS, PatientID=patient, StudyInstanceUID=study, SOPInstanceUID=uid, StudyDate=date, **tags)


def test_headers_say_all_of_dicom_files(tmp_path):
    dicom(tmp_path / "a" / "1.dcm", "1.2.1", ImageLaterality="L", ViewPosition="CC", Manufacturer="HOLOGIC, Inc.")
    dicom(tmp_path / "b" / "IM2", "1.2.2", study="1.3", date="20200211", ImageLaterality="R", ViewPosition="MLO")
    dicom(tmp_path / "b" / "3.IMA", "1.2.3", patient="p2", date="")
    shutil.copy(tmp_path / "a" / "1.dcm", tmp_path / "z.dcm")
    table = images_only.read(tmp_path)
    rows = checked(table).rows.set_index("image").loc[["1.2.1", "1.2.2", "1.2.3"]]
    assert list(rows["file"]) == ["a/1.dcm", "b/IM2", "b/3.IMA"] and list(rows["patient"]) == ["p1", "p1", "p2"]
    # Two patients whose headers say the same study are two exams.
    assert list(rows["study"]) == ["p1/1.2", "1.3", "p2/1.2"] and list(rows["laterality"]) == ["L", "R", ""]
    assert list(rows["view"]) == ["CC", "MLO", ""] and list(rows["vendor"]) == ["Hologic", "", ""]
    assert [json.loads(labels) for labels in rows["labels"]] == [{"study_day": 0}, {"study_day": 41}, {}]
    assert not checked(table).problems
    assert [(other.kind, other.file) for other in table.passed_over] == [("copy of another file", "z.dcm")]
    assert not table.public_ids and not table.partial and table.table_rows == 0
    assert not any(rows["texts"].map(len))


def test_what_is_no_image_is_passed_over_and_what_should_be_one_is_not(tmp_path):
    picture(tmp_path / "p_L_CC.png")
    for name in ("DICOMDIR", ".hidden.png", "readme.txt", "report", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "a.dcm").write_text("no image")
    (tmp_path / "cut.ima").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    table = images_only.read(tmp_path)
    assert list(table.rows["file"]) == ["p_L_CC.png"]
    assert [(problem.file, problem.stage) for problem in table.problems] == [("a.dcm", "decode"), ("cut.ima", "decode")]
    assert {other.file: other.kind for other in table.passed_over} == {
        ".git": "hidden",
        ".hidden.png": "hidden",
        "DICOMDIR": "other file",
        "readme.txt": ".txt",
        "report": "other file",
        "link": "link without end or special file",
    }


@pytest.mark.parametrize(
    "name, patient, study, side, view",
    [
        ("p7_L_CC.png", "p7", "./p7", "L", "CC"),
        ("x/p7-RMLO.tif", "p7", "x/p7", "R", "MLO"),
        ("x/y/L_MLO.png", "x/y", "x/y/x/y", "L", "MLO"),
        ("x/RCC.pgm", "x", "x/x", "R", "CC"),
        ("x/0001.jpg", "x", "x/x", "", ""),
        ("x/anna_left.png", "anna", "x/anna", "L", ""),
        ("p7_MLO_right_2.png", "p7", "./p7", "R", "MLO"),
        ("x/CC.png", "x", "x/x", "", "CC"),
        ("x/SEIN GAUCHE.png", "x", "x/x", "L", ""),
        ("x/sein droit CC.png", "x", "x/x", "R", "CC"),
        ("p1/SEIN GAUCHE/CC/1.png", "p1", "p1/p1", "L", "CC"),
        ("p1/rechts/MLO.png", "p1", "p1/p1", "R", "MLO"),
        ("p1/Left/anna_2 R.png", "anna_2", "p1/anna_2", "R", ""),
        ("x/img_L_CC.png", "x", "x/x", "L", "CC"),
        ("x/img7_L_CC.png", "img7", "x/img7", "L", "CC"),
        ("x/Anna Left/1.png", "x/Anna Left", "x/Anna Left/x/Anna Left", "", ""),
        ("x/clever_lcrl.png", "x", "x/x", "", ""),
        ("a_b_R XCCL.png", "a_b", "./a_b", "R", "XCCL"),
    ],
)
def test_names_of_pictures(tmp_path, name, patient, study, side, view):
    picture(tmp_path / name)
    row = images_only.read(tmp_path).rows.iloc[0]
    assert (row["patient"], row["study"], row["laterality"], row["view"]) == (patient, study, side, view)
    assert row["image"] == name == row["file"]


def test_a_dicom_file_that_lacks_fields_takes_them_from_its_name(tmp_path):
    dicom(tmp_path / "ann" / "R_CC.dcm", "1.5", patient="", study="", ViewPosition="MLO")
    row = images_only.read(tmp_path).rows.iloc[0]
    assert (row["patient"], row["laterality"], row["view"]) == ("ann", "R", "MLO")


def test_a_pattern_names_the_parts(tmp_path):
    for name in ("site1/case12_0_lcc.png", "site1/case12_1_rmlo.png", "site2/case12_1_rcc.png", "site1/odd.png"):
        picture(tmp_path / name)
    dicom(tmp_path / "site1" / "x.dcm", "1.9")
    dicom(tmp_path / "site1" / "y.dcm", "1.10", patient="")
    pattern = r"(?P<patient>site\d/case\d+)_(?P<study>\d)_(?P<laterality>[lr])(?P<view>cc|mlo)"
    table = images_only.read(tmp_path, pattern=pattern)
    rows = table.rows.set_index("image")
    assert set(rows["patient"]) == {"site1/case12", "site2/case12", "p1"}
    first = rows.loc["site1/case12_1_rmlo.png"]
    assert (first["study"], first["laterality"], first["view"]) == ("site1/case12/1", "R", "MLO")
    assert [(p.reason, p.file) for p in table.problems] == [("path does not match the pattern", "site1/y.dcm")]
    assert [(p.reason, p.file) for p in table.passed_over] == [("picture beside DICOM images", "site1/odd.png")]
    assert len(set(breast_keys(table.rows))) == 4


@pytest.mark.parametrize("pattern", ["(", "no groups", "(?P<breast>x)"])
def test_a_wrong_pattern_is_named(tmp_path, pattern):
    picture(tmp_path / "x.png")
    with pytest.raises(UserError, match="--option=pattern="):
        images_only.read(tmp_path, pattern=pattern)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        images_only.read(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        images_only.read(tmp_path / "nowhere")


def test_patients_are_whole_and_the_fractions_hold(tmp_path):
    for number in range(60):
        (tmp_path / f"p{number:02d}_L_CC.png").write_text("looked at later")
        (tmp_path / f"p{number:02d}_R_CC.png").write_text("looked at later")
    rows = checked(images_only.read(tmp_path, val=0.25, test=0.25)).rows
    assert rows["patient"].nunique() == 60 and rows.groupby("patient")["split"].nunique().max() == 1
    assert 5 < (rows["split"] == "val").sum() / 2 < 25 and 5 < (rows["split"] == "test").sum() / 2 < 25
