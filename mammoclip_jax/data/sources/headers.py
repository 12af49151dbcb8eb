"""Finding the files of a data set whose tables do not name them: by the header of every DICOM file below the root."""

from pathlib import Path

from tqdm import tqdm

from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels import dicom


def scan(root: Path) -> tuple[dict[str, dicom.Fields], list[Problem]]:
    """Name relative to `root` -> fields of each *.dcm, sorted by name; and the files that are none or name nobody."""
    found: dict[str, dicom.Fields] = {}
    problems = []
    for path in tqdm(sorted(root.rglob("*.dcm")), desc="headers", unit="file", disable=None):
        name = path.relative_to(root).as_posix()
        try:
            fields = dicom.read_fields(path)
        except dicom.Unreadable as error:
            problems.append(Problem(name, error.stage, error.reason, error.remedy))
            continue
        if fields.patient:
            found[name] = fields
        else:
            problems.append(Problem(name, "source", "no PatientID", "give the files as distributed"))
    return found, problems
