"""The pixel data of a parsed DICOM file -> stored values, whatever the transfer syntax.

| transfer syntax                                    | decoder                                                |
|----------------------------------------------------|--------------------------------------------------------|
| implicit, explicit, big endian, deflated           | pydicom                                                |
| RLE                                                | imagecodecs (rle.py), else pylibjpeg-rle, else pydicom |
| JPEG baseline, extended 12-bit, lossless           | imagecodecs (jpeg.py), else any that pydicom finds     |
| JPEG-LS, lossless and near-lossless                | pyjpegls, else any that pydicom finds                  |
| JPEG 2000, HTJ2K                                   | pylibjpeg-openjpeg, else any that pydicom finds        |

What is declared is checked before anything is decoded: a header or a stream that would fill the memory is refused.
Headers in the field are often wrong about bits; see `used_bits`.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.decoders import base
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from mammoclip_jax.data.pixels import jpeg, rle
from mammoclip_jax.errors import UserError

MAX_PIXELS = 200_000_000  # a mammogram has up to about 30 million; more is a broken header
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PREFERRED = (
    {RLELossless: "pylibjpeg"}
    | {syntax: jpeg.NAME for syntax in jpeg.SYNTAXES}
    | {syntax: "pyjpegls" for syntax in JPEGLSTransferSyntaxes}
    | {syntax: "pylibjpeg" for syntax in JPEG2000TransferSyntaxes}  # HTJ2K too
)
_RLE_RATIO, _RATIO = 64, 4000  # pixels a byte of a file at the very most: RLE can do no more; others do by far less

jpeg.register()


class Unreadable(UserError):
    """A file that cannot become an image. `stage`, `reason` and `remedy` go to the quarantine table.

    Neither quotes a value of the header: it might name somebody.
    """

    def __init__(self, path: Path | str, stage: str, reason: str, remedy: str):
        super().__init__(f"{path}: {reason}; {remedy}")
        self.stage, self.reason, self.remedy = stage, reason, remedy


class Shape(NamedTuple):
    """What the header declares, as checked."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int


def declared(path: Path, header: pydicom.Dataset) -> Shape:
    """The size that the header declares.

    Raises:
        Unreadable: it is missing, or absurd against the file's size.
    """
    try:
        rows, columns = int(header.Rows), int(header.Columns)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise Unreadable(path, "decode", "no image size", "the header lacks Rows or Columns; export it again") from None
    frames, samples = _count(header, "NumberOfFrames", 1) or 1, _count(header, "SamplesPerPixel", 1)
    allocated = _count(header, "BitsAllocated", 16)
    stored = _count(header, "BitsStored", allocated)
    stored = stored if 1 <= stored <= allocated else allocated
    if str(header.get("PhotometricInterpretation", "")).strip().upper() == "PALETTE COLOR":
        raise Unreadable(path, "decode", "colour image", "give grey images; a palette image is no mammogram")
    pixels = rows * columns
    damaged = "the header or the file is damaged; export or copy it again"
    if not (0 < pixels * samples <= MAX_PIXELS and frames > 0 and min(rows, columns) > 0):
        raise Unreadable(path, "decode", "impossible size", damaged)
    total, size = pixels * samples * frames, os.path.getsize(path)
    syntax = _syntax(header)
    if syntax == RLELossless:
        most = _RLE_RATIO * size
    elif syntax == DeflatedExplicitVRLittleEndian or syntax in AllTransferSyntaxes and syntax.is_encapsulated:
        most = _RATIO * size
    else:
        most = 8 * size // max(1, allocated) + 1
    if total > most:
        raise Unreadable(path, "decode", "cut off: the header declares more pixels than the file can hold", damaged)
    return Shape(rows, columns, frames, samples, allocated, stored, _count(header, "HighBit", stored - 1))


