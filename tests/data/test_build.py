"""prepare from end to end on small folders: counts, quarantine, resuming, identity."""

import contextlib
import csv
import errno
import fcntl
import functools
import itertools
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from tiny_dicom import breast, write

from mammoclip_jax.command import parse_options
from mammoclip_jax.data import build as build_module
from mammoclip_jax.data import increment, summary
from mammoclip_jax.data.build import build
from mammoclip_jax.data.check import check
from mammoclip_jax.data.from_source import prepare, read
from mammoclip_jax.data.identity import Identity
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.verify import verify
from mammoclip_jax.errors import UserError

SMALL = dict(height=32, width=24)
REPO = Path(__file__).parents[2]
REPORT = "FINDINGS: There is a mass in the left breast. IMPRESSION: Suspicious mass, BI-RADS 4."


def report_folder(root: Path, images: int = 6, extra: tuple[dict, ...] = ()) -> Path:
    """A folder with a report table and DICOM files; `extra` are further rows."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        name = f"Jane_Doe_{number}.dcm"
        write(
            root / name,
            breast(seed=number),
            ImageLaterality="L",
            ViewPosition="CC",
            PatientName="Doe^Jane",
            PatientID=f"SECRET{number // 2}",
            Manufacturer="HOLOGIC, Inc.",
        )
        rows.append(
            {
                "image": name,
                "patient": f"SECRET{number // 2}",
                "study": f"ACC{number // 2}",
                "laterality": "L",
                "view": "CC",
                "report": REPORT,
                "cancer": str(number % 2),
            }
        )
    rows += [rows[0] | row for row in extra]
    with open(root / "reports.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def quarantine(out: Path) -> list[dict]:
    with open(out / "quarantine.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_prepared_and_read(tmp_path):
    root, out = report_folder(tmp_path / "in"), tmp_path / "out"
    counts = prepare("report_csv", root, out, workers=1, shards=2, options={"labels": "cancer"}, **SMALL)
    expected = {"images": 6, "images_in": 6, "patients": 3, "studies": 3, "quarantined": 0, "boxes": 0, "texts": 6}
    assert {name: counts[name] for name in expected} == expected
    dataset = Dataset.open(out)
    assert len(dataset) == 6 and dataset.read(5).shape == (32, 24)
    row = dataset.index.iloc[5]
    assert (row["laterality"], row["view"], row["vendor"], row["shard"]) == ("L", "CC", "Hologic", 1)
    assert json.loads(row["labels"]) == {"cancer": 1} and row["sections"] == ["findings", "impression"]
    assert "file" not in dataset.index and (out / "tokenizer.json").is_file()
    assert dataset.info["real"] is True and dataset.info["preprocessing"]["height"] == 32
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "images-00000-of-00002.array_record",
        "images-00001-of-00002.array_record",
        "index.parquet",
        "quarantine.csv",
        "tokenizer.json",
    ]


def test_a_second_run_does_nothing_or_names_the_difference(tmp_path):
    root, out = report_folder(tmp_path / "in"), tmp_path / "out"
    first = prepare("report_csv", root, out, workers=0, **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    second = prepare("report_csv", root, out, workers=0, **SMALL)
    assert first == second | {"up_to_date": False, "reused": 0, "made": 6}
    assert second["up_to_date"] and second["reused"] == 6
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="height is 32 there, 64 now"):
        prepare("report_csv", root, out, workers=0, height=64, width=24)


def test_only_what_is_new_or_changed_is_made(tmp_path):
    """And the folder is, byte for byte, what a clean run over the same files makes."""
    root = mias_like(tmp_path / "in")

    def again(name: str, **more) -> dict:
        counts = prepare("mias", root, tmp_path / name, workers=0, shards=6, **SMALL | more)
        return {key: counts[key] for key in ("images", "quarantined", "made", "reused", "up_to_date")}

    def same(name: str) -> bool:
        again(name)
        return contents(tmp_path / "a") == contents(tmp_path / name)

    clean = dict(images=47, quarantined=1, made=47, reused=0, up_to_date=False)
    assert again("a") == clean and again("a") == clean | dict(made=0, reused=47, up_to_date=True)
    (root / "mdb005.pgm").write_bytes((root / "mdb006.pgm").read_bytes())  # a file is changed
    assert again("a") == clean | dict(made=1, reused=46) and same("b")
    (root / "mdb003.pgm").write_bytes((root / "mdb006.pgm").read_bytes())  # the bad one is mended
    assert again("a") == dict(images=48, quarantined=0, made=1, reused=47, up_to_date=False) and same("c")
    table = root / "Info.txt"
    table.write_text(table.read_text().replace("mdb009 F NORM", "mdb009 D NORM"))  # a label, not a pixel
    assert again("a") == dict(images=48, quarantined=0, made=0, reused=48, up_to_date=False) and same("d")
    (root / "mdb049.pgm").write_bytes((root / "mdb006.pgm").read_bytes())  # one more
    table.write_text(table.read_text() + "\nmdb049 F NORM")
    assert again("a") == dict(images=49, quarantined=0, made=1, reused=48, up_to_date=False) and same("e")
    (root / "mdb001.pgm").unlink()  # and one less
    assert again("a") == dict(images=48, quarantined=1, made=0, reused=48, up_to_date=False) and same("f")


def test_records_of_another_program_never_lie_beside_new_ones(tmp_path, monkeypatch):
    """A set that is as it was stays; one that changes is made anew, as is what a stopped run of the other has made."""
    root, out = mias_like(tmp_path / "in", pairs=2), tmp_path / "out"
    table = root / "Info.txt"

    def run(program: str, **more) -> tuple:
        with monkeypatch.context() as patch:
            patch.setattr(increment, "program", lambda: program)
            counts = prepare("mias", root, out, workers=0, shards=2, **SMALL | {"max_quarantined": 0.9} | more)
        said = "another version of the program" in summary.prepared(out, counts, 0)
        return counts["made"], counts["reused"], counts["up_to_date"], said

    assert run("old") == (3, 0, False, False)
    assert run("new") == (0, 3, True, True)
    table.write_text(table.read_text().replace("mdb002 G", "mdb002 D"))
    assert run("new") == (3, 0, False, True)
    table.write_text(table.read_text().replace("mdb002 D", "mdb002 F"))
    assert run("new") == (0, 3, False, False)
    assert Dataset.open(out).info["provenance"]["program"] == "new"
    shutil.rmtree(out)
    with pytest.raises(UserError, match="were quarantined"):
        run("old", max_quarantined=0)  # its shards are whole
    assert run("new") == (3, 0, False, False)


def test_the_program_is_the_code_that_makes_a_record(monkeypatch):
    before = increment.program()
    assert before == increment.program() and len(before) == 16
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + (b"\n" if path.name == "voi.py" else b""))
    assert increment.program() != before


def flagged_folder(root: Path) -> Path:
    root.mkdir()
    for name, tags in {
        "a": {},
        "b": {},
        "c": {"PresentationIntentType": "FOR PROCESSING"},
        "d": {"BodyPartExamined": "SPECIMEN"},
        "e": {"PaddleDescription": "SPOT"},
    }.items():
        write(
            root / f"{name}.dcm",
            breast(seed=ord(name)),
            PatientID=name,
            StudyInstanceUID=f"1.{ord(name)}",
            SOPInstanceUID=f"1.2.{ord(name)}",
            ImageLaterality="L",
            ViewPosition="CC",
            **tags,
        )
    return root


def test_images_are_left_out_by_their_flags(tmp_path):
    root, out = flagged_folder(tmp_path / "in"), tmp_path / "out"

    def run(**more) -> dict:
        counts = prepare("images_only", root, out, workers=0, max_quarantined=0.0, **SMALL, **more)
        found = check(read("images_only", root, leave_out=more.get("leave_out")), root)
        assert counts["reasons"] == found["reasons"] and counts["quarantined"] == found["quarantined"]
        return {name: counts[name] for name in ("images", "left_out", "made", "reused", "reasons", "flags")}

    assert run() == {
        "images": 3,
        "left_out": 2,
        "made": 3,
        "reused": 0,
        "flags": {"spot": 1},
        "reasons": {"left out, for_processing": 1, "left out, specimen": 1},
    }
    assert {row["stage"] for row in quarantine(out)} == {"left out"}
    assert run(leave_out=["spot", "specimen"]) == {
        "images": 3,
        "left_out": 2,
        "made": 1,
        "reused": 2,
        "flags": {"for_processing": 1},
        "reasons": {"left out, specimen": 1, "left out, spot": 1},
    }
    assert run(leave_out=())["images"] == 5 and verify(out)["ok"]
    with pytest.raises(UserError, match="no flag to leave out by 'spott'.*Did you mean 'spot'"):
        run(leave_out=["spott"])


def test_what_shows_while_an_image_is_made_leaves_it_out_too(tmp_path):
    write(tmp_path / "a.dcm", breast())
    write(tmp_path / "b.dcm", breast())
    rows = [
        {
            "dataset": "d",
            "patient": name,
            "study": name,
            "image": name,
            "file": f"{name}.dcm",
            "split": "train",
            "laterality": "R" if name == "a" else "L",
        }
        for name in "ab"
    ]
    table = SourceTable(frame(rows), [], "", "", True, leave_out=("chest_wall_unexpected",))
    counts = build(table, tmp_path, tmp_path / "out", preprocessing=Preprocessing(**SMALL), max_quarantined=0.0)
    assert (counts["images"], counts["reasons"]) == (1, {"left out, chest_wall_unexpected": 1})


def test_a_damaged_record_is_not_taken_over(tmp_path):
    root, out = mias_like(tmp_path / "in"), tmp_path / "out"
    prepare("mias", root, out, workers=0, shards=2, codec="raw", **SMALL)
    shard = out / "images-00000-of-00002.array_record"
    data = bytearray(shard.read_bytes())
    record = Dataset.open(out).record(0)
    place = bytes(data).index(record[40:80])
    data[place] ^= 0xFF
    shard.write_bytes(data)
    table = root / "Info.txt"
    table.write_text(table.read_text() + "\nmdb049 F NORM")
    (root / "mdb049.pgm").write_bytes((root / "mdb006.pgm").read_bytes())
    prepare("mias", root, out, workers=0, shards=2, codec="raw", **SMALL)  # the rows of the shards have moved
    assert Dataset.open(out).record(0) == record


def test_another_folder_is_never_overwritten(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        prepare("report_csv", report_folder(tmp_path / "in"), out, workers=0, **SMALL)
    assert (out / "thesis.txt").read_text() == "mine"


def bad_files(root: Path) -> tuple[dict, ...]:
    """One of each kind of bad input, and the rows that name them."""
    whole = write(root / "cut.dcm", breast()).read_bytes()
    (root / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (root / "text.dcm").write_text("this is no image")
    write(root / "flat.dcm", np.full((50, 40), 3, np.uint16))
    rgb = np.zeros((50, 40, 3), np.uint8)
    rgb[10:20, 10:20] = (10, 20, 30)
    cv2.imwrite(str(root / "rgb.png"), rgb)
    nan = breast().astype(np.float32)
    nan[0, 0] = np.nan
    cv2.imwrite(str(root / "nan.tiff"), nan)
    frames = np.stack([breast(), breast()])
    write(root / "frames.dcm", frames, NumberOfFrames=2, Rows=frames.shape[1], Columns=frames.shape[2])
    names = ("cut.dcm", "text.dcm", "flat.dcm", "rgb.png", "nan.tiff", "frames.dcm", "missing.dcm", "")
    return tuple({"image": name} for name in names) + ({"image": "Jane_Doe_5.dcm", "report": " "}, {"report": REPORT})


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_is_quarantined_and_counts_add_up(tmp_path, workers):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    counts = prepare("report_csv", root, out, workers=workers, max_quarantined=0.9, **SMALL)
    assert counts["images_in"] == 16 and counts["images"] == 6 and counts["quarantined"] == 10
    assert counts["reasons"] == {
        "NaN or infinite pixels": 1,
        "cut off": 1,
        "colour image": 1,
        "constant image": 1,
        "duplicate image id": 1,
        "empty report": 1,
        "file missing": 1,
        "multi-frame": 1,
        "not a DICOM file": 1,
        "report without image": 1,
    }
    told = check(read("report_csv", root), root)  # all but what only the pixels show
    seen = {
        name: number
        for name, number in counts["reasons"].items()
        if name not in ("NaN or infinite pixels", "colour image", "constant image")
    }
    assert told["reasons"] == seen and told["quarantined"] == 7
    rows = quarantine(out)
    assert len(rows) == 10 and all(row["stage"] and row["reason"] and row["remedy"] for row in rows)
    for row in range(6):
        Dataset.open(out).read(row)


def test_too_many_bad_images_fail_at_the_end_and_a_higher_limit_goes_on(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    with pytest.raises(UserError, match="10 of 16 images were quarantined.*max_quarantined=0.2"):
        prepare("report_csv", root, out, workers=0, **SMALL)
    assert len(quarantine(out)) == 10 and not (out / "dataset.json").exists()
    with pytest.raises(UserError, match="dataset.json is missing"):
        Dataset.open(out)
    assert prepare("report_csv", root, out, workers=0, max_quarantined=0.7, **SMALL)["images"] == 6


@pytest.mark.parametrize("partial", [False, True])
def test_what_a_partial_copy_lacks_is_no_reason_to_stop(tmp_path, partial):
    write(tmp_path / "a.dcm", breast())
    rows = [
        {"dataset": "d", "patient": name, "study": name, "image": name, "file": f"{name}.dcm", "split": "train"}
        for name in "abc"
    ]
    table = SourceTable(frame(rows), [], "", "", True, partial=partial)
    with contextlib.nullcontext() if partial else pytest.raises(UserError, match="2 of 3 images were quarantined"):
        counts = build(table, tmp_path, tmp_path / "out", preprocessing=Preprocessing(**SMALL), max_quarantined=0.0)
        assert (counts["images"], counts["quarantined"], counts["absent"]) == (1, 2, 2)


def test_reports_of_breasts_without_image_are_kept_as_texts_alone(tmp_path):
    """Without identities; a breast one of whose images is there keeps its texts with it. An image that comes takes its own."""
    own = {"report": "FINDINGS: Jane Doe has calcifications. IMPRESSION: Benign."}
    lost = [{"image": "gone.dcm", "study": "ACC7", "patient": "SECRET7", **own}, {"image": "also.dcm", "study": "ACC0"}]
    root, out = report_folder(tmp_path / "in", 2, tuple(lost)), tmp_path / "out"
    run = functools.partial(prepare, "report_csv", root, out, workers=1, options={"labels": "cancer"}, **SMALL)
    assert run(max_quarantined=0.6)["quarantined"] == 2
    (row,) = pd.read_parquet(out / "texts.parquet").to_dict("records")
    assert list(row["sections"]) == ["findings", "impression"] and row["texts"][1] == "Benign."
    assert json.loads(row["labels"]) == {"cancer": 0} and row["split"] in ("train", "val", "test")
    for path in out.rglob("*"):
        for secret in (b"SECRET7", b"ACC7", b"Jane", b"Doe"):
            assert path.is_dir() or secret not in path.read_bytes(), path
    assert run(max_quarantined=0.6)["up_to_date"] and verify(out)["ok"]
    shutil.copy(root / "Jane_Doe_0.dcm", root / "gone.dcm")
    assert run(max_quarantined=0.6)["images"] == 3 and not (out / "texts.parquet").exists()


def test_nothing_left_is_an_error(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "reports.csv").write_text("image,patient,study,laterality,view,report\nnone.dcm,p,s,L,CC,words\n")
    with pytest.raises(UserError, match="file missing"):
        prepare("report_csv", root, tmp_path / "out", workers=0, max_quarantined=1.0, **SMALL)


def test_private_identifiers_stay_beside_the_data_set(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    prepare("report_csv", root, out, workers=0, max_quarantined=0.9, **SMALL)
    for path in out.rglob("*"):
        content = path.read_bytes()
        for secret in (b"SECRET", b"ACC0", b"Jane", b"Doe", b"missing.dcm", str(root).encode()):
            assert secret not in content, (path, secret)
    private = tmp_path / "out.private"
    assert [path.name for path in private.iterdir()] == ["key"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700 and stat.S_IMODE((private / "key").stat().st_mode) == 0o600
    told = summary.names(read("report_csv", root), root, out)  # only on the owner's screen
    assert all(f"{name}: " in told for name in ("cut.dcm", "rgb.png", "missing.dcm")) and "not in the" not in told
    index = Dataset.open(out).index
    assert index["patient"].nunique() == 3 and index["image"].is_unique

    # The same key gives the same identifiers; another key others.
    for path in out.iterdir():
        path.unlink()
    prepare("report_csv", root, out, workers=0, max_quarantined=0.9, **SMALL)
    assert list(Dataset.open(out).index["image"]) == list(index["image"])
    prepare("report_csv", root, tmp_path / "other", workers=0, max_quarantined=0.9, **SMALL)
    assert not set(Dataset.open(tmp_path / "other").index["image"]) & set(index["image"])
    prepare("report_csv", root, tmp_path / "third", workers=0, max_quarantined=0.9, key=str(private / "key"), **SMALL)
    assert list(Dataset.open(tmp_path / "third").index["patient"]) == list(index["patient"])
    assert not (tmp_path / "third.private").exists()


def test_box_outside_its_image(tmp_path):
    write(tmp_path / "a.dcm", breast())
    rows = [
        {
            "dataset": "d",
            "patient": name,
            "study": name,
            "image": name,
            "file": "a.dcm",
            "split": "train",
            "boxes": [{"label": "mass", "box": box}],
        }
        for name, box in (("good", [5, 5, 20, 20]), ("bad", [500, 5, 520, 20]))
    ]
    table = SourceTable(frame(rows), [], "", "", True)
    counts = build(table, tmp_path, tmp_path / "out", preprocessing=Preprocessing(**SMALL), max_quarantined=0.5)
    assert (counts["boxes"], counts["reasons"]) == (1, {"box outside image": 1})
    assert quarantine(tmp_path / "out")[0]["file"] == "a.dcm"


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a data set; of dataset.json all but the time of writing."""
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    info = json.loads(files.pop("dataset.json"))
    info["provenance"].pop("created")
    return files | {"dataset.json": json.dumps(info).encode()}


