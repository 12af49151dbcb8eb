"""The headers of the images that were scored, as far as objects of the same study need them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from mammoclip_jax.data.image_files import is_picture
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.errors import UserError

PRODUCER = "mammoclip_jax"
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Of patient and study, those that may be empty and must be there (type 2).
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


def header(source: Dataset | Path | str) -> Dataset:
    """A header without pixels, of a file or as it is given, whose patient and study are fit to be copied.

    What must be there and may be empty is added empty; a date or time that is none, and a sex that is no code, are
    emptied.

    Raises:
        UserError: the file is no DICOM file, or lacks an identifier of its own, its series or its study.
    """
    if isinstance(source, Dataset):
        found = Dataset(source)
    elif is_picture(str(source)):
        raise UserError("a picture has no study that a DICOM object could belong to.")
    else:
        with dicom.quiet():
            found = pydicom.dcmread(source, stop_before_pixels=True, force=True)
    lacking = [name for name in NEEDED if not found.get(name)]
    if lacking:
        raise UserError(f"a source lacks {', '.join(lacking)}: no DICOM object can refer to it.")
    for name in _MAY_BE_EMPTY:
        if name not in found:
            setattr(found, name, "")
    for name, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(found.get(name))
        except ValueError:
            setattr(found, name, "")
    if found.PatientSex not in ("", "M", "F", "O"):
        found.PatientSex = ""
    return found


def uids(source: Path) -> dict[str, str]:
    """{"study", "series", "image"}: the identifiers of a file; {} of a picture; "" for one that it lacks."""
    if is_picture(str(source)):
        return {}
    with dicom.quiet():
        found = pydicom.dcmread(source, stop_before_pixels=True, force=True, specific_tags=list(NEEDED))
    names = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "image": "SOPInstanceUID"}
    return {part: str(found.get(name) or "") for part, name in names.items()}


def equipment(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What an object says of the program and the model that made it: arguments of highdicom's constructors."""
    model = prediction["model"]
    return {
        "manufacturer": PRODUCER,
        "manufacturer_model_name": model["name"][:64] or model["kind"],
        "device_serial_number": model["fingerprint"],
        "software_versions": [model["program"], f"weights {model['fingerprint']}"],
    }


def parameters(prediction: Mapping[str, Any]) -> list[str]:
    """Of the algorithm, for people and programs: "weights fingerprint: 0123...", and so on."""
    model = prediction["model"]
    said = {
        "weights fingerprint": model["fingerprint"],
        "training step": prediction["step"],
        "preprocessing fingerprint": prediction["preprocessing_fingerprint"],
        "score": prediction["aggregation"]["view"],
        "aggregation of a breast": prediction["aggregation"]["breast"],
        "aggregation of an exam": prediction["aggregation"]["exam"],
        "saliency method": prediction["method"],
        "stage": prediction["stage"],
    }
    return [f"{name}: {value}" for name, value in said.items() if value not in ("", None)]
