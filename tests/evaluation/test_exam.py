"""predict on phantom DICOM files, whole and broken, with a model made of arithmetic."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from .fakes import FakeModel
from mammoclip_jax import predict as command
from mammoclip_jax.config import defaults
from mammoclip_jax.data import labelled
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.classifier import classification
from mammoclip_jax.evaluation.exam import breast_scores, exam_folders, exam_scores, fingerprint, original_grey, predict

PREPROCESSING = {"geometry": "fit", "height": 96, "width": 64, "intensity": "voi", "bits": 8, "crop": "robust"}


class Model(FakeModel):
    preprocessing = PREPROCESSING

    def embed_image(self, images):
        assert images.shape[1:] == (96, 64) and images.dtype == np.uint8
        angle = images.reshape(len(images), -1).mean(1) / 255 * np.pi / 2
        return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Two exam folders of four files each; tests must not change them."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate.generate(out, 2, Parameters(height=160, width=128))
    return out / "exams"


@pytest.fixture
def exam(phantoms, tmp_path):
    """One exam that a test may spoil."""
    folder = tmp_path / "exam"
    shutil.copytree(sorted(phantoms.iterdir())[0], folder)
    return folder


def dicoms(folder):
    return sorted(folder.glob("*.dcm"))


def test_an_exam_is_scored_by_view_breast_and_exam(exam, tmp_path):
    found = predict(Model(), exam, tmp_path / "out", prompts={"mass": {"positive": "mass", "negative": "no mass"}})
    (scored,) = found["exams"]
    assert not found["problems"] and found["step"] == 7
    assert sorted(f"{v['laterality']} {v['view']}" for v in scored["views"]) == ["L CC", "L MLO", "R CC", "R MLO"]
    assert sum(name.endswith(".mask.png") for name in found["ignored"]) == 4         # the phantom's masks are no views
    by_side = {b["laterality"]: b for b in scored["breasts"]}
    left = [v["scores"]["mass"] for v in scored["views"] if v["laterality"] == "L"]
    right = [v["scores"]["mass"] for v in scored["views"] if v["laterality"] == "R"]
    assert by_side["L"]["scores"]["mass"] == {"mean": pytest.approx(sum(left) / 2), "max": max(left)}
    assert scored["scores"]["mass"]["max"] == max(left + right)
    assert scored["scores"]["mass"]["mean"] == pytest.approx((sum(left) / 2 + sum(right) / 2) / 2)
    json.dumps(found, allow_nan=False)


def paint_disc(path):
    """Burns the brightest value into the breast, off its middle; returns the disc's centre (x, y)."""
    header = pydicom.dcmread(path)
    grey, stored = original_grey(path, "voi"), header.pixel_array.copy()
    rows, columns = np.nonzero(grey > 40)
    x, y = int(np.median(columns)), int(np.quantile(rows, 0.7))
    cv2.circle(stored, (x, y), 6, 0 if header.PhotometricInterpretation == "MONOCHROME1" else 4095, -1)
    header.PixelData = stored.astype(np.uint16).tobytes()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.save_as(path)
    return x + 0.5, y + 0.5


def test_overlays_lie_on_the_original_and_peaks_are_in_its_pixels(exam, tmp_path):
    """The fake's map is the canvas's brightness, so disc and heat must meet in the original, mirrored side included."""
    discs = {path.name: paint_disc(path) for path in dicoms(exam)}
    out = tmp_path / "out"
    found = predict(Model(), exam, out, prompts={"mass": {"positive": "mass", "negative": "no mass"}})
    assert {v["transform"]["flip_horizontal"] for v in found["exams"][0]["views"]} == {True, False}
    for view in found["exams"][0]["views"]:
        picture = cv2.imread(str(out / view["overlays"]["mass"])).astype(int)
        assert list(picture.shape[:2]) == view["original"] == [160, 128]
        x, y = discs[view["file"]]
        assert np.hypot(view["peaks"]["mass"][0] - x, view["peaks"]["mass"][1] - y) < 7
        blue, _, red = picture[int(y) + 4, int(x) + 3]                  # within the disc, off the cross at the peak
        assert red > blue + 40
        cold = picture[original_grey(exam / view["file"], "voi") == 0]
        assert np.abs(cold[:, 0] - cold[:, 2]).mean() < 25
    small = predict(Model(), exam, tmp_path / "small", prompts="mammo_clip", overlay_size=80)
    assert cv2.imread(str(tmp_path / "small" / small["exams"][0]["views"][0]["overlays"]["mass"])).shape[:2] == (80, 64)