def mias_like(root: Path, pairs: int = 24) -> Path:
    """Films and an Info.txt in the format of mini-MIAS; public identifiers, so whole folders can be compared."""
    root.mkdir()
    lines = []
    for number in range(1, 2 * pairs + 1):
        cv2.imwrite(str(root / f"mdb{number:03d}.pgm"), (breast(400, 400, number) >> 4).astype(np.uint8))
        lines.append(f"mdb{number:03d} G CIRC B 100 900 30" if number % 3 else f"mdb{number:03d} F NORM")
    (root / "mdb003.pgm").write_bytes(b"P5 broken")
    (root / "Info.txt").write_text("\n".join(lines))
    return root


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    root, out = mias_like(tmp_path / "in"), tmp_path / "killed"
    prepare("mias", root, tmp_path / "clean", workers=0, shards=6, codec="png", **SMALL)
    command = [
        sys.executable,
        "-m",
        "mammoclip_jax.prepare",
        "--source=mias",
        f"--root={root}",
        f"--out={out}",
        "--shards=6",
        "--codec=png",
        "--height=32",
        "--width=24",
        "--workers=2",
    ]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((out / ".building").glob("[0-9]*.json"))) < 2:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)  # two shards are done, the third is under way
    process.wait()
    with pytest.raises(UserError, match="no finished data set"):
        Dataset.open(out)
    done = {path.name: path.stat().st_mtime_ns for path in (out / ".building").glob("*.array_record")}
    assert 2 <= len(done) < 6
    assert prepare("mias", root, out, workers=0, shards=6, codec="png", **SMALL)["quarantined"] == 1
    kept = [name for name, written in done.items() if (out / name).stat().st_mtime_ns == written]
    assert len(kept) >= 2  # finished shards were not written again
    assert contents(out) == contents(tmp_path / "clean")


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


