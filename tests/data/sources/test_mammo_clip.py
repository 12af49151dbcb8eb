"""The Mammo-CLIP project's tables: literals as its scripts write them, with their known defects."""

import collections
import csv
import json
import random

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import mammo_clip, vindr
from mammoclip_jax.errors import UserError

REPORT_COLUMNS = (
    "patient_id",
    "laterality",
    "image",
    "view",
    "CC",
    "MLO",
    "text",
    "findings",
    "impressions",
    "text_augment",
    "fold",
)
ATTRIBUTE_COLUMNS = (
    "patient_id",
    "laterality",
    "split",
    "image",
    "view",
    "CC",
    "MLO",
    "cc_findings",
    "mlo_findings",
    "CC_FINDING",
    "MLO_FINDING",
    "fold",
    "patient_id_laterality",
)
TEN = list(vindr.FINDINGS)


def write(path, columns, lines):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    return path.parent


# clip_pretrain_100.csv


def reports(patients=12, seed=0):
    """Lines of two breasts a patient; some with one view only, several images of a view, an empty section."""
    rng = random.Random(seed)
    lines = []
    for patient in range(patients):
        for side in "LR":
            cc = [f"1.2.840.{patient}.{ord(side)}.{n}.png" for n in range(rng.randint(1, 2))]
            mlo = [f"1.2.840.{patient}.{ord(side)}.{n + 5}.png" for n in range(rng.choice([0, 1, 2]))]
            findings = rng.choice(["", f"scattered densities , no mass {patient}"])
            impression = f"birads : {rng.randint(0, 6)} , routine screening recommended {patient}{side}"
            images = cc + mlo
            rng.shuffle(images)
            lines.append(
                dict(
                    zip(
                        REPORT_COLUMNS,
                        (
                            str(40400000 + patient),
                            side,
                            str(images),
                            str(["CC", "MLO"] if mlo else ["CC"]),
                            str(cc),
                            str(mlo),
                            str([findings, impression]),
                            findings,
                            impression,
                            str([f"{text} again" if text else "" for text in (findings, impression)]),
                            str(patient % 4),
                        ),
                    )
                )
            )
    return lines


def test_reports(tmp_path):
    lines = reports()
    table = checked(mammo_clip.read(write(tmp_path / "clip_pretrain_100.csv", REPORT_COLUMNS, lines), images="png"))
    rows = table.rows
    assert not table.problems and table.table_rows == len(lines) and not table.public_ids and not table.partial
    images = [(line, view, name) for line in lines for view in ("CC", "MLO") for name in eval(line[view])]
    assert len(images) == len(rows) > 30
    by_image = rows.set_index("image")
    for line, view, name in images:
        row = by_image.loc[name.removesuffix(".png")]
        assert (row["patient"], row["study"], row["laterality"], row["view"]) == (
            line["patient_id"],
            line["patient_id"],
            line["laterality"],
            view,
        )
        assert row["file"] == f"png/{line['patient_id']}/{name}"
        assert row["split"] == ("val" if line["fold"] == "0" else "train")
        told = dict(zip(row["sections"], row["texts"]))
        assert told.get("findings", "") == line["findings"] and told["impression"] == line["impressions"]
        augmented = [text for section, text in zip(row["sections"], row["texts"]) if section == "augmented"]
        assert augmented == [text for text in eval(line["text_augment"]) if text]
        assert row["sections"][0] != "augmented" and all(text.strip() for text in row["texts"])
    assert (rows.groupby("patient")["split"].nunique() == 1).all()
    other = mammo_clip.read(tmp_path, fold=2).rows
    second = {line["patient_id"] for line in lines if line["fold"] == "2"}
    assert set(other["patient"][other["split"] == "val"]) == second


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"image": "a.png"}, "unreadable cell"),
        ({"CC": "['a.png'"}, "unreadable cell"),
        ({"MLO": "[1]"}, "unreadable cell"),
        ({"text": "nan"}, "unreadable cell"),
        ({"text_augment": ""}, "unreadable cell"),
        ({"fold": "x"}, "unreadable cell"),
        ({"image": "[]", "CC": "[]", "MLO": "[]"}, "line without image"),
        ({"CC": "['a.png']", "MLO": "['a.png']"}, "contradiction"),
        ({"laterality": "L"}, "contradiction"),
        ({"laterality": "B"}, "unknown laterality"),
    ],
)
def test_a_bad_report_line_is_a_problem(tmp_path, change, kind):
    lines = reports()
    lines[3] |= change
    table = checked(mammo_clip.read(write(tmp_path / "clip_pretrain_100.csv", REPORT_COLUMNS, lines)))
    assert {problem.kind for problem in table.problems} == {kind}
    assert {problem.row for problem in table.problems} == {"clip_pretrain_100.csv:5"}
    assert "clip_pretrain_100.csv:5" not in set(table.rows["row"])