def test_bad_files_are_listed_with_their_reason_and_the_others_scored(exam):
    good = dicoms(exam)
    good[0].write_bytes(good[0].read_bytes()[:600])
    (exam / "notes.dcm").write_text("not an image")
    flat = pydicom.dcmread(good[1])
    flat.PixelData = np.full((160, 128), 7, np.uint16).tobytes()
    flat.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    flat.save_as(exam / "flat.dcm")
    (exam / "report.txt").write_text("beside the images")
    (exam / ".DS_Store").write_text("")
    (exam / "DICOMDIR").write_text("")
    found = predict(Model(), exam)
    assert sorted(p["file"] for p in found["problems"]) == sorted([good[0].name, "flat.dcm", "notes.dcm"])
    assert all(p["reason"] and p["remedy"] and p["stage"] for p in found["problems"])
    assert {v["file"] for v in found["exams"][0]["views"]} == {p.name for p in good[1:]}
    assert {"report.txt", ".DS_Store", "DICOMDIR"} <= set(found["ignored"])


def test_unknown_laterality_is_said_and_the_sides_are_not_joined(exam):
    for mask in exam.glob("*.png"):
        mask.unlink()
    for path in dicoms(exam):
        cv2.imwrite(str(path.with_suffix(".png")), original_grey(path, "voi"))
        path.unlink()
    found = predict(Model(), exam, prompts={"mass": {"positive": "mass", "negative": "no mass"}})["exams"][0]
    assert len(found["breasts"]) == 4
    for view in found["views"]:
        assert view["laterality"] is None and "laterality unknown: the file does not say" in view["notes"]


def test_a_folder_of_exams_and_nested_series_are_told_apart(phantoms, exam, tmp_path):
    names = [name for name, _ in exam_folders(phantoms, [])]
    assert names == sorted(p.name for p in phantoms.iterdir())
    nested = tmp_path / "nested"
    shutil.copytree(exam, nested / "a" / "series 1")
    shutil.copytree(exam, nested / "a" / "series 2")
    ((name, files),) = exam_folders(nested, [])
    assert name == "a" and len(files) == 2 * len(dicoms(exam))


def test_no_folder_and_no_files_are_the_users_errors(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        predict(Model(), tmp_path / "absent")
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match="no files to score"):
        predict(Model(), tmp_path)


def test_nothing_readable_gives_problems_and_empty_scores(tmp_path):
    (tmp_path / "a.dcm").write_text("x")
    found = predict(Model(), tmp_path)
    assert len(found["problems"]) == 1 and found["exams"][0]["views"] == [] and found["exams"][0]["scores"] == {}


def test_aggregates_by_hand():
    views = [{"file": str(i), "laterality": side, "view": "CC", "scores": {"mass": s}}
             for i, (side, s) in enumerate([("L", 0.1), ("L", 0.5), ("R", -0.2), (None, 0.4), (None, 0.0)])]
    breasts = breast_scores(views)
    assert [b["scores"]["mass"]["mean"] for b in breasts] == pytest.approx([0.3, -0.2, 0.4, 0.0])
    assert exam_scores(views, breasts) == {"mass": {"mean": pytest.approx(0.125), "max": 0.5}}


def test_the_fingerprint_ignores_order_and_sees_values():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_display_grey_is_what_the_policy_says(exam):
    path = dicoms(exam)[0]
    assert original_grey(path, "voi").shape == dicom.read(path).stored.shape


def test_the_command_writes_json_and_ends_with_1_when_a_file_was_bad(exam, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.inference, "load", lambda path, batch_size: Model())
    monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(
        weights="w", exam=str(exam), out=str(tmp_path / "out"), prompts="mammo_clip", overlay_size=0, json="",
        method="occlusion", stage=""))
    assert command.main([]) == 0
    (exam / "broken.dcm").write_text("x")
    assert command.main([]) == 1
    assert "broken.dcm" in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert written["preprocessing_fingerprint"] == fingerprint(PREPROCESSING)
    assert written["problems"][0]["file"] == "broken.dcm"
    assert (written["method"], written["stage"]) == ("occlusion", "head")      # the fake has a stage for all


