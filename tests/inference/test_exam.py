"""predict on phantom DICOM files, whole and broken, with a model made of arithmetic."""

import json
import shutil
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from fakes import FakeModel

from mammoclip_jax import predict as command
from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import labelled
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.classification import classification
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.exam import fingerprint, predict
from mammoclip_jax.inference.scorers import breast_scores, exam_scores, original_grey

PREPROCESSING = {"geometry": "fit", "height": 96, "width": 64, "intensity": "voi", "bits": 8, "crop": "robust"}
VOI = Preprocessing()


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
    assert scored["missing"] == [] == scored["left_out"] and scored["exam"] == "exam"
    assert len(found["ignored"]["picture beside DICOM images"]) == 4  # the phantom's masks are no views
    assert found["counts"] == {
        "scored": 4,
        "left_out": 0,
        "problems": 0,
        "ignored": {".json": 1, ".txt": 1, "picture beside DICOM images": 4},
    }
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
    grey, stored = original_grey(path, VOI), header.pixel_array.copy()
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
        blue, _, red = picture[int(y) + 4, int(x) + 3]  # within the disc, off the cross at the peak
        assert red > blue + 40
        cold = picture[original_grey(exam / view["file"], VOI) == 0]
        assert np.abs(cold[:, 0] - cold[:, 2]).mean() < 25
    small = predict(Model(), exam, tmp_path / "small", prompts="mammo_clip", overlay_size=80)
    assert cv2.imread(str(tmp_path / "small" / small["exams"][0]["views"][0]["overlays"]["mass"])).shape[:2] == (80, 64)


def test_bad_files_are_listed_with_their_reason_and_the_others_scored(exam):
    good = dicoms(exam)
    good[0].write_bytes(good[0].read_bytes()[:600])
    (exam / "notes.dcm").write_text("not an image")
    flat = pydicom.dcmread(good[1])
    flat.PixelData = np.full((160, 128), 7, np.uint16).tobytes()
    flat.file_meta.TransferSyntaxUID, flat.SOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, "1.2.3"
    flat.save_as(exam / "flat.dcm")
    (exam / "report.txt").write_text("beside the images")
    (exam / ".DS_Store").write_text("")
    (exam / "DICOMDIR").write_text("")
    found = predict(Model(), exam)
    assert sorted(p["file"] for p in found["problems"]) == sorted([good[0].name, "flat.dcm", "notes.dcm"])
    assert all(p["reason"] and p["remedy"] and p["stage"] for p in found["problems"])
    assert {v["file"] for v in found["exams"][0]["views"]} == {p.name for p in good[1:]}
    assert "report.txt" in found["ignored"][".txt"] and found["ignored"]["hidden"] == [".DS_Store"]
    assert found["ignored"]["empty file"] == ["DICOMDIR"]


def test_unknown_laterality_is_said_and_the_sides_are_not_joined(exam):
    for mask in exam.glob("*.png"):
        mask.unlink()
    for number, path in enumerate(dicoms(exam)):
        cv2.imwrite(str(exam / f"{number}.png"), original_grey(path, VOI))
        path.unlink()
    found = predict(Model(), exam, prompts={"mass": {"positive": "mass", "negative": "no mass"}})["exams"][0]
    assert len(found["breasts"]) == 4
    for view in found["views"]:
        assert view["laterality"] is None and "laterality unknown: the file does not say" in view["notes"]


def names(found):
    return {scored["exam"]: sorted(view["file"] for view in scored["views"]) for scored in found["exams"]}


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
    views = [
        {"file": str(i), "laterality": side, "view": "CC", "scores": {"mass": s}}
        for i, (side, s) in enumerate([("L", 0.1), ("L", 0.5), ("R", -0.2), (None, 0.4), (None, 0.0)])
    ]
    breasts = breast_scores(views)
    assert [b["scores"]["mass"]["mean"] for b in breasts] == pytest.approx([0.3, -0.2, 0.4, 0.0])
    assert exam_scores(views, breasts) == {"mass": {"mean": pytest.approx(0.125), "max": 0.5}}


