"""The report and the secondary captures of an exam: valid, of its own study, with the figures of the JSON."""

import json
from pathlib import Path

import cv2
import highdicom as hd
import numpy as np
import pydicom
import pytest
from fakes import FakeModel
from pydicom.sr.codedict import codes
from tiny_dicom import breast, write

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.delivery import codes as own
from mammoclip_jax.delivery import structured_report as reports
from mammoclip_jax.delivery.folder import deliver
from mammoclip_jax.delivery.sources import header
from mammoclip_jax.delivery.structured_report import structured_report
from mammoclip_jax.delivery.validation import faults, own_faults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.nms import Detections

PREPROCESSING = {"geometry": "fit", "height": 96, "width": 64, "intensity": "voi", "bits": 8, "crop": "robust"}
PROMPTS = {label: {"positive": label, "negative": f"no {label}"} for label in ("mass", "suspicious_lymph_node")}


class Model(FakeModel):
    preprocessing = PREPROCESSING


class Finder(Model):
    """A box of mass in the middle, and two others beside it."""

    kind, labels = "detector", ("mass", "calcification")

    def detect(self, images):
        boxes = np.tile(np.array([20, 30, 40, 60], np.float32), (len(images), 3, 1)) + np.arange(3)[:, None]
        scores = np.tile(np.linspace(0.9, 0.3, 3, dtype=np.float32), (len(images), 1))
        return Detections(boxes, scores, np.zeros(scores.shape, int), scores > 0)


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """A folder of four files; tests must not change it."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate.generate(out, 1, Parameters(height=160, width=128))
    return next((out / "exams").iterdir())


@pytest.fixture(scope="module", params=[Model, Finder])
def delivered(request, exam, tmp_path_factory):
    out = tmp_path_factory.mktemp("delivered") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "REGIONS", 2)
        found = deliver(request.param(), exam, out, prompts=PROMPTS, dicom=True)
    (entry,) = found["exams"]
    return found, entry, out / entry["exam"]


@pytest.fixture(scope="module")
def groups(delivered):
    """{tracking identifier: measurement group} of the report, as highdicom reads it."""
    return groups_of(delivered[2] / "report.dcm")


def measurements(group):
    """{(concept, derivation): value} of a group."""
    return {(m.name.value, m.derivation.value if m.derivation else ""): m.value for m in group.get_measurements()}


def groups_of(path):
    content = hd.sr.srread(path).content
    groups = [*content.get_image_measurement_groups(), *content.get_planar_roi_measurement_groups()]
    return {group.tracking_identifier: group for group in groups}


def read(path):
    """A file as pydicom reads it where every odd value is an error."""
    pydicom.config.settings.reading_validation_mode, before = (
        pydicom.config.RAISE,
        pydicom.config.settings.reading_validation_mode,
    )
    try:
        dataset = pydicom.dcmread(path)
        list(dataset.iterall())
        return dataset
    finally:
        pydicom.config.settings.reading_validation_mode = before


def test_all_objects_are_there_valid_and_of_the_patients_study(delivered, exam):
    found, entry, folder = delivered
    labels = list(entry["scores"])
    wanted = {"report.dcm"} | {f"overlay-{view['name']}_{label}.dcm" for view in entry["views"] for label in labels}
    assert set(entry["dicom"]["files"]) == wanted and entry["dicom"]["reason"] == ""
    source = pydicom.dcmread(exam / "L_CC.dcm")
    series = set()
    for name in wanted:
        made = read(folder / name)
        assert faults(made) == []
        for keyword in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert made[keyword].value == source[keyword].value
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert made.DeviceSerialNumber == found["model"]["fingerprint"] and made.ContentQualification == "RESEARCH"
        series.add((made.Modality, made.SeriesInstanceUID))
    assert {modality for modality, _ in series} == {"SR", "OT"} and len(series) == 2


def test_the_reports_figures_are_those_of_the_json(delivered, groups):
    found, entry, _ = delivered
    scale = own.scale(found)
    concept = scale.concept.value
    for label, score in entry["scores"].items():
        group = groups[f"exam, {label}"]
        values = measurements(group)
        assert values[concept, codes.SCT.Mean.value] == pytest.approx(scale.factor * score["mean"])
        assert values[concept, codes.SCT.Maximum.value] == pytest.approx(scale.factor * score["max"])
        assert group.finding_type == own.finding(label) and len(group.source_images) == 4
    for side in entry["breasts"]:
        group = groups[f"breast {side['laterality']}, mass"]
        assert measurements(group)[concept, codes.SCT.Mean.value] == pytest.approx(
            scale.factor * side["scores"]["mass"]["mean"]
        )
        assert group.finding_sites[0].laterality == own.SIDES[side["laterality"]]
    for view in entry["views"]:
        group = groups[f"view {view['name']}, mass"]
        assert measurements(group) == {(concept, ""): pytest.approx(scale.factor * view["scores"]["mass"])}
        (image,) = group.source_images
        assert image.referenced_sop_instance_uid == view["uids"]["image"]
        (unit,) = {m.unit for m in group.get_measurements()}
        assert unit == (codes.UCUM.Percent if found["model"]["kind"] == "detector" else codes.UCUM.NoUnits)


def test_boxes_and_peaks_are_regions_of_their_images(delivered, groups):
    _, entry, _ = delivered
    boxes = 0
    for view in entry["views"]:
        for number, item in enumerate(view.get("boxes", ())[:2], start=1):
            group = groups[f"view {view['name']}, box {number}, mass"]
            left, top, right, bottom = item["box"]
            corners = group.roi.value
            assert group.roi.graphic_type == hd.sr.GraphicTypeValues.POLYLINE and (corners[0] == corners[-1]).all()
            assert [*corners.min(0), *corners.max(0)] == pytest.approx([left, top, right, bottom], abs=1e-4)
            (value,) = measurements(group).values()
            assert value == pytest.approx(100 * item["score"])
            assert group.roi.ContentSequence[0].referenced_sop_instance_uid == view["uids"]["image"]
            boxes += 1
        for label, peak in view["peaks"].items():
            name = f"view {view['name']}, highest place of the map, {label}"
            if "boxes" in view or peak is None:
                assert name not in groups
            else:
                assert groups[name].roi.value.tolist() == [pytest.approx(peak, abs=1e-3)]
    assert boxes in (0, 8) and f"view {entry['views'][0]['name']}, box 3, mass" not in groups


def test_report_captures_json_and_tables_name_weights_study_series_and_images(delivered, exam):
    found, entry, folder = delivered
    headers = {path.stem.replace("_", "-"): pydicom.dcmread(path) for path in exam.glob("*.dcm")}
    report = hd.sr.srread(folder / "report.dcm")
    evidence = {tuple(map(str, each[:3])) for each in report.get_evidence()}
    assert evidence == {(h.StudyInstanceUID, h.SeriesInstanceUID, h.SOPInstanceUID) for h in headers.values()}
    mark = found["model"]["fingerprint"]
    text = json.dumps(report.to_json_dict())
    assert (
        f"weights fingerprint: {mark}" in text
        and f"preprocessing fingerprint: {found['preprocessing_fingerprint']}" in text
    )
    for view in entry["views"]:
        h = headers[view["name"]]
        assert view["uids"] == {"study": h.StudyInstanceUID, "series": h.SeriesInstanceUID, "image": h.SOPInstanceUID}
        capture = pydicom.dcmread(folder / f"overlay-{view['name']}_mass.dcm")
        assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == h.SOPInstanceUID
        assert mark in capture.DerivationDescription and capture.Laterality == view["laterality"]
        assert capture.PatientOrientation == h.PatientOrientation
        picture = cv2.imread(str(folder.parent / view["overlays"]["mass"]))[..., ::-1]
        assert (capture.pixel_array == picture).all()
    table = (folder.parent / "views.csv").read_text()
    assert all(h.SOPInstanceUID in table and h.SeriesInstanceUID in table for h in headers.values()) and mark in table
    assert entry["study"] == h.StudyInstanceUID


def test_the_library_of_images_has_side_and_view(delivered):
    _, entry, folder = delivered
    report = pydicom.dcmread(folder / "report.dcm")
    (library,) = (i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "111028")
    images = library.ContentSequence[0].ContentSequence
    said = [[part.ConceptCodeSequence[0].CodeMeaning for part in image.ContentSequence] for image in images]
    names = {"L": "Left", "R": "Right", "CC": "cranio-caudal", "MLO": "medio-lateral oblique"}
    assert said == [[names[view["laterality"]], names[view["view"]]] for view in entry["views"]]


def test_pictures_get_no_objects_and_the_reason_is_said(exam, tmp_path):
    (tmp_path / "exam").mkdir()
    cv2.imwrite(str(tmp_path / "exam" / "L_CC.png"), breast(160, 128) // 16)
    entry = deliver(Model(), tmp_path / "exam", tmp_path / "out", prompts=PROMPTS, dicom=True)["exams"][0]
    assert entry["dicom"] == {"files": [], "reason": "the sources are pictures, which belong to no study"}
    assert not list((tmp_path / "out").rglob("*.dcm"))
    assert entry["views"][0]["uids"] == {"study": None, "series": None, "image": None}


def test_sparse_and_odd_headers_get_objects_or_a_reason(tmp_path):
    """No orientation, no spacing, no patient but an id, a date and a sex that are none; then no series."""
    folder = tmp_path / "exam"
    folder.mkdir()
    odd = {"PatientBirthDate": "1960", "PatientSex": "female", "StudyTime": "noon", "StudyInstanceUID": "1.2.3"}
    with pydicom.config.disable_value_validation():
        path = write(folder / "a.dcm", breast(), ImageLaterality="L", SeriesInstanceUID="1.2.4", **odd)
    entry = deliver(Model(), folder, tmp_path / "out", prompts=PROMPTS, dicom=True)["exams"][0]
    assert entry["dicom"]["reason"] == "" and len(entry["dicom"]["files"]) == 3
    for name in entry["dicom"]["files"]:
        made = pydicom.dcmread(tmp_path / "out" / entry["exam"] / name)
        assert (
            faults(made) == [] and made.PatientSex == "" and made.PatientBirthDate == "" and made.PatientID == "patient"
        )
    dataset = pydicom.dcmread(path)
    del dataset.SeriesInstanceUID
    dataset.save_as(path)
    entry = deliver(Model(), folder, tmp_path / "without", prompts=PROMPTS, dicom=True)["exams"][0]
    assert entry["dicom"]["files"] == [] and "a source lacks SeriesInstanceUID" in entry["dicom"]["reason"]


def test_names_with_accents_and_sides_unknown(tmp_path):
    folder = tmp_path / "exam"
    folder.mkdir()
    name = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Änne"}
    write(folder / "a.dcm", breast(), SeriesInstanceUID="1.2.4", StudyInstanceUID="1.2.3", **name)
    entry = deliver(Model(), folder, tmp_path / "out", prompts=PROMPTS, dicom=True)["exams"][0]
    made = [pydicom.dcmread(tmp_path / "out" / entry["exam"] / file) for file in entry["dicom"]["files"]]
    assert len(made) == 3 and {str(each.PatientName) for each in made} == {"Müller^Änne"}
    groups = groups_of(tmp_path / "out" / entry["exam"] / "report.dcm")
    assert {"exam, mass", "image unknown-unknown, mass", "view unknown-unknown, mass"} <= set(groups)


def test_the_frame_that_was_scored_is_named(exam, tmp_path):
    source = pydicom.dcmread(exam / "L_CC.dcm")
    source.PixelData = np.stack([source.pixel_array] * 7).astype(np.uint16).tobytes()
    source.NumberOfFrames, source.SOPClassUID = 7, pydicom.uid.BreastTomosynthesisImageStorage
    source.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    (tmp_path / "exam").mkdir()
    source.save_as(tmp_path / "exam" / "tomo.dcm")
    model = Model()
    model.preprocessing = PREPROCESSING | {"frames": "middle"}
    entry = deliver(model, tmp_path / "exam", tmp_path / "out", prompts=PROMPTS, dicom=True)["exams"][0]
    assert entry["dicom"]["reason"] == "" and len(entry["dicom"]["files"]) == 3
    groups = groups_of(tmp_path / "out" / entry["exam"] / "report.dcm")
    assert groups["view L-CC, mass"].source_images[0].referenced_frame_numbers == [4]
    region = groups["view L-CC, highest place of the map, mass"].roi
    assert region.ContentSequence[0].referenced_frame_numbers == [4]


def test_what_a_definition_demands_is_missed(delivered):
    _, _, folder = delivered
    report = pydicom.dcmread(folder / "report.dcm")
    del report.PatientID, report.CompletionFlag
    report.VerificationFlag = ""
    assert faults(report) == [
        "patient: PatientID",
        "sr-document-general: CompletionFlag",
        "sr-document-general: VerificationFlag",
    ]
    capture = pydicom.dcmread(next(folder.glob("overlay-*.dcm")))
    del capture.ConversionType, capture.SourceImageSequence[0].ReferencedSOPInstanceUID
    assert "sc-equipment: ConversionType" in faults(capture)
    assert "general-reference: SourceImageSequence/ReferencedSOPInstanceUID" in faults(capture)


def test_nothing_scored_is_nothing_to_report(exam, delivered):
    found, _, _ = delivered
    empty = {"exam": "x", "views": [], "breasts": [], "scores": {}}
    with pytest.raises(UserError, match="nothing was scored"):
        structured_report(empty, found, [])
    with pytest.raises(UserError, match="picture"):
        header(Path("a.png"))


def test_calibrated_scores_are_certainties_whatever_the_model_gives():
    dual = {"model": {"kind": "dual_encoder"}}
    assert (
        own.scale(dual).unit == codes.UCUM.NoUnits and own.scale(dual | {"options": {"calibrated": False}}).factor == 1
    )
    assert (
        own.scale(dual | {"options": {"calibrated": True}})
        == own.CERTAINTY
        == own.scale({"model": {"kind": "classifier"}})
    )


def test_labels_have_codes_and_others_this_programs_own():
    assert own.finding("Mass") == own.finding("mass") and own.finding("mass").scheme_designator == "SCT"
    assert own.finding("Focal_Asymmetry").value == "129789007"
    assert own.finding("density B").meaning == "Scattered fibroglandular densities" == own.finding("B", "ABCD").meaning
    assert own.finding("BI-RADS 4").value == own.finding("birads_4").value == "397144001"
    assert own.finding("B", ["A", "B", "other"]).scheme_designator == own.SCHEME
    private = [
        own.finding(label) for label in ("suspicious lymph node", "suspicious lymph nodes", "Größe", "x" * 90, "!")
    ]
    assert all(1 <= len(code.value) <= 16 and len(code.meaning) <= 64 for code in private)
    assert len({code.value for code in private}) == len(private)


def test_a_report_can_be_made_of_what_is_on_disk(delivered, groups, exam, tmp_path, monkeypatch):
    _, _, folder = delivered
    monkeypatch.setattr(reports, "REGIONS", 2)
    stored = json.loads((folder / "prediction.json").read_text())
    sources = [exam / f"{view['name'].replace('-', '_')}.dcm" for view in stored["exams"][0]["views"]]
    structured_report(stored["exams"][0], stored, sources).save_as(tmp_path / "again.dcm", enforce_file_format=True)
    again = groups_of(tmp_path / "again.dcm")
    assert again.keys() == groups.keys()
    assert all(measurements(again[name]) == measurements(groups[name]) for name in groups)


def test_faults_of_the_source_itself_do_not_count(delivered, exam):
    _, _, folder = delivered
    report, source = pydicom.dcmread(folder / "report.dcm"), pydicom.dcmread(exam / "L_CC.dcm")
    for dataset in (report, source):
        dataset.OtherPatientIDsSequence = [pydicom.Dataset()]
    assert "patient: OtherPatientIDsSequence/PatientID" in faults(report) and own_faults(report, source) == []