@contextlib.contextmanager
def dies_at(monkeypatch, change: int):
    """Raises Killed in place of the n-th change of the file system."""
    count = itertools.count(1)

    def deadly(function):
        def wrapped(*args, **options):
            if next(count) == change:
                raise Killed
            return function(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "link"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree")):
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "finished", "stopped"])
def test_death_at_any_change_of_the_file_system(tmp_path, monkeypatch, start):
    """From an empty folder, while a finished one is brought up to date, and after a run over other tables."""
    root, out, begun = mias_like(tmp_path / "in", pairs=3), tmp_path / "out", tmp_path / "begun"
    run = functools.partial(prepare, "mias", root, workers=0, shards=3, max_quarantined=0.9, **SMALL)
    table = (root / "Info.txt").read_text()
    run(tmp_path / "clean")
    if start != "nothing":
        (root / "Info.txt").write_text(table.replace("mdb002", "mdb052").replace("mdb005", "mdb055"))
        with contextlib.suppress(Killed), dies_at(monkeypatch, 7 if start == "stopped" else -1):
            run(begun)
        (root / "Info.txt").write_text(table)
    for change in itertools.count(1):
        shutil.rmtree(out, ignore_errors=True)
        if start != "nothing":
            shutil.copytree(begun, out)
        try:
            with dies_at(monkeypatch, change):
                run(out)
        except Killed:
            if not (out / "dataset.json").exists():
                with pytest.raises(UserError, match="no finished data set"):
                    Dataset.open(out)
            run(out)
            assert contents(out) == contents(tmp_path / "clean"), change
        else:
            break
    assert change > 10


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """SIGKILL at random moments until a run comes through."""
    root, out = mias_like(tmp_path / "in"), tmp_path / "killed"
    prepare("mias", root, tmp_path / "clean", workers=0, shards=12, **SMALL)
    command = [
        sys.executable,
        "-m",
        "mammoclip_jax.prepare",
        "--source=mias",
        f"--root={root}",
        f"--out={out}",
        "--shards=12",
        "--height=32",
        "--width=24",
        "--workers=2",
    ]
    random = np.random.default_rng(3)
    for kill in range(4):
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list((out / ".building").glob("*")))
        while process.poll() is None and len(list((out / ".building").glob("*"))) <= before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
    subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert contents(out) == contents(tmp_path / "clean")


