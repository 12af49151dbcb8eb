"""Every transfer syntax of mammography against the pixels that were encoded, or against another decoder.

The files are made here: a 12 or 16-bit breast, encoded by imagecodecs or by hand. That pydicom's own files decode alike
is in test_dicom.py.
"""

import tracemalloc
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from tiny_dicom import breast, dataset, write

from mammoclip_jax.data.pixels import decode, dicom, jpeg
from mammoclip_jax.data.pixels.dicom import Unreadable

imagecodecs = pytest.importorskip("imagecodecs")
DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian


def sixteen_bits() -> np.ndarray:
    return (breast() * 16 + np.random.default_rng(1).integers(0, 16, breast().shape)).astype(np.uint16)


def encoded(path, syntax, frames, pixels, bits_stored, **tags):
    """A file whose pixel data are these streams."""
    header = dataset(pixels, bits_stored=bits_stored, **tags)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate(frames)
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    header.save_as(path, enforce_file_format=True)
    return path


def lossless(syntax, pixels, bits):
    def jpeg_of(predictor):
        return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)

    if syntax == RLELossless:
        return RLELosslessEncoder.encode(
            pixels.tobytes(),
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            bits_stored=16,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
    return {
        JPEGLosslessSV1: lambda: jpeg_of(1),
        JPEGLossless: lambda: jpeg_of(6),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(pixels),
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(
            pixels, reversible=True, bitspersample=bits, codecformat="j2k"
        ),
        JPEG2000: lambda: imagecodecs.jpeg2k_encode(pixels, reversible=True, bitspersample=bits, codecformat="j2k"),
        HTJ2KLossless: lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
        HTJ2K: lambda: imagecodecs.htj2k_encode(pixels, reversible=True),
    }[syntax]()


@pytest.mark.parametrize(
    "syntax",
    [RLELossless, JPEGLosslessSV1, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2K],
    ids=lambda uid: uid.keyword,
)
@pytest.mark.parametrize("bits", [12, 16])
def test_lossless_streams_come_back_bit_for_bit(tmp_path, syntax, bits):
    pixels = breast() if bits == 12 else sixteen_bits()
    path = encoded(tmp_path / "a.dcm", syntax, [lossless(syntax, pixels, bits)], pixels, bits)
    image = dicom.read(path)
    np.testing.assert_array_equal(image.stored, pixels)
    assert image.stored.dtype == np.uint16 and image.fields.flags == ()


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, RLELossless], ids=lambda uid: uid.keyword)
def test_a_stream_in_several_fragments(tmp_path, syntax):
    pixels = breast()
    stream = lossless(syntax, pixels, 12)
    header = dataset(pixels, bits_stored=12)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate([stream], fragments_per_frame=4)
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(dicom.read(tmp_path / "a.dcm").stored, pixels)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DEFLATED],
    ids=lambda uid: uid.keyword,
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32])
def test_uncompressed(tmp_path, syntax, dtype):
    pixels = (breast() >> 4).astype(dtype) if dtype == np.uint8 else breast().astype(dtype)
    pixels = pixels - 2000 if dtype == np.int16 else pixels
    pixels = pixels.astype(dtype)[:, :89]  # an odd length in 8 bits
    header = dataset(pixels)
    header.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        header.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        header["PixelData"].VR = "OB" if dtype == np.uint8 else "OW"
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    stored = dicom.read(tmp_path / "a.dcm").stored
    np.testing.assert_array_equal(stored, pixels)
    assert stored.dtype.isnative and stored.dtype.itemsize <= 2


def test_lossy_streams_like_another_decoder(tmp_path):
    eight, twelve = (breast() >> 4).astype(np.uint8), breast()
    stream = cv2.imencode(".jpg", eight, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_UNCHANGED)
    found = dicom.read(encoded(tmp_path / "8.dcm", JPEGBaseline8Bit, [stream], eight, 8)).stored
    np.testing.assert_allclose(found.astype(int), expected, atol=1)

    stream = imagecodecs.jpegls_encode(twelve, level=3)
    found = dicom.read(encoded(tmp_path / "n.dcm", JPEGLSNearLossless, [stream], twelve, 12)).stored
    np.testing.assert_array_equal(found, imagecodecs.jpegls_decode(stream))
    assert 0 < np.abs(found.astype(int) - twelve).max() <= 3

    stream = imagecodecs.jpeg2k_encode(twelve, level=60, bitspersample=12, codecformat="j2k")
    found = dicom.read(encoded(tmp_path / "j.dcm", JPEG2000, [stream], twelve, 12)).stored
    np.testing.assert_allclose(found.astype(int), imagecodecs.jpeg2k_decode(stream), atol=1)


