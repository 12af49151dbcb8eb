"""The DICOM objects of an exam as files: the report, and a secondary capture of each overlay."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from highdicom import UID
from pydicom.dataset import Dataset

from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.delivery.secondary_capture import secondary_capture
from mammoclip_jax.delivery.sources import header
from mammoclip_jax.delivery.structured_report import structured_report
from mammoclip_jax.delivery.validation import own_faults
from mammoclip_jax.errors import UserError

REPORT = "report.dcm"
logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells of each element that it copies


def write(
    exam: Mapping[str, Any], prediction: Mapping[str, Any], sources: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """Writes `report.dcm` and `overlay-VIEW_LABEL.dcm` into an exam's folder.

    Args:
        exam, prediction, sources: as of `structured_report`.
        folder: that of the exam, with its overlays.

    Returns:
        {"files": what is there, "reason": why the others are not; "" where all are}. An object that lacks what its
        definition demands is not written.
    """
    series, files, reasons = UID(), [], []
    wanted: list[tuple[str, Callable[[], Dataset]]] = [(REPORT, lambda: structured_report(exam, prediction, sources))]
    for view, source in zip(exam["views"], sources, strict=True):
        for label, path in view.get("overlays", {}).items():
            make = _capture(view, label, prediction, source, folder / path, series, len(wanted))
            wanted.append((f"overlay-{Path(path).stem}.dcm", make))
    for name, make in wanted:
        try:
            with dicom.quiet():
                made = make()
                if lacking := own_faults(made, header(sources[0])):
                    raise UserError(f"it would lack {', '.join(lacking)}")
                made.save_as(folder / name, enforce_file_format=True)
            files.append(name)
        except UserError as error:
            reasons.append(f"{name}: {error}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # a header that highdicom cannot take
            # not what it says: it may quote the header
            reasons.append(f"{name}: a header that does not follow the standard ({type(error).__name__})")
    return {"files": files, "reason": "; ".join(dict.fromkeys(reasons))}


def _capture(view, label, prediction, source, picture, series, number) -> Callable[[], Dataset]:
    return lambda: secondary_capture(view, label, prediction, source, picture, series=series, number=number)