def test_one_process_at_a_time(tmp_path):
    root, out = mias_like(tmp_path / "in", pairs=2), tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            prepare("mias", root, out, workers=0, max_quarantined=0.9, **SMALL)
    assert prepare("mias", root, out, workers=0, max_quarantined=0.9, **SMALL)["images"] == 3


def test_what_another_process_writes_meanwhile_is_read_again(tmp_path, monkeypatch):
    """Else whole shards would be linked under the rows that they had before."""
    for name in "abcd":
        write(tmp_path / f"{name}.dcm", breast(seed=ord(name)))

    def run(names: str, **labels) -> None:
        rows = [
            {
                "dataset": "d",
                "patient": name,
                "study": name,
                "image": name,
                "file": f"{name}.dcm",
                "split": "train",
                "labels": labels,
            }
            for name in names
        ]
        build(
            SourceTable(frame(rows), [], "", "", True),
            tmp_path,
            tmp_path / "out",
            shards=2,
            preprocessing=Preprocessing(**SMALL),
        )

    locked = build_module.locked

    def late(*arguments):
        monkeypatch.setattr(build_module, "locked", locked)
        run("bacd")
        return locked(*arguments)

    run("abcd")
    monkeypatch.setattr(build_module, "locked", late)
    run("abcd", cancer=1)
    assert verify(tmp_path / "out")["ok"]


