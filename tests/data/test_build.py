"""prepare from end to end on small folders: counts, quarantine, resuming, identity."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoclip_jax.data.build import build
from mammoclip_jax.data.manifest import SourceTable, frame
from mammoclip_jax.data.render import Preprocessing
from mammoclip_jax.data.shards import Dataset
from mammoclip_jax.errors import UserError
from mammoclip_jax.prepare import parse_options, prepare
from tiny_dicom import breast, write

SMALL = dict(height=32, width=24)
REPO = Path(__file__).parents[2]
REPORT = "FINDINGS: There is a mass in the left breast. IMPRESSION: Suspicious mass, BI-RADS 4."


def report_folder(root: Path, images: int = 6, extra: tuple[dict, ...] = ()) -> Path:
    """A folder with a report table and DICOM files; `extra` are further rows."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(images):
        name = f"Jane_Doe_{number}.dcm"
        write(root / name, breast(seed=number), ImageLaterality="L", ViewPosition="CC", PatientName="Doe^Jane",
              PatientID=f"SECRET{number // 2}", Manufacturer="HOLOGIC, Inc.")
        rows.append({"image": name, "patient": f"SECRET{number // 2}", "study": f"ACC{number // 2}", "laterality": "L",
                     "view": "CC", "report": REPORT, "cancer": str(number % 2)})
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
        "dataset.json", "images-00000-of-00002.array_record", "images-00001-of-00002.array_record", "index.parquet",
        "quarantine.csv", "tokenizer.json"]


def test_a_second_run_does_nothing_or_names_the_difference(tmp_path):
    root, out = report_folder(tmp_path / "in"), tmp_path / "out"
    first = prepare("report_csv", root, out, workers=1, **SMALL)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    second = prepare("report_csv", root, out, workers=1, **SMALL)
    assert second.pop("up_to_date") and not first.pop("up_to_date") and first == second
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(UserError, match="height is 32 there, 64 now"):
        prepare("report_csv", root, out, workers=1, height=64, width=24)
    report_folder(root, images=7)
    with pytest.raises(UserError, match="rows is 6 there, 7 now"):
        prepare("report_csv", root, out, workers=1, **SMALL)


