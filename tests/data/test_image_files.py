"""Which files below a folder are images: the same for every source and for predict, whatever they are called."""

import collections
import os
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, GrayscaleSoftcopyPresentationStateStorage, MammographyCADSRStorage
from tiny_dicom import breast, dataset, write

from mammoclip_jax.data import image_files, summary
from mammoclip_jax.data.build import build
from mammoclip_jax.data.check import check
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.data.sources import cmmd, headers, images_only
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.verify import verify

PIXELS = breast(40, 30)


def bare(path: Path, magic: bytes = b"", **tags) -> Path:
    """A DICOM file without its preamble."""
    whole = write(path, PIXELS, **tags)
    whole.write_bytes(magic + whole.read_bytes()[132:])
    return whole


def no_image(path: Path, kind: str) -> Path:
    """A DICOM object without pixels, of this SOP class."""
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = kind
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.PatientID, header.Modality = "patient", "SR"
    header.save_as(path, enforce_file_format=True)
    return path


def pacs_folder(root: Path) -> Path:
    """What a PACS exports: five images, and what lies beside them."""
    (root / "D1").mkdir(parents=True)
    one = {"PatientID": "D1-0001"}
    write(root / "D1" / "1-1.DCM", PIXELS, SOPInstanceUID="1.1", ImageLaterality="L", ViewPosition="CC", **one)
    write(root / "D1" / "1.2.840.5", PIXELS, SOPInstanceUID="1.2", ImageLaterality="L", ViewPosition="MLO", **one)
    bare(root / "D1" / "IM0", SOPInstanceUID="1.3", ImageLaterality="R", ViewPosition="CC", **one)
    bare(root / "D1" / "IM1", b"DICM", SOPInstanceUID="1.4", ImageLaterality="R", ViewPosition="MLO", **one)
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "IM2.dcm", PIXELS, PatientID="D1-0002", ImageLaterality="R", ViewPosition="MLO")
    (root / "D2").symlink_to(elsewhere)
    (root / "D2 again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    no_image(root / "D1" / "cad.dcm", MammographyCADSRStorage)
    no_image(root / "D1" / "PS000", GrayscaleSoftcopyPresentationStateStorage)
    for name in ("LOCKFILE", "VERSION", "letter.docx", "Thumbs.db"):
        (root / "D1" / name).write_bytes(b"\x08\0 no image")
    (root / "D1" / "empty").touch()
    return root


FILES = ["D1/1-1.DCM", "D1/1.2.840.5", "D1/IM0", "D1/IM1", "D2/IM2.dcm"]
KINDS = {
    "D1/LOCKFILE": "other file",
    "D1/VERSION": "other file",
    "D1/letter.docx": ".docx",
    "D1/Thumbs.db": ".db",
    "D1/empty": "empty file",
    "D1/cad.dcm": "Mammography CAD SR Storage",
    "D1/PS000": "Grayscale Softcopy Presentation State Storage",
    "D2 again": "folder linked a second time",
    "D2/back": "folder linked a second time",
}


def test_a_pacs_folder_is_read_whole_by_every_source(tmp_path):
    root = pacs_folder(tmp_path / "root")
    (root / "CMMD_clinicaldata_revision.csv").write_text(
        "ID1,LeftRight,Age,number,abnormality,classification\nD1-0001,L,50,2,mass,Benign\nD1-0001,R,50,2,mass,Benign\n"
        "D1-0002,R,60,2,mass,Malignant\n"
    )
    found = headers.scan(root)
    assert list(found.images) == FILES and not found.problems
    tables = [images_only.read(root), cmmd.read(root)]
    for table in tables:
        assert list(table.rows["file"]) == FILES and not table.problems
        assert {other.file: other.kind for other in table.passed_over} == KINDS | {
            "CMMD_clinicaldata_revision.csv": ".csv"
        }
    assert list(tables[1].rows["view"]) == ["CC", "MLO", "CC", "MLO", "MLO"]


def test_what_should_be_an_image_and_is_none_is_a_problem(tmp_path):
    write(tmp_path / "whole.dcm", PIXELS)
    (tmp_path / "text.dcm").write_text("no image")
    cut = write(tmp_path / "cut", PIXELS)
    cut.write_bytes(cut.read_bytes()[:400])
    shutil.copy(tmp_path / "whole.dcm", tmp_path / os.fsdecode(b"M\xfcller"))
    found = image_files.find(tmp_path)
    assert list(found.images) == ["whole.dcm"] and not found.others
    assert {problem.file: problem.reason for problem in found.problems} == {
        "text.dcm": "not a DICOM file",
        "cut": "no pixel data",
        "M\\udcfcller": "name is not UTF-8",
    }
    if os.geteuid():  # root may read anything
        (tmp_path / "closed").mkdir(mode=0)
        assert "closed" in {problem.file for problem in image_files.find(tmp_path).problems}


@pytest.mark.parametrize(
    "pictures, kept",
    [(["A/mask.png", "A/deep/key.jpg", "cover.png"], []), (["B/L_CC.png", "B/R_CC.png"], ["B/L_CC.png", "B/R_CC.png"])],
)
def test_pictures_beside_dicom_images_are_none(tmp_path, pictures, kept):
    for name in pictures:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("looked at later")
    (tmp_path / "A").mkdir(exist_ok=True)
    write(tmp_path / "A" / "1.dcm", PIXELS)
    found = image_files.find(tmp_path)
    assert sorted(found.images) == ["A/1.dcm", *kept]
    assert [other.file for other in found.others] == sorted(set(pictures) - set(kept))


@pytest.mark.parametrize(
    "there, named",
    [("a/1-1.DCM", "a/1-1.dcm"), ("a/1.2.3", "a/1.2.3.dcm"), ("a/x.dicom", "a/x.dcm"), ("a/P.PNG", "a/p.png")],
)
def test_files_that_tables_name_are_found_under_other_endings_and_capitals(tmp_path, there, named):
    (tmp_path / "a").mkdir()
    (tmp_path / there).touch()
    assert image_files.located(tmp_path, [named, "", "a/other.dcm", "b/1.dcm", there]) == [
        there,
        "",
        "a/other.dcm",
        "b/1.dcm",
        there,
    ]


def copies(root):
    """A data set may show kind and remedy: no name in them."""
    found = images_only.read(root).passed_over
    assert all((other.kind, other.remedy) == ("copy of another file", "none: it is no image") for other in found)
    return {other.file: other.reason.partition(": ")[2] for other in found}


def test_a_file_that_is_there_again_counts_once(tmp_path):
    header = dataset(PIXELS, ImageLaterality="L", ViewPosition="CC")
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    shutil.copy(tmp_path / "a.dcm", tmp_path / "b.dcm")
    header.SeriesDescription = "saved again"
    header.save_as(tmp_path / "c.dcm", enforce_file_format=True)  # the same instance
    header.ViewPosition = "MLO"
    header.save_as(tmp_path / "d.dcm", enforce_file_format=True)  # the same id of another view: no copy
    assert copies(tmp_path) == {"b.dcm": "a.dcm", "c.dcm": "a.dcm"}
    assert list(headers.scan(tmp_path).images) == ["a.dcm", "d.dcm"]


def test_equal_pictures_are_copies_only_of_the_same_view_of_a_patient(tmp_path):
    for name in ("e/L_CC.png", "e/L_CC_2.png", "e/R_CC.png", "f/L_CC.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("looked at later")
    (tmp_path / "e" / "L_CC_3.png").write_text("other bytes bee")
    assert copies(tmp_path) == {"e/L_CC_2.png": "e/L_CC.png"}


def test_what_is_passed_over_is_counted_and_named_by_prepare(tmp_path):
    """In a private set by hashes; the owner can ask for the names."""
    root, out = pacs_folder(tmp_path / "root"), tmp_path / "out"
    table, kinds = images_only.read(root), collections.Counter(KINDS.values())
    counts = build(table, root, out, preprocessing=Preprocessing(height=32, width=24), workers=0)
    assert counts["images"] == counts["images_in"] == 5 and counts["quarantined"] == 0
    assert counts["passed_over"] == Dataset.open(out).info["counts"]["passed_over"] == kinds
    assert build(table, root, out, preprocessing=Preprocessing(height=32, width=24), workers=0)["passed_over"] == kinds
    written = (out / "passed_over.csv").read_text()
    assert written.count("\n") == len(KINDS) + 1 and "LOCKFILE" not in written and "docx" in written
    assert verify(out)["ok"]
    told = summary.names(table, root, out)
    assert all(f"{name}: {kind}" in told for name, kind in KINDS.items())
    dry = check(table, root, names=True)
    assert dry["passed_over"] == kinds and {item["file"] for item in dry["passed_over_files"]} == set(KINDS)
    assert {item["file"] for item in check(table, root)["passed_over_files"]} == {""}
    for text in (summary.prepared(out, counts, 0), summary.dry_run(dry, False)):
        assert f"{len(KINDS)}  files that are no images of the set" in text and "Mammography CAD SR Storage" in text
