"""Identities planted wherever a mammogram, a table or a file name can hold them: nothing that is written shows them."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from tiny_dicom import breast, dataset

from mammoclip_jax.data.from_source import prepare
from mammoclip_jax.data.identity import HASHED, Identity
from mammoclip_jax.data.store.shards import Dataset as DataSet

REPO = Path(__file__).parents[2]
SIZE = (480, 360)
# Each is planted in several places; none is a word of the format.
SECRETS = (
    "Zelenka",
    "Quorthon",
    "19570423",
    "1957-04-23",
    "23.04.1957",
    "MRN88123",
    "88123997",
    "ACC-5521-X",
    "5521",
    "Wexford General",
    "Dr. Oduya",
    "Oduya",
    "20240117",
    "2024-01-17",
    "January 17, 2024",
    "555-0199",
)


def identified(number: int, **tags) -> Dataset:
    """A mammogram with an identity in standard, private and nested elements, and in text burned beside the breast."""
    pixels = breast(*SIZE, seed=number)
    text = np.zeros(SIZE, np.uint8)
    cv2.putText(text, "ZELENKA", (230, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 1, 2)
    cv2.putText(text, "23.04.1957", (235, 460), cv2.FONT_HERSHEY_PLAIN, 1.0, 1, 1)
    pixels[text > 0] = 4000
    image = dataset(
        pixels,
        **dict(
            PatientName="Zelenka^Quorthon",
            PatientID=f"MRN88123{number}",
            PatientBirthDate="19570423",
            StudyDate="20240117",
            AccessionNumber="ACC-5521-X",
            InstitutionName="Wexford General",
            ReferringPhysicianName="Oduya",
            StudyDescription="Zelenka screening",
            ImageLaterality="L",
            StudyID="5521",
            OtherPatientIDs="88123997",
            PatientComments="call 555-0199",
            ViewPosition="CC",
            ImageComments="Quorthon, 2024-01-17",
            SeriesDescription="L CC Zelenka",
            OperatorsName="Quorthon",
            StudyInstanceUID=f"1.2.3.88123997.{number}",
            SOPInstanceUID=f"1.2.3.88123997.9.{number}",
        )
        | tags,
    )
    inner = Dataset()
    inner.PatientName, inner.AccessionNumber, inner.PatientBirthDate = "Zelenka", "ACC-5521-X", "19570423"
    outer = Dataset()
    outer.RequestedProcedureDescription, outer.ReferencedStudySequence = "for Zelenka", Sequence([inner])
    image.RequestAttributesSequence = Sequence([outer])
    block = image.private_block(0x0099, "WEXFORD", create=True)
    block.add_new(0x01, "LO", "Zelenka 19570423")
    block.add_new(0x02, "SQ", Sequence([inner]))
    return image


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "in"
    root.mkdir()
    rows = []
    for number in range(4):
        name = f"Zelenka_Quorthon_{number}_19570423.dcm"
        odd = {"ViewPosition": "ZELENKA", "Manufacturer": "Wexford General"} if number == 3 else {}
        identified(number, **odd).save_as(root / name, enforce_file_format=True)
        rows.append(
            {
                "image": name,
                "patient": "MRN88123",
                "study": f"ACC-5521-X-{number}",
                "laterality": "L",
                "view": "CC",
                "report": "Ms. Zelenka, born 23.04.1957, MRN88123, seen on January 17, 2024 by Dr. "
                "Oduya (555-0199). FINDINGS: There is a 2.5 cm mass in the left breast at 10 o'clock, unchanged "
                "from 2024-01-17. IMPRESSION: Ms. Zelenka has a suspicious mass, BI-RADS 4.",
            }
        )
    (root / "Zelenka_cut.dcm").write_bytes((root / rows[0]["image"]).read_bytes()[:3000])
    (root / "Zelenka_broken.png").write_bytes(b"\x89PNG Zelenka")
    rows += [rows[0] | {"image": name} for name in ("Zelenka_cut.dcm", "Zelenka_broken.png", "Zelenka_gone.dcm")]
    rows += [rows[0] | {"image": "Zelenka_Quorthon_1_19570423.dcm", "laterality": "Zelenka"}]
    with open(root / "Zelenka.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def run(root: Path, out: Path, source: str, *more: str) -> str:
    """What the command prints."""
    command = [
        sys.executable,
        "-m",
        "mammoclip_jax.prepare",
        f"--source={source}",
        f"--root={root}",
        f"--out={out}",
        "--height=160",
        "--width=120",
        "--workers=2",
        "--max_quarantined=0.9",
        f"--json={out}.json",
        *more,
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def found(text: bytes) -> list[str]:
    """The secrets in `text`, in any case and also as UTF-16."""
    plain = text.lower()
    wide = [secret for secret in SECRETS if secret.lower().encode("utf-16-le") in plain]
    # Digits can stand by chance in a hash or a number: they count when no other hex digit is beside them.
    narrow = [
        secret
        for secret in SECRETS
        if re.search(rb"(?<![0-9a-f.])" + re.escape(secret.lower().encode()) + rb"(?![0-9a-f])", plain)
    ]
    return wide + narrow


@pytest.mark.slow
@pytest.mark.parametrize("source, options", [("report_csv", ["--option=table=Zelenka.csv"]), ("images_only", [])])
def test_no_planted_identity_is_written(tmp_path, folder, source, options):
    out = tmp_path / "out"
    said = run(folder, out, source, "--codec=raw", "--verify", "--preview", *options)
    said += run(folder, tmp_path / "none", source, "--check", *options)
    said += run(folder, out, source, "--codec=raw", *options)
    visible = said.replace(str(folder), "").replace("Zelenka.csv", "").encode()  # what the user typed
    assert not found(visible), said
    written = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert len(written) >= 8
    for path in written:
        assert not found(path.read_bytes()), path
        assert not found(str(path.relative_to(tmp_path)).encode())
    index = DataSet.open(out).index
    assert len(index) == 4 and set(index["view"]) <= {"CC", ""}
    for texts in index["texts"]:
        for text in texts:
            assert not found(text.encode()), text
    if source == "report_csv":
        assert "2.5 cm mass in the left breast at 10 o'clock" in index["texts"][0][0]
        assert "BI-RADS 4" in index["texts"][0][1]


def test_a_patient_and_an_image_of_one_name_have_different_hashes(tmp_path):
    identity = Identity(tmp_path / "out")
    assert len({identity.hash(kind, "7") for kind in (*HASHED, "file", "key", "option")}) == 6
    assert Identity(tmp_path / "out").hash("patient", "7") == identity.hash("patient", "7")


@pytest.mark.parametrize("geometry", ["fit", "stretch"])
@pytest.mark.parametrize("intensity", ["voi", "raw_minmax"])
def test_no_burned_in_text_is_left(tmp_path, folder, geometry, intensity):
    out, clean = tmp_path / "out", tmp_path / "clean_in"
    clean.mkdir()
    for number in range(3):
        plain = dataset(
            breast(*SIZE, seed=number), ImageLaterality="L", ViewPosition="CC", SOPInstanceUID=f"1.2.{number}"
        )
        plain.save_as(clean / f"{number}.dcm", enforce_file_format=True)
    options = dict(geometry=geometry, intensity=intensity, height=160, width=120, workers=0, max_quarantined=0.9)
    prepare("report_csv", folder, out, options={"table": "Zelenka.csv"}, **options)
    prepare("images_only", clean, tmp_path / "clean", **options)
    pictures, plain = DataSet.open(out), DataSet.open(tmp_path / "clean")
    texts = [pictures.read(row).astype(int) for row in range(3)]
    bare = [plain.read(row).astype(int) for row in range(3)]
    nearest = [min(np.abs(text - other).max() for other in bare) for text in texts]
    assert max(nearest) <= 3  # of 255; the text was as bright as the brightest tissue
