"""Exams one by one into folders of their own: whole or not there, once, and without a word of whose they are."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from fakes import FakeModel
from PIL import Image
from tiny_dicom import breast, write

from mammoclip_jax import predict as command
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.delivery import folder as folders
from mammoclip_jax.delivery.folder import deliver
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole_folder
from mammoclip_jax.inference import exam as scoring
from mammoclip_jax.inference.overlay import OPACITY

PROMPTS = {"mass": {"positive": "mass", "negative": "no mass"}}
VIEWS = ("L-CC", "L-MLO", "R-CC", "R-MLO")
PREPROCESSING = {"geometry": "fit", "height": 96, "width": 64, "intensity": "voi", "bits": 8, "crop": "robust"}


class Model(FakeModel):
    preprocessing = PREPROCESSING


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Three exams in folders that are called after their patients; tests must not change them."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate.generate(out, 3, Parameters(height=160, width=128))
    for number, exam in enumerate(sorted((out / "exams").iterdir())):
        exam.rename(exam.with_name(f"DOE_JANE_{number}"))
    return out / "exams"


@pytest.fixture
def exams(phantoms, tmp_path):
    """The same, for a test to spoil."""
    return Path(shutil.copytree(phantoms, tmp_path / "exams"))


def run(model, exams, out, **options):
    return deliver(model, exams, out, **{"prompts": PROMPTS} | options)


def folders_in(out):
    return {path.name for path in out.iterdir() if path.is_dir()}


def test_each_exam_is_written_as_it_is_done_and_the_whole_from_their_files(phantoms, tmp_path):
    out, seen = tmp_path / "out", []

    def watch(done):
        seen.append(done)
        own = out / done.entry["exam"]
        assert folders_in(out) == {each.entry["exam"] for each in seen} and not (out / "prediction.json").exists()
        written = json.loads((own / "prediction.json").read_text())
        assert written["exams"][0]["scores"] == done.entry["scores"] and (own / "exam.html").is_file()
        assert {path.name for path in own.iterdir()} == {"prediction.json", "exam.html", "overlays"}

    found = run(Model(), phantoms, out, watch=watch)
    assert [(done.number, done.of, done.source, done.was_there) for done in seen] == [
        (n + 1, 3, f"DOE_JANE_{n}", False) for n in range(3)
    ]
    assert json.loads((out / "prediction.json").read_text()) == found
    for entry in found["exams"]:
        assert sorted(view["name"] for view in entry["views"]) == sorted(VIEWS) and entry["problems"] == 0
        for view in entry["views"]:
            assert all(
                (out / path).is_file() for path in (view["picture"], view["maps"]["mass"], view["overlays"]["mass"])
            )
    scored = {tuple(sorted(e["scores"]["mass"].items())) for e in found["exams"]}
    alone = scoring.predict(Model(), phantoms, prompts=PROMPTS)
    assert scored == {tuple(sorted(e["scores"]["mass"].items())) for e in alone["exams"]}
    assert found["counts"] == alone["counts"] and found["model"]["fingerprint"] == Model().fingerprint()


def test_what_is_there_is_not_scored_again_and_what_changed_is(exams, tmp_path):
    out, model = tmp_path / "out", Model()
    shutil.move(exams / "DOE_JANE_2", tmp_path / "later")
    first = run(model, exams, out)
    assert model.calls == [4, 4]
    one = out / first["exams"][0]["exam"] / "prediction.json"
    changed = json.loads(one.read_text())
    changed["exams"][0]["scores"]["mass"]["max"] = 1.5  # so that a second scoring would be seen
    one.write_text(json.dumps(changed))
    seen = []
    again = run(model, exams, out, watch=seen.append)
    assert model.calls == [4, 4] and [done.was_there for done in seen] == [True, True]
    assert again["exams"][0]["scores"]["mass"]["max"] == 1.5
    assert pd.read_csv(out / "exams.csv")["mass_max"].max() == 1.5
    shutil.move(tmp_path / "later", exams / "DOE_JANE_2")
    (exams / "DOE_JANE_0" / "R_CC.dcm").unlink()
    seen.clear()
    third = run(model, exams, out, watch=seen.append)
    assert model.calls == [4, 4, 3, 4] and [done.was_there for done in seen] == [False, True, False]
    assert third["exams"][0]["exam"] == first["exams"][0]["exam"] and third["exams"][0]["missing"] == ["R CC"]
    assert not (out / third["exams"][0]["exam"] / "overlays" / "R-CC.png").exists()


@pytest.mark.parametrize(
    "option, said",
    [
        ({"prompts": {"mass": {"positive": "a mass", "negative": "no mass"}}}, "prompts: .*-> .*a mass"),
        ({"overlay_size": 80}, "overlay_size: 1024 -> 80"),
        ({"every_view": True}, "every_view: false -> true"),
        ({"dicom": True}, "dicom: false -> true"),
        ({"stage": "stage_3"}, 'stage: "head" -> "stage_3"'),
    ],
)
def test_other_options_in_the_same_folder_are_refused(phantoms, tmp_path, option, said):
    out, model = tmp_path / "out", Model()
    run(model, phantoms / "DOE_JANE_0", out)
    with pytest.raises(UserError, match=f"made otherwise .*{said}"):
        run(model, phantoms, out, **option)
    assert model.calls == [4]


def test_another_model_in_the_same_folder_is_refused(phantoms, tmp_path):
    run(Model(), phantoms / "DOE_JANE_0", tmp_path / "out")
    other = Model()
    other.step = 8
    with pytest.raises(UserError, match="model: .*0007.*-> .*0008"):
        run(other, phantoms, tmp_path / "out")
    assert other.calls == []


class Stopped(Model):
    """Whatever comes up while the second exam is scored."""

    def saliency(self, images, texts, **options):
        if len(self.calls) == 2:
            self.stop()
        return Model.saliency(self, images, texts, **options)

    def stop(self):
        raise KeyboardInterrupt


def test_ctrl_c_leaves_whole_exams_and_the_same_call_goes_on(phantoms, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Stopped(), phantoms, out)
    assert len(folders_in(out)) == 1 and not [path for path in out.iterdir() if path.name.startswith(".")]
    assert sources_of(out) == {"DOE_JANE_0"}
    model, seen = Model(), []
    run(model, phantoms, out, watch=seen.append)
    assert model.calls == [4, 4] and [done.was_there for done in seen] == [True, False, False]
    run(model, phantoms / "DOE_JANE_1", out)
    assert sources_of(out) == {f"DOE_JANE_{n}" for n in range(3)}


def sources_of(out):
    """The folders that the owner's table tells of."""
    with open(out.with_name(f"{out.name}.private") / "sources.csv", newline="") as file:
        return {row["folder"] for row in csv.DictReader(file)}


