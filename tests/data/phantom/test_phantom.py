"""The phantom set: what its files, images, labels and reports promise."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from mammoclip_jax.data import increment, manifest
from mammoclip_jax.data.phantom import anatomy, generate, lesions, report_text, writer
from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.sources import reader
from mammoclip_jax.data.sources.phantom import read_muscles
from mammoclip_jax.errors import UserError

SMALL = Parameters(height=160, width=128)
FULL = replace(SMALL, mass_prevalence=1.0, calcification_prevalence=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight small exams; tests must not change it."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    assert generate.generate(out, 8, SMALL) == 8
    return out


def contents(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Files


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(folder, tmp_path):
    generate.generate(tmp_path / "two", 8, SMALL, workers=2)
    assert contents(tmp_path / "two") == contents(folder)


def test_one_worker_is_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(generate.pool, "_pool", None)  # nobody is to start one
    assert generate.generate(tmp_path / "set", 1, SMALL) == 1


def test_interrupted_and_grown_sets_end_with_the_same_bytes(folder, tmp_path):
    out = tmp_path / "set"
    generate.generate(out, 3, SMALL)
    shutil.rmtree(out / "exams" / "phantom-0-000001")
    (out / generate.TABLE).unlink()
    half_made = out / "exams" / ".phantom-0-000004.partial"
    half_made.mkdir()
    (half_made / "L_CC.dcm").write_bytes(b"half")
    seen = []
    assert generate.generate(out, 8, SMALL, progress=lambda done, count: seen.append((done, count))) == 6
    assert seen == [(n, 8) for n in range(3, 9)]
    assert contents(out) == contents(folder)


def test_finished_exams_are_not_made_again(folder):
    path = folder / "exams" / "phantom-0-000000" / "L_CC.dcm"
    before = path.stat().st_mtime_ns
    assert generate.generate(folder, 8, SMALL) == 0
    assert path.stat().st_mtime_ns == before


def test_seeds_differ(folder, tmp_path):
    generate.generate(tmp_path / "other", 1, replace(SMALL, seed=1))
    ours, theirs = set(contents(folder).values()), set(contents(tmp_path / "other").values())
    assert not ours & theirs


def test_refuses_a_folder_of_other_parameters(folder):
    with pytest.raises(UserError, match=r"contrast=1\.0, not 0\.5"):
        generate.generate(folder, 8, replace(SMALL, contrast=0.5))


def test_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="choose a new folder"):
        generate.generate(tmp_path, 1, SMALL)
    with pytest.raises(UserError, match="choose a new folder"):
        generate.generate(tmp_path / "thesis.txt", 1, SMALL)


@pytest.mark.parametrize(
    "field, value",
    [
        ("height", 4000),
        ("width", 20),
        ("contrast", -1.0),
        ("seed", -1),
        ("contrast", float("nan")),
        ("width", 400),
        ("mass_prevalence", 1.5),
    ],
)
def test_refuses_parameters_out_of_range(tmp_path, field, value):
    with pytest.raises(UserError, match=f"{value}"):
        generate.generate(tmp_path / "set", 1, replace(SMALL, **{field: value}))
    assert not (tmp_path / "set").exists()


# DICOM


def test_dicom_objects_are_complete_and_honest(folder):
    uids = set()
    for path in sorted(folder.rglob("*.dcm")):
        ds = pydicom.dcmread(path)
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.2" == ds.file_meta.MediaStorageSOPClassUID
        assert ds.SOPInstanceUID.is_valid and ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        uids.add(ds.SOPInstanceUID)
        laterality, view = path.stem.split("_")
        assert (ds.Modality, ds.ImageLaterality, ds.ViewPosition) == ("MG", laterality, view)
        assert ds.PresentationIntentType == "FOR PRESENTATION"
        assert ds.PatientOrientation[0] == {"L": "A", "R": "P"}[laterality]
        assert ds.ViewCodeSequence[0].CodeMeaning == {"CC": "cranio-caudal", "MLO": "medio-lateral oblique"}[view]
        assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation) == (16, 12, 11, 0)
        assert ds.Manufacturer and ds.QualityControlSubject == "YES" and ds.PatientID == path.parent.name
        assert ds.WindowWidth > 0 and 0 < ds.WindowCenter < 4096
    assert len(uids) == 32


def test_every_encoding_occurs_and_decodes_to_the_stored_pixels(tmp_path):
    devices = [writer.device_of(exams.draw(SMALL, n)) for n in range(60)]
    assert {syntax for _, syntax in devices} == set(writer.TRANSFER_SYNTAXES)
    assert {device for device, _ in devices} == set(writer.DEVICES)
    for syntax in writer.TRANSFER_SYNTAXES:
        number = [found for _, found in devices].index(syntax)
        exam = exams.draw(SMALL, number)
        pixels = writer.stored_pixels(exam, exams.render(exam, "R", "MLO"), "R", "MLO")
        path = tmp_path / f"{number}.dcm"
        writer.write(path, writer.image_dataset(exam, "R", "MLO", pixels))
        read = pydicom.dcmread(path)
        assert read.file_meta.TransferSyntaxUID == syntax
        assert pixels.dtype == np.uint16 and pixels.max() <= 4095
        np.testing.assert_array_equal(read.pixel_array, pixels)


def displayed(path: Path) -> np.ndarray:
    """float [H, W], 0 black to 1 white, by the formulas of DICOM PS3.3 C.11.2.1.2."""
    ds = pydicom.dcmread(path)
    x, c, w = ds.pixel_array.astype(float), float(ds.WindowCenter), float(ds.WindowWidth)
    if ds.VOILUTFunction == "SIGMOID":
        shown = 1 / (1 + np.exp(-4 * (x - c) / w))
    else:
        shown = np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)
    return 1 - shown if ds.PhotometricInterpretation == "MONOCHROME1" else shown


def test_chest_wall_is_at_the_side_of_the_laterality_and_air_is_black(folder):
    for path in sorted(folder.rglob("*.dcm")):
        image = displayed(path)
        laterality = path.stem[0]
        chest, far = (image[:, 0], image[:, -1]) if laterality == "L" else (image[:, -1], image[:, 0])
        assert np.mean(chest > 0.15) > 0.4, path
        assert np.median(far) < 0.15 and np.mean(far > 0.15) < 0.2, path


def test_both_polarities_show_the_same_brightness():
    exam = exams.draw(SMALL, 0)
    picture = exams.render(exam, "L", "CC")
    inverted = writer.DEVICES[2]
    plain = replace(inverted, inverted=False)
    stored = []
    for device in (plain, inverted):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "device_of", lambda _, device=device: (device, writer.TRANSFER_SYNTAXES[0]))
            stored.append(writer.stored_pixels(exam, picture, "L", "CC").astype(int))
    np.testing.assert_array_equal(stored[0], 4095 - stored[1])


# Anatomy


def test_texture_follows_its_power_law():
    for beta in (2.0, 3.0):
        field, _ = anatomy.power_law(np.random.default_rng(0), 512, 512, beta)
        assert field.dtype == np.float32 and abs(field.std() - 1) < 1e-3
        power = np.abs(np.fft.fft2(field)) ** 2
        frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
        band = (frequency > 4 / 512) & (frequency < 0.4)
        slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
        assert abs(slope + beta) < 0.1


def test_denser_breasts_hold_more_bright_tissue():
    exam = exams.draw(SMALL, 3)
    bright = []
    for density, (low, high) in anatomy.GLANDULAR_FRACTION.items():
        habitus = replace(exam.habitus, density=density, glandular_fraction=(low + high) / 2)
        borders = exam.outline("L", "CC")
        image = anatomy.render(habitus, borders, np.random.default_rng(0))
        bright.append(float(np.mean(image[borders.mask() > 0] > 0.33)))
    assert all(b - a > 0.1 for a, b in zip(bright, bright[1:])), bright


def test_pectoral_muscle_only_in_mlo_and_at_the_upper_chest_wall():
    for number in range(30):
        exam = exams.draw(SMALL, number)
        assert not exam.outline("L", "CC").pectoral.any()
        muscle = exam.outline("L", "MLO").pectoral
        assert muscle[0] > 0.15 * SMALL.height and muscle[-1] == 0 and (np.diff(muscle) <= 0).all()


def test_outline_is_the_same_at_every_size():
    small = exams.draw(SMALL, 5).outline("R", "MLO")
    large = exams.draw(replace(SMALL, height=640, width=512), 5).outline("R", "MLO")
    np.testing.assert_allclose(large.edge.reshape(160, 4).mean(1) / 4, small.edge, atol=1.0)


def test_the_true_line_of_the_muscle_is_written(folder):
    muscles = read_muscles(folder)
    assert set(muscles["image"]) == {f"phantom-0-{number:06d}-{side}MLO" for number in range(8) for side in "LR"}
    for row in muscles.itertuples():
        borders = exams.draw(SMALL, int(row.image[10:16])).outline(row.image[17], "MLO")
        rows = np.flatnonzero(borders.pectoral > 0)
        turn = np.radians(row.angle)
        off = borders.pectoral[rows] * np.cos(turn) + (rows + 0.5) * np.sin(turn) - row.distance
        assert abs(off.mean()) < 0.1 and np.abs(off).max() < 0.02 * SMALL.height
        assert 10 < row.angle < 40


def test_an_older_set_lacks_the_line_and_gets_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / generate.PECTORAL).unlink()
    with pytest.raises(UserError, match="run the command that made the set again"):
        reader("phantom")(tmp_path / "old", pectoral_angle=True)
    assert generate.generate(tmp_path / "old", 8, SMALL) == 0
    assert contents(tmp_path / "old") == contents(folder)
    labels = [
        json.loads(text).get("pectoral_angle") for text in reader("phantom")(folder, pectoral_angle=True).rows["labels"]
    ]
    assert sum(angle is not None for angle in labels) == 16


# Lesions


def test_perpendicular_depth_is_the_distance_from_the_muscle():
    """Of the nipple's: in CC from the chest wall, in MLO from the muscle; without the option along image rows."""
    upright = replace(FULL, perpendicular=True)
    for number in range(12):
        exam = exams.draw(upright, number)
        for side, breast in exam.breasts.items():
            borders = exam.outline(side, "MLO")
            angle, distance = borders.muscle()
            across = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            for lesion in breast.lesions:
                place = (lesion.outer, lesion.upper, lesion.depth)
                x, y = exams.centre(borders, "MLO", *place, perpendicular=True)
                deep = (np.array([x, y]) @ across - distance) / (np.array(borders.nipple) @ across - distance)
                assert abs(deep - lesion.depth) < 1e-9
                assert 0 <= x < borders.edge[int(y)] and (y < borders.nipple[1] + 20) >= (lesion.upper > 0.5)
                cc = exam.outline(side, "CC")
                assert exams.centre(cc, "CC", *place, perpendicular=True)[0] == lesion.depth * cc.depth
                assert exams.centre(borders, "MLO", *place)[0] == lesion.depth * borders.depth


