import logging
import shutil

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from tiny_dicom import breast, dataset, write

from mammoclip_jax.data.pixels import dicom
from mammoclip_jax.data.pixels.dicom import Unreadable


def test_stored_values_come_back(tmp_path):
    pixels = breast()
    image = dicom.read(write(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(image.stored, pixels)


# The same 64 x 64 image in several transfer syntaxes; the uncompressed one says what it must look like.
@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_lossless_transfer_syntaxes(name):
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    values = np.frombuffer(expected.PixelData, "<i2").reshape(64, 64)
    if "jpeg_ls" in name:
        pytest.importorskip("jpeg_ls")
    image = dicom.read(get_testdata_file(name))
    np.testing.assert_array_equal(image.stored, values)


def test_12_bit_jpeg():
    pytest.importorskip("libjpeg")
    image = dicom.read(get_testdata_file("JPGExtended.dcm"))
    assert image.stored.shape == (1024, 256) and 255 < image.stored.max() < 4096


@pytest.mark.parametrize(
    "name, reason",
    [
        ("SC_rgb_rle.dcm", "colour image"),
        ("examples_palette.dcm", "colour image"),
        ("rtdose.dcm", "multi-frame"),
        ("test-SR.dcm", "no pixel data"),
        ("MR_truncated.dcm", "cannot decode"),
    ],
)
def test_what_is_no_single_grey_image_is_refused(name, reason):
    with pytest.raises(Unreadable, match=reason) as caught:
        dicom.read(get_testdata_file(name))
    assert name in str(caught.value) and caught.value.remedy


def test_missing_text_and_empty_files(tmp_path):
    with pytest.raises(Unreadable, match="file missing"):
        dicom.read(tmp_path / "nowhere.dcm")
    for content in (b"", b"just text\n" * 100, b"\0" * 128 + b"DICM"):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(Unreadable):
            dicom.read(tmp_path / "a.dcm")


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPGExtended.dcm"])
@pytest.mark.parametrize("kept", [0.2, 0.7, 0.95])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, name, kept):
    if name == "JPGExtended.dcm":
        pytest.importorskip("libjpeg")
    whole = open(get_testdata_file(name), "rb").read()
    start = whole.rindex(b"\xe0\x7f\x10\x00")  # the pixel data element
    (tmp_path / "cut.dcm").write_bytes(whole[: start + int((len(whole) - start) * kept)])
    with pytest.raises(Unreadable):
        dicom.read(tmp_path / "cut.dcm")


def test_huge_declared_size_is_refused_before_decoding(tmp_path):
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), Rows=65535, Columns=65535)
    with pytest.raises(Unreadable, match="impossible size"):
        dicom.read(path)


def test_nan_pixels(tmp_path):
    pixels = np.ones((4, 6), np.float32)
    pixels[1, 1] = np.nan
    header = dataset(np.zeros((4, 6), np.uint8))
    del header.PixelData
    header.BitsAllocated = header.BitsStored = 32
    header.HighBit, header.FloatPixelData = 31, pixels.tobytes()
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    cv2.imwrite(str(tmp_path / "a.tiff"), pixels)
    for name in ("a.dcm", "a.tiff"):
        with pytest.raises(Unreadable, match="NaN"):
            dicom.read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures(tmp_path, suffix, dtype):
    pixels = (breast() >> (4 if dtype == np.uint8 else 0)).astype(dtype)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), pixels)
    image = dicom.read(tmp_path / f"a{suffix}")
    assert image.stored.dtype == dtype
    np.testing.assert_array_equal(image.stored, pixels)


def test_grey_and_coloured_rgb_pictures(tmp_path):
    grey = np.repeat((breast() >> 4).astype(np.uint8)[..., None], 3, axis=2)
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    np.testing.assert_array_equal(dicom.read(tmp_path / "a.png").stored, grey[..., 0])
    grey[10, 10, 1] ^= 64
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    with pytest.raises(Unreadable, match="colour image"):
        dicom.read(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(Unreadable, match="cannot decode"):
        dicom.read(tmp_path / "b.png")


def code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", "x"
    return item


@pytest.mark.parametrize(
    "tags, expected",
    [
        ({"ImageLaterality": "R", "ViewPosition": "MLO"}, ("R", "MLO")),
        ({"ImageLaterality": "L", "Laterality": "R", "ViewPosition": "CC"}, ("L", "CC")),
        ({"Laterality": "R", "PatientOrientation": "MLO"}, ("R", "MLO")),  # CBIS-DDSM
        ({"Laterality": "L", "PatientOrientation": ["A", "FR"]}, ("L", "")),
        ({"ImageLaterality": "GAUCHE"}, ("L", "")),
        ({"Laterality": "Derecha"}, ("R", "")),
        ({"ImageLaterality": "B", "ViewCodeSequence": [code("R-10226")]}, ("", "MLO")),
        ({"ViewPosition": "", "ViewCodeSequence": [code("399162004")]}, ("", "CC")),
        ({"ViewPosition": "LCC"}, ("L", "CC")),
        ({"ViewPosition": "ML"}, ("", "ML")),
        ({"ViewCodeSequence": []}, ("", "")),
    ],
)
def test_laterality_and_view(tmp_path, tags, expected):
    fields = dicom.read_fields(write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), **tags))
    assert (fields.laterality, fields.view) == expected


