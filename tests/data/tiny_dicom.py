"""Tiny DICOM mammograms for the tests of data/, written by pydicom."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MAMMOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.2"


def dataset(pixels: np.ndarray, bits_stored: int = 0, **tags) -> Dataset:
    """A digital mammogram with these stored values [h, w] and tags."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = MAMMOGRAPHY
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    header.Modality, header.PatientID = "MG", "patient"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = pixels.shape[:2]
    header.BitsAllocated = pixels.dtype.itemsize * 8
    header.BitsStored = bits_stored or header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    header["PixelData"].VR = "OW" if header.BitsAllocated > 8 else "OB"
    for name, value in tags.items():
        setattr(header, name, value)
    return header


def write(path: Path, pixels: np.ndarray, **tags) -> Path:
    own = {"SOPInstanceUID": generate_uid(entropy_srcs=[str(path)])}  # else the files would be copies of one
    dataset(pixels, **own | tags).save_as(path, enforce_file_format=True)
    return path


def breast(height: int = 120, width: int = 90, seed: int = 0, top: int = 4000) -> np.ndarray:
    """A left breast, uint16 [h, w]: a half ellipse with texture on a dark ground."""
    generator = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    distance = ((ys - height / 2) / (0.4 * height)) ** 2 + (xs / (0.6 * width)) ** 2
    tissue = np.where(distance < 1, 0.3 + 0.5 * np.sqrt(np.clip(1 - distance, 0, 1)), 0)
    tissue = tissue * generator.uniform(0.9, 1.1, tissue.shape)
    return np.rint(tissue / tissue.max() * top).astype(np.uint16)
