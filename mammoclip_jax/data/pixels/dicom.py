"""A file -> stored pixel values and the few fields that matter; nothing else leaves the file.

The order from file to record, each step once:
    1. decode                    decode.py: stored values, whatever the transfer syntax; also PNG, PGM, TIFF, JPEG
    2. modality LUT or rescale   voi.py
    3. VOI LUT or window         voi.py, of what step 2 gives
    4. polarity                  polarity.py: MONOCHROME1 or PresentationLUTShape INVERSE, once, after VOI
    5. pixel padding             intensity.py: becomes the darkest value
    6. breast crop               breast.py
    7. mirror, resize, place     geometry.py
    8. quantise to 8 or 16 bit   render.py

Flags of a file: those of fields.py; `middle_frame` (of several, by choice); `high_bits_masked`, `high_bit_shifted`,
`bits_stored_wrong` (decode.py).
"""

import contextlib
import io
import logging
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from mammoclip_jax.data.pixels import fields as header_fields
from mammoclip_jax.data.pixels import pictures
from mammoclip_jax.data.pixels.decode import MAX_PIXELS, PIXELS, Shape, Unreadable, declared, decode, narrow
from mammoclip_jax.data.pixels.fields import Fields, fields
from mammoclip_jax.data.pixels.identities import Identities, identities