def test_12_bit_jpeg_like_another_decoder(tmp_path):
    other = pytest.importorskip("libjpeg")
    pixels = breast()
    stream = imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12)
    found = dicom.read(encoded(tmp_path / "a.dcm", JPEGExtended12Bit, [stream], pixels, 12)).stored
    np.testing.assert_allclose(found.astype(int), other.decode(stream).squeeze(), atol=2)
    assert np.abs(found.astype(int) - pixels).mean() < 20 and found.max() > 3000


def test_jpeg_is_decoded_without_the_gpl_plug_in(tmp_path, monkeypatch):
    """And without imagecodecs too, the remedy says what to install."""
    pixels = breast()
    stream = lossless(JPEGLosslessSV1, pixels, 12)
    path = encoded(tmp_path / "a.dcm", JPEGLosslessSV1, [stream], pixels, 12)
    decoder = jpeg.SYNTAXES[JPEGLosslessSV1]
    monkeypatch.setattr(decoder, "_available", {jpeg.NAME: jpeg.decode_frame})
    np.testing.assert_array_equal(dicom.read(path).stored, pixels)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(Unreadable, match="cannot decode: JPEG Lossless") as caught:
        dicom.read(path)
    assert "pip install imagecodecs" in caught.value.remedy and "mammoclip_jax[dicom]" in caught.value.remedy


def test_registering_twice_is_harmless():
    jpeg.register()
    assert all(jpeg.NAME in decoder.available_plugins for decoder in jpeg.SYNTAXES.values())


@pytest.mark.parametrize(
    "syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless], ids=lambda uid: uid.keyword
)
def test_another_size_in_the_stream_or_a_cut_stream_is_refused(tmp_path, syntax):
    pixels = breast()
    stream = lossless(syntax, pixels, 12)
    for wrong in (dict(Rows=60), dict(Columns=91)):
        path = encoded(tmp_path / "a.dcm", syntax, [stream], pixels, 12, **wrong)
        if syntax == RLELossless and wrong == dict(Rows=60):
            continue  # RLE has no size of its own
        with pytest.raises(Unreadable, match="cannot decode" if syntax == RLELossless else "two sizes"):
            dicom.read(path)
    with pytest.raises(Unreadable, match="cannot decode"):
        dicom.read(encoded(tmp_path / "b.dcm", syntax, [stream[: len(stream) * 2 // 3]], pixels, 12))


def test_a_stream_that_would_fill_the_memory_is_refused_before_decoding(tmp_path, monkeypatch):
    """65,000 x 65,000 in the stream, 120 x 90 in the header."""
    pixels = breast()
    for syntax in (JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless):
        stream = bytearray(lossless(syntax, pixels, 12))
        height, width = (n.to_bytes(4 if syntax == JPEG2000Lossless else 2, "big") for n in pixels.shape)
        for size in (height, width):
            # JPEG-LS has it in its SPIFF header before the frame's, JPEG 2000 as the tile's behind the image's.
            at = stream.rindex(size, 0, 120) if syntax == JPEGLSLossless else stream.index(size)
            stream[at : at + len(size)] = (65000).to_bytes(len(size), "big")
        path = encoded(tmp_path / "a.dcm", syntax, [bytes(stream)], pixels, 12)
        monkeypatch.setattr(decode, "_only_frame", lambda *_: pytest.fail("was decoded"))
        with pytest.raises(Unreadable, match="two sizes: .* 65000 x 65000 in the encoded image"):
            dicom.read(path)
        monkeypatch.undo()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless], ids=lambda uid: uid.keyword)
def test_bits_stored_16_with_12_bit_data(tmp_path, syntax):
    pixels = breast()
    path = encoded(tmp_path / "a.dcm", syntax, [lossless(syntax, pixels, 12)], pixels, 16)
    np.testing.assert_array_equal(dicom.read(path).stored, pixels)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1], ids=lambda uid: uid.keyword)
def test_signed_values_in_an_unsigned_stream(tmp_path, syntax):
    """Some encoders write two's complement of 12 bits as if it were unsigned."""
    values = breast().astype(np.int16) // 2 - 1000
    stream = lossless(syntax, (values & 0xFFF).astype(np.uint16), 12)
    path = encoded(tmp_path / "a.dcm", syntax, [stream], values, 12)
    np.testing.assert_array_equal(dicom.read(path).stored, values)


def test_overlay_in_the_high_bits_is_cut_off_and_real_values_are_not(tmp_path):
    pixels = breast()
    text = np.zeros_like(pixels)
    text[20:40, 30:60:3] = 1 << 14
    image = dicom.read(write(tmp_path / "a.dcm", pixels | text, bits_stored=12))
    np.testing.assert_array_equal(image.stored, pixels)
    assert image.fields.flags == ("high_bits_masked",)
    # 14-bit values under a header that says 12: nothing may be lost.
    wide = breast(top=16000)
    image = dicom.read(write(tmp_path / "b.dcm", wide, bits_stored=12))
    np.testing.assert_array_equal(image.stored, wide)
    assert image.fields.flags == ("bits_stored_wrong",)
    # 12 bits aligned to the left, and said so.
    image = dicom.read(write(tmp_path / "c.dcm", pixels << 4, bits_stored=12, HighBit=15))
    np.testing.assert_array_equal(image.stored, pixels)
    assert image.fields.flags == ("high_bit_shifted",)


