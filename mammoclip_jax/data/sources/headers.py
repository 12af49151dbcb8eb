"""Finding the files of a data set whose tables do not name them: by the header of every DICOM file below the root."""

from pathlib import Path

from mammoclip_jax.data import image_files
from mammoclip_jax.data.exams import without_copies
from mammoclip_jax.data.image_files import Found, is_picture, other
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels.fields import Fields


def scan(root: Path) -> Found:
    """The DICOM images below the root whose header names a patient, each once; one that names nobody is a problem."""
    listing = image_files.find(root)
    images: dict[str, Fields] = {}
    problems, others = list(listing.problems), list(listing.others)
    for name, fields in listing.images.items():
        if is_picture(name):
            others.append(other(name, "picture: it has no header"))
        elif fields.patient:
            images[name] = fields
        else:
            problems.append(Problem(name, "source", "no PatientID", "give the files as distributed", name))
    return without_copies(root, Found(images, problems, others))