def test_another_folder_is_never_overwritten(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        prepare("report_csv", report_folder(tmp_path / "in"), out, workers=1, **SMALL)
    assert (out / "thesis.txt").read_text() == "mine"


def bad_files(root: Path) -> tuple[dict, ...]:
    """One of each kind of bad input, and the rows that name them."""
    whole = write(root / "cut.dcm", breast()).read_bytes()
    (root / "cut.dcm").write_bytes(whole[:len(whole) // 2])
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


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_is_quarantined_and_counts_add_up(tmp_path, workers):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    counts = prepare("report_csv", root, out, workers=workers, max_quarantined=0.9, **SMALL)
    assert counts["images_in"] == 16 and counts["images"] == 6 and counts["quarantined"] == 10
    assert counts["reasons"] == {
        "NaN or infinite pixels": 1, "cannot decode": 1, "colour image": 1, "constant image": 1,
        "duplicate image id": 1, "empty report": 1, "file missing": 1, "multi-frame": 1, "not a DICOM file": 1,
        "report without image": 1}
    rows = quarantine(out)
    assert len(rows) == 10 and all(row["stage"] and row["reason"] and row["remedy"] for row in rows)
    for row in range(6):
        Dataset.open(out).read(row)


def test_too_many_bad_images_fail_at_the_end_and_a_higher_limit_goes_on(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    with pytest.raises(UserError, match="10 of 16 images were quarantined.*max_quarantined=0.2"):
        prepare("report_csv", root, out, workers=1, **SMALL)
    assert len(quarantine(out)) == 10 and not (out / "dataset.json").exists()
    with pytest.raises(UserError, match="dataset.json is missing"):
        Dataset.open(out)
    assert prepare("report_csv", root, out, workers=1, max_quarantined=0.7, **SMALL)["images"] == 6


def test_nothing_left_is_an_error(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "reports.csv").write_text("image,patient,study,laterality,view,report\nnone.dcm,p,s,L,CC,words\n")
    with pytest.raises(UserError, match="file missing"):
        prepare("report_csv", root, tmp_path / "out", workers=1, max_quarantined=1.0, **SMALL)


def test_private_identifiers_stay_beside_the_data_set(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    report_folder(root, 6, bad_files(root))
    prepare("report_csv", root, out, workers=1, max_quarantined=0.9, **SMALL)
    for path in out.rglob("*"):
        content = path.read_bytes()
        for secret in (b"SECRET", b"ACC0", b"Jane", b"Doe", b"missing.dcm", str(root).encode()):
            assert secret not in content, (path, secret)
    private = tmp_path / "out.private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with open(private / "files.csv", newline="") as file:
        owners = {row["file_id"]: row["file"] for row in csv.DictReader(file)}
    assert {owners[row["file"]] for row in quarantine(out)} >= {"cut.dcm", "rgb.png", "missing.dcm"}
    index = Dataset.open(out).index
    assert index["patient"].nunique() == 3 and index["image"].is_unique

    # The same key gives the same identifiers; another key others.
    for path in out.iterdir():
        path.unlink()
    prepare("report_csv", root, out, workers=1, max_quarantined=0.9, **SMALL)
    assert list(Dataset.open(out).index["image"]) == list(index["image"])
    prepare("report_csv", root, tmp_path / "other", workers=1, max_quarantined=0.9, **SMALL)
    assert not set(Dataset.open(tmp_path / "other").index["image"]) & set(index["image"])


def test_box_outside_its_image(tmp_path):
    write(tmp_path / "a.dcm", breast())
    rows = [{"dataset": "d", "patient": name, "study": name, "image": name, "file": "a.dcm", "split": "train",
             "boxes": [{"label": "mass", "box": box}]} for name, box in (("good", [5, 5, 20, 20]),
                                                                        ("bad", [500, 5, 520, 20]))]
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


def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    root, out = mias_like(tmp_path / "in"), tmp_path / "killed"
    prepare("mias", root, tmp_path / "clean", workers=1, shards=6, codec="png", **SMALL)
    command = [sys.executable, "-m", "mammoclip_jax.prepare", "--source=mias", f"--root={root}", f"--out={out}",
               "--shards=6", "--codec=png", "--height=32", "--width=24", "--workers=2"]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((out / ".building").glob("[0-9]*.json"))) < 2:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)            # two shards are done, the third is under way
    process.wait()
    with pytest.raises(UserError, match="no finished data set"):
        Dataset.open(out)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert 2 <= len(done) < 6
    assert prepare("mias", root, out, workers=1, shards=6, codec="png", **SMALL)["quarantined"] == 1
    kept = [path for path, written in done.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= 2                           # finished shards were not written again
    assert contents(out) == contents(tmp_path / "clean")


def test_the_command_prints_counts_and_writes_json(tmp_path):
    root, figures = report_folder(tmp_path / "in", extra=({"image": "gone.dcm"},)), tmp_path / "f.json"
    command = [sys.executable, "-m", "mammoclip_jax.prepare", "--source=report_csv", f"--root={root}",
               f"--out={tmp_path / 'out'}", "--height=32", "--width=24", "--workers=1", f"--json={figures}",
               "--option=labels=cancer"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gone.dcm: file missing" in done.stdout and "1  quarantined, of 7" in done.stdout
    assert json.loads(figures.read_text())["images"] == 6
    wrong = subprocess.run(command + ["--option=lables=x"], cwd=REPO, capture_output=True, text=True)
    assert wrong.returncode == 2 and "Did you mean 'labels'" in wrong.stderr and "Traceback" not in wrong.stderr


def test_options_are_parsed():
    assert parse_options(["a=1", "b=x=y", "c=true", "d="]) == {"a": 1, "b": "x=y", "c": True, "d": ""}
    with pytest.raises(UserError, match="--option=key=value"):
        parse_options(["nothing"])
