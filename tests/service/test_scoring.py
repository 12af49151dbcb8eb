"""What the model's process does with an exam: the names that its sender knows, strict JSON, a stop with its parent."""

import csv
import importlib.util
import json
from types import SimpleNamespace

import fake_scoring
import numpy as np
import pydicom
import pytest

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.service import scoring, worker


def test_files_have_the_names_that_their_sender_was_told(tmp_path):
    rows = [
        {"exam": "e1", "file": "L_CC", "source": "0001.dcm", "folder": "files"},
        {"exam": "e2", "file": "L_CC", "source": "0002.dcm", "folder": "files"},
        {"exam": "e2", "file": "h3", "source": "0003.dcm", "folder": "files"},
        {"exam": "", "file": "h4", "source": "0004.dcm", "folder": ""},
    ]
    with open(tmp_path / "sources.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    left_out = [{"file": "h3", "reason": "spot"}]
    result = {
        "exams": [
            {"exam": "e1", "views": [{"file": "L_CC", "source": "h1"}], "left_out": []},
            {"exam": "e2", "views": [{"file": "L_CC", "source": "h2"}], "left_out": left_out},
        ],
        "problems": [{"file": "h4", "reason": "damaged"}],
        "step": 7,
    }
    said = scoring.with_files(result, tmp_path / "sources.csv")
    assert [exam["views"][0]["source"] for exam in said["exams"]] == ["0001.dcm", "0002.dcm"]
    assert said["exams"][1]["left_out"][0]["file"] == "0003.dcm" and said["problems"][0]["file"] == "0004.dcm"
    assert said["step"] == 7 and result["problems"][0]["file"] == "h4"


def test_a_result_is_strict_json(tmp_path):
    scoring.write_result(tmp_path, {"a": np.float32(0.5), "b": [float("nan"), np.arange(2)], "c": tmp_path, 1: None})
    said = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert said == {"a": 0.5, "b": [None, [0, 1]], "c": str(tmp_path), "1": None}


def test_a_refusal_names_no_folder_and_an_error_nobody(tmp_path):
    (tmp_path / "notes.dcm").write_text("not an image")
    score = fake_scoring.make()
    assert worker._attempt(score, tmp_path, tmp_path / "out") == (worker.REFUSED, "the exam holds no files to score.")

    def wrong(files, out):
        raise KeyError("ROE^JANE")

    kind, said = worker._attempt(wrong, tmp_path, tmp_path / "out")
    assert kind == worker.REFUSED and said.startswith("KeyError at test_scoring.py:") and "ROE" not in said


def test_a_run_says_what_no_flag_does(monkeypatch):
    from mammoclip_jax.config import defaults
    from mammoclip_jax.inference import loading

    config = defaults()
    config.predict.update(prompts="phantom", stage="stage2", method="hires_cam")
    monkeypatch.setattr(loading, "load", lambda name, batch_size: SimpleNamespace(name=name, config=config))
    monkeypatch.setattr(scoring, "scorer", lambda model, options: (model.name, options))
    flags = {"prompts": "", "method": "", "stage": "", "overlay_size": 9, "every_view": True}
    name, said = scoring.open_model("weights", flags)
    assert name == "weights"
    assert said == flags | {"prompts": "phantom", "stage": "stage2", "method": "hires_cam"}
    assert scoring.open_model("weights", flags | {"method": "occlusion"})[1]["stage"] == ""
    assert scoring.open_model("weights", flags | {"prompts": "mine"})[1]["prompts"] == "mine"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mammoclip_jax.delivery"), reason="without what writes results")
def test_an_exam_is_delivered(tmp_path):
    from mammoclip_jax.benchmarks import service

    generate.generate(tmp_path / "phantom", 1, Parameters(seed=5, height=160, width=128))
    exam = tmp_path / "exam"
    exam.mkdir()
    for number, path in enumerate(sorted(tmp_path.glob("phantom/exams/*/*.dcm")), 1):
        (exam / f"000{number}.dcm").write_bytes(path.read_bytes())
    (exam / "0005.dcm").write_bytes(b"not an image")
    service.small_model()(exam, tmp_path / "result")
    said = json.loads((tmp_path / "result" / "result.json").read_text())
    (entry,) = said["exams"]
    assert sorted(view["source"] for view in entry["views"]) == [f"000{number}.dcm" for number in range(1, 5)]
    assert [problem["file"] for problem in said["problems"]] == ["0005.dcm"]
    (report,) = (tmp_path / "result").glob("*/report.dcm")
    study = pydicom.dcmread(exam / "0001.dcm").StudyInstanceUID
    assert pydicom.dcmread(report).StudyInstanceUID == study
    assert list((tmp_path / "result").glob("*/exam.html")) and list((tmp_path / "result").glob("*/overlay-*.dcm"))