def coded(value: str, **nested) -> Dataset:
    item = code(value)
    for name, codes in nested.items():
        setattr(item, name, [code(one) for one in codes])
    return item


@pytest.mark.parametrize(
    "tags, expected",
    [
        ({"ViewPosition": "DOE"}, ("", "")),  # a name, not a view
        ({"ViewPosition": "DOE", "ViewCodeSequence": [code("R-10242")]}, ("", "CC")),
        ({"ViewPosition": "AT"}, ("", "AT")),
        ({"ViewPosition": "R MLO"}, ("R", "MLO")),
        ({"ViewPosition": "RL"}, ("", "RL")),  # rolled lateral, not a right one
        ({"ViewPosition": "LMLOID"}, ("L", "MLO")),
        ({"ViewCodeSequence": [coded("399368009", ViewModifierCodeSequence=["399011000"])]}, ("", "AT")),
        ({"AnatomicRegionSequence": [coded("76752008", AnatomicRegionModifierSequence=["G-A100"])]}, ("R", "")),
        ({"AnatomicRegionSequence": [code("T-04030")]}, ("L", "")),
        (
            {"PrimaryAnatomicStructureSequence": [coded("x", PrimaryAnatomicStructureModifierSequence=["7771000"])]},
            ("L", ""),
        ),
        ({"SeriesDescription": "R CC"}, ("R", "CC")),
        ({"SeriesDescription": "Mammo, LMLO (raw)"}, ("L", "MLO")),
        ({"ProtocolName": "Routine Left - CC"}, ("L", "CC")),
        ({"SeriesDescription": "L CC R CC"}, ("", "CC")),
        ({"SeriesDescription": "CC MLO"}, ("", "")),
        ({"SeriesDescription": "looked at ACCURATELY by Dr RLee"}, ("", "")),
        ({"ImageLaterality": "L", "SeriesDescription": "R CC"}, ("L", "CC")),
        ({"SeriesDescription": "SEIN GAUCHE"}, ("L", "")),
        ({"ProtocolName": "Brust rechts, MLO"}, ("R", "MLO")),
        ({"ViewPosition": "MLO DROIT"}, ("R", "MLO")),
        ({"ViewPosition": "CC L"}, ("L", "CC")),
        ({"ViewPosition": " LEFT  M CC"}, ("L", "CC")),
        ({"ViewPosition": "SEIN GAUCHE"}, ("L", "")),
        # As displayed, mirrored, upside down, turned; of a craniocaudal view only what lies as displayed tells.
        ({"PatientOrientation": ["A", "FR"]}, ("L", "")),
        ({"PatientOrientation": ["P", "FL"]}, ("R", "")),
        ({"PatientOrientation": ["P", "FR"]}, ("L", "")),
        ({"PatientOrientation": ["A", "HL"]}, ("L", "")),
        ({"PatientOrientation": ["A", "R"], "ViewPosition": "CC"}, ("L", "CC")),
        ({"PatientOrientation": ["P", "L"]}, ("R", "")),
        ({"PatientOrientation": ["P", "R"]}, ("", "")),
        ({"PatientOrientation": ["A", "L"]}, ("", "")),
        ({"PatientOrientation": ["A", "F"]}, ("", "")),
        ({"PatientOrientation": ["L", "HF"]}, ("", "")),
        ({"PatientOrientation": ["A", "R"], "SeriesDescription": "R CC"}, ("R", "CC")),
        ({"PatientOrientation": ["A", "R"], "Laterality": "B"}, ("", "")),
    ],
)
def test_laterality_and_view_from_elsewhere(tmp_path, tags, expected):
    fields = dicom.read_fields(write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), **tags))
    assert (fields.laterality, fields.view) == expected


