"""DICOM files of phantom views: Digital Mammography X-Ray Image Storage - For Presentation."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom.exam import Exam, Picture

MAXIMUM = 4095  # 12 bits
TRANSFER_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
)
PATIENT_ORIENTATION = {("L", "CC"): "A\\R", ("R", "CC"): "P\\L", ("L", "MLO"): "A\\FR", ("R", "MLO"): "P\\FL"}
VIEW_CODES = {"CC": ("399162004", "cranio-caudal"), "MLO": ("399368009", "medio-lateral oblique")}
DATE, TIME = "20200101", "120000"  # fixed: the same seed gives the same bytes
_DEVICE, _MARKER = 20, 21  # of exam.stream


@dataclass(frozen=True)
class Device:
    """How a make of mammography system stores an image."""

    maker: str
    model: str
    inverted: bool  # MONOCHROME1
    gamma: float  # of the stored values over density
    air_is_zero: bool  # air is masked and declared as padding
    window: tuple[float, float]  # centre, width for MONOCHROME2
    function: str  # VOI LUT Function


DEVICES = (
    Device("Phantom Imaging", "PI-1000", False, 1.00, True, (1600, 2900), "LINEAR"),
    Device("Phantom Imaging", "PI-2000", False, 0.90, False, (1750, 3100), "LINEAR"),
    Device("Synthetic Medical", "SM Inverse", True, 1.05, False, (1550, 2800), "LINEAR"),
    Device("Test Pattern Systems", "TPS-12", False, 1.00, True, (1600, 2700), "SIGMOID"),
)


def device_of(exam: Exam) -> tuple[Device, str]:
    """The exam's device and transfer syntax, independent of what is in the breasts."""
    rng = exam.stream(_DEVICE)
    device = DEVICES[int(rng.integers(len(DEVICES)))]
    return device, TRANSFER_SYNTAXES[int(rng.integers(len(TRANSFER_SYNTAXES)))]


def stored_pixels(exam: Exam, picture: Picture, laterality: str, view: str) -> np.ndarray:
    """What the device stores: uint16 [H, W] of 12 bits, with its curve, polarity and, sometimes, a view marker."""
    device, _ = device_of(exam)
    values = np.clip(picture.density, 0, None)
    if device.gamma != 1:
        values = values ** np.float32(device.gamma)
    values = np.clip(np.rint(values * exams.GREY_LEVELS), 0, MAXIMUM).astype(np.uint16)
    if device.air_is_zero:
        values[~picture.breast] = 0
    _mark(exam, values, picture.breast, laterality, view)
    return MAXIMUM - values if device.inverted else values


def _mark(exam: Exam, values: np.ndarray, breast: np.ndarray, laterality: str, view: str) -> None:
    """Burns "L CC" or the like into the air of two in three images, where there is room."""
    rng = exam.stream(_MARKER, "RL".index(laterality), ("CC", "MLO").index(view))
    wanted, boxed, top = rng.random(3) < (0.67, 0.4, 0.7)
    height, width = values.shape
    size = height * 0.0012
    thickness = max(1, round(height / 400))
    text = f"{laterality} {view}"
    (w, h), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
    pad = round(0.012 * height)
    ink = np.zeros((h + 4 * pad, w + 4 * pad), np.uint8)
    cv2.putText(ink, text, (2 * pad, 2 * pad + h), cv2.FONT_HERSHEY_SIMPLEX, size, 255, thickness)
    if boxed:
        cv2.rectangle(ink, (pad, pad), (w + 3 * pad, h + 3 * pad), 255, thickness)
    y = pad if top else height - ink.shape[0] - pad
    x = width - ink.shape[1] - pad if laterality == "L" else pad
    area = (slice(max(y, 0), y + ink.shape[0]), slice(max(x, 0), x + ink.shape[1]))
    level = rng.integers(2600, 4000)
    if wanted and ink.shape == values[area].shape and not breast[area].any():
        values[area] = np.where(ink > 127, level, values[area])


