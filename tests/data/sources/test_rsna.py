"""RSNA Screening Mammography: the table as Kaggle distributes it, and Mammo-CLIP's with folds."""

import collections
import csv
import json
import random

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import rsna
from mammoclip_jax.errors import UserError

VIEWS = ("CC", "MLO", "CC", "MLO", "AT", "LM", "ML", "LMO")


def made(patients, seed=0):
    """Lines of train_folds.csv: breasts of two to four images, half the BI-RADS and density missing."""
    rng = random.Random(seed)
    lines = []
    for patient in range(patients):
        site, fold, density = rng.choice("12"), rng.choice("0123"), rng.choice(["", *"ABCD"])
        for side in "LR":
            cancer = int(rng.random() < 0.1)
            biopsy = cancer or int(rng.random() < 0.1)
            birads = rng.choice(["", "0.0", "1.0", "2.0"])
            for view in rng.sample(VIEWS, rng.randint(2, 4)):
                lines.append(
                    dict(
                        zip(
                            (*rsna.NEEDED, "fold"),
                            map(
                                str,
                                (
                                    site,
                                    10000 + patient,
                                    7000000 + len(lines),
                                    side,
                                    view,
                                    rng.choice(["", f"{rng.randint(30, 89)}.0"]),
                                    cancer,
                                    biopsy,
                                    cancer * rng.randint(0, 1),
                                    birads,
                                    int(rng.random() < 0.02),
                                    density,
                                    rng.choice([21, 29, 49]),
                                    bool(not cancer and birads == "0.0"),
                                    fold,
                                ),
                            ),
                        )
                    )
                )
    return lines