def test_a_patient_in_two_folds_is_left_out(tmp_path):
    lines = reports()
    lines[2]["fold"] = "3"
    table = checked(mammo_clip.read(write(tmp_path / "clip_pretrain_100.csv", REPORT_COLUMNS, lines)))
    assert [problem.row for problem in table.problems] == ["clip_pretrain_100.csv:4", "clip_pretrain_100.csv:5"]
    with pytest.raises(UserError, match="--option=fold=7"):
        mammo_clip.read(tmp_path, fold=7)


def test_an_image_of_unknown_view_keeps_its_report(tmp_path):
    lines = reports(2)
    lines[0]["image"] = str([*eval(lines[0]["image"]), "extra.png"])
    rows = mammo_clip.read(write(tmp_path / "clip_pretrain_100.csv", REPORT_COLUMNS, lines), fold=1).rows
    assert list(rows["view"][rows["image"] == "extra"]) == [""]


# clip_vindr_final.csv


def attributes(studies=20, seed=0, nested=True):
    """Lines as the released notebook writes them: nested strings, and all ten findings as absent ones."""
    rng = random.Random(seed)
    lines = []
    for study in range(studies):
        split = "test" if study % 5 == 0 else "training"
        for side in "LR":
            told, lists, names = {}, {}, {}
            for view in ("CC", "MLO"):
                found = rng.choice([["No Finding"], rng.sample(TEN, rng.randint(1, 3))])
                told[view] = str([[name] for name in found])
                present = [told[view]] if nested else found
                absent = rng.sample(TEN, 10) if nested else [name for name in TEN if name not in found]
                lists[view] = str([present, [], absent, []] if side == "R" else [[], present, [], absent])
                names[view] = str([f"{study}{side}{view}.png"])
            both = [f"{study}{side}{view}.png" for view in ("CC", "MLO")]
            lines.append(
                dict(
                    zip(
                        ATTRIBUTE_COLUMNS,
                        (
                            f"study{study}",
                            side,
                            split,
                            str(both),
                            "['CC', 'MLO']",
                            names["CC"],
                            names["MLO"],
                            told["CC"],
                            told["MLO"],
                            lists["CC"],
                            lists["MLO"],
                            "0" if split == "test" else "1",
                            f"study{study}_{side}",
                        ),
                    )
                )
            )
    return lines


@pytest.mark.parametrize("nested", [True, False])
def test_attributes_present_is_never_absent(tmp_path, caplog, nested):
    lines = attributes(nested=nested)
    table = checked(mammo_clip.read(write(tmp_path / "clip_vindr_final.csv", ATTRIBUTE_COLUMNS, lines)))
    assert not table.problems and table.public_ids and len(table.rows) == 2 * len(lines)
    denials = 0
    by_image = table.rows.set_index("image")
    for line in lines:
        for view in ("CC", "MLO"):
            row = by_image.loc[eval(line[view])[0].removesuffix(".png")]
            names = {name for part in eval(line[f"{view.lower()}_findings"]) for name in part} - {"No Finding"}
            expected = {label: int(name in names) for name, label in vindr.FINDINGS.items()}
            assert json.loads(row["labels"]) == expected
            assert row["view"] == view and row["dataset"] == "vindr"
            assert (row["split"] == "test") == (line["split"] == "test")
            assert len(row["texts"]) == len(row["sections"]) > 0
            denied = " ".join(part.split(".")[0] for text in row["texts"] for part in text.split("There is no ")[1:])
            denials += "mass" in denied
            assert not (expected["mass"] and "mass" in denied)
    assert denials
    doubled = [record.getMessage() for record in caplog.records if "present and absent" in record.getMessage()]
    assert len(doubled) == nested
    if nested:
        wrong = sum(any(name in line[f"{view}_findings"] for view in ("cc", "mlo") for name in TEN) for line in lines)
        assert f"{wrong} of {len(lines)} lines" in doubled[0]


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"CC_FINDING": "[[], []]"}, "unreadable cell"),
        ({"MLO_FINDING": "Mass"}, "unreadable cell"),
        ({"CC_FINDING": "[[], ['[['], [], []]"}, "unreadable cell"),
        ({"CC_FINDING": "[[], [3], [], []]"}, "unreadable cell"),
        ({"cc_findings": "[['Mass'"}, "unreadable cell"),
        ({"CC_FINDING": "[[], ['Tumour'], [], []]", "cc_findings": "['Tumour']"}, "unknown finding"),
        ({"CC_FINDING": "[['Mass'], [], [], []]"}, "contradiction"),
        ({"cc_findings": "[]"}, "contradiction"),
        ({"fold": "0"}, "contradiction"),
        ({"split": "tast"}, "unknown split"),
        ({"laterality": ""}, "unknown laterality"),
    ],
)
def test_a_bad_attribute_line_is_a_problem(tmp_path, change, kind):
    lines = attributes()
    assert lines[4]["split"] == "training" and lines[4]["laterality"] == "L"
    lines[4] |= change
    table = checked(mammo_clip.read(write(tmp_path / "clip_vindr_final.csv", ATTRIBUTE_COLUMNS, lines)))
    assert [(problem.kind, problem.row) for problem in table.problems] == [(kind, "clip_vindr_final.csv:6")]
    assert len(table.rows) == 2 * len(lines) - 2