def test_the_fingerprint_ignores_order_and_sees_values():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_display_grey_is_what_the_policy_says(exam):
    path = dicoms(exam)[0]
    assert original_grey(path, VOI).shape == dicom.read(path).stored.shape


def test_the_command_writes_json_and_ends_with_1_when_a_file_was_bad(exam, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda path, batch_size: Model())
    monkeypatch.setattr(
        command.flags,
        "FLAGS",
        SimpleNamespace(
            weights="w",
            exam=str(exam),
            out=str(tmp_path / "out"),
            prompts="mammo_clip",
            overlay_size=0,
            json="",
            method="occlusion",
            stage="",
            every_view=False,
            uids=False,
            dicom=False,
            key="",
        ),
    )
    (exam / "LOCKFILE").write_text("no image")
    (exam / "R_CC.dcm").unlink()
    assert command.main([]) == 0
    told = capsys.readouterr().out
    assert "no image, other file: 1" in told and "missing: R CC" in told and "3 views scored, 0 left out" in told
    (exam / "broken.dcm").write_text("x")
    assert command.main([]) == 1
    assert "broken.dcm" in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert written["preprocessing_fingerprint"] == fingerprint(PREPROCESSING)
    assert len(written["problems"]) == 1 and written["counts"]["ignored"]["other file"] == 1
    assert (written["method"], written["stage"]) == ("occlusion", "head")  # the fake has a stage for all


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


def changed(source, target, **tags):
    """Another object with these tags."""
    header = pydicom.dcmread(source)
    header.SOPInstanceUID = f"1.2.{zlib.crc32(target.name.encode())}"
    for name, value in tags.items():
        setattr(header, name, value)
    target.parent.mkdir(exist_ok=True)
    header.save_as(target)
    return target


def modified(path, code):
    """The same view with this modifier of its code."""
    header = pydicom.dcmread(path)
    header.ViewCodeSequence[0].ViewModifierCodeSequence = [pydicom.Dataset()]
    header.ViewCodeSequence[0].ViewModifierCodeSequence[0].CodeValue = code
    header.save_as(path)


VIEWS = ("L_CC.dcm", "L_MLO.dcm", "R_CC.dcm", "R_MLO.dcm")


