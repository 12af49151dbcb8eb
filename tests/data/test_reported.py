"""What became of the sections of reports, counted once a report; warnings where what one wants of them is not there."""

import json

from tiny_dicom import breast, write

from mammoclip_jax.data import reported, summary
from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.manifest import frame
from mammoclip_jax.data.text.sections import told
from mammoclip_jax.data.verify import verify

REPORTS = (
    "FINDINGS: A mass. IMPRESSION: Suspicious.",
    "TECHNIQUE: CC and MLO.\nIMPRESSION: Negative.",
    "INDICATION: Screening.\nRECOMMENDATION: Call.",
)
WANTED = {
    "kept": {"findings": 1, "impression": 2, "indication": 1, "recommendation": 1},
    "dropped": {"technique": 1},
    "lacking": {"findings": 1, "both": 1},
}


def rows(*reports: str):
    made = []
    for number, report in enumerate(reports):
        found = told(report)
        made += [
            {
                "dataset": "d",
                "patient": "p",
                "study": f"s{number}",
                "image": f"{number}{view}",
                "file": "",
                "view": view,
                "split": "train",
                "texts": list(found.texts.values()),
                "sections": list(found.texts),
                "parts": found.parts,
            }
            for view in ("CC", "MLO")
        ]
    return frame(made)


def test_a_report_counts_once_however_many_images_have_it():
    assert reported.counts(rows(*REPORTS)) == WANTED


def test_texts_that_are_no_reports_do_not_count():
    captions = rows("").assign(texts=[["a mass"]] * 2, sections=[["caption"]] * 2, parts="{}")
    assert reported.counts(captions) == {} and reported.lacking(captions) == {"findings": 0, "both": 0}


def test_prepare_and_verify_say_it_and_name_nothing_of_a_report(tmp_path):
    write(tmp_path / "a.dcm", breast(), ImageLaterality="L", ViewPosition="CC")
    table = ["image,patient,study,laterality,view,report"]
    table += [f'a.dcm,p,s{number},L,CC,"{report}"' for number, report in enumerate(REPORTS)]
    table = [line.replace("a.dcm", f"{number}.dcm") for number, line in enumerate(table)]
    for number in (1, 2, 3):
        (tmp_path / f"{number}.dcm").write_bytes((tmp_path / "a.dcm").read_bytes())
    (tmp_path / "reports.csv").write_text("\n".join(table))
    counts = prepare("report_csv", tmp_path, tmp_path / "out", workers=0, height=32, width=24)
    assert counts["reports"] == WANTED
    found = verify(tmp_path / "out")
    assert found["ok"] and found["reports"] == WANTED
    for said in (summary.prepared("out", counts, 0), summary.verified("out", found)):
        assert "WARNING: 1 reports have an impression and no findings" in said and "dropped: technique 1" in said
        assert "WARNING: 1 reports have neither findings nor impression" in said and "Suspicious" not in said
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())  # of a set made before
    del info["counts"]["reports"]
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(info))
    assert verify(tmp_path / "out")["reports"] == {"kept": {}, "dropped": {}, "lacking": WANTED["lacking"]}