def make_uid(exam: Exam, *parts: str) -> str:
    """A valid UID ("2.25." and a hashed 128 bit integer) that depends on the set's parameters and the exam's number."""
    name = json.dumps(["phantom", exams.VERSION, exam.parameters.as_json(), exam.number, *parts])
    return uid.UID(f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], 'big')}")


def image_dataset(exam: Exam, laterality: str, view: str, pixels: np.ndarray) -> Dataset:
    """The DICOM object of one view; `pixels` uint16 [H, W] as stored. Encoded in the exam's transfer syntax."""
    device, syntax = device_of(exam)
    ds = Dataset()
    ds.SOPClassUID = uid.DigitalMammographyXRayImageStorageForPresentation
    ds.SOPInstanceUID = make_uid(exam, laterality, view)
    _patient_and_study(ds, exam)
    _series_and_equipment(ds, exam, device, laterality, view)
    _acquisition(ds, exam, laterality, view)
    _pixel_description(ds, device, pixels)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    if syntax.is_encapsulated:
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.compress(syntax, generate_instance_uid=False)
    else:
        ds.file_meta.TransferSyntaxUID = syntax
    return ds


def write(path: Path, ds: Dataset) -> None:
    """Writes a complete DICOM file."""
    ds.save_as(path, enforce_file_format=True)


def _patient_and_study(ds: Dataset, exam: Exam) -> None:
    ds.PatientName = f"PHANTOM^{exam.parameters.seed}-{exam.number:06d}"
    ds.PatientID = exam.patient
    ds.PatientBirthDate = ""
    ds.PatientSex = "F"
    ds.PatientAge = f"{exam.age:03d}Y"
    ds.QualityControlSubject = "YES"  # a phantom, not a person
    ds.StudyInstanceUID = make_uid(exam, "study")
    ds.StudyID = f"{exam.number}"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = DATE
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = TIME
    ds.AccessionNumber = f"PH{exam.number:06d}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Screening mammogram (computer phantom)"


def _series_and_equipment(ds: Dataset, exam: Exam, device: Device, laterality: str, view: str) -> None:
    ds.Modality = "MG"
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.SeriesInstanceUID = make_uid(exam, "series")
    ds.SeriesNumber = 1
    ds.InstanceNumber = exams.VIEWS.index((laterality, view)) + 1
    ds.Manufacturer = device.maker
    ds.ManufacturerModelName = device.model
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = str(exams.VERSION)
    ds.InstitutionName = "Phantom"


def _acquisition(ds: Dataset, exam: Exam, laterality: str, view: str) -> None:
    ds.ImageType = ["DERIVED", "PRIMARY"]
    ds.ImageLaterality = laterality
    ds.ViewPosition = view
    ds.PatientOrientation = PATIENT_ORIENTATION[laterality, view].split("\\")
    code = _code(*VIEW_CODES[view])
    code.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([code])
    ds.AnatomicRegionSequence = Sequence([_code("76752008", "Breast")])
    ds.AcquisitionContextSequence = Sequence([])
    ds.BodyPartExamined = ds.OrganExposed = "BREAST"
    ds.PositionerType = "MAMMOGRAPHIC"
    ds.PositionerPrimaryAngle = {"CC": 0, "MLO": 45 if laterality == "R" else -45}[view]
    ds.BreastImplantPresent = "NO"
    ds.PartialView = "NO"
    ds.BurnedInAnnotation = "NO"  # view markers identify nobody
    ds.DetectorType = "DIRECT"
    spacing = exams.FIELD_MM / exam.parameters.height
    ds.ImagerPixelSpacing = [f"{spacing:.6g}", f"{spacing:.6g}"]


def _pixel_description(ds: Dataset, device: Device, pixels: np.ndarray) -> None:
    centre, width = device.window
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if device.inverted else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if device.inverted else "IDENTITY"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if device.inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.WindowCenter = [f"{MAXIMUM - centre if device.inverted else centre:g}"]
    ds.WindowWidth = [f"{width:g}"]
    ds.VOILUTFunction = device.function
    ds.LossyImageCompression = "00"
    if device.air_is_zero:
        ds.PixelPaddingValue = 0


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item