@pytest.mark.parametrize(
    "tags, flags",
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, ("for_processing",)),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, ("for_processing",)),
        ({"ViewCodeSequence": [code("G-8310")]}, ("specimen",)),
        ({"BodyPartExamined": "BREAST SPECIMEN"}, ("specimen",)),
        ({"SeriesDescription": "Specimen"}, ("specimen",)),
        ({"SeriesDescription": "L CC, compare with specimen", "ViewPosition": "CC"}, ()),
        ({"SeriesDescription": "Specimen correlation", "ViewCodeSequence": [code("R-10226")]}, ()),
        ({"BodyPartExamined": "SPECIMEN", "ViewPosition": "CC"}, ("specimen",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STEREO_SCOUT"]}, ("stereotactic",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STEREO_PLUS"]}, ("stereotactic",)),
        ({"ImageType": ["DERIVED", "PRIMARY", "", "RECOMBINED"]}, ("recombined",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "LOW_ENERGY"]}, ()),
        (
            {"ViewCodeSequence": [coded("R-10242", ViewModifierCodeSequence=["R-102D6", "R-102D7"])]},
            ("magnification", "spot"),
        ),
        ({"ViewModifierCodeSequence": [code("399209000")]}, ("implant_displaced",)),
        ({"EstimatedRadiographicMagnificationFactor": "1.8"}, ("magnification",)),
        ({"EstimatedRadiographicMagnificationFactor": "1.07"}, ()),
        ({"PaddleDescription": "7.5cm MAG"}, ("magnification",)),
        ({"PaddleDescription": "SPOTCOMPRESSION"}, ("spot",)),
        ({"ViewPosition": "MCC"}, ("magnification",)),
        ({"ViewPosition": "CCID"}, ("implant_displaced",)),
        ({"ViewPosition": "SIO"}, ()),
        ({"BreastImplantPresent": "YES", "BurnedInAnnotation": "YES"}, ("breast_implant", "burned_in_annotation")),
        ({"BreastImplantPresent": "NO", "BurnedInAnnotation": "NO"}, ()),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]}, ("synthetic_2d",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]}, ("tomosynthesis",)),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, ("tomosynthesis",)),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, ()),
    ],
)
def test_flags(tmp_path, tags, flags):
    assert dicom.read(write(tmp_path / "a.dcm", breast(), **tags)).fields.flags == flags


def test_what_joins_an_image_to_its_study(tmp_path):
    fields = dicom.read_fields(write(tmp_path / "a.dcm", breast(), StudyDate="20200229", StudyInstanceUID="1.2.3"))
    assert (fields.study_date, fields.study, fields.size, fields.patient) == ("20200229", "1.2.3", "120 90", "patient")
    assert fields.image
    assert dicom.read_fields(write(tmp_path / "b.dcm", breast(), StudyDate="about 2020")).study_date == ""


def test_no_reason_quotes_the_header(tmp_path):
    """The transfer syntax too may be a made-up one."""
    header = dataset(breast(), ViewPosition="DOE")
    header.file_meta.TransferSyntaxUID = "1.2.3.19700101"
    header.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
    with pytest.raises(Unreadable, match="unknown transfer syntax") as caught:
        dicom.read(tmp_path / "a.dcm")
    assert "19700101" not in caught.value.reason + caught.value.remedy


@pytest.mark.parametrize(
    "maker, vendor",
    [
        ("HOLOGIC, Inc.", "Hologic"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE Healthcare", "GE"),
        ("SIEMENS", "Siemens"),
        ("FUJIFILM Corporation", "Fuji"),
        ("Dr Smith's own", "other"),
        ("", ""),
    ],
)
def test_vendor_is_one_of_a_list(tmp_path, maker, vendor):
    assert dicom.read_fields(write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), Manufacturer=maker)).vendor == vendor


def test_nothing_is_said_about_odd_values(tmp_path, caplog, capfd):
    path = write(tmp_path / "a.dcm", breast())
    data = path.read_bytes().replace(b"CS\x02\x00MG", b"CS\x02\x00?!")
    path.write_bytes(data)
    with caplog.at_level(logging.DEBUG, "mammoclip_jax"):
        dicom.read(path)
    out, err = capfd.readouterr()
    assert "?!" not in out + err


def test_the_settings_of_pydicom_are_left_alone(tmp_path):
    before = pydicom.config.settings.reading_validation_mode
    dicom.read(shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path))
    assert pydicom.config.settings.reading_validation_mode == before
