"""Damaged DICOM files: each becomes an image or `Unreadable`, which quotes nothing of the header."""

import io
import resource
import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from test_decoders import lossless
from test_intensity import lut_item
from tiny_dicom import breast, dataset

from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.dicom import Unreadable
from mammoclip_jax.data.pixels.render import Preprocessing, render

imagecodecs = pytest.importorskip("imagecodecs")
PLANTED = "QZXW"  # stands in every text of the files, and in nothing that is ours to say
TEXTS = (
    "PatientID",
    "PatientName",
    "SeriesDescription",
    "ProtocolName",
    "Manufacturer",
    "ViewPosition",
    "StudyDate",
    "PaddleDescription",
    "BodyPartExamined",
    "WindowCenterWidthExplanation",
    "ImageComments",
    "DeviceSerialNumber",
)
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLosslessSV1, JPEGExtended12Bit, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
VRS = (
    "AE",
    "AS",
    "AT",
    "CS",
    "DA",
    "DS",
    "FD",
    "FL",
    "IS",
    "LO",
    "OB",
    "OW",
    "OF",
    "PN",
    "SQ",
    "SS",
    "UI",
    "UL",
    "UN",
    "US",
)


def seeds() -> list[bytes]:
    """Small valid files of every kind that the readers know."""
    pixels = breast(48, 36)
    extras = [
        {},
        dict(WindowCenter=[2000, 900], WindowWidth=[3000, 100], RescaleSlope=2, RescaleIntercept=-10),
        dict(VOILUTSequence=[lut_item(0, list(range(0, 4096, 4)), 12)], PixelPaddingValue=0, PixelPaddingRangeLimit=3),
        dict(ModalityLUTSequence=[lut_item(0, list(range(4096)), 16)], PhotometricInterpretation="MONOCHROME1"),
        dict(NumberOfFrames=3),
    ]
    found = []
    for syntax in UNCOMPRESSED:
        for extra in extras:
            many = np.stack([pixels] * extra.get("NumberOfFrames", 1))
            order = ">" if syntax == ExplicitVRBigEndian else "<"
            found.append(_file(syntax, pixels, many.astype(f"{order}u2").tobytes(), extra))
    for syntax in COMPRESSED:
        if syntax == JPEGExtended12Bit:
            stream = imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=12)
        else:
            stream = lossless(syntax, pixels, 12)
        for extra in (extras[0], extras[1], extras[4]):
            found.append(_file(syntax, pixels, encapsulate([stream] * extra.get("NumberOfFrames", 1)), extra))
    return found


def _file(syntax, pixels, data: bytes, extra: dict) -> bytes:
    header = dataset(pixels, bits_stored=12, ImageLaterality="L", **extra)
    for name in TEXTS:
        setattr(header, name, PLANTED)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = data
    if syntax.is_encapsulated:
        header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    return _bytes(header)