def test_the_option_changes_nothing_where_it_is_not_set(folder, tmp_path):
    assert "perpendicular" not in SMALL.as_json() and replace(SMALL, perpendicular=True).as_json()["perpendicular"]
    uid = writer.make_uid(exams.draw(Parameters(), 0), "L", "MLO")
    assert uid == "2.25.316388817625835413331153379921854869348"
    with pytest.raises(UserError, match="perpendicular=False, not True"):
        generate.generate(folder, 8, replace(SMALL, perpendicular=True))
    generate.generate(tmp_path / "set", 1, replace(SMALL, perpendicular=True))
    with pytest.raises(UserError, match="perpendicular=True, not False"):
        generate.generate(tmp_path / "set", 1, SMALL)


def test_nothing_but_the_lesion_tells_of_it():
    """With contrast 0 the stored pixels equal those of a set without lesions; with 1 they differ near boxes only."""
    for number in range(6):
        for laterality, view in exams.VIEWS:
            stored, boxes = {}, ()
            for name, parameters in {
                "shown": FULL,
                "hidden": replace(FULL, contrast=0.0),
                "none": replace(FULL, mass_prevalence=0.0, calcification_prevalence=0.0),
            }.items():
                exam = exams.draw(parameters, number)
                picture = exams.render(exam, laterality, view)
                stored[name] = writer.stored_pixels(exam, picture, laterality, view).astype(int)
                boxes = picture.boxes if name == "shown" else boxes
            np.testing.assert_array_equal(stored["hidden"], stored["none"])
            changed = stored["shown"] != stored["hidden"]
            elsewhere = changed.copy()
            assert len(boxes) == 2
            for item in boxes:
                x0, y0, x1, y1 = item["box"]
                assert changed[y0:y1, x0:x1].any()
                my, mx = y1 - y0, x1 - x0
                elsewhere[max(y0 - my, 0) : y1 + my, max(x0 - mx, 0) : x1 + mx] = False
            assert not elsewhere.any()