def test_the_sign_is_extended_where_it_is_not(tmp_path):
    values = breast().astype(np.int16) // 2 - 1000
    image = dicom.read(write(tmp_path / "a.dcm", (values & 0xFFF).astype(np.int16), bits_stored=12))
    np.testing.assert_array_equal(image.stored, values)
    image = dicom.read(write(tmp_path / "b.dcm", values, bits_stored=12))
    np.testing.assert_array_equal(image.stored, values)
    assert image.fields.flags == ()


@pytest.mark.parametrize("implicit", [True, False])
def test_without_preamble_and_meta_information(tmp_path, implicit):
    pixels = breast()
    header = dataset(pixels)
    del header.file_meta
    header.save_as(tmp_path / "a.dcm", implicit_vr=implicit, little_endian=True)
    assert (tmp_path / "a.dcm").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(dicom.read(tmp_path / "a.dcm").stored, pixels)


@pytest.mark.parametrize("missing", ["PixelRepresentation", "SamplesPerPixel", "BitsStored", "HighBit"])
def test_missing_elements_that_have_one_sensible_value(tmp_path, missing):
    header = dataset(breast())
    del header[missing]
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(dicom.read(tmp_path / "a.dcm").stored, breast())


def test_too_much_pixel_data_is_cut_and_too_little_is_refused(tmp_path):
    pixels = breast()
    path = write(tmp_path / "a.dcm", pixels, PixelData=pixels.tobytes() + b"\0" * 6)
    np.testing.assert_array_equal(dicom.read(path).stored, pixels)
    with pytest.raises(Unreadable):
        dicom.read(write(tmp_path / "b.dcm", pixels, PixelData=pixels.tobytes()[:-6]))


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_PIXELS", 2**22)
    header = dataset(np.zeros((4, 4), np.uint16))
    header.file_meta.TransferSyntaxUID = DEFLATED
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    data = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflate.compress(b"\0" * 2**24) for _ in range(2)) + deflate.flush()
    (tmp_path / "a.dcm").write_bytes(data[:start] + bomb)
    with pytest.raises(Unreadable, match="inflates without end"):
        dicom.read(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DEFLATED, RLELossless, JPEGLosslessSV1, JPEG2000Lossless],
    ids=lambda uid: uid.keyword,
)
def test_the_middle_frame_alone_is_decoded(tmp_path, syntax):
    frames = [breast(seed=seed) for seed in range(5)]
    if syntax in (ExplicitVRLittleEndian, DEFLATED):
        header = dataset(frames[0], NumberOfFrames=5, PixelData=np.stack(frames).tobytes())
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path := tmp_path / "a.dcm", enforce_file_format=True)
    else:
        streams = [lossless(syntax, frame, 12) for frame in frames]
        streams[0] = streams[4] = streams[0][:30]  # would not decode
        path = encoded(tmp_path / "a.dcm", syntax, streams, frames[0], 12, NumberOfFrames=5)
    with pytest.raises(Unreadable, match="multi-frame") as caught:
        dicom.read(path)
    assert "middle" in caught.value.remedy
    image = dicom.read(path, frames="middle")
    np.testing.assert_array_equal(image.stored, frames[2])
    assert image.fields.flags == ("middle_frame",)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
def test_the_middle_frame_takes_the_memory_of_one(tmp_path, syntax):
    frame = np.random.default_rng(0).integers(0, 4096, (512, 512)).astype(np.uint16)  # half a megabyte
    if syntax == ExplicitVRLittleEndian:
        path = write(tmp_path / "a.dcm", frame, NumberOfFrames=60, PixelData=frame.tobytes() * 60)
    else:
        path = encoded(tmp_path / "a.dcm", syntax, [lossless(syntax, frame, 12)] * 60, frame, 12, NumberOfFrames=60)
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(dicom.read(path, frames="middle").stored, frame)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless])
def test_a_stream_of_another_size_names_both(tmp_path, syntax):
    """JPEG 2000 of a part of the image, whatever the header calls it."""
    frame = imagecodecs.jpeg2k_encode(np.ascontiguousarray(breast()[:64, :48]), codecformat="j2k", level=0)
    path = encoded(tmp_path / "a.dcm", syntax, [frame], breast(), 16)
    with pytest.raises(Unreadable, match="two sizes: 120 x 90 in the header, 64 x 48 in the encoded image") as caught:
        dicom.read(path)
    assert caught.value.stage == "decode"