def write(folder, lines, folds=True):
    columns = [*rsna.NEEDED, *(["fold"] if folds else [])]
    with open(folder / ("train_folds.csv" if folds else "train.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return folder


def test_rows_say_what_the_table_says(tmp_path):
    lines = made(60)
    table = checked(rsna.read(write(tmp_path, lines, folds=False)))
    assert not table.problems and table.table_rows == len(lines) and table.public_ids and table.partial
    for row, line in zip(table.rows.itertuples(), lines, strict=True):
        labels = json.loads(row.labels)
        assert row.file == f"train_images/{line['patient_id']}/{line['image_id']}.dcm"
        assert (row.patient, row.study, row.image) == (line["patient_id"], line["patient_id"], line["image_id"])
        assert (row.laterality, row.view) == (line["laterality"], line["view"])
        for column in ("cancer", "biopsy", "invasive", "implant"):
            assert labels[column] == int(line[column])
        assert labels["difficult_negative"] == (line["difficult_negative_case"] == "True")
        assert labels.get("birads") == (int(float(line["BIRADS"])) if line["BIRADS"] else None)
        assert labels.get("age") == (int(float(line["age"])) if line["age"] else None)
        assert labels.get("density", "") == line["density"]
        assert (labels["site"], labels["machine"]) == (int(line["site_id"]), int(line["machine_id"]))
        assert bool(row.texts) == bool({"birads", "density"} & set(labels) or labels["implant"])
        assert len(row.sections) == len(row.texts)


def test_pathology_never_goes_into_a_text(tmp_path):
    lines = made(40)
    before = [tuple(texts) for texts in rsna.read(write(tmp_path, lines)).rows["texts"]]
    for line in lines:
        line |= {"cancer": "1", "biopsy": "1", "invasive": "1", "difficult_negative_case": "False"}
    assert [tuple(texts) for texts in rsna.read(write(tmp_path, lines)).rows["texts"]] == before


def test_a_naive_recount_agrees(tmp_path):
    write(tmp_path, made(300))
    counts = collections.Counter()
    with open(tmp_path / "train_folds.csv", newline="") as file:
        for line in csv.DictReader(file):
            split = "test" if line["fold"] == "0" else "val" if line["fold"] == "3" else "train"
            counts[split, line["view"], line["cancer"]] += 1
    rows = rsna.read(tmp_path, split="folds", val_fold=3).rows
    cancer = [str(json.loads(labels)["cancer"]) for labels in rows["labels"]]
    assert collections.Counter(zip(rows["split"], rows["view"], cancer)) == counts


def test_splits_keep_patients_whole(tmp_path):
    write(tmp_path, made(300))
    folds = rsna.read(tmp_path, split="folds", val=0.0).rows
    by_hash = rsna.read(tmp_path, val=0.2, test=0.3).rows
    sites = rsna.read(tmp_path, split="site", site=2, val=0.2).rows
    for rows in (folds, by_hash, sites):
        assert (rows.groupby("patient")["split"].nunique() == 1).all()
    assert set(folds["split"]) == {"train", "test"}
    assert set(by_hash["split"]) == set(sites["split"]) == {"train", "val", "test"}
    site = [json.loads(labels)["site"] for labels in sites["labels"]]
    assert set(zip(site, sites["split"])) == {(1, "test"), (2, "train"), (2, "val")}


def test_the_table_is_the_one_that_the_split_needs(tmp_path):
    lines = made(20)
    write(tmp_path, lines[:10])
    write(tmp_path, lines, folds=False)
    assert len(rsna.read(tmp_path).rows) == len(lines)
    assert len(rsna.read(tmp_path, split="folds", test_fold=int(lines[0]["fold"])).rows) == 10
    assert len(rsna.read(tmp_path, table="train_folds.csv").rows) == 10
    (tmp_path / "train.csv").unlink()
    assert len(rsna.read(tmp_path).rows) == 10


def test_png_copies(tmp_path):
    lines = made(2)
    rows = rsna.read(write(tmp_path, lines), png="train_images_png").rows
    assert rows["file"][0] == f"train_images_png/{lines[0]['patient_id']}/{lines[0]['image_id']}.png"


@pytest.mark.parametrize(
    "column, cell, kind",
    [
        ("cancer", "2", "unreadable cell"),
        ("cancer", "", "unreadable cell"),
        ("biopsy", "yes", "unreadable cell"),
        ("BIRADS", "7", "unreadable cell"),
        ("BIRADS", "1.5", "unreadable cell"),
        ("BIRADS", "x", "unreadable cell"),
        ("density", "E", "unreadable cell"),
        ("age", "-3", "unreadable cell"),
        ("age", "old", "unreadable cell"),
        ("difficult_negative_case", "", "unreadable cell"),
        ("laterality", "B", "unknown laterality"),
        ("image_id", " ", "empty identifier"),
        ("patient_id", "", "empty identifier"),
        ("fold", "x", "unreadable cell"),
    ],
)
def test_a_bad_line_is_a_problem(tmp_path, column, cell, kind):
    lines = made(20)
    lines[7][column] = cell
    table = checked(rsna.read(write(tmp_path, lines), split="folds"))
    assert [(problem.kind, problem.row) for problem in table.problems] == [(kind, "train_folds.csv:9")]
    assert len(table.rows) == len(lines) - 1


def test_columns_may_be_empty(tmp_path):
    lines = made(5)
    for line in lines:
        line |= {"age": "", "BIRADS": "", "density": "", "machine_id": ""}
    table = checked(rsna.read(write(tmp_path, lines)))
    assert not table.problems
    assert not {"age", "birads", "density", "machine"} & set(json.loads(table.rows["labels"][0]))


def test_contradictions_cost_what_they_touch(tmp_path):
    lines = made(30)
    first = lines[0]
    same = [line for line in lines if line["patient_id"] == first["patient_id"]]
    breast = [line for line in same if line["laterality"] == first["laterality"]]
    first["fold"] = "0" if first["fold"] != "0" else "1"
    table = checked(rsna.read(write(tmp_path, lines), split="folds", val=0.0))
    assert {problem.kind for problem in table.problems} == {"contradiction"} and len(table.problems) == len(same)
    assert not checked(rsna.read(tmp_path)).problems  # folds do not matter there
    first["cancer"] = str(1 - int(first["cancer"]))
    table = checked(rsna.read(write(tmp_path, lines)))
    assert not table.problems and len(table.remarks) == len(breast) and len(table.rows) == len(lines)
    unsure = ["cancer" not in json.loads(labels) for labels in table.rows["labels"]]
    assert sum(unsure) == len(breast)


def test_mutated_tables_lose_nothing(tmp_path):
    rng = random.Random(5)
    lines = made(100)
    for _ in range(200):
        line = rng.choice(lines)
        column = rng.choice(list(line))
        line[column] = rng.choice(["", "?", line[column] + "0", "1e999", "NaN", "-1", "True", "\x00"])
    for split in rsna.SPLITS:
        table = checked(rsna.read(write(tmp_path, lines), split=split))
        told = {problem.row for problem in table.problems} | set(table.rows["row"])
        assert told == {f"train_folds.csv:{number}" for number in range(2, len(lines) + 2)}
        assert len(table.problems) + len(table.rows) == len(lines)


def test_errors_name_the_option(tmp_path):
    with pytest.raises(UserError, match="train.csv"):
        rsna.read(tmp_path)
    write(tmp_path, made(10), folds=False)
    with pytest.raises(UserError, match="no column 'fold'"):
        rsna.read(tmp_path, split="folds")
    with pytest.raises(UserError, match="Did you mean 'folds'"):
        rsna.read(tmp_path, split="fold")
    with pytest.raises(UserError, match="--option=site=3"):
        rsna.read(tmp_path, split="site", site=3)


@pytest.mark.slow
def test_full_size(tmp_path):
    """As many lines as the real table has."""
    lines = made(9000)
    table = rsna.read(write(tmp_path, lines))
    assert len(table.rows) == len(lines) > 50000 and not table.problems