def _bytes(header: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """One of several kinds of damage."""
    kind = generator.integers(8)
    if kind >= 5:
        return edited(data, generator)
    data = bytearray(data)
    if kind == 0:  # bytes anywhere
        for place in generator.integers(0, len(data), generator.integers(1, 12)):
            data[place] = generator.integers(256)
    elif kind == 1:  # bits in the header
        for place in generator.integers(132, min(len(data), 1200), generator.integers(1, 6)):
            data[place] ^= 1 << generator.integers(8)
    elif kind == 2:  # cut off
        del data[generator.integers(len(data)) :]
    elif kind == 3:  # a piece lost or doubled
        start, length = generator.integers(len(data)), generator.integers(1, 64)
        piece = data[start : start + length]
        data[start : start + length] = piece * int(generator.integers(0, 3))
    else:  # noise over the end, where the pixels are
        start = generator.integers(len(data) // 2, len(data))
        length = min(len(data) - start, int(generator.integers(1, 300)))
        data[start : start + length] = generator.bytes(length)
    return bytes(data)


def edited(data: bytes, generator: np.random.Generator) -> bytes:
    """A well-formed file with up to three elements that are nonsense: values, types, lengths, or absent."""
    header = pydicom.dcmread(io.BytesIO(data))
    try:
        for _ in range(generator.integers(1, 4)):
            spoil(header, generator)
        return _bytes(header)
    except Exception:  # nonsense that pydicom does not write
        return data[: generator.integers(len(data))]


def spoil(header: pydicom.Dataset, generator: np.random.Generator) -> None:
    """One element of the header made nonsense."""
    name = str(generator.choice(dicom.USED + ("PixelData",)))
    tag = Tag(name)
    kind = generator.integers(5)
    if kind == 0 and tag in header:
        del header[tag]
    elif kind == 1 and name in (
        "Rows",
        "Columns",
        "NumberOfFrames",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "SamplesPerPixel",
        "PixelRepresentation",
    ):
        number = int(generator.choice([0, 1, 2, 3, 7, 8, 12, 16, 24, 32, 64, 255, 4096, 65535]))
        setattr(header, name, number * (100000 if name == "NumberOfFrames" else 1))
    elif kind == 2 and name in ("VOILUTSequence", "ModalityLUTSequence"):
        numbers = generator.integers(-70000, 70000, 3)
        item = lut_item(int(numbers[1]) % 65536, [1, 2, 3], int(numbers[2]) % 20, int(numbers[0]) % 65536)
        item["LUTData"] = pydicom.DataElement(Tag("LUTData"), "OW", generator.bytes(2 * generator.integers(0, 40)))
        setattr(header, name, [item])
    else:
        vr = str(generator.choice(VRS))
        value = generator.choice(
            [
                b"",
                PLANTED.encode(),
                b"1e999",
                b"nan",
                b"-1",
                b"\\" * 6,
                generator.bytes(8),
                struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF),
                b"0\\0\\0",
                b"\xff" * 16,
            ]
        )
        if name == "PixelData":
            value, vr = generator.bytes(generator.integers(0, 4000)), "OB"
        header._dict[tag] = RawDataElement(tag, vr, len(value), bytes(value), 0, False, True)


def check(data: bytes, path, preprocessing: Preprocessing) -> str:
    """Renders the file; what became of it."""
    path.write_bytes(data)
    try:
        rendered = render(path, preprocessing)
    except Unreadable as error:
        assert error.stage in ("file", "decode", "pixels") and error.reason and error.remedy
        assert PLANTED not in error.reason + error.remedy
        return error.reason
    assert rendered.image.shape == (preprocessing.height, preprocessing.width) and rendered.image.dtype == np.uint8
    said = (rendered.laterality, rendered.view, *rendered.flags, rendered.fields.vendor)
    assert not any(PLANTED in text for text in said)
    return "image"


@pytest.mark.slow
def test_damaged_files(tmp_path, capfd, caplog, thorough):
    """1,000 of them, or 10,000."""
    files = 10_000 if thorough else 1_000
    generator = np.random.default_rng(20)
    with dicom.quiet():  # what is said must come from our readers, not from the making of the files
        originals = seeds()
    policies = [
        Preprocessing(height=32, width=24, frames=frames, intensity=intensity)
        for frames in ("refuse", "middle")
        for intensity in ("voi", "raw_minmax", "published")
    ]
    for original in originals:
        assert check(original, tmp_path / "a.dcm", policies[3]) == "image"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = {}
    for number in range(files):
        with dicom.quiet():
            data = mutated(originals[generator.integers(len(originals))], generator)
        what = check(data, tmp_path / "a.dcm", policies[number % len(policies)])
        seen[what] = seen.get(what, 0) + 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_000_000, f"memory grew by {grown} KiB"
    assert seen["image"] > files / 5 and len(seen) > 10, seen
    out, err = capfd.readouterr()
    assert PLANTED not in out + err + caplog.text