def test_kill_9_leaves_whole_exams_and_the_same_call_goes_on(phantoms, tmp_path):
    out = tmp_path / "out"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from test_deliver import PROMPTS, Model, deliver, folders\n"
        "def write(path, text, there=folders.write_text):\n"
        f"    if Path(path).name == 'prediction.json' and len(list(Path({str(out)!r}).glob('[0-9a-f]*/'))) == 1:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    there(path, text)\n"
        "folders.write_text = write\n"
        f"deliver(Model(), {str(phantoms)!r}, {str(out)!r}, prompts=PROMPTS)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent), *sys.path])
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": paths}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    partial = [path for path in out.iterdir() if path.is_dir() and path.name.startswith(".")]
    assert len(partial) == 1 and (partial[0] / "overlays").is_dir()  # it was killed in the middle of the second
    (whole,) = folders_in(out) - {partial[0].name}
    assert json.loads((out / whole / "prediction.json").read_text())["counts"]["scored"] == 4
    model = Model()
    found = run(model, phantoms, out)
    assert model.calls == [4, 4] and folders_in(out) == {entry["exam"] for entry in found["exams"]}


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "exam"
    with whole_folder(target) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(OSError, match="full"), whole_folder(target) as partial:
        (partial / "a").write_text("ne")
        raise OSError("full")
    assert (target / "a").read_text() == "old" and os.listdir(tmp_path) == ["exam"]
    with whole_folder(target) as partial:
        (partial / "b").write_text("new")
    assert os.listdir(target) == ["b"] and os.listdir(tmp_path) == ["exam"]


