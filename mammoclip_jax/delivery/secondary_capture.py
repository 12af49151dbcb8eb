"""An overlay as a DICOM image for the patient's own study: Secondary Capture Image Storage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from highdicom import UID
from highdicom.content import ReferencedImageSequence
from highdicom.sc import SCImage
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from mammoclip_jax.delivery.sources import equipment, header, parameters

SERIES = 9702  # number of its series: behind those of devices
DESCRIPTION = "Saliency overlay of a model; research"


def secondary_capture(
    view: Mapping[str, Any],
    label: str,
    prediction: Mapping[str, Any],
    source: Dataset | Path | str,
    picture: Path | str,
    *,
    series: str = "",
    number: int = 1,
) -> SCImage:
    """The object of one overlay: RGB, uncompressed, which every archive takes.

    Args:
        view: one of an exam's "views".
        label: what the overlay is of.
        prediction: what is the same for all exams (`delivery.folder.deliver`).
        source: the image that was scored; patient and study are copied from it.
        picture: the overlay, a PNG file.
        series: UID of its series, which all overlays of an exam share; a new one by default.
        number: of the object in its series.

    Raises:
        UserError: the source has no study to belong to.
    """
    origin = header(source)
    pixels = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    known = [str(part) for part in origin.get("PatientOrientation") or ()]
    capture = SCImage(
        pixels,
        "RGB",
        8,
        "PATIENT",
        study_instance_uid=origin.StudyInstanceUID,
        series_instance_uid=series or UID(),
        series_number=SERIES,
        sop_instance_uid=UID(),
        instance_number=number,
        patient_orientation=("A", "F"),  # highdicom wants one; see below
        laterality=view["laterality"] or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=origin.get("SpecificCharacterSet"),
        series_description=DESCRIPTION,
        content_qualification="RESEARCH",
        **equipment(prediction),
    )
    capture.PatientOrientation = known if len(known) == 2 else None  # type 2C: empty where it is unknown
    capture.copy_patient_and_study_information(origin)
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    if origin.get("BurnedInAnnotation") in ("YES", "NO"):
        capture.BurnedInAnnotation = origin.BurnedInAnnotation
    if origin.get("LossyImageCompression") == "01":
        capture.LossyImageCompression = "01"  # once lossy, always
    capture.ImageComments = f"{view['name']}, {label}: {prediction['aggregation']['view']}"[:10240]
    capture.DerivationDescription = "; ".join([label, *parameters(prediction)])[:1024]
    capture.SourceImageSequence = ReferencedImageSequence([origin])
    return capture