def test_boxes_bound_the_masks_and_lie_in_the_breast(folder):
    for path in sorted(folder.rglob("exam.json")):
        for row in json.loads(path.read_text())["images"]:
            file = folder / row["file"]
            mask_file = file.with_suffix(".mask.png")
            boxes = json.loads(row["boxes"])
            assert mask_file.exists() == bool(boxes)
            for item in boxes:
                mask = cv2.imread(str(mask_file), cv2.IMREAD_UNCHANGED)
                rows, columns = np.nonzero(mask & {"mass": 1, "calcification": 2}[item["label"]])
                assert item["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert displayed(file)[rows, columns].min() > 0.05


def test_views_agree_on_depth_and_words_agree_with_places():
    """From the boxes alone: distance to the chest wall in both views, side of the nipple in each."""
    parameters = Parameters(height=320, width=256, mass_prevalence=1.0, calcification_prevalence=0.0)
    checked = 0
    for number in range(25):
        exam = exams.draw(parameters, number)
        for laterality in "LR":
            (lesion,) = exam.breasts[laterality].lesions
            place, depth_word = report_text.position(lesion)
            depths = []
            for view in ("CC", "MLO"):
                picture = exams.render(exam, laterality, view)
                (x0, y0, x1, y1), breast = picture.boxes[0]["box"], picture.breast
                if laterality == "R":
                    x0, x1, breast = 256 - x1, 256 - x0, breast[:, ::-1]
                reach = breast.sum(1)
                nipple_row, x, y = reach.argmax(), (x0 + x1) / 2, (y0 + y1) / 2
                depths.append(x / reach.max())
                upper_word, lower_word = ("outer", "inner") if view == "CC" else ("upper", "lower")
                tolerance = 0.3 * (y1 - y0)  # masses are not symmetric about their centre
                if upper_word in place:
                    assert y < nipple_row + tolerance
                if lower_word in place:
                    assert y > nipple_row - tolerance
                checked += upper_word in place or lower_word in place
            assert abs(depths[0] - depths[1]) < 0.10
            bounds = {"posterior": (0, 1 / 3), "middle": (1 / 3, 2 / 3), "anterior": (2 / 3, 1)}[depth_word]
            assert bounds[0] - 0.08 < np.mean(depths) < bounds[1] + 0.08
    assert checked > 60


@pytest.mark.parametrize(
    "draw, options",
    [
        (lesions.draw_mass, (lesions.MASS_SHAPES, lesions.MASS_MARGINS)),
        (lesions.draw_calcifications, (lesions.CALCIFICATION_MORPHOLOGIES, lesions.CALCIFICATION_DISTRIBUTIONS)),
    ],
)
def test_every_descriptor_occurs_and_draws(draw, options):
    rng = np.random.default_rng(0)
    facts = [draw(rng) for _ in range(300)]
    assert {f["form"] for f in facts} == set(options[0]) and {f["pattern"] for f in facts} == set(options[1])
    for form, pattern in {(f["form"], f["pattern"]) for f in facts}:
        chosen = next(f for f in facts if (f["form"], f["pattern"]) == (form, pattern))
        lesion = lesions.Lesion(**chosen, outer=0.2, upper=0.2, depth=0.5, seed=1)
        patch = lesions.patch(lesion, 320, 0.3, "CC")
        border = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
        assert patch.dtype == np.float32 and patch.max() > 0.15
        assert np.isfinite(patch).all() and border.max() < 0.02  # nothing is cut off
        area = lesions.mask_of(patch).sum() / (np.pi * (lesion.radius * 320) ** 2)
        assert (0.5 < area < 2.5) if lesion.label == "mass" else (0.02 < area < 0.8), (form, pattern, area)


def test_spiculated_masses_have_longer_borders_than_circumscribed_ones():
    def compactness(pattern):
        values = []
        for seed in range(8):
            lesion = lesions.Lesion("mass", "irregular", pattern, 0.06, 0.2, 0.2, 0.5, 4, seed)
            patch = lesions.patch(lesion, 640, 0.0, "CC")
            shape = (patch > 0.1 * patch.max()).astype(np.uint8)
            (contour, *_), _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            values.append(cv2.arcLength(contour, True) ** 2 / (4 * np.pi * cv2.contourArea(contour)))
        return np.median(values)

    assert compactness("spiculated") > 2 * compactness("circumscribed")


def test_lesions_survive_a_picture_of_256_rows():
    parameters = Parameters(mass_prevalence=1.0, calcification_prevalence=1.0)
    for number in range(4):
        shown, hidden = (
            cv2.resize(exams.render(exams.draw(p, number), "L", "CC").density, (205, 256), interpolation=cv2.INTER_AREA)
            for p in (parameters, replace(parameters, contrast=0.0))
        )
        for item in exams.render(exams.draw(parameters, number), "L", "CC").boxes:
            x0, y0, x1, y1 = (np.array(item["box"]) / 2.5).astype(int)
            difference = (shown - hidden)[y0:y1, x0:x1]
            tissue = hidden[y0:y1, x0:x1].std()
            assert difference.max() > max(0.15, 1.5 * tissue), (number, item)


def test_prevalences_are_as_asked_and_independent():
    breasts = [b for n in range(500) for b in exams.draw(SMALL, n).breasts.values()]
    mass, calcification = (np.array([b.has(label) for b in breasts]) for label in ("mass", "calcification"))
    limit = 4 * np.sqrt(0.24 / len(breasts))
    assert abs(mass.mean() - 0.4) < limit and abs(calcification.mean() - 0.4) < limit
    assert abs(np.corrcoef(mass, calcification)[0, 1]) < 4 / np.sqrt(len(breasts))
    radii = [lesion.radius for b in breasts for lesion in b.lesions if lesion.label == "mass"]
    assert 0.04 < np.median(radii) < 0.06


# Reports


def mentions(text: str, words: str) -> str:
    """One of "present", "absent" or "" for what `text` says of `words`, sentence by sentence."""
    verdicts = set()
    for sentence in re.split(r"(?<=\.)\s+", text):
        found = re.search(words, sentence, re.I)
        if found and "obscure small masses" not in sentence:
            negated = re.search(r"\b(no|negative|neither|without)\b", sentence[: found.end()], re.I)
            verdicts.add("absent" if negated else "present")
    assert len(verdicts) <= 1, text
    return verdicts.pop() if verdicts else ""


def test_findings_state_presence_and_absence():
    phrases = set()
    for number in range(250):
        exam = exams.draw(SMALL, number)
        for laterality, breast in exam.breasts.items():
            (findings, impression), sections = report_text.texts(exam, laterality)
            assert sections == ["findings", "impression"]
            for label, words in (("mass", r"\bmass(es)?\b"), ("calcification", r"calcification")):
                said = mentions(findings, words)
                assert said == ("present" if breast.has(label) else "absent"), findings
                assert mentions(impression, words) == ("present" if breast.has(label) else ""), impression
            assert re.findall(r"BI-RADS (?:category )?(\d)", impression) == [str(breast.birads)]
            own, other = report_text.SIDES[laterality], {"L": "right", "R": "left"}[laterality]
            assert re.search(rf"\b{own}\b", findings) and not re.search(rf"\b{other}\b", findings + impression, re.I)
            assert "{" not in findings + impression
            phrases.add(findings)
    assert len(phrases) > 400


def test_birads_follows_the_findings():
    for number in range(200):
        for breast in exams.draw(SMALL, number).breasts.values():
            if not breast.lesions:
                assert breast.birads == 1
            for lesion in breast.lesions:
                assert 2 <= lesion.birads <= breast.birads
                if "spiculated" == lesion.pattern:
                    assert lesion.birads >= 4
                if lesion.form in ("round", "oval") and lesion.pattern == "circumscribed":
                    assert lesion.birads <= 3


def test_report_file_has_both_sections_and_both_sides(folder):
    exam = exams.draw(SMALL, 2)
    text = (folder / "exams" / exam.patient / "report.txt").read_text()
    findings, impression = text.split("FINDINGS:")[1].split("IMPRESSION:")
    for laterality in "LR":
        (_, own_impression), _ = report_text.texts(exam, laterality)
        assert own_impression in impression
        assert report_text.findings(exam, laterality) in findings
    assert findings.count(report_text.density(exam)) == 1


# The adapter


def test_manifest_keeps_its_invariants(folder):
    table = reader("phantom")(folder)
    assert manifest.checked(table).problems == [] and len(manifest.checked(table).rows) == 32
    assert table.public_ids and table.licence == "CC0-1.0" and not table.rows["real"].any()
    for row in table.rows.itertuples():
        labels = json.loads(row.labels)
        assert {item["label"] for item in json.loads(row.boxes)} == {k for k in ("mass", "calcification") if labels[k]}
        assert labels["density"] in "ABCD" and 1 <= labels["birads"] <= 5
        assert row.patient == f"phantom-0-{int(row.patient[-6:]):06d}" and (folder / row.file).exists()


def test_splits_are_by_patient_and_as_large_as_asked(folder):
    rows = reader("phantom")(folder, test_fraction=0.5, val_fraction=0.5).rows
    assert rows.groupby("patient")["split"].nunique().max() == 1 and "train" not in set(rows["split"])
    assert set(reader("phantom")(folder, test_fraction=0.0).rows["split"]) == {"train"}
    with pytest.raises(UserError, match="test_fraction=0.8"):
        reader("phantom")(folder, test_fraction=0.8, val_fraction=0.3)


def test_missing_files_become_problems(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "exams" / "phantom-0-000003" / "R_CC.dcm").unlink()
    table, stamps = increment.present(reader("phantom")(copy), copy)
    assert len(table.rows) == len(stamps) == 31
    (problem,) = table.problems
    assert problem.file == "exams/phantom-0-000003/R_CC.dcm" and problem.stage == "file"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / "images.parquet").unlink(), "not complete"),
        (lambda p: (p / "images.parquet").write_text("x"), "cannot be read"),
        (lambda p: (p / "phantom.json").unlink(), "no phantom set"),
        (lambda p: (p / "phantom.json").write_text("[]"), "cannot be read"),
    ],
)
def test_damaged_sets_are_named(folder, tmp_path, damage, message):
    for name in ("images.parquet", "phantom.json"):
        shutil.copy(folder / name, tmp_path / name)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        reader("phantom")(tmp_path)
    assert str(tmp_path) in str(error.value)


# The command


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mammoclip_jax.data.sources.phantom", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])


@pytest.mark.slow
def test_command(tmp_path):
    shape = ("--exams=1", "--height=160", "--width=128", "--workers=1")
    done = run(f"--out={tmp_path / 'set'}", *shape)
    assert done.returncode == 0, done.stderr
    assert "1 exams, 4 images" in done.stdout and len(list((tmp_path / "set").rglob("*.dcm"))) == 4
    refused = run(f"--out={tmp_path / 'set'}", *shape, "--contrast=0.5")
    assert refused.returncode == 2 and "contrast=1.0, not 0.5" in refused.stderr
    assert "Traceback" not in refused.stderr
    shown = run("--help")
    assert shown.returncode == 0 and "--exams=300" in shown.stdout and "Default: 640." in shown.stdout