def test_two_patients_are_two_exams_in_any_folder(phantoms, tmp_path):
    first, second = sorted(phantoms.iterdir())
    for folder, source in (("A", first), ("B", second)):
        shutil.copytree(source, tmp_path / "root" / folder)
    (tmp_path / "root" / "Thumbs.db").write_text("no image")
    (tmp_path / "root" / "cover.png").write_text("no image")
    found = predict(Model(), tmp_path / "root")
    assert names(found) == {folder: [f"{folder}/{name}" for name in VIEWS] for folder in "AB"}
    assert not found["problems"] and found["ignored"][".db"] == ["Thumbs.db"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, source in enumerate((first, second)):
        for path in dicoms(source):
            shutil.copy(path, flat / f"{number}{path.name}")
    assert names(predict(Model(), flat)) == {
        f"flat ({number + 1})": [f"{number}{name}" for name in VIEWS] for number in range(2)
    }


@pytest.mark.parametrize("other", [{"PatientID": "p2"}, {"StudyInstanceUID": "1.2.9"}])
def test_another_patient_or_study_in_a_folder_is_another_exam(phantoms, tmp_path, other):
    first, second, *_ = dicoms(sorted(phantoms.iterdir())[0])
    shutil.copy(first, tmp_path / "a.dcm")
    changed(second, tmp_path / "b.dcm", **other)
    found = predict(Model(), tmp_path)
    assert [scored["missing"] for scored in found["exams"]] == [["L MLO", "R CC", "R MLO"], ["L CC", "R CC", "R MLO"]]


def test_the_series_of_an_exam_are_one_and_a_linked_folder_is_read(exam, tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    shutil.move(exam / "L_CC.dcm", tmp_path / "root" / "a" / "L_CC.dcm")
    (tmp_path / "root" / "a" / "series 2").symlink_to(exam)
    for path in dicoms(exam):  # a header without the patient is still of the study
        changed(path, path, PatientID="" if path.name == "R_CC.dcm" else pydicom.dcmread(path).PatientID)
    found = predict(Model(), tmp_path / "root")
    assert names(found) == {"a": ["a/L_CC.dcm", *(f"a/series 2/{name}" for name in VIEWS[1:])]}


def test_screening_views_count_and_others_are_listed_with_their_reason(exam, monkeypatch):
    four = predict(Model(), exam)["exams"][0]["scores"]
    left = exam / "L_CC.dcm"
    shutil.copy(left, exam / "byte copy.dcm")
    again = pydicom.dcmread(left)
    again.SeriesDescription = "saved again"
    again.save_as(exam / "saved again.dcm")
    changed(left, exam / "raw.dcm", PresentationIntentType="FOR PROCESSING")
    for name, code in (("one.dcm", "R-102D5"), ("two.dcm", "R-102D6"), ("three.dcm", "R-102D7")):
        modified(changed(left, exam / name), code)
    changed(left, exam / "lateral.dcm", ViewPosition="ML")
    for name, kind in (("slice.dcm", "TOMOSYNTHESIS"), ("made.dcm", "GENERATED_2D")):
        changed(left, exam / name, ImageType=["DERIVED", "PRIMARY", kind])
    capture = pydicom.dcmread(left)
    capture.PixelData = np.full((160, 128), 9, np.uint8).tobytes()
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.Modality = 8, 8, 7, "OT"
    capture.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    capture.SOPClassUID, capture.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.99"
    capture.save_as(exam / "capture.dcm")
    found = predict(Model(), exam)
    (scored,) = found["exams"]
    assert scored["scores"] == four and scored["missing"] == [] and not found["problems"]
    assert {item["file"]: item["reason"] for item in scored["left_out"]} == {
        "raw.dcm": "for_processing",
        "one.dcm": "implant_displaced",
        "two.dcm": "magnification",
        "three.dcm": "spot",
        "lateral.dcm": "view ML",
        "slice.dcm": "tomosynthesis beside a better image of the view",
        "made.dcm": "synthetic_2d beside a better image of the view",
        "capture.dcm": "other_modality: Secondary Capture Image Storage",
    }
    # One of three equal ones is scored, whichever is first by name.
    assert found["ignored"]["copy of another file"] == ["byte copy.dcm", "saved again.dcm"]
    every = predict(Model(), exam, every_view=True)["exams"][0]
    assert [item["file"] for item in every["left_out"]] == ["capture.dcm"] and len(every["views"]) == 11


def test_pictures_have_side_and_view_from_their_names(phantoms, tmp_path):
    for path in dicoms(sorted(phantoms.iterdir())[0]):
        if path.stem.endswith("_CC"):
            cv2.imwrite(str(tmp_path / f"{path.stem}.png"), original_grey(path, VOI))
    (tmp_path / "Thumbs.db").write_text("no image")
    found = predict(Model(), tmp_path)
    (scored,) = found["exams"]
    assert [(v["file"], v["laterality"], v["view"]) for v in scored["views"]] == [
        ("L_CC.png", "L", "CC"),
        ("R_CC.png", "R", "CC"),
    ]
    assert scored["missing"] == ["L MLO", "R MLO"] and found["counts"]["ignored"] == {".db": 1}
    shutil.copy(tmp_path / "L_CC.png", tmp_path / "p7_L_CC.png")
    assert len(predict(Model(), tmp_path)["exams"]) == 2  # another patient's, by the name


def test_the_middle_frame_of_tomosynthesis_is_scored_and_shown(phantoms, tmp_path):
    """It is the overlay's ground as well."""
    source = pydicom.dcmread(dicoms(sorted(phantoms.iterdir())[0])[0])
    middle = source.pixel_array
    frames = [middle if frame == 3 else middle[::-1] for frame in range(7)]
    source.PixelData = np.stack(frames).astype(np.uint16).tobytes()
    source.NumberOfFrames, source.SOPClassUID = 7, pydicom.uid.BreastTomosynthesisImageStorage
    source.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    (tmp_path / "exam").mkdir()
    source.save_as(tmp_path / "exam" / "tomo.dcm")
    model = Model()
    model.preprocessing = PREPROCESSING | {"frames": "middle"}
    found = predict(model, tmp_path / "exam", tmp_path / "out", prompts="mammo_clip")
    (view,) = found["exams"][0]["views"]
    assert not found["problems"] and "middle_frame" in view["notes"] and view["original"] == [160, 128]
    assert all((tmp_path / "out" / path).is_file() for path in view["overlays"].values())
    shown = original_grey(tmp_path / "exam" / "tomo.dcm", Preprocessing(frames="middle"))
    assert (shown == original_grey(dicoms(sorted(phantoms.iterdir())[0])[0], VOI)).all()


class Together(Classifier):
    """Looks at all views of a breast or exam: the sum over those that are there of brightness to the third power."""

    labels = ("bright",)

    def __init__(self, unit):
        self.config = defaults()
        self.config.task.update(kind="classifier", unit=unit)
        self.config.model.labels = self.labels

    def classify_views(self, images, there):
        bright = images.reshape(*images.shape[:2], -1).mean(2) / 255
        return (there * bright**3).sum(axis=1, keepdims=True)

    def saliency(self, images, labels, *, stage, method):
        return images.astype(np.float32) / 255


class Films:
    """The files of a folder as a data set, in another order."""

    def __init__(self, folder):
        self.path, self.info = folder, {"preprocessing": PREPROCESSING}
        found = [(path, render(path, Preprocessing.from_dict(PREPROCESSING))) for path in reversed(dicoms(folder))]
        self.images = [view.image for _, view in found]
        self.index = pd.DataFrame(
            [
                {
                    "dataset": "films",
                    "patient": "p",
                    "study": "s",
                    "image": path.name,
                    "laterality": view.laterality,
                    "view": view.view,
                    "split": split,
                    "labels": '{"bright": 1}',
                }
                for split in ("train", "test")
                for path, view in found
            ]
        )

    def read(self, row):
        return self.images[row % len(self.images)]


@pytest.mark.parametrize("unit, count", [("breast", 2), ("exam", 1)])
def test_a_classifier_of_whole_breasts_or_exams_scores_what_it_was_trained_on(exam, unit, count, tmp_path):
    """The same views, together, in training, in evaluation and here; without them no score."""
    dicoms(exam)[0].unlink()
    model, films = Together(unit), Films(exam)
    evaluated = classification(model, films, resamples=0).tables["predictions"]["score"]
    batch = next(
        labelled.train_iterator(
            [films],
            labelled.examples([films], "train", labelled.Target(("bright",)), unit),
            batch_size=count,
            views=labelled.UNITS[unit],
            boxes=0,
            seed=0,
            read_threads=0,
        )
    )
    trained = model.classify_views(batch["image"], batch["view_mask"])[:, 0]
    found = predict(model, exam, tmp_path / "out")
    (scored,) = found["exams"]
    units = scored["breasts"] if unit == "breast" else [scored]
    predicted = [entry["scores"]["bright"]["mean"] for entry in units]
    for others in (evaluated, trained):
        assert sorted(predicted) == pytest.approx(sorted(others))
    assert sorted(file for entry in units for file in entry["from"]) == sorted(path.name for path in dicoms(exam))
    assert all(view["scores"] == {} and "bright" in view["overlays"] for view in scored["views"])
    assert (
        scored["scores"]["bright"]["mean"] == pytest.approx(np.mean(predicted))
        and "together" in found["aggregation"]["view"]
    )
    json.dumps(found, allow_nan=False)
