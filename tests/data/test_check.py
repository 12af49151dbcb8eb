"""The dry run: counts as a naive reader has them, every mismatch listed, nothing written."""

import json

import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data.check import check
from mammoclip_jax.data.manifest import Problem, SourceTable, frame


def row(image: str, **values) -> dict:
    return {"dataset": "d", "patient": image[0], "study": image[0], "image": image, "file": f"{image}.dcm",
            "row": f"t.csv:{image[1]}", "split": "train"} | values


@pytest.fixture
def table(tmp_path) -> SourceTable:
    write(tmp_path / "a1.dcm", breast(), ImageLaterality="L", ViewPosition="CC")
    write(tmp_path / "a2.dcm", breast(), ImageLaterality="R", ViewPosition="MLO", Manufacturer="SIEMENS")
    (tmp_path / "a3.dcm").write_text("no image")
    mass = {"label": "mass", "box": [1, 2, 30, 40]}
    both = {"label": "mass", "labels": ["mass", "asymmetry"], "box": [1, 2, 30, 40]}
    rows = [
        row("a1", laterality="L", view="CC", labels={"mass": 1, "age": 50}, boxes=[mass, both], texts=["one", "two"]),
        row("a2", laterality="L", view="MLO", labels={"mass": 0}),
        row("a3"), row("a4"),
        row("b5", split="test", labels={"mass": 1}, boxes=[mass], size="100 80"),
        row("b6", split="test", size="100 80", boxes=[{"label": "mass", "box": [90, 2, 95, 40]}]),
    ]
    return SourceTable(frame(rows), [Problem("", "source", "no image: x", "add it", "", "t.csv:9")], "", "", True,
                       partial=True, table_rows=7)


def test_counts_and_mismatches(tmp_path, table):
    found = check(table, tmp_path)
    numbers = {"table_rows": 7, "images_in": 7, "images": 5, "studies": 2, "patients": 2, "boxes": 3, "texts": 2,
               "quarantined": 3}
    assert {name: found[name] for name in numbers} == numbers
    assert found["files"] == {"found": 3, "missing": 2} and found["splits"] == {"test": 1, "train": 4}
    assert found["box_labels"] == {"test": {"mass": 1}, "train": {"asymmetry": 1, "mass": 2}}
    assert found["labels"]["train"]["mass"] == {"0": 1, "1": 1}
    assert found["reports"] == {"breasts": 1, "different": 1, "nearly_different": 1}
    assert found["reasons"] == {"box outside image": 1, "laterality differs": 1, "no image": 1, "not a DICOM file": 1}
    assert {item["row"] for item in found["mismatches"]} == {"t.csv:6", "t.csv:2", "t.csv:9", "t.csv:3"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.dcm", "a2.dcm", "a3.dcm"]


def test_a_private_source_is_named_only_when_asked(tmp_path, table):
    private = table._replace(public_ids=False, partial=False)
    found = check(private, tmp_path)
    assert found["quarantined"] == 5 and "a4" not in json.dumps(found) and "t.csv" not in json.dumps(found)
    assert {item["row"] for item in found["mismatches"]} >= {"line 6", "line 9"}
    assert "a4.dcm" in json.dumps(check(private, tmp_path, names=True))
