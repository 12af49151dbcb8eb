"""A folder of images without any table: DICOM, PNG, PGM, TIFF, JPEG and BMP at any depth. Identifiers are private.

What is an image is said by data/image_files.py, whose it is by data/exams.py: headers, else names and folders, or
`pattern=REGEX` with named groups. Splits are a hash of the patient.

`masks=DIR` is a folder of true masks of the images (mask_folders.py), such as DIR/lungs/case1.png.
"""

import re
from pathlib import Path

from mammoclip_jax.data import exams
from mammoclip_jax.data.leave_out import NO_MAMMOGRAM
from mammoclip_jax.data.manifest import SourceTable, frame, split_of
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.sources import mask_folders, tables
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
        masks=mask_folders.below(Path(masks), {file: fields.image for file, fields in listing.images.items()})
        if masks
        else None,
    )


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