def test_pixels_of_one_exam_are_held_at_a_time(phantoms, tmp_path, monkeypatch):
    images, most, plain = [], [], scoring.render

    def render(*arguments):
        rendered = plain(*arguments)
        images.append(weakref.ref(rendered.image))
        most.append(sum(image() is not None for image in images))
        return rendered

    monkeypatch.setattr(scoring, "render", render)
    run(Model(), phantoms, tmp_path / "out")
    assert len(most) == 12 and max(most) <= 4


def said(out):
    """All that the files of a folder and their names say, as bytes."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return b"\n".join(str(path.relative_to(out)).encode() + b"\n" + path.read_bytes() for path in paths)


def test_no_file_says_whose_an_exam_is_but_for_its_owner(exams, tmp_path):
    out = tmp_path / "out"
    header = pydicom.dcmread(exams / "DOE_JANE_0" / "L_CC.dcm")
    (exams / "DOE_JANE_0" / "DOE_broken.dcm").write_text("x")
    secret = ["DOE_JANE", "DOE_broken", header.PatientID, str(header.PatientName), header.AccessionNumber]
    identifiers = [header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID]
    found = run(Model(), exams, out)
    assert found["counts"]["problems"] == 1
    for word in [*secret, *identifiers, "L_CC"]:
        assert word.encode() not in said(out), word
    shown = run(Model(), exams, tmp_path / "shown", uids=True)
    for word in [*secret, "L_CC"]:
        assert word.encode() not in said(tmp_path / "shown"), word
    entry = next(e for e in shown["exams"] if e["study"] == header.StudyInstanceUID)
    view = next(v for v in entry["views"] if v["name"] == "L-CC")
    assert list(view["uids"].values()) == identifiers
    private = tmp_path / "out.private" / "sources.csv"
    assert private.stat().st_mode & 0o077 == 0
    rows = list(csv.DictReader(private.open()))
    assert {row["source"] for row in rows} >= {f"DOE_JANE_{n}/L_CC.dcm" for n in range(3)} | {
        "DOE_JANE_0/DOE_broken.dcm"
    }
    (own,) = (row for row in rows if row["source"] == "DOE_JANE_0/L_CC.dcm")
    assert (out / own["exam"] / "overlays" / f"{own['file']}.png").is_file() and own["folder"] == "DOE_JANE_0"


def test_the_same_key_gives_the_same_ids_and_another_key_others(phantoms, tmp_path):
    one = phantoms / "DOE_JANE_0"
    first = run(Model(), one, tmp_path / "a")["exams"][0]
    key = str(tmp_path / "a.private" / "key")
    same = run(Model(), one, tmp_path / "b", key=key)["exams"][0]
    other = run(Model(), one, tmp_path / "c")["exams"][0]
    assert first["exam"] == same["exam"] != other["exam"]
    assert [v["uids"] for v in first["views"]] == [v["uids"] for v in same["views"]]
    with pytest.raises(UserError, match="key"):
        run(Model(), one, tmp_path / "a", key=str(tmp_path / "c.private" / "key"))


def test_tables_have_one_row_an_exam_a_breast_a_view(phantoms, tmp_path):
    found = run(Model(), phantoms, tmp_path)
    exams, breasts, views = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("exams", "breasts", "views"))
    assert (len(exams), len(breasts), len(views)) == (3, 6, 12)
    for table in (exams, breasts, views):
        assert set(table["model"].astype(str).str.zfill(16)) == {Model().fingerprint()}
    for entry in found["exams"]:
        row = exams[exams["exam"] == entry["exam"]].iloc[0]
        assert row["mass_mean"] == pytest.approx(entry["scores"]["mass"]["mean"]) and row["study"] == entry["study"]
        for view in entry["views"]:
            own = views[(views["exam"] == entry["exam"]) & (views["name"] == view["name"])].iloc[0]
            assert own["mass"] == pytest.approx(view["scores"]["mass"]) and own["image_uid"] == view["uids"]["image"]
            assert [own["mass_x"], own["mass_y"]] == pytest.approx(view["peaks"]["mass"])


def test_nothing_readable_is_an_exam_without_views_and_tables_without_rows(tmp_path):
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "a.dcm").write_text("x")
    found = run(Model(), tmp_path / "exam", tmp_path / "out", dicom=True)
    (entry,) = found["exams"]
    assert entry["views"] == [] and entry["dicom"] == {"files": [], "reason": "no view"}
    assert found["counts"]["problems"] == 1 and (tmp_path / "out" / entry["exam"] / "exam.html").is_file()
    rows = {name: pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("exams", "breasts", "views")}
    assert [len(table) for table in rows.values()] == [1, 0, 0] and "image_uid" in rows["views"]


def test_a_map_alone_lies_over_its_picture_as_the_overlay_shows_it(phantoms, tmp_path):
    found = run(Model(), phantoms / "DOE_JANE_0", tmp_path)
    view = found["exams"][0]["views"][0]
    layer = Image.open(tmp_path / view["maps"]["mass"])
    assert layer.mode == "P" and layer.size == (128, 160)
    heat = np.asarray(layer) / 255
    assert heat.max() > 0.9 and heat.min() == 0
    grey = Image.open(tmp_path / view["picture"])
    assert grey.mode == "L"
    laid = np.asarray(Image.alpha_composite(grey.convert("RGBA"), layer.convert("RGBA")).convert("RGB"), int)
    shown = cv2.imread(str(tmp_path / view["overlays"]["mass"]))[..., ::-1].astype(int)
    x, y = (int(value) for value in view["peaks"]["mass"])
    away = np.ones(shown.shape[:2], bool)
    away[max(y - 12, 0) : y + 12, max(x - 12, 0) : x + 12] = False  # the cross at the peak
    assert np.abs(laid - shown)[away].max() <= 4
    hot = np.asarray(layer.convert("RGBA"))[heat > 0.95]
    assert np.abs(hot[:, 3] - 255 * OPACITY * np.sqrt(heat[heat > 0.95])).max() <= 1


def test_large_films_get_small_pictures(tmp_path):
    (tmp_path / "exam").mkdir()
    write(tmp_path / "exam" / "a.dcm", breast(1500, 1200), ImageLaterality="L", ViewPosition="CC")
    view = run(Model(), tmp_path / "exam", tmp_path / "out")["exams"][0]["views"][0]
    for path in (view["picture"], view["maps"]["mass"], view["overlays"]["mass"]):
        assert Image.open(tmp_path / "out" / path).size == (819, 1024)
    full = run(Model(), tmp_path / "exam", tmp_path / "full", overlay_size=0)["exams"][0]["views"][0]
    assert Image.open(tmp_path / "full" / full["maps"]["mass"]).size == (1200, 1500)


def test_two_views_of_a_name_and_labels_with_signs_have_files_of_their_own(phantoms, tmp_path):
    exam = tmp_path / "exam"
    shutil.copytree(phantoms / "DOE_JANE_0", exam)
    header = pydicom.dcmread(exam / "L_CC.dcm")
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.save_as(exam / "again.dcm")
    prompts = {f"mass {sign} x": PROMPTS["mass"] for sign in "/:"}
    entry = run(Model(), exam, tmp_path / "out", prompts=prompts)["exams"][0]
    assert sorted(view["name"] for view in entry["views"]) == sorted([*VIEWS, "L-CC-2"])
    paths = [path for view in entry["views"] for path in [*view["maps"].values(), *view["overlays"].values()]]
    assert len(set(paths)) == len(paths) == 20 and all((tmp_path / "out" / path).is_file() for path in paths)


def test_lines_say_how_far_it_is_and_what_is_left(capsys):
    clock = iter([0.0, 10.0, 30.0])
    progress = command.Progress(clock=lambda: next(clock))
    entry = {"exam": "1d", "views": [], "scores": {}, "missing": [], "dicom": None}
    entry["left_out"] = [{"file": "h", "reason": "spot"}]
    done = folders.Done(1, 4, "e", entry, {"h": "spot.dcm"}, True)
    for number, there in enumerate((True, False, False), start=1):
        progress.show(done._replace(number=number, was_there=there))
    first, left_out, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("[2/4, 10 s an exam, 0:00:20 left] e: 0 views") and left_out == "  left out: spot.dcm: spot"
    assert second.startswith("[3/4, 15 s an exam, 0:00:15 left]") and progress.there == 1


def test_a_folder_within_the_exams_is_refused(phantoms):
    with pytest.raises(UserError, match="lies in .* beside it"):
        run(Model(), phantoms, phantoms / "out")
    assert not (phantoms / "out").exists()
