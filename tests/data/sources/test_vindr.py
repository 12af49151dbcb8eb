"""VinDr-Mammo: tables in the owner's format, counted once more with the csv module."""

import ast
import collections
import csv
import hashlib
import json
import random

import pytest

from mammoclip_jax.data.check import check
from mammoclip_jax.data.image_files import as_there
from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.sources import vindr
from mammoclip_jax.errors import UserError

BREAST_COLUMNS = (
    "study_id",
    "series_id",
    "image_id",
    "laterality",
    "view_position",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "split",
)
LINE_COLUMNS = (*BREAST_COLUMNS[:9], "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax", "split")


def identifier(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def made(studies, seed=0):
    """Lines of both tables as dicts: every kind of finding, several boxes an image, boxes with two categories."""
    rng = random.Random(seed)
    breasts, lines = [], []
    for number in range(studies):
        study, split = identifier(seed, number), "test" if number % 5 == 0 else "training"
        density, (height, width) = rng.choice("ABCD"), rng.choice([(3518, 2800), (2812, 2012)])
        for side in "LR":
            birads = rng.randint(1, 5)
            for view in ("CC", "MLO"):
                image = dict(
                    zip(
                        BREAST_COLUMNS,
                        (
                            study,
                            identifier(study, "s"),
                            identifier(study, side, view),
                            side,
                            view,
                            str(height),
                            str(width),
                            f"BI-RADS {birads}",
                            f"DENSITY {density}",
                            split,
                        ),
                    )
                )
                breasts.append(image)
                if birads < 3:
                    lines.append(finding(image, ["No Finding"], "", ("",) * 4))
                    continue
                for _ in range(rng.randint(1, 3)):
                    x, y = rng.uniform(-9, width - 300), rng.uniform(0, height - 300)
                    box = [f"{value:.10f}" for value in (x, y, x + rng.uniform(50, 300), y + rng.uniform(50, 300))]
                    names = rng.sample(sorted(vindr.FINDINGS), rng.choice([1, 1, 1, 2]))
                    lines.append(finding(image, names, rng.choice(["", f"BI-RADS {birads}"]), box))
    rng.shuffle(lines)
    return breasts, lines


def finding(image, names, birads, box):
    return image | {"finding_categories": str(names), "finding_birads": birads} | dict(zip(vindr.CORNERS, box))


def write(folder, breasts, lines):
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, rows in ((vindr.BREASTS, BREAST_COLUMNS, breasts), (vindr.LINES, LINE_COLUMNS, lines)):
        with open(folder / name, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    return folder


def with_folds(lines):
    """The 33 columns of the findings as they are distributed with folds."""
    ten = {name.replace(" ", "_"): "0" for name in (*vindr.FINDINGS, vindr.NO_FINDING)}
    names = {"study_id": "patient_id", "view_position": "view"}
    return [
        {names.get(name, name): cell for name, cell in line.items()}
        | {"image_id": line["image_id"] + ".png", "fold": "1", "density": "2"}
        | ten
        | dict.fromkeys(("resized_xmin", "resized_ymin", "resized_xmax", "resized_ymax"), "7")
        | (dict.fromkeys(vindr.CORNERS, "0") if vindr.NO_FINDING in line["finding_categories"] else {})
        for line in lines
    ]


def recount(folder):
    """(split, finding) -> lines and images that have it, line by line from the file."""
    boxes, images = collections.Counter(), collections.defaultdict(set)
    with open(folder / vindr.LINES, newline="") as file:
        for line in csv.DictReader(file):
            for name in ast.literal_eval(line["finding_categories"]):
                if name != "No Finding":
                    boxes[line["split"], vindr.FINDINGS[name]] += 1
                    images[line["split"], vindr.FINDINGS[name]].add(line["image_id"])
    return boxes, {key: len(value) for key, value in images.items()}


def counted(table):
    boxes, images = collections.Counter(), collections.Counter()
    for row in table.rows.itertuples():
        split = "test" if row.split == "test" else "training"
        for box in json.loads(row.boxes):
            boxes.update((split, label) for label in box.get("labels", [box["label"]]))
        labels = json.loads(row.labels)
        images.update((split, label) for label in vindr.FINDINGS.values() if labels[label])
    return boxes, images


def test_every_line_counts_once_and_by_finding(tmp_path):
    breasts, lines = made(40)
    write(tmp_path, breasts, lines)
    table = checked(vindr.read(tmp_path))
    assert not table.problems and table.table_rows == len(breasts) + len(lines)
    assert list(table.rows["image"]) == [image["image_id"] for image in breasts]
    assert counted(table) == recount(tmp_path)
    with_box = [line for line in lines if line["xmin"]]
    assert sum(len(json.loads(boxes)) for boxes in table.rows["boxes"]) == len(with_box) > 100
    assert table.public_ids and table.partial


def test_rows_say_what_the_tables_say(tmp_path):
    breasts, lines = made(12)
    table = vindr.read(write(tmp_path, breasts, lines), val=0.0)
    told = collections.defaultdict(list)
    for line in lines:
        told[line["image_id"]].append(line)
    for row, image in zip(table.rows.itertuples(), breasts, strict=True):
        labels, boxes = json.loads(row.labels), json.loads(row.boxes)
        names = {name for line in told[row.image] for name in ast.literal_eval(line["finding_categories"])}
        assert {name for name, label in vindr.FINDINGS.items() if labels[label]} == names - {"No Finding"}
        assert [labels["birads"], labels["density"]] == [int(image["breast_birads"][-1]), image["breast_density"][-1]]
        assert (row.patient, row.study, row.laterality, row.view) == (
            image["study_id"],
            image["study_id"],
            image["laterality"],
            image["view_position"],
        )
        assert row.split == {"training": "train", "test": "test"}[image["split"]]
        assert row.size == f"{image['height']} {image['width']}"
        assert row.file == f"images/{row.study}/{row.image}.dicom"
        expected = [line for line in told[row.image] if line["xmin"]]
        assert [box["box"] for box in boxes] == [[float(line[c]) for c in vindr.CORNERS] for line in expected]
        assert [box.get("birads") for box in boxes] == [
            int(line["finding_birads"][-1]) if line["finding_birads"] else None for line in expected
        ]
        assert "cancer" not in labels and len(row.texts) == len(row.sections) == 2
        assert all("malignan" not in text or labels["birads"] >= 5 for text in row.texts)


def test_splits_keep_studies_whole_and_the_official_test_set(tmp_path):
    breasts, lines = made(100)
    write(tmp_path, breasts, lines)
    rows = vindr.read(tmp_path, val=0.3).rows
    assert (rows.groupby("patient")["split"].nunique() == 1).all()
    official = {image["image_id"] for image in breasts if image["split"] == "test"}
    assert set(rows["image"][rows["split"] == "test"]) == official
    assert 10 <= rows["patient"][rows["split"] == "val"].nunique() <= 40


def test_tables_in_a_folder_and_files_with_either_suffix(tmp_path):
    breasts, lines = made(3)
    write(tmp_path / "annotations", breasts, lines)
    other = tmp_path / "images" / breasts[1]["study_id"] / f"{breasts[1]['image_id']}.dcm"
    other.parent.mkdir(parents=True)
    other.touch()
    files = list(as_there(vindr.read(tmp_path), tmp_path).rows["file"])
    assert files[1] == other.relative_to(tmp_path).as_posix()
    assert files[0].endswith(".dicom")


def test_metadata_adds_vendor_and_age(tmp_path):
    breasts, lines = made(2)
    write(tmp_path, breasts, lines)
    ages = ["057Y", "", "junk", "000Y"]
    with open(tmp_path / vindr.METADATA, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "SOP Instance UID",
                "Series Instance UID",
                "SOP Instance UID.1",
                "Manufacturer",
                "Manufacturer's Model Name",
                "Patient's Age",
            ]
        )
        writer.writerows(
            [image["image_id"], "s", image["image_id"], "SIEMENS", "Mammomat", age] for image, age in zip(breasts, ages)
        )
    rows = vindr.read(tmp_path).rows
    assert list(rows["vendor"]) == ["Siemens"] * 4 + [""] * 4
    assert [json.loads(labels).get("age") for labels in rows["labels"]][:5] == [57, None, None, None, None]


@pytest.mark.parametrize(
    "column, cell, reason",
    [
        ("finding_categories", "Mass", "unreadable cell"),
        ("finding_categories", "['Mass'", "unreadable cell"),
        ("finding_categories", "['Tumour']", "unknown finding"),
        ("finding_categories", "[]", "unknown finding"),
        ("finding_categories", "['Mass', 'No Finding']", "unknown finding"),
        ("finding_categories", "[3]", "unknown finding"),
        ("finding_categories", "[['Mass']]", "unknown finding"),
        ("finding_birads", "BI-RADS X", "unreadable cell"),
        ("image_id", "nowhere", "finding without image"),
        ("laterality", "B", "contradiction"),
        ("split", "train2", "contradiction"),
        ("study_id", "other", "contradiction"),
        ("height", "99", "contradiction"),
    ],
)
def test_a_bad_finding_line_is_a_problem_and_leaves_the_absent_unknown(tmp_path, column, cell, reason):
    breasts, lines = made(10)
    victim = next(line for line in lines if line["xmin"])
    image = victim["image_id"]
    others = [line for line in lines if line["image_id"] == image and line is not victim]
    place = lines.index(victim) + 2
    victim[column] = cell
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    assert [(problem.kind, problem.stage, problem.row) for problem in table.problems] == [
        (reason, "source", f"{vindr.LINES}:{place}")
    ]
    row = table.rows[table.rows["image"] == image].iloc[0]
    assert len(table.rows) == len(breasts) and len(json.loads(row["boxes"])) == len(others)
    labels = json.loads(row["labels"])
    assert (0 in [labels.get(label) for label in vindr.FINDINGS.values()]) == (column == "image_id")


@pytest.mark.parametrize(
    "box, reason",
    [
        (("5000", "10", "5100", "20"), "box outside image"),
        (("10", "20", "5", "30"), "malformed box"),
        (("nan", "1", "2", "3"), "unreadable cell"),
        (("", "1", "2", "3"), "unreadable cell"),
        (("", "", "", ""), "unreadable cell"),
        (("-9", "5", "-1", "9"), "box outside image"),
        (("1e999", "1", "2", "3"), "unreadable cell"),
    ],
)
def test_a_bad_box_is_a_problem_and_the_finding_stays(tmp_path, box, reason):
    breasts, lines = made(10)
    victim = next(line for line in lines if line["xmin"])
    before = counted(vindr.read(write(tmp_path, breasts, lines)))
    victim |= dict(zip(vindr.CORNERS, box))
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    assert [problem.kind for problem in table.problems] == [reason]
    boxes, images = counted(table)
    assert images == before[1]
    assert before[0] - boxes == collections.Counter(
        (victim["split"], vindr.FINDINGS[name]) for name in ast.literal_eval(victim["finding_categories"])
    )


def test_what_lines_disagree_on_costs_a_label_not_an_image(tmp_path):
    breasts, lines = made(10)
    victim = next(line for line in lines if line["xmin"])
    victim["breast_density"], victim["view_position"] = "DENSITY E", "ML"
    same = [
        line
        for line in breasts
        if line["study_id"] == breasts[5]["study_id"] and line["laterality"] == breasts[5]["laterality"]
    ]
    before = vindr.read(write(tmp_path, *made(10)))
    breasts[5]["breast_birads"] = "BI-RADS 0"
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    assert not table.problems and counted(table) == counted(before)
    reasons = collections.Counter(remark.reason for remark in table.remarks)
    assert reasons["contradiction: breast_birads of a breast"] == len(same) == 2
    assert (
        reasons["contradiction: breast_density of an image"] == reasons["contradiction: view_position of an image"] == 1
    )
    labels = [
        json.loads(row.labels) for row in table.rows.itertuples() if row.image in {line["image_id"] for line in same}
    ]
    assert all("birads" not in label and "density" in label for label in labels)


def test_no_finding_beside_findings_and_with_a_box(tmp_path):
    breasts, lines = made(10)
    victim = next(line for line in lines if line["xmin"])
    none = next(line for line in lines if not line["xmin"])
    none |= dict(zip(vindr.CORNERS, ("1", "2", "3", "4")))
    lines.append(victim | {"finding_categories": "['No Finding']"} | dict.fromkeys(vindr.CORNERS, ""))
    table = vindr.read(write(tmp_path, breasts, lines))
    assert sorted(problem.kind for problem in table.problems) == ["No Finding with a box", "contradiction"]
    assert not any(
        json.loads(table.rows.set_index("image").loc[none["image_id"], "labels"]).get(label)
        for label in vindr.FINDINGS.values()
    )


@pytest.mark.parametrize(
    "column, cell, reason, images",
    [
        ("height", "35l8", "unreadable cell", 1),
        ("width", "-5", "unreadable cell", 1),
        ("breast_birads", "BI-RADS 9", "unreadable cell", 1),
        ("breast_density", "C", "unreadable cell", 1),
        ("split", "test", "contradiction", 4),
        ("laterality", "B", "unknown laterality", 1),
        ("image_id", "", "empty identifier", 1),
    ],
)
def test_a_bad_breast_line_is_a_problem_and_its_findings_with_it(tmp_path, column, cell, reason, images):
    breasts, lines = made(10)
    victim = breasts[5]
    assert victim["split"] == "training"
    original = dict(victim)
    victim[column] = cell
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    assert len(table.rows) == len(breasts) - images
    assert sum(problem.kind == reason and problem.row.startswith(vindr.BREASTS) for problem in table.problems) == images
    assert original["image_id"] not in set(table.rows["image"])
    lost = {image["image_id"] for image in breasts} - set(table.rows["image"]) | {original["image_id"]}
    rest = [problem for problem in table.problems if problem.row.startswith(vindr.LINES)]
    assert len(rest) == sum(line["image_id"] in lost for line in lines)


def test_a_second_line_of_an_image_is_a_problem(tmp_path):
    breasts, lines = made(3)
    table = checked(vindr.read(write(tmp_path, [*breasts, breasts[0]], lines)))
    assert [problem.kind for problem in table.problems] == ["duplicate image id"]
    assert len(table.rows) == len(breasts)


def test_mutated_tables_lose_nothing(tmp_path):
    """200 random cells damaged: every line is in the rows or has a problem, and nothing is raised."""
    rng = random.Random(3)
    breasts, lines = made(60, seed=7)
    for rows in (breasts, lines):
        for _ in range(100):
            row = rng.choice(rows)
            column = rng.choice(list(row))
            row[column] = rng.choice(["", "?", row[column][:-1], row[column] + "x", "'", "[", "\x00", "1e999", "NaN"])
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    told = {problem.row for problem in table.problems} | set(table.rows["row"])
    assert {f"{vindr.BREASTS}:{number}" for number in range(2, len(breasts) + 2)} <= told
    kept = {
        (line["image_id"], *(line[c] for c in vindr.CORNERS))
        for number, line in enumerate(lines, start=2)
        if f"{vindr.LINES}:{number}" not in told
    }
    assert {key[0] for key in kept} <= set(table.rows["image"])
    assert sum(bool(key[1]) for key in kept) == sum(len(json.loads(boxes)) for boxes in table.rows["boxes"])


def naive_published(box, height, width):
    """The steps of the released preprocessing, one at a time, and the border added again."""
    xmin, ymin, xmax, ymax = (max(value - 5, 0) for value in box)
    rows, columns = height - 10, width - 10
    return [xmin + 5, ymin + 5, min(xmax, rows) + 5, min(ymax, columns) + 5]


def test_published_boxes(tmp_path):
    breasts, lines = made(40)
    write(tmp_path, breasts, lines)
    correct, published = vindr.read(tmp_path), checked(vindr.read(tmp_path, boxes="published"))
    turned = [
        line
        for line in lines
        if line["xmin"]
        and float(line["ymin"]) >= int(line["width"]) - 5
        and float(line["ymax"]) > int(line["width"]) - 5
    ]
    assert turned
    assert [problem.kind for problem in published.problems] == ["malformed box"] * len(turned)
    cut = 0
    for before, after in zip(correct.rows.itertuples(), published.rows.itertuples(), strict=True):
        size = tuple(map(int, before.size.split()))
        expected = [(naive_published(item["box"], *size), item["label"]) for item in json.loads(before.boxes)]
        expected = [(box, label) for box, label in expected if box[1] < box[3]]
        found = [(item["box"], item["label"]) for item in json.loads(after.boxes)]
        assert [label for _, label in found] == [label for _, label in expected]
        for (box, _), (other, _) in zip(found, expected):
            assert box == pytest.approx(other, abs=1e-9)
            cut += box[3] == size[1] - 5
        assert before.labels == after.labels
    assert cut


def test_the_dry_run_counts_without_any_image(tmp_path):
    breasts, lines = made(40)
    counts = check(vindr.read(write(tmp_path, breasts, lines)), tmp_path)
    assert (counts["images"], counts["studies"], counts["quarantined"]) == (160, 40, 0)
    assert counts["boxes"] == sum(bool(line["xmin"]) for line in lines)
    assert counts["files"] == {"found": 0, "missing": 160}
    boxes, _ = recount(tmp_path)
    assert {("test", name): number for name, number in counts["box_labels"]["test"].items()} == {
        key: number for key, number in boxes.items() if key[0] == "test"
    }


def test_missing_or_wrong_tables_are_said(tmp_path):
    breasts, lines = made(2)
    with pytest.raises(UserError, match=vindr.BREASTS):
        vindr.read(tmp_path)
    write(tmp_path, breasts, lines)
    with pytest.raises(UserError, match="correct"):
        vindr.read(tmp_path, boxes="corect")
    (tmp_path / vindr.LINES).write_text("image_id,study_id\n1,2\n")
    with pytest.raises(UserError, match="no column"):
        vindr.read(tmp_path)


@pytest.mark.slow
def test_full_size(tmp_path):
    """5,000 studies, as many as the real tables have."""
    breasts, lines = made(5000)
    table = checked(vindr.read(write(tmp_path, breasts, lines)))
    assert len(table.rows) == 20000 and table.rows["study"].nunique() == 5000 and not table.problems
    assert counted(table) == recount(tmp_path)


@pytest.mark.parametrize("name", [vindr.LINES, vindr.FOLDS])
def test_the_findings_as_distributed_with_folds(tmp_path, name):
    breasts, lines = made(4)
    expected = vindr.read(write(tmp_path / "owner", breasts, lines))
    folder = write(tmp_path / "folds", breasts, lines)
    (folder / vindr.LINES).unlink()
    lines = with_folds(lines)
    assert len(lines[0]) == 33
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    found = vindr.read(folder)
    assert not found.problems and not expected.problems and not found.remarks
    assert found.rows.equals(expected.rows) and found.table_rows == expected.table_rows
