"""The dry run: counts as a naive reader has them, every mismatch listed, nothing written."""

import json

import numpy as np
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.data import summary
from mammoclip_jax.data.build import build
from mammoclip_jax.data.check import check
from mammoclip_jax.data.manifest import Problem, SourceTable, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.sources import report_csv
from mammoclip_jax.errors import UserError


def row(image: str, **values) -> dict:
    return {
        "dataset": "d",
        "patient": image[0],
        "study": image[0],
        "image": image,
        "file": f"{image}.dcm",
        "row": f"t.csv:{image[1]}",
        "split": "train",
    } | values


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
        row("a3"),
        row("a4"),
        row("b5", split="test", labels={"mass": 1}, boxes=[mass], size="100 80"),
        row("b6", split="test", size="100 80", boxes=[{"label": "mass", "box": [90, 2, 95, 40]}]),
    ]
    return SourceTable(
        frame(rows),
        [Problem("", "source", "no image: x", "add it", "", "t.csv:9")],
        "",
        "",
        True,
        partial=True,
        table_rows=7,
    )


def test_counts_and_mismatches(tmp_path, table):
    found = check(table, tmp_path)
    numbers = {
        "table_rows": 7,
        "images_in": 7,
        "images": 5,
        "studies": 2,
        "patients": 2,
        "boxes": 3,
        "texts": 2,
        "quarantined": 3,
    }
    assert {name: found[name] for name in numbers} == numbers
    assert found["files"] == {"found": 3, "missing": 2} and found["splits"] == {"test": 1, "train": 4}
    assert found["box_labels"] == {"test": {"mass": 1}, "train": {"asymmetry": 1, "mass": 2}}
    assert found["labels"]["train"]["mass"] == {"0": 1, "1": 1}
    assert found["reports"] == {"breasts": 1, "different": 1, "nearly_different": 1}
    assert found["reasons"] == {"box outside image": 1, "laterality differs": 1, "no image": 1, "not a DICOM file": 1}
    assert {item["row"] for item in found["mismatches"]} == {"t.csv:6", "t.csv:2", "t.csv:9", "t.csv:3"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.dcm", "a2.dcm", "a3.dcm"]


def test_what_headers_tell_counts_as_in_a_real_run(tmp_path):
    """Of pictures too; a box outside its image by the header's size; what is left out, before it is refused."""
    frames = {"NumberOfFrames": 2, "Rows": 120, "Columns": 90}
    write(tmp_path / "a1.dcm", np.stack([breast(), breast()]), **frames)
    write(tmp_path / "a2.dcm", np.stack([breast(), breast()]), BodyPartExamined="SPECIMEN", **frames)
    write(tmp_path / "a3.dcm", breast())
    write(tmp_path / "a4.dcm", breast(), SamplesPerPixel=1, PhotometricInterpretation="PALETTE COLOR")
    write(tmp_path / "a5.dcm", breast(), BodyPartExamined="SPECIMEN")
    (tmp_path / "a6.png").write_text("no picture")
    rows = [row(f"a{number}") for number in (1, 2, 4, 5)] + [
        row("a3", boxes=[{"label": "mass", "box": [500, 2, 510, 40]}]),
        row("a6", file="a6.png"),
    ]
    table = SourceTable(frame(rows), [], "", "", True, leave_out=("specimen",))
    found = check(table, tmp_path)
    counts = {"multi-frame": 1, "left out, specimen": 2, "box outside image": 1, "colour image": 1, "cannot decode": 1}
    assert found["reasons"] == dict(sorted(counts.items())) and found["quarantined"] == 6
    with pytest.raises(UserError) as real:
        build(table, tmp_path, tmp_path / "out", preprocessing=Preprocessing(height=32, width=24))
    assert all(f"{number} {kind}" in str(real.value) for kind, number in counts.items())
    assert "multi-frame" not in check(table, tmp_path, frames="middle")["reasons"]


def test_a_private_source_is_named_only_when_asked(tmp_path, table):
    private = table._replace(public_ids=False, partial=False)
    found = check(private, tmp_path)
    assert found["quarantined"] == 5 and "a4" not in json.dumps(found) and "t.csv" not in json.dumps(found)
    assert {item["row"] for item in found["mismatches"]} >= {"line 6", "line 9"}
    assert "a4.dcm" in json.dumps(check(private, tmp_path, names=True))


REPORT = """EXAM: Mammogram of {name}, MRN 88123997.
FINDINGS:
Tissue density: C.
A mass in the right breast of {name}.
IMPRESSION: Suspicious mass.
RECOMMENDATION: Dr. Zelenka will see Mrs. {name} on 3/15/2019 for a biopsy, and again half a year later.
"""


def reported(root, *lines: str):
    (root / "reports.csv").write_text("image,patient,study,laterality,view,report,name\n" + "\n".join(lines) + "\n")
    return report_csv.read(root, names="name")


def test_sections_are_counted_by_report_with_examples_that_name_nobody(tmp_path):
    text = REPORT.format(name="Zyxwv")
    found = check(
        reported(
            tmp_path,
            f'a.png,p,s,L,CC,"{text}",Zyxwv',
            f'b.png,p,s,R,CC,"{text}",Zyxwv',
            'c.png,p,t,R,CC,"TECHNIQUE: CC. IMPRESSION: Negative.",',
            *(f'{n}.png,p,u{n},L,CC,"FINDINGS: Cyst {n}.",' for n in "1234"),
        ),
        tmp_path,
    )
    kept, dropped = found["sections"]["kept"], found["sections"]["dropped"]
    assert {name: part["reports"] for name, part in kept.items()} == {"findings": 5, "impression": 2}
    assert {name: part["reports"] for name, part in dropped.items()} == {"recommendation": 1, "technique": 2}
    assert kept["findings"]["examples"][0].startswith("Tissue density: C.") and len(kept["findings"]["examples"]) == 3
    assert kept["impression"]["examples"] == ["Suspicious mass.", "Negative."]
    assert all(len(text) <= 60 for part in (*kept.values(), *dropped.values()) for text in part["examples"])
    assert found["lacking"] == {"findings": 1, "both": 0}
    printed = summary.dry_run(found, False)
    assert "  recommendation: " in printed and "WARNING: 1 reports have an impression and no findings" in printed
    assert "NO recogniser" in printed
    for secret in ("Zyxwv", "Zelenka", "88123997", "2019"):
        assert secret not in json.dumps(found) and secret not in printed


def test_texts_of_tables_count_as_kept(tmp_path, table):
    found = check(table, tmp_path)["sections"]
    assert found == {"kept": {"caption": {"reports": 2, "examples": ["one", "two"]}}, "dropped": {}}
