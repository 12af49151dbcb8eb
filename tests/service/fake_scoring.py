"""A model of a few lines for the service's process, which does what an exam's StudyDescription says."""

import os
import time

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid

from mammoclip_jax.errors import UserError
from mammoclip_jax.service.scoring import write_result


def make(pause=0.0, failure=""):
    """What `score` is: it takes `pause` seconds; `failure`: there is no model."""
    if failure:
        raise UserError(failure)

    def score(files, out):
        time.sleep(pause)
        headers, problems = [], []
        for path in sorted(files.iterdir()):
            try:
                headers.append(pydicom.dcmread(path, stop_before_pixels=True))
            except pydicom.errors.InvalidDicomError:
                problems.append(
                    {"file": path.name, "stage": "decode", "reason": "not a DICOM file", "remedy": "send it"}
                )
        if not headers:
            raise UserError(f"{files} holds no files to score.")
        said = headers[0].get("StudyDescription", "")
        if said == "slow":
            time.sleep(60)
        if said == "ends":
            os._exit(9)
        if said == "wrong":
            raise ValueError(str(headers[0].PatientName))
        (out / "exam-1").mkdir(parents=True)
        report(headers[0]).save_as(out / "exam-1" / "report.dcm", enforce_file_format=True)
        (out / "exam-1" / "exam.html").write_text("<p>mass</p>")
        write_result(out, {"exams": [{"exam": "1", "views": len(headers)}], "problems": problems})

    return score


def report(header):
    """A text SR of the same study."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = header.StudyInstanceUID, generate_uid(), "SR"
    return made