# vindr_detection_v1_folds.csv

DETECTION_COLUMNS = (
    "patient_id",
    "series_id",
    "image_id",
    "laterality",
    "view",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "finding_categories",
    "finding_birads",
    *vindr.CORNERS,
    "split",
    *mammo_clip.RESIZED,
    "fold",
    *(name.replace(" ", "_") for name in TEN),
    "No_Finding",
    "density",
)


def detection():
    """Two images with three findings between them, one of them turned inside out by the clamp, and two without."""
    shared = {
        "series_id": "s",
        "height": "3518",
        "width": "2800",
        "breast_birads": "BI-RADS 4",
        "fold": "2",
        "breast_density": "DENSITY C",
        "finding_birads": "BI-RADS 4",
        "density": "2",
    }
    boxes = [
        ("A", "L", "CC", "['Mass']", (10, 20, 110, 220), (4, 9, 60, 99)),
        ("A", "L", "CC", "['Suspicious Calcification', 'Mass']", (300.5, 400.5, 500, 600), (100, 150, 160, 260)),
        ("B", "L", "MLO", "['Skin Retraction']", (50, 3000, 90, 3300), (20, 1400, 30, 1300)),
    ]
    lines = [
        shared
        | {
            "patient_id": "study1",
            "image_id": f"{image}.png",
            "laterality": side,
            "view": view,
            "finding_categories": names,
            "split": "training",
        }
        | dict(zip(vindr.CORNERS, box))
        | dict(zip(mammo_clip.RESIZED, resized))
        for image, side, view, names, box, resized in boxes
    ]
    return lines + [
        shared
        | {
            "patient_id": "study2",
            "image_id": f"{image}.png",
            "laterality": "R",
            "view": view,
            "split": "test",
            "finding_categories": "['No Finding']",
            "breast_birads": "BI-RADS 1",
            "finding_birads": "",
        }
        | dict.fromkeys((*vindr.CORNERS, *mammo_clip.RESIZED), 0)
        for image, view in (("C", "CC"), ("D", "MLO"))
    ]


def test_detection_merges_the_lines_of_an_image(tmp_path):
    write(tmp_path / "vindr_detection_v1_folds.csv", DETECTION_COLUMNS, detection())
    table = checked(mammo_clip.read(tmp_path, val=0.0))
    assert not table.problems and table.table_rows == 5
    rows = table.rows.set_index("image")
    assert list(rows.index) == ["A", "B", "C", "D"] and list(rows["split"]) == ["train"] * 2 + ["test"] * 2
    assert rows.loc["A", "file"] == "images/study1/A.dicom" and rows.loc["A", "size"] == "3518 2800"
    assert json.loads(rows.loc["A", "boxes"]) == [
        {"label": "mass", "box": [10, 20, 110, 220], "birads": 4},
        {
            "label": "suspicious_calcification",
            "box": [300.5, 400.5, 500, 600],
            "birads": 4,
            "labels": ["suspicious_calcification", "mass"],
        },
    ]
    labels = json.loads(rows.loc["A", "labels"])
    assert {name for name in vindr.FINDINGS.values() if labels[name]} == {"mass", "suspicious_calcification"}
    assert not any(json.loads(rows.loc["C", "labels"])[name] for name in vindr.FINDINGS.values())


