"""A folder of images without any table: DICOM, PNG, PGM, TIFF, JPEG and BMP at any depth. Identifiers are private.

Of a DICOM file the header gives patient, study, image, laterality, view, date and maker. What it lacks, and all of a
picture, comes from the file's name and folder:

- with `pattern=REGEX`, from its named groups patient, study, laterality, view, searched in the path below the root; a
  picture whose path does not match is a problem;
- else laterality and view are words of the name ("p7_L_CC.png", "L-MLO.png", "RCC.tif"), and the patient is what stands
  before them;
- where neither names a patient, all files of a folder are one patient's: too few patients can be seen in the counts of
  `prepare --check`, a patient in two splits could not. A pattern helps.

A study is the header's, else the pattern's, else the patient's files of one folder. Splits are a hash of the patient.
DICOMDIR, hidden files and files that are no images by suffix and first bytes are passed over.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from mammoclip_jax.data.leave_out import NO_MAMMOGRAM
from mammoclip_jax.data.manifest import Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.fields import Fields, view_of
from mammoclip_jax.data.sources import tables
from mammoclip_jax.errors import UserError

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", ".dic")
GROUPS = ("patient", "study", "laterality", "view")
_THREADS = 16       # a network file system answers many at a time
_SIDE = r"(?P<laterality>left|right|l|r)"
_VIEW = r"(?P<view>XCCL|XCCM|XCC|CC|MLO|LMO|ML|LM)"          # others (AT, FB) are ordinary words as well
_BREAK = r"(?:^|[\W_]+)"
_WORDS = [re.compile(rf"{_BREAK}{words}(?![^\W_])", re.IGNORECASE) for words in
          (rf"{_SIDE}[\W_]*{_VIEW}", rf"{_VIEW}[\W_]+{_SIDE}", _SIDE, _VIEW)]


def read(
    root: str | Path, pattern: str = "", name: str = "images_only", licence: str = "private", citation: str = "",
    val: float = 0.1, test: float = 0.2,
) -> SourceTable:
    """The images below `root`; `val` and `test` are the expected fractions of patients.

    Raises:
        UserError: no such folder, no image in it, or the pattern is no regular expression with these groups.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--root={root} is no folder. Give the folder of the images.")
    expression = _compiled(pattern)
    files = sorted(_files(root))
    with dicom.quiet(), ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda file: _fields(root, file), files)
        headers = list(tqdm(results, total=len(files), desc="headers", unit="file", disable=None))
    found, problems, dates = [], [], []
    for file, fields in zip(files, headers):
        row = _row(file, fields, expression) if isinstance(fields, Fields) else fields
        if isinstance(row, Problem):
            problems.append(row)
        elif row:
            found.append(row | {"dataset": name, "split": split_of(row["patient"], val, test)})
            dates.append(fields.study_date)
    if not found and not problems:
        kinds = ", ".join(dicom.PICTURES)
        raise UserError(f"{root} holds no image. Give a folder of DICOM files or pictures ({kinds}).")
    for row, day in zip(found, tables.study_days([row["patient"] for row in found], dates)):
        row["labels"] = {} if day is None else {"study_day": day}
    return SourceTable(frame(found), problems, licence, citation, public_ids=False, leave_out=NO_MAMMOGRAM)


def _compiled(pattern: str) -> re.Pattern | None:
    if not pattern:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--option=pattern={pattern} is no regular expression: {error}.") from None
    unknown = set(expression.groupindex) - set(GROUPS)
    if unknown or not expression.groupindex:
        raise UserError(f"--option=pattern={pattern} must have named groups out of {', '.join(GROUPS)}, "
                        f"e.g. (?P<patient>\\w+)_(?P<laterality>[LR])_(?P<view>CC|MLO).")
    return expression


def _files(root: Path) -> list[str]:
    """All files below `root`, as relative names, without hidden ones and DICOMDIR."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names
                  if not name.startswith(".") and name.upper() != "DICOMDIR"]
    return found


def _fields(root: Path, file: str) -> Fields | Problem | None:
    """What the header says; nothing for a picture; None for what is no image."""
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in dicom.PICTURES:
        return Fields()
    try:
        if suffix not in DICOM_SUFFIXES and not _has_magic(root / file):
            return None
        return dicom.read_fields(root / file)
    except dicom.Unreadable as error:
        return Problem(file, error.stage, error.reason, error.remedy, file)
    except OSError as error:
        return Problem(file, "file", f"cannot read: {type(error).__name__}", "check the permissions and the disk", file)


def _has_magic(path: Path) -> bool:
    if not path.is_file():          # a pipe or a broken link
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _row(file: str, fields: Fields, expression: re.Pattern | None) -> dict | Problem:
    """The manifest row but for data set, split and labels."""
    path = PurePosixPath(file)
    match = expression.search(file) if expression else None
    if expression and not match and not fields.patient:
        return Problem(file, "source", "path does not match the pattern", "mend --option=pattern, or the name", file)
    said = {key: text or "" for key, text in match.groupdict().items()} if match else _words(path.stem)
    patient = fields.patient or said.get("patient", "") or path.parent.as_posix()
    # A pattern's study ("1") is one of the patient's, who may have files in several folders.
    own = f"{patient}/{said['study']}" if said.get("study") else f"{path.parent.as_posix()}/{patient}"
    side = said.get("laterality", "").lower()
    return {
        "patient": patient, "study": fields.study or own, "image": fields.image or file, "file": file,
        "laterality": fields.laterality or tables.SIDES.get(side, ""),
        "view": fields.view or view_of(said.get("view", "")), "vendor": fields.vendor,
    }


def _words(stem: str) -> dict[str, str]:
    """What a file's name says by its words; the first rule of _WORDS that finds something."""
    for expression in _WORDS:
        match = expression.search(stem)
        if match:
            return match.groupdict() | {"patient": stem[:match.start()]}
    return {}