SUFFIXES = (".dcm", ".dicom", ".ima", ".dic")  # many files have none
PICTURES = (".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
FRAMES = ("refuse", "middle")
NOT_DICOM = "not a DICOM file"
_MAGIC = b"DICM"
_NO_IMAGE = "the file is cut off or is no image (a report, an annotation); copy it again or remove it"

# The elements that are looked at, beside the pixels.
USED = header_fields.USED + (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
# Multi-frame files keep these in functional groups (PS3.3 C.7.6.16); they are copied to where single-frame files do.
_GROUPS = {
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameAnatomySequence": ("FrameLaterality", "AnatomicRegionSequence"),
}


class Image(NamedTuple):
    """A decoded file."""

    stored: np.ndarray  # [h, w] stored values: native integers, of 8 or 16 bits where they fit, or float32/64
    fields: Fields
    header: pydicom.Dataset  # empty for a picture: no window, MONOCHROME2


def read(path: Path | str, frames: str = "refuse") -> Image:
    """Decodes one grey image. Of a multi-frame file, frames="middle" decodes the middle one and no other.

    Raises:
        Unreadable: the file is missing, damaged, not an image, coloured, multi-frame (unless "middle"), or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise Unreadable(path, "file", "file missing", "check the path and the root folder")
    if path.suffix.lower() in PICTURES:
        stored = narrow(_grey(path, pictures.decode(path)))
        return Image(stored, Fields(size="{} {}".format(*stored.shape)), pydicom.Dataset())
    with quiet():
        header, shape = _header(path, frames)
        if shape.frames == 1:
            header = _parse(path)
            if not any(name in header for name in PIXELS):
                raise Unreadable(path, "decode", "no pixel data", _NO_IMAGE)
        return _image(path, header, shape)


def look(path: Path | str, frames: str = "refuse") -> Fields:
    """The fields of a file after all that `read` finds out before it decodes; of a picture the size alone.

    Raises:
        Unreadable: as `read`, as far as the header or the first bytes tell.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURES:
        return Fields(size="{} {}".format(*pictures.look(path)))
    with quiet():
        header, shape = _header(path, frames)
        _copy_from_groups(header, shape.frames // 2)
        return fields(header)


def _header(path: Path, frames: str) -> tuple[pydicom.Dataset, Shape]:
    header = _parse(path, stop_before_pixels=True)
    if "Rows" not in header and "Columns" not in header:
        raise Unreadable(path, "decode", "no pixel data", _NO_IMAGE)
    shape = declared(path, header)
    if shape.frames > 1 and frames != "middle":
        remedy = "give single-frame images, not tomosynthesis, or choose the middle frame (frames 'middle')"
        raise Unreadable(path, "decode", "multi-frame", remedy)
    return header, shape


def _image(path: Path, header: pydicom.Dataset, shape: Shape) -> Image:
    middle = shape.frames // 2
    _copy_from_groups(header, middle)
    stored, problem = decode(path, header, shape, middle)
    attributes = fields(header)
    flags = [*attributes.flags, problem, "middle_frame" if shape.frames > 1 else ""]
    for name in PIXELS:  # decoded: the coded ones need no more memory
        header.pop(name, None)
    return Image(_grey(path, stored), attributes._replace(flags=tuple(flag for flag in flags if flag)), header)


def read_fields(path: Path | str) -> Fields:
    """The fields of a DICOM file without its pixels; of an object that is no image (a report, a presentation state)
    they have no size.

    Raises:
        Unreadable: not a DICOM file, or an image cut off before its size.
    """
    with quiet():
        header = _parse(Path(path), stop_before_pixels=True)
        _copy_from_groups(header, 0)
        attributes = fields(header)
    if "Rows" not in header and "Columns" not in header and (not attributes.kind or "Image" in attributes.kind):
        raise Unreadable(path, "decode", "no pixel data", _NO_IMAGE)
    return attributes


def looks_like(path: Path | str) -> bool:
    """Whether a file may be DICOM by its first bytes: "DICM" behind the preamble or without it, or else an element of
    the groups that DICOM objects begin with."""
    with open(path, "rb") as file:
        start = file.read(132)
    return start[128:] == _MAGIC or start[:4] == _MAGIC or start[:2] in (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08")


def read_identities(path: Path | str) -> Identities:
    """Who and where the exam of a DICOM file is, without its pixels.

    Raises:
        Unreadable: not a DICOM file.
    """
    with quiet():
        return identities(_parse(Path(path), stop_before_pixels=True))


@contextlib.contextmanager
def quiet():
    """pydicom's complaints about odd values are silenced: they quote the values, which may name a patient."""
    mode = pydicom.config.settings.reading_validation_mode
    logger = logging.getLogger("pydicom")
    level = logger.level
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.reading_validation_mode = mode
        logger.setLevel(level)


def _parse(path: Path, **options) -> pydicom.Dataset:
    """The data set of a file; damaged elements of USED are left out, damaged decimal numbers (1,5) become texts.

    A file without the preamble or file meta information that DICOM asks for is taken where it is plainly an image.
    """
    try:
        _check_deflated(path)
        try:
            header = pydicom.dcmread(path, **options)
        except InvalidDicomError:
            header = pydicom.dcmread(_without_magic(path), force=True, **options)
            if "Rows" not in header or "Columns" not in header or "BitsAllocated" not in header:
                raise
        _complete_meta(header)
    except InvalidDicomError:
        raise Unreadable(path, "decode", NOT_DICOM, "remove it or give the image itself") from None
    except Unreadable:
        raise
    except Exception as error:  # a damaged file can raise anything; the class says enough and names nobody
        raise Unreadable(path, "decode", f"damaged DICOM: {type(error).__name__}", "copy the file again") from None
    for name in USED:
        _interpret(header, name)
    return header


def _without_magic(path: Path) -> Path | io.BytesIO:
    """A file that begins with "DICM" instead of the preamble, from its first element on; any other as it is."""
    with open(path, "rb") as file:
        return io.BytesIO(file.read()) if file.read(4) == _MAGIC else path


def _interpret(header: pydicom.Dataset, name: str) -> None:
    """Has pydicom read an element, as it does when first asked for it; where it cannot, a number becomes its text."""
    try:
        header.get(name)
    except Exception:
        raw = header.get_item(name)
        del header[name]
        if dictionary_VR(name) == "DS" and isinstance(raw.value, bytes):
            header.add_new(name, "LO", raw.value.decode("ascii", "replace").strip(" \0").split("\\"))


def _complete_meta(header: pydicom.Dataset) -> None:
    """Where the transfer syntax is missing, the one that pydicom found the data set to be written in."""
    meta = getattr(header, "file_meta", None)
    if meta is None:
        header.file_meta = meta = pydicom.dataset.FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        implicit, little = header.original_encoding
        explicit = ExplicitVRBigEndian if little is False else ExplicitVRLittleEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit is not False else explicit


def _check_deflated(path: Path) -> None:
    """Refuses a deflated file that would inflate beyond the largest image."""
    with open(path, "rb") as file:
        start = file.read(2048)
        if str(DeflatedExplicitVRLittleEndian).encode() not in start:
            return
        file.seek(144 + int.from_bytes(start[140:144], "little"))  # after the file meta information
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        data = file.read(2**20)
        while data and total <= 4 * MAX_PIXELS:
            total += len(inflate.decompress(data, 2**24))
            data = inflate.unconsumed_tail or file.read(2**20)
    if total > 4 * MAX_PIXELS:
        raise Unreadable(path, "decode", "impossible size: it inflates without end", "copy the file again")


def _copy_from_groups(header: pydicom.Dataset, frame: int) -> None:
    for name, number in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        for group, elements in _GROUPS.items():
            try:
                item = header[name].value[number][group].value[0]
                for element in elements:
                    _interpret(item, element)
                values = {element: item[element] for element in elements if element in item}
            except Exception:  # absent, as in nearly all files, or malformed
                continue
            for element, value in values.items():
                if element not in header:
                    header[element] = value


def _grey(path: Path, array: np.ndarray) -> np.ndarray:
    """[h, w], from [h, w, channels] too where the colours are equal."""
    if array.ndim == 3:
        colours = array[..., :3] if array.shape[-1] > 2 else array[..., :1]
        if (colours != colours[..., :1]).any():
            raise Unreadable(path, "decode", "colour image", "give grey images; a screen capture is no mammogram")
        array = colours[..., 0]
    if array.ndim != 2 or not array.size:
        raise Unreadable(path, "decode", "not one image", "give single-frame images")
    if array.dtype.kind not in "iuf":
        raise Unreadable(path, "pixels", "no grey values", "export the image again")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unreadable(path, "pixels", "NaN or infinite pixels", "export the image again")
    return np.ascontiguousarray(array)
