"""The size of a picture is read before its pixels, and bounded as that of a DICOM file is."""

import struct

import cv2
import numpy as np
import pytest
from tiny_dicom import breast

from mammoclip_jax.data.pixels import dicom, pictures
from mammoclip_jax.data.pixels.decode import MAX_PIXELS

SIDE = 20_000  # squared, twice the limit


def tiff(order: str, width: int, height: int, kind: str = "H", big: bool = False) -> bytes:
    """The head of a TIFF, its directory behind some bytes, whose values are of one kind."""
    number, pad = {"H": 3, "I": 4, "Q": 16}[kind], b"\0" * (8 if big else 4)
    entries = [
        struct.pack(order + "HH" + ("Q" if big else "I"), tag, number, 1)
        + (struct.pack(order + kind, value) + pad)[: len(pad)]
        for tag, value in ((254, 0), (256, width), (257, height))
    ]
    start = struct.pack(order + "HHHQ", 43, 8, 0, 24) if big else struct.pack(order + "HI", 42, 16)
    head = (b"II" if order == "<" else b"MM") + start
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return head.ljust(24 if big else 16, b"\0") + count + b"".join(entries) + pad


HEADS = {
    "a.png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", SIDE, SIDE),
    "a.pgm": b"P5\n# a comment\n%d %d\n255\n" % (SIDE, SIDE),
    "a.bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, SIDE, -SIDE),
    "a.jpg": b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x0b\x08" + struct.pack(">HH", SIDE, SIDE) + bytes(9),
    "a.tif": tiff("<", SIDE, SIDE),
    "b.tif": tiff(">", SIDE, SIDE),
    "c.tif": tiff("<", SIDE, SIDE, "I"),
    "d.tiff": tiff("<", SIDE, SIDE, "Q", big=True),
    "e.tiff": tiff(">", SIDE, SIDE, "I", big=True),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_huge_declared_size_is_refused_before_decoding(tmp_path, monkeypatch, name):
    assert SIDE * SIDE > MAX_PIXELS
    (tmp_path / name).write_bytes(HEADS[name])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(dicom.Unreadable, match="impossible size; give images of at most 200,000,000"):
        dicom.read(tmp_path / name)


@pytest.mark.parametrize("suffix", [*dicom.PICTURES, ".ppm"])
def test_the_declared_size_is_that_of_the_pixels(suffix):
    pixels = breast(37, 91).astype(np.uint8)
    data = cv2.imencode(suffix, np.dstack([pixels] * 3) if suffix == ".ppm" else pixels)[1].tobytes()
    assert pictures.size(data) == (37, 91)
    for length in (0, 1, 5):
        with pytest.raises(ValueError, match="picture"):
            pictures.size(data[:length])


def test_a_file_of_another_kind_is_no_picture(tmp_path):
    for content in (b"", b"no picture", b"GIF89a" + bytes(50), tiff("<", 0, 5), b"II*\0\xff\xff\xff\xff"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(dicom.Unreadable, match="cannot decode: picture"):
            dicom.read(tmp_path / "a.png")