def test_two_processes_that_make_a_key_at_once_share_it(tmp_path, monkeypatch):
    first, drawn = [], secrets.token_hex

    def meanwhile(count):
        monkeypatch.setattr(secrets, "token_hex", drawn)
        first.append(Identity(tmp_path / "a", tmp_path / "keys" / "key"))
        return drawn(count)

    monkeypatch.setattr(secrets, "token_hex", meanwhile)
    second = Identity(tmp_path / "b", tmp_path / "keys" / "key")
    assert second.hash("patient", "7") == first[0].hash("patient", "7")
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["key"]


def test_a_full_disk_is_said_and_survived(tmp_path, monkeypatch):
    root, out = mias_like(tmp_path / "in", pairs=6), tmp_path / "out"
    run = functools.partial(prepare, "mias", root, out, workers=0, shards=3, **SMALL)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device.*run the same command again"):
            run()
    assert run()["images"] == 11


@pytest.mark.slow
def test_the_command_prints_counts_and_writes_json(tmp_path):
    root, figures = report_folder(tmp_path / "in", extra=({"image": "gone.dcm"},)), tmp_path / "f.json"
    command = [
        sys.executable,
        "-m",
        "mammoclip_jax.prepare",
        "--source=report_csv",
        f"--root={root}",
        f"--out={tmp_path / 'out'}",
        "--height=32",
        "--width=24",
        "--workers=1",
        f"--json={figures}",
        "--option=labels=cancer",
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "line 8: file missing" in done.stdout and "1  quarantined, of 7" in done.stdout
    assert "gone.dcm" not in done.stdout + done.stderr
    assert json.loads(figures.read_text())["images"] == 6
    named = subprocess.run(command + ["--names"], cwd=REPO, capture_output=True, text=True)
    assert named.stdout == "gone.dcm: file missing\n"
    wrong = subprocess.run(command + ["--option=lables=x"], cwd=REPO, capture_output=True, text=True)
    assert wrong.returncode == 2 and "Did you mean 'labels'" in wrong.stderr and "Traceback" not in wrong.stderr


def test_options_are_parsed():
    assert parse_options(["a=1", "b=x=y", "c=true", "d="]) == {"a": 1, "b": "x=y", "c": True, "d": ""}
    with pytest.raises(UserError, match="--option=key=value"):
        parse_options(["nothing"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_beam_writes_the_same_bytes(tmp_path, mode):
    pytest.importorskip("apache_beam")
    root = mias_like(tmp_path / "in", pairs=6)
    prepare("mias", root, tmp_path / "local", workers=0, shards=3, **SMALL)
    counts = prepare(
        "mias",
        root,
        tmp_path / "beam",
        shards=3,
        runner="DirectRunner",
        runner_options=[f"--direct_running_mode={mode}", "--direct_num_workers=2"],
        **SMALL,
    )
    assert counts["images"] == 11 and counts["quarantined"] == 1
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
