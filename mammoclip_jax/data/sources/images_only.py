"""A folder of images without any table: DICOM, PNG, PGM, TIFF, JPEG and BMP at any depth. Identifiers are private.

What is an image is said by data/image_files.py, whose it is by data/exams.py: headers, else names and folders, or
`pattern=REGEX` with named groups. Splits are a hash of the patient.

`masks=DIR` is a folder of true masks of the images: DIR/CHANNEL/ and then the image's path with the ending .png, not 0
inside, such as DIR/lungs/case1.png. A channel without such a file is unknown of that image.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from mammoclip_jax.data import exams
from mammoclip_jax.data.leave_out import NO_MAMMOGRAM
from mammoclip_jax.data.manifest import MaskSource, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.sources import tables
from mammoclip_jax.errors import UserError

GROUPS = ("patient", "study", "laterality", "view")


def read(
    root: str | Path,
    pattern: str = "",
    name: str = "images_only",
    licence: str = "private",
    citation: str = "",
    val: float = 0.1,
    test: float = 0.2,
    masks: str = "",
) -> SourceTable:
    """The images below `root`; `val` and `test` are the expected fractions of patients.

    Raises:
        UserError: no such folder, no image in it, no mask of them, or the pattern is no regular expression with these
            groups.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--root={root} is no folder. Give the folder of the images.")
    listing = exams.read(root, _compiled(pattern))
    if not listing.images and not listing.problems:
        kinds = ", ".join(dicom.PICTURES)
        raise UserError(f"{root} holds no image. Give a folder of DICOM files or pictures ({kinds}).")
    patients = [fields.patient for fields in listing.images.values()]
    days = tables.study_days(patients, [fields.study_date for fields in listing.images.values()])
    rows = [
        {
            "dataset": name,
            "patient": fields.patient,
            "study": fields.study,
            "image": fields.image,
            "file": file,
            "laterality": fields.laterality,
            "view": fields.view,
            "vendor": fields.vendor,
            "split": split_of(fields.patient, val, test),
            "labels": {} if day is None else {"study_day": day},
        }
        for (file, fields), day in zip(listing.images.items(), days)
    ]
    return SourceTable(
        frame(rows),
        listing.problems,
        licence,
        citation,
        public_ids=False,
        passed_over=listing.others,
        leave_out=(*NO_MAMMOGRAM, "secondary_capture"),
        masks=_masks(Path(masks), {file: fields.image for file, fields in listing.images.items()}) if masks else None,
    )


def _masks(folder: Path, images: Mapping[str, str]) -> MaskSource:
    """The masks below a folder, of the images {file: image}."""
    channels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()
    of: dict[str, dict[str, str]] = {}
    for file, image in images.items():
        paths = {channel: folder / channel / Path(file).with_suffix(".png") for channel in channels}
        if there := {channel: str(path.absolute()) for channel, path in paths.items() if path.is_file()}:
            of[image] = there
    if not of:
        raise UserError(
            f"--option=masks={folder} holds no mask of an image: give a folder with one folder a channel, in it the "
            "images' paths with the ending .png."
        )
    return MaskSource(channels, of, read_masks)


def read_masks(root: Path, files: Mapping[str, str], size: tuple[int, int]) -> Mapping[str, Bool[np.ndarray, "h w"]]:
    """The masks {channel: file} of an image."""
    del root, size  # a mask of another size is found out
    masks = {}
    for channel, file in files.items():
        mask = cv2.imdecode(np.frombuffer(Path(file).read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise dicom.Unreadable(file, "masks", "mask that is no picture", "write it again as PNG")
        masks[channel] = mask > 0
    return masks


def _compiled(pattern: str) -> re.Pattern | None:
    if not pattern:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--option=pattern={pattern} is no regular expression: {error}.") from None
    unknown = set(expression.groupindex) - set(GROUPS)
    if unknown or not expression.groupindex:
        raise UserError(
            f"--option=pattern={pattern} must have named groups out of {', '.join(GROUPS)}, "
            f"e.g. (?P<patient>\\w+)_(?P<laterality>[LR])_(?P<view>CC|MLO)."
        )
    return expression