def test_published_boxes_are_those_of_the_png_files(tmp_path):
    write(tmp_path / "vindr_detection_v1_folds.csv", DETECTION_COLUMNS, detection())
    table = checked(mammo_clip.read(tmp_path, images="images_png", boxes="published"))
    assert [(problem.kind, problem.row) for problem in table.problems] == [
        ("malformed box", "vindr_detection_v1_folds.csv:4")
    ]
    row = table.rows.set_index("image").loc["A"]
    assert row["size"] == "1520 912" and row["file"] == "images_png/study1/A.png"
    assert [box["box"] for box in json.loads(row["boxes"])] == [[4, 9, 60, 99], [100, 150, 160, 260]]


def test_detection_lines_that_contradict(tmp_path):
    lines = detection()
    lines[1]["breast_density"] = "DENSITY B"
    write(tmp_path / "vindr_detection_v1_folds.csv", DETECTION_COLUMNS, lines)
    table = checked(mammo_clip.read(tmp_path))
    assert not table.problems
    assert [(remark.kind, remark.row) for remark in table.remarks] == [
        ("contradiction", "vindr_detection_v1_folds.csv:3")
    ]
    lines[0]["height"], lines[1]["split"] = "x", "training" if lines[1]["split"] == "test" else "test"
    write(tmp_path / "vindr_detection_v1_folds.csv", DETECTION_COLUMNS, lines)
    table = checked(mammo_clip.read(tmp_path))
    assert collections.Counter(problem.row for problem in table.problems) == {
        "vindr_detection_v1_folds.csv:2": 1,
        "vindr_detection_v1_folds.csv:3": 1,
    }
    assert table.problems[0].kind in ("unreadable cell", "finding without image")


def test_mutated_tables_lose_nothing(tmp_path):
    rng = random.Random(11)
    tables = {
        "clip_pretrain_100.csv": (REPORT_COLUMNS, reports(40)),
        "clip_vindr_final.csv": (ATTRIBUTE_COLUMNS, attributes(40)),
        "vindr_detection_v1_folds.csv": (DETECTION_COLUMNS, detection()),
    }
    for name, (columns, lines) in tables.items():
        for _ in range(len(lines)):
            line = rng.choice(lines)
            column = rng.choice(list(line))
            cell = str(line[column])
            line[column] = rng.choice(["", "?", cell[:-1], cell + "x", cell.replace("'", ""), "[[", "[None]", "\x00"])
        table = checked(mammo_clip.read(write(tmp_path / name, columns, lines), table=name))
        told = {problem.row for problem in table.problems} | set(table.rows["row"])
        images = {f"{name}:{number}" for number in range(2, len(lines) + 2)}
        assert told <= images and (told == images or name.startswith("vindr_detection"))
        assert len(told) > len(table.problems) and table.problems


# Which table


def test_which_table(tmp_path):
    with pytest.raises(UserError, match="clip_pretrain_100.csv"):
        mammo_clip.read(tmp_path)
    write(tmp_path / "clip_pretrain_100.csv", REPORT_COLUMNS, reports())
    write(tmp_path / "clip_vindr_final.csv", ATTRIBUTE_COLUMNS, attributes())
    with pytest.raises(UserError, match="say which"):
        mammo_clip.read(tmp_path)
    assert set(mammo_clip.read(tmp_path, table="clip_vindr_final.csv").rows["dataset"]) == {"vindr"}
    (tmp_path / "train_folds.csv").write_text("site_id,patient_id,image_id\n1,2,3\n")
    with pytest.raises(UserError, match="--source=rsna"):
        mammo_clip.read(tmp_path, table="train_folds.csv")


@pytest.mark.slow
def test_full_size(tmp_path):
    """As many lines as the real clip_vindr_final.csv has."""
    write(tmp_path / "clip_vindr_final.csv", ATTRIBUTE_COLUMNS, attributes(5000))
    table = checked(mammo_clip.read(tmp_path))
    assert len(table.rows) == 20000 and not table.problems
