"""A file -> stored pixel values and the few fields that matter; nothing else leaves the file.

The order from file to record, each step once:
    1. decode                    here: stored values, whatever the transfer syntax; also PNG, PGM, TIFF, JPEG
    2. modality LUT or rescale   intensity.py
    3. VOI LUT or window         intensity.py
    4. polarity                  intensity.py: MONOCHROME1 is inverted, after VOI
    5. pixel padding             intensity.py: becomes the darkest value
    6. breast crop               breast.py
    7. mirror, resize, place     geometry.py
    8. quantise to 8 or 16 bit   render.py
"""

import contextlib
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from mammoclip_jax.errors import UserError

PICTURES = (".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
MAX_PIXELS = 200_000_000        # a mammogram has up to about 30 million; more is a broken header

# View codes of DICOM PS3.16 context group 4014, SNOMED CT and the older SNOMED RT.
VIEW_CODES = {
    "399162004": "CC", "R-10242": "CC",
    "399368009": "MLO", "R-10226": "MLO",
    "399260004": "ML", "R-10224": "ML",
    "399352003": "LM", "R-10228": "LM",
    "399099002": "LMO", "R-10230": "LMO",
    "399196006": "FB", "R-10244": "FB",
    "399188001": "SIO", "R-102D0": "SIO",
    "441555000": "ISO", "R-40AAA": "ISO",
    "399192008": "XCCL", "R-1024A": "XCCL",
    "399101009": "XCCM", "R-1024B": "XCCM",
}
VENDORS = {
    "hologic": "Hologic", "lorad": "Hologic", "ge ": "GE", "ge healthcare": "GE", "siemens": "Siemens", "fuji": "Fuji",
    "philips": "Philips", "sectra": "Sectra", "planmed": "Planmed", "ims": "IMS", "giotto": "IMS", "agfa": "Agfa",
    "carestream": "Carestream", "kodak": "Carestream", "konica": "Konica", "metaltronica": "Metaltronica",
}


# The elements that are looked at, beside the pixels.
USED = (
    "Rows", "Columns", "NumberOfFrames", "PhotometricInterpretation", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "ImageLaterality", "Laterality", "FrameLaterality",
    "ViewPosition", "PatientOrientation", "ViewCodeSequence", "Manufacturer", "PatientID", "PresentationIntentType",
)


class Unreadable(UserError):
    """A file that cannot become an image. `stage`, `reason` and `remedy` go to the quarantine table."""

    def __init__(self, path: Path | str, stage: str, reason: str, remedy: str):
        super().__init__(f"{path}: {reason}; {remedy}")
        self.stage, self.reason, self.remedy = stage, reason, remedy


class Fields(NamedTuple):
    """What is carried from the header; "" is unknown."""

    laterality: str = ""        # "L" or "R"
    view: str = ""              # "CC", "MLO" or another of VIEW_CODES
    vendor: str = ""            # one of VENDORS, or "other"
    patient: str = ""           # as in the file, for joining to a table; written nowhere
    flags: tuple[str, ...] = ()


class Image(NamedTuple):
    """A decoded file."""

    stored: np.ndarray          # [h, w] stored values: integers, or float32/64
    fields: Fields
    header: pydicom.Dataset     # empty for a picture: no window, MONOCHROME2


def read(path: Path | str) -> Image:
    """Decodes one single-frame grey image.

    Raises:
        Unreadable: the file is missing, damaged, not an image, coloured or multi-frame, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise Unreadable(path, "file", "file missing", "check the path and the root folder")
    if path.suffix.lower() in PICTURES:
        return Image(_grey(path, _decode_picture(path)), Fields(), pydicom.Dataset())
    with quiet():
        header = _parse(path)
        _check_shape(path, header)
        stored = _decode(path, header)
        return Image(_grey(path, stored), fields(header), header)


def read_fields(path: Path | str) -> Fields:
    """The fields of a DICOM file without its pixels.

    Raises:
        Unreadable: not a DICOM file.
    """
    with quiet():
        return fields(_parse(Path(path), stop_before_pixels=True))


@contextlib.contextmanager
def quiet():
    """pydicom's complaints about odd values are silenced: they quote the values, which may name a patient."""
    mode = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.reading_validation_mode = mode


def _parse(path: Path, **options) -> pydicom.Dataset:
    try:
        header = pydicom.dcmread(path, **options)
    except InvalidDicomError:
        raise Unreadable(path, "decode", "not a DICOM file", "remove it or give the image itself") from None
    except Exception as error:      # a damaged file can raise anything; the class says enough and names nobody
        raise Unreadable(path, "decode", f"damaged DICOM: {type(error).__name__}", "copy the file again") from error
    for name in USED:               # interpreted by pydicom when first read: a damaged one counts as absent
        try:
            header.get(name)
        except Exception:
            del header[name]
    return header


def _check_shape(path: Path, header: pydicom.Dataset) -> None:
    """Refuses before decoding what would be the wrong picture or fill the memory."""
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unreadable(path, "decode", "no pixel data", "the file is cut off or is no image; copy it again")
    try:
        frames = int(header.get("NumberOfFrames") or 1)
        pixels = int(header.Rows) * int(header.Columns)
    except (AttributeError, TypeError, ValueError):
        raise Unreadable(path, "decode", "no image size", "the header lacks Rows or Columns; export it again") from None
    if frames > 1:
        raise Unreadable(path, "decode", f"multi-frame: {frames} frames", "give single-frame images, not tomosynthesis")
    if _text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        raise Unreadable(path, "decode", "colour image", "give grey images; a palette image is no mammogram")
    if not 0 < pixels <= MAX_PIXELS:
        raise Unreadable(path, "decode", f"impossible size: {pixels} pixels", "the header is damaged; export it again")


def _decode(path: Path, header: pydicom.Dataset) -> np.ndarray:
    try:
        return header.pixel_array
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:      # decoders raise anything; the RLE decoder's Rust panics are no Exception
        syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
        name = getattr(syntax, "name", "unknown transfer syntax")
        remedy = "the file is damaged (copy it again), or its transfer syntax needs a pylibjpeg plug-in"
        raise Unreadable(path, "decode", f"cannot decode: {name}, {type(error).__name__}", remedy) from error


def _decode_picture(path: Path) -> np.ndarray:
    try:
        array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        array = None
    if array is None:
        raise Unreadable(path, "decode", "cannot decode: picture", "the file is damaged or no picture; copy it again")
    return array


def _grey(path: Path, array: np.ndarray) -> np.ndarray:
    """[h, w], from [h, w, channels] too where the colours are equal."""
    if array.ndim == 3:
        colours = array[..., :3] if array.shape[-1] > 1 else array
        if (colours != colours[..., :1]).any():
            raise Unreadable(path, "decode", "colour image", "give grey images; a screen capture is no mammogram")
        array = np.ascontiguousarray(colours[..., 0])
    if array.ndim != 2:
        raise Unreadable(path, "decode", f"not one image: shape {array.shape}", "give single-frame images")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unreadable(path, "pixels", "NaN or infinite pixels", "export the image again")
    return array


def fields(header: pydicom.Dataset) -> Fields:
    """The listed fields of a header. An odd value counts as unknown, never as an error."""
    flags = []
    if _text(header, "PresentationIntentType") == "FOR PROCESSING":
        flags.append("for_processing")
    return Fields(_laterality(header), _view(header), _vendor(header), _text(header, "PatientID", False), tuple(flags))


def _text(header: pydicom.Dataset, name: str, upper: bool = True) -> str:
    value = header.get(name)
    value = value[0] if isinstance(value, (MultiValue, list)) and value else value
    text = str(value if value is not None else "").strip()
    return text.upper() if upper else text


def _laterality(header: pydicom.Dataset) -> str:
    for name in ("ImageLaterality", "Laterality", "FrameLaterality"):
        value = _text(header, name)[:1]
        if value in ("L", "R"):
            return value
    return ""


def _view(header: pydicom.Dataset) -> str:
    """ViewPosition, else PatientOrientation holding CC or MLO (as CBIS-DDSM has it), else the view's code."""
    position = _text(header, "ViewPosition")
    for known in (position, position.lstrip("LR ")):
        if known in VIEW_CODES.values():
            return known
    if position:
        return position if position.isalnum() and len(position) <= 8 else ""
    orientation = _text(header, "PatientOrientation")
    if orientation in ("CC", "MLO"):
        return orientation
    try:
        return VIEW_CODES.get(str(header.ViewCodeSequence[0].CodeValue).strip(), "")
    except Exception:               # absent, empty or malformed
        return ""


def _vendor(header: pydicom.Dataset) -> str:
    name = _text(header, "Manufacturer").lower() + " "
    if not name.strip():
        return ""
    return next((vendor for part, vendor in VENDORS.items() if name.startswith(part) or f" {part}" in name), "other")