def _count(header: pydicom.Dataset, name: str, default: int) -> int:
    try:
        value = header.get(name)
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _syntax(header: pydicom.Dataset) -> UID:
    return UID(str(getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", "")))


def decode(path: Path, header: pydicom.Dataset, shape: Shape, frame: int) -> tuple[np.ndarray, str]:
    """Stored values [h, w] or [h, w, 3] of one frame, native byte order, and a flag about the bits.

    A file of one frame has its pixel data in `header`; of several, only the one frame is read from `path`.

    Raises:
        Unreadable: the pixel data are damaged, or their decoder is missing.
    """
    syntax = _syntax(header)
    try:
        array = _decode(path, header, shape, frame, syntax)
    except (KeyboardInterrupt, SystemExit, Unreadable):
        raise
    except BaseException as error:  # decoders raise anything; the RLE decoder's Rust panics are no Exception
        name = syntax.name if syntax in AllTransferSyntaxes else "unknown transfer syntax"
        reason = f"cannot decode: {name}, {type(error).__name__}"
        raise Unreadable(path, "decode", reason, _remedy(syntax)) from None
    array = narrow(array)
    return (array, "") if shape.samples > 1 else used_bits(array, shape.bits_stored, shape.high_bit)


def _decode(path: Path, header: pydicom.Dataset, shape: Shape, frame: int, syntax: UID) -> np.ndarray:
    options = {
        "rows": shape.rows,
        "columns": shape.columns,
        "number_of_frames": shape.frames,
        "samples_per_pixel": shape.samples,
        "bits_allocated": shape.bits_allocated,
        "bits_stored": shape.bits_stored,
        "pixel_representation": int(_count(header, "PixelRepresentation", 0) == 1),
    }
    if shape.samples == 1:  # the header's word, odd or missing, is for polarity.py; decoding needs a known one
        options["photometric_interpretation"] = "MONOCHROME2"
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        options.pop("pixel_representation")
    if syntax not in JPEG2000TransferSyntaxes and syntax not in JPEGLSTransferSyntaxes:
        options["correct_unused_bits"] = False  # used_bits looks whether they are unused
    decoder = get_decoder(syntax)
    plugin = _PREFERRED.get(syntax, "")
    plugins = [plugin, ""] if plugin in decoder.available_plugins else [""]
    if decoder.is_encapsulated and syntax != RLELossless:
        _check_stream(path, _stream(path, header, shape, frame), shape)
    for number, plugin in enumerate(plugins):
        try:
            if shape.frames > 1 and syntax == DeflatedExplicitVRLittleEndian:  # cannot be read in parts
                return decoder.as_array(pydicom.dcmread(path), index=frame, **options)[0]
            if shape.frames > 1:
                return pixel_array(path, index=frame, decoding_plugin=plugin, **options)
            return _only_frame(decoder, header, options | {"decoding_plugin": plugin})
        except Exception:
            if number + 1 == len(plugins):
                raise


def _only_frame(decoder: base.Decoder, header: pydicom.Dataset, options: dict) -> np.ndarray:
    signs = decoder.UID in JPEG2000TransferSyntaxes or decoder.UID in JPEGLSTransferSyntaxes  # pydicom mends them
    if options["samples_per_pixel"] > 1 or signs or not decoder.is_encapsulated:
        view = {} if decoder.is_encapsulated else {"view_only": True}
        return decoder.as_array(header, index=0, **options, **view)[0]
    kind = "ui"[options["pixel_representation"]]
    if decoder.UID == RLELossless:
        stream = get_frame(header.PixelData, 0, number_of_frames=1)
        stored = rle.decode(stream, options["rows"], options["columns"], options["bits_allocated"])
        if stored is not None:
            return stored.view(f"<{kind}{stored.dtype.itemsize}")
    frame, fields = decoder.as_buffer(header, index=0, **options)  # saves as_array's copy
    return np.frombuffer(frame, f"<{kind}{fields['bits_allocated'] // 8}").reshape(options["rows"], options["columns"])


def _stream(path: Path, header: pydicom.Dataset, shape: Shape, frame: int) -> bytes:
    """The encoded frame."""
    if shape.frames == 1:
        return get_frame(header.PixelData, 0, number_of_frames=1)
    with open(path, "rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True)
        file.seek(12, os.SEEK_CUR)  # tag, VR and length of the pixel data
        return get_frame(file, frame, number_of_frames=shape.frames)


def _check_stream(path: Path, stream: bytes, shape: Shape) -> None:
    """Raises Unreadable where a JPEG or JPEG 2000 stream declares another size than the header, or is cut off.

    Whatever the header calls it: JPEG 2000 is found under transfer syntaxes of JPEG.
    """
    size = stream_size(stream)
    if size and size != (shape.rows, shape.columns):
        reason = f"two sizes: {shape.rows} x {shape.columns} in the header, {size[0]} x {size[1]} in the encoded image"
        raise Unreadable(path, "decode", reason, "the header is another image's; export the image again")
    if stream.startswith(b"\xff\xd8") and not jpeg.is_whole(stream):
        raise ValueError("no end of image")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """Height and width as a JPEG, JPEG-LS or JPEG 2000 stream declares them; None where it is no such stream."""
    start = stream[:512].find(b"\xff\x4f\xff\x51")
    if start >= 0:
        x1, y1, x0, y0 = (int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    if not stream.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) or marker == 0xF7:
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        else:
            at += 2 + max(2, int.from_bytes(stream[at + 2 : at + 4], "big"))
    return None


def _remedy(syntax: UID) -> str:
    """What to do about pixel data that do not decode: install a decoder where there is none."""
    try:
        missing = syntax.is_encapsulated and not get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        return "convert it to a transfer syntax of the DICOM standard, e.g. explicit VR little endian"
    if not missing:
        return "the file is damaged: copy it again"
    if syntax in jpeg.SYNTAXES:
        return "its decoder is missing: pip install imagecodecs (or mammoclip_jax[dicom])"
    return "its decoder is missing: pip install -r requirements.txt"


def narrow(array: np.ndarray) -> np.ndarray:
    """Native byte order, and 16 bits where the values of wider integers fit."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        low, high = int(array.min()), int(array.max())
        for kind in (np.uint16, np.int16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return array.astype(kind)
    return array


def used_bits(stored: np.ndarray, bits: int, high_bit: int) -> tuple[np.ndarray, str]:
    """Stored values [h, w] without what lies in the bits above Bits Stored, and a flag.

    Old files keep overlays in those bits (PS3.5 8.1.2), and some do not extend the sign: they are cut off
    ("high_bits_masked"). But where Bits Stored is simply wrong they hold the image ("bits_stored_wrong"). Which it is,
    neighbouring pixels tell: across a step of the high bits, real values go on smoothly, and masked ones jump. Where
    High Bit says that values are aligned to the left, and nothing lies below them, they are shifted
    ("high_bit_shifted").
    """
    size = 8 * stored.dtype.itemsize
    if not 1 <= bits < size or stored.dtype.kind not in "iu":
        return stored, ""
    reach = bits - (stored.dtype.kind == "i")
    if -(stored.dtype.kind == "i") * 2**reach <= int(stored.min()) and int(stored.max()) < 2**reach:
        return stored, ""
    if bits <= high_bit < size and not (stored & (2 ** (high_bit + 1 - bits) - 1)).any():
        return stored >> (high_bit + 1 - bits), "high_bit_shifted"
    cut = (stored << (size - bits)) >> (size - bits)
    high = (stored.astype(np.int64) - cut) >> bits
    rough = smooth = 0
    for axis in (0, 1):
        step = np.diff(high, axis=axis) != 0
        rough += int(np.abs(np.diff(stored.astype(np.int64), axis=axis))[step].sum())
        smooth += int(np.abs(np.diff(cut.astype(np.int64), axis=axis))[step].sum())
    if rough == smooth == 0 or smooth < rough:
        return cut, "high_bits_masked"
    return stored, "bits_stored_wrong"
