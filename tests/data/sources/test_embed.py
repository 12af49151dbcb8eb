"""EMBED: the join of the two tables against a naive loop over a random set, and the owner's codes one by one."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import embed
from mammoclip_jax.errors import UserError

PREFIX = "/mnt/NAS2/mammo/anon_dicom/"
METADATA = (
    "empi_anon,acc_anon,anon_dicom_path,FinalImageType,ImageLateralityFinal,ViewPosition,study_date_anon,"
    "StudyDescription,spot_mag,num_roi,ROI_coords,match_level,Manufacturer"
).split(",")
CLINICAL = (
    "empi_anon,acc_anon,side,asses,tissueden,numfind,bside,path_severity,massshape,massmargin,massdens,"
    "calcfind,calcdistri,calcnumber,otherfind,implanfind,age_at_study,desc,RACE_DESC,"
    "ETHNIC_GROUP_DESC"
).split(",")


def image(patient: str, exam: str, name: str, side: str = "L", **more) -> dict:
    return {
        "empi_anon": patient,
        "acc_anon": exam,
        "anon_dicom_path": f"{PREFIX}cohort_1/{patient}/{exam}/{name}.dcm",
        "FinalImageType": "2D",
        "ImageLateralityFinal": side,
        "ViewPosition": "MLO",
        "num_roi": "0",
        "ROI_coords": "()",
        "study_date_anon": "2015-04-16",
    } | more


def finding(patient: str, exam: str, side: str, asses: str, **more) -> dict:
    return {"empi_anon": patient, "acc_anon": exam, "side": side, "asses": asses, "tissueden": "2.0"} | more


def folder(root: Path, images: list[dict], findings: list[dict]) -> Path:
    (root / "tables").mkdir(parents=True)
    for kind, columns, lines in (("metadata", METADATA, images), ("clinical", CLINICAL, findings)):
        path = root / "tables" / f"EMBED_OpenData_{kind}.csv"
        pd.DataFrame(lines, columns=columns).to_csv(path)  # with the unnamed index column of the original
    return root


def labels_of(table, name: str) -> dict:
    rows = table.rows.set_index("image")
    return json.loads(rows.loc[name, "labels"])


def test_a_small_set(tmp_path):
    root = folder(
        tmp_path,
        [
            image("1", "10", "a", "L", StudyDescription="MG Screening Bilateral", Manufacturer="HOLOGIC, Inc."),
            image("1", "10", "b", "R", ViewPosition="CC"),
            image("1", "10", "c", "L", FinalImageType="cview"),
            image("1", "11", "d", "L", study_date_anon="2016-04-16"),
            image("2", "20", "e", "R", spot_mag="1.0"),
            image("3", "30", "m", "L"),
            image("4", "40", "x", "both"),
        ],
        [
            finding(
                "1",
                "10",
                "L",
                "A",
                massshape="O",
                massmargin="S",
                massdens="+",
                age_at_study="54.9",
                RACE_DESC="African American  or Black",
                ETHNIC_GROUP_DESC="",
                desc="other",
            ),
            finding("1", "10", "L", "A", calcfind="A,I", calcdistri="C"),
            finding("1", "10", "R", "N"),
            finding("1", "11", "", "S", massshape="S", bside="L", path_severity="0.0"),
            finding(
                "2",
                "20",
                "R",
                "B",
                RACE_DESC="Unknown, Unavailable or Unreported",
                ETHNIC_GROUP_DESC="Unknown~Non-Hispanic",
                path_severity="4",
            ),
            finding("3", "30", "B", "N", tissueden="5"),
            finding("9", "90", "L", "N"),
        ],
    )
    table = checked(embed.read(root, val=0, test=0))
    assert table.partial and table.public_ids and table.table_rows == 14 and "clause 5" in table.licence
    rows = table.rows.set_index("image")
    assert list(rows.index) == ["a", "b", "d", "e"]
    assert rows.loc["a", "file"] == "images/cohort_1/1/10/a.dcm" and rows.loc["a", "vendor"] == "Hologic"
    assert rows.loc["a", "row"] == "EMBED_OpenData_metadata.csv:2"
    assert labels_of(table, "a") == {
        "density": "B",
        "age": 54,
        "race": "African American or Black",
        "procedure": "MG Screening Bilateral",
        "birads": 0,
        "mass": 1,
        "calcification": 1,
        "suspicious_calcification": 1,
        "mass_shape": "oval",
        "mass_margins": "spiculated",
        "mass_density": "high",
        "image_type": "2D",
        "study_day": 0,
    }
    negative = labels_of(table, "b")
    assert negative["birads"] == 1 and {negative[name] for name in embed.ABSENT} == {0}
    assert "cancer" not in negative and "ethnicity" not in negative
    developed = labels_of(table, "d")
    assert (developed["cancer"], developed["invasive"], developed["study_day"]) == (1, 1, 366)
    assert developed["birads"] == 4 and developed["asymmetry"] == 1 and "mass" not in developed
    benign = labels_of(table, "e")
    assert (benign["cancer"], benign["biopsy"], benign["spot_or_magnification"]) == (0, 1, 1)
    assert "race" not in benign and "ethnicity" not in benign and "mass" not in benign
    found = sorted((problem.stage, problem.kind, problem.row.split("_")[-1]) for problem in table.problems)
    assert found == [
        ("absent", "image type left out", "metadata.csv:4"),
        ("absent", "male patient", "metadata.csv:7"),
        ("absent", "no image of this breast", "clinical.csv:7"),
        ("absent", "no image of this breast", "clinical.csv:8"),
        ("source", "unknown laterality", "metadata.csv:8"),
    ]
    assert "oval mass with spiculated margins" in rows.loc["a", "texts"][0]
    assert not any(word in " ".join(rows.loc["d", "texts"]).lower() for word in ("cancer", "invasive", "malignan"))
    assert len(embed.read(root, image_types="2D,cview").rows) == 5
    with pytest.raises(UserError, match="The table has: 2D, cview"):
        embed.read(root, image_types="3D")


def naive(images: pd.DataFrame, findings: pd.DataFrame) -> dict[str, int]:
    """The rule of the module's top, in plain loops."""
    found = {}
    for line in images.itertuples():
        exam = findings[findings["acc_anon"] == line.acc_anon]
        for side in (line.ImageLateralityFinal, "B", ""):
            near = exam[exam["side"] == side]
            if len(near):
                break
        categories = [embed.BIRADS[letter] for letter in near["asses"] if letter in embed.BIRADS]
        if categories:
            best = 0 if max(categories) <= 2 and 0 in categories else max(categories)
            found[Path(line.anon_dicom_path).stem] = best
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_category_of_a_breast_is_that_of_a_naive_loop(tmp_path, seed):
    generator = np.random.default_rng(seed)
    images, findings = [], []
    for exam in range(60):
        patient = str(exam // 3)
        for number in range(generator.integers(1, 5)):
            images.append(image(patient, str(exam), f"{exam}-{number}", generator.choice(["L", "R"])))
        for _ in range(generator.integers(0, 6)):
            letter = generator.choice([*"ANBPSMKX", ""], p=[0.2, 0.2, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05, 0.1])
            findings.append(
                finding(
                    patient,
                    str(exam),
                    generator.choice(["L", "R", "B", ""]),
                    letter,
                    tissueden=generator.choice(["", "1", "3.0"]),
                )
            )
    table = checked(embed.read(folder(tmp_path, images, findings)))
    expected = naive(pd.DataFrame(images), pd.DataFrame(findings))
    labels = {row.image: json.loads(row.labels) for row in table.rows.itertuples()}
    assert len(labels) == len(images)
    assert {name: entry["birads"] for name, entry in labels.items() if "birads" in entry} == expected
    # A breast's images agree, a patient is in one split, and every line of the tables is somewhere.
    rows = table.rows.assign(
        birads=[labels[name].get("birads") for name in table.rows["image"]],
        density=[labels[name].get("density") for name in table.rows["image"]],
    )
    assert (rows.groupby(["study", "laterality"])["birads"].nunique(dropna=False) == 1).all()
    assert (rows.groupby("study")["density"].nunique(dropna=False) == 1).all()
    assert (rows.groupby("patient")["split"].nunique() == 1).all()
    assert table.table_rows == len(images) + len(findings)
    for column in ("density contradicts", "no image of this breast"):
        assert any(problem.kind == column for problem in table.problems)


def test_a_line_without_a_category_does_not_shift_the_choice():
    """MaMA's code takes the second line here: it counts in the lines that have a category and picks from all."""
    findings = pd.DataFrame({"breast": ["1/L"] * 3, "tier": 0, "birads": [np.nan, 1, 5], "massshape": ["G", "R", "X"]})
    assert embed.assessed(findings).loc["1/L", "massshape"] == "X"
    findings["birads"] = [2, 0, 1]
    assert embed.assessed(findings).loc["1/L", "massshape"] == "R"


@pytest.mark.parametrize(
    "cells, expected",
    [
        ({"massshape": "Q"}, {"architectural_distortion"}),
        ({"massshape": "F", "massdens": "="}, {"focal_asymmetry"}),
        ({"massmargin": "I"}, {"mass"}),
        ({"massshape": "N"}, {"lymph_node"}),
        ({"calcnumber": "0"}, set()),
        ({"calcnumber": "3"}, {"calcification"}),
        ({"calcfind": "V"}, {"calcification"}),
        ({"calcfind": "K,V"}, {"calcification", "suspicious_calcification"}),
        ({"otherfind": "N,S"}, {"nipple_retraction", "skin_thickening"}),
        ({"implanfind": "N"}, {"implant"}),
    ],
)
def test_codes_of_the_legend(tmp_path, cells, expected):
    table = embed.read(folder(tmp_path, [image("1", "1", "a")], [finding("1", "1", "L", "B", **cells)]))
    found = labels_of(table, "a")
    everything = {label for codes in embed.FINDINGS.values() for label in codes.values()} | {"calcification"}
    assert {name for name in everything if found.get(name) == 1} == expected
    assert not any(found.get(name) == 0 for name in everything)


def test_boxes_are_turned_back_to_the_file(tmp_path):
    cell = "((10, 20, 30, 60), (5, 0, 15, 10))"
    root = folder(
        tmp_path,
        [
            image("1", "1", name, side, num_roi="2", ROI_coords=cell, match_level="[1, 2]")
            for name, side in (("mirrored", "R"), ("plain", "L"), ("bare", "R"), ("gone", "R"))
        ]
        + [
            image("1", "1", "few", num_roi="3", ROI_coords=cell),
            image("1", "1", "none", num_roi="0", ROI_coords=cell),
            image("1", "1", "lost", num_roi="1", ROI_coords="()"),
            image("1", "1", "odd", num_roi="1", ROI_coords="[[1, 2]]"),
            image("1", "1", "flat", num_roi="1", ROI_coords="((5, 5, 5, 9),)"),
        ],
        [finding("1", "1", "R", "A", massshape="O")],
    )
    for name, tags in (
        ("mirrored", {"PatientOrientation": ["P", "F"]}),
        ("plain", {"PatientOrientation": ["A", "F"]}),
        ("bare", {}),
    ):
        path = root / f"images/cohort_1/1/1/{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, breast(120, 90), **tags)
    table = checked(embed.read(root))
    boxes = {row.image: json.loads(row.boxes) for row in table.rows.itertuples()}
    turned, given = [[30, 10, 70, 30], [80, 5, 90, 15]], [[20, 10, 60, 30], [0, 5, 10, 15]]
    assert [item["box"] for item in boxes["mirrored"]] == [item["box"] for item in boxes["bare"]] == turned
    assert [item["box"] for item in boxes["plain"]] == [item["box"] for item in boxes["gone"]] == given
    assert [item["match"] for item in boxes["plain"]] == [1, 2]
    assert {item["label"] for item in boxes["mirrored"]} == {"mass"}
    assert {item["label"] for item in boxes["plain"]} == {"finding"}
    assert sorted((problem.image, problem.kind) for problem in table.problems) == [
        ("few", "box count contradicts"),
        ("flat", "malformed box"),
        ("lost", "box count contradicts"),
        ("none", "box count contradicts"),
        ("odd", "malformed box"),
    ]
    # Coordinates of the DICOM file, where the owner gives them, are taken as they are.
    path = root / "tables" / "EMBED_OpenData_metadata.csv"
    pd.read_csv(path, dtype=str).assign(
        DCM_ROI_coords="[[[10, 20, 30, 60]]]", num_roi="1", Rows="120", Columns="90"
    ).to_csv(path, index=False)
    row = embed.read(root).rows.iloc[0]
    assert json.loads(row["boxes"])[0]["box"] == [20, 10, 60, 30] and row["size"] == "120 90"


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="no EMBED_OpenData_metadata.csv and no EMBED_OpenData_metadata_reduced.csv"):
        embed.read(tmp_path)
    root = folder(
        tmp_path,
        [
            image("1", "1", "a"),
            image("1", "1", "b", anon_dicom_path="/tmp/../b.dcm"),
            image("1", "1", "c", anon_dicom_path="cohort_1/../../b.dcm"),
        ],
        [finding("2", "1", "L", "A"), finding("1", "1", "Q", "A"), finding("1", "1", "L", "Z")],
    )
    kinds = sorted(problem.kind for problem in embed.read(root).problems)
    assert kinds == ["exam of two patients", "unknown assessment", "unknown path", "unknown path", "unknown side"]
    path = root / "tables" / "EMBED_OpenData_clinical.csv"
    pd.read_csv(path).drop(columns="asses").to_csv(path)
    with pytest.raises(UserError, match="no column 'asses'"):
        embed.read(root)


def test_damaged_cells_never_stop_the_reading(tmp_path):
    """Random cells of both tables replaced by rubbish: every line still ends in a row or in a problem."""
    generator = np.random.default_rng(7)
    rubbish = ["", "nan", "inf", "-1", "1e999", "((", "\u202e", "L", "9" * 400, "2024-13-45", "../..", "a\x00b", "5"]
    images = [image(str(n // 4), str(n // 2), str(n), num_roi="1", ROI_coords="((1, 2, 3, 4),)") for n in range(200)]
    findings = [finding(str(n // 4), str(n // 2), "LRB"[n % 3], "ANB"[n % 3]) for n in range(200)]
    for lines, columns in ((images, METADATA), (findings, CLINICAL)):
        for _ in range(400):
            lines[generator.integers(200)][generator.choice(columns)] = generator.choice(rubbish)
    table = embed.read(folder(tmp_path, images, findings))
    named = set(table.rows["row"]) | {problem.row for problem in table.problems}
    assert table.table_rows == 400 and {f"EMBED_OpenData_metadata.csv:{line}" for line in range(2, 202)} <= named
    for boxes in table.rows["boxes"].map(json.loads):
        assert all(np.isfinite(item["box"]).all() for item in boxes)