class Classifier:
    """Two labels: the image's mean brightness and what it lacks of white; its map is the image or its negative."""

    kind, stages, step, provenance, config = "classifier", ("stage_3", "head"), 3, {}, defaults()
    labels, preprocessing = ("bright", "dark"), PREPROCESSING

    def classify(self, images):
        bright = images.reshape(len(images), -1).mean(1) / 255
        return np.stack([bright, 1 - bright], 1).astype(np.float32)

    def map_stage(self, method, stage):
        return stage or self.stages[-1]

    def saliency(self, images, labels, *, stage, method):
        assert stage == "head" and labels.shape == (len(images), 2) and (labels.sum(1) == 1).all()
        light = images.astype(np.float32) / 255
        return np.where(labels[:, 0, None, None] == 1, light, 1 - light)


def test_a_classifiers_labels_are_scored_without_prompts(exam, tmp_path):
    found = predict(Classifier(), exam, tmp_path, prompts="no such prompts")
    (scored,) = found["exams"]
    assert found["prompts"] == {} and "probability" in found["aggregation"]["view"] and found["stage"] == "head"
    assert len(scored["views"]) == 4 and set(scored["scores"]) == {"bright", "dark"}
    for view in scored["views"]:
        assert view["scores"]["bright"] + view["scores"]["dark"] == pytest.approx(1)
        assert 0 < view["scores"]["bright"] < 1 and set(view["overlays"]) == {"bright", "dark"}
        bright, dark = (cv2.imread(str(tmp_path / view["overlays"][label])) for label in ("bright", "dark"))
        assert (bright != dark).any()
    highest = max(view["scores"]["dark"] for view in scored["views"])
    assert scored["scores"]["dark"]["max"] == highest
    json.dumps(found, allow_nan=False)


def test_a_classifier_without_readable_files(tmp_path):
    (tmp_path / "a.dcm").write_text("x")
    found = predict(Classifier(), tmp_path, tmp_path / "out")
    assert len(found["problems"]) == 1 and found["exams"][0]["scores"] == {}


class Together(Classifier):
    """Looks at all views of a breast or exam: the sum over those that are there of brightness to the third power."""

    labels = ("bright",)

    def __init__(self, unit):
        self.config = defaults()
        self.config.task.update(kind="classifier", unit=unit)
        self.config.model.labels = self.labels

    def classify_views(self, images, there):
        bright = images.reshape(*images.shape[:2], -1).mean(2) / 255
        return (there * bright ** 3).sum(axis=1, keepdims=True)

    def saliency(self, images, labels, *, stage, method):
        return images.astype(np.float32) / 255


class Films:
    """The files of a folder as a data set, in another order."""

    def __init__(self, folder):
        self.path, self.info = folder, {"preprocessing": PREPROCESSING}
        found = [(path, render(path, Preprocessing.from_dict(PREPROCESSING))) for path in reversed(dicoms(folder))]
        self.images = [view.image for _, view in found]
        self.index = pd.DataFrame([{
            "dataset": "films", "patient": "p", "study": "s", "image": path.name, "laterality": view.laterality,
            "view": view.view, "split": split, "labels": '{"bright": 1}'} for split in ("train", "test") for path, view in found])

    def read(self, row):
        return self.images[row % len(self.images)]


@pytest.mark.parametrize("unit, count", [("breast", 2), ("exam", 1)])
def test_a_classifier_of_whole_breasts_or_exams_scores_what_it_was_trained_on(exam, unit, count, tmp_path):
    """The same views, together, in training, in evaluation and here; without them no score."""
    dicoms(exam)[0].unlink()
    model, films = Together(unit), Films(exam)
    evaluated = classification(model, films, resamples=0).tables["predictions"]["score"]
    batch = next(labelled.train_iterator([films], labelled.examples([films], "train", labelled.Target(("bright",)), unit),
                                         batch_size=count, views=labelled.UNITS[unit], boxes=0, seed=0, read_threads=0))
    trained = model.classify_views(batch["image"], batch["view_mask"])[:, 0]
    found = predict(model, exam, tmp_path / "out")
    (scored,) = found["exams"]
    units = scored["breasts"] if unit == "breast" else [scored]
    predicted = [entry["scores"]["bright"]["mean"] for entry in units]
    for others in (evaluated, trained):
        assert sorted(predicted) == pytest.approx(sorted(others))
    assert sorted(file for entry in units for file in entry["from"]) == sorted(path.name for path in dicoms(exam))
    assert all(view["scores"] == {} and "bright" in view["overlays"] for view in scored["views"])
    assert scored["scores"]["bright"]["mean"] == pytest.approx(np.mean(predicted)) and "together" in found["aggregation"]["view"]
    json.dumps(found, allow_nan=False)
