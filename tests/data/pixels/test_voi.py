"""Modality and VOI against pydicom's own functions, an independent reading of PS3.3 C.11."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian
from test_intensity import lut_item
from tiny_dicom import breast, dataset, write

from mammoclip_jax.data.pixels import dicom, intensity, voi


def mine(header: Dataset, stored: np.ndarray, item: int = 0) -> np.ndarray:
    rescale, flags = voi.modality(header)
    assert flags == ()
    values = rescale(stored)
    function, flags = voi.voi(header, item, values.min())
    assert set(flags) <= {"voi_bits_wrong"}
    return function(values)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("rescale", [None, (2.5, -1024.0), (-1.0, 4095.0)])
@pytest.mark.parametrize("item", [0, 1])
def test_windows(function, rescale, item):
    header = dataset(breast(), bits_stored=12, WindowCenter=[1700, 900.5], WindowWidth=[2300, 401])
    if function:
        header.VOILUTFunction = function
    if rescale:
        header.RescaleSlope, header.RescaleIntercept, header.RescaleType = *rescale, "US"
    expected = apply_voi_lut(apply_modality_lut(breast(), header), header, index=item)
    # pydicom's output range is that of the stored values, rescaled (the wrong way round for a negative slope).
    slope, intercept = rescale or (1, 0)
    low, high = intercept, 4095 * slope + intercept
    expected = (expected - low) / (high - low)
    np.testing.assert_allclose(mine(header, breast(), item), expected, atol=2e-4)


@pytest.mark.parametrize("first, bits, stored", [(0, 12, np.uint16), (-700, 16, np.int16), (300, 10, np.uint16)])
@pytest.mark.parametrize("item", [0, 1])
def test_voi_luts(first, bits, stored, item):
    top = 2**bits - 1
    curve = np.rint(top * np.linspace(0, 1, 2000) ** 0.6).astype(int)
    items = [lut_item(first % 65536, curve.tolist(), bits), lut_item(first % 65536, curve[::-1].tolist(), bits)]
    pixels = breast().astype(stored) - (1000 if stored == np.int16 else 0)
    header = dataset(pixels.astype(stored), VOILUTSequence=items)
    for one in items:  # pydicom takes the descriptor as it stands
        one.LUTDescriptor = [2000, first % 65536 if first < 0 else first, bits]
    found = mine(header, pixels.astype(stored), item)
    for one in items:
        one["LUTDescriptor"].VR = "SS" if first < 0 else "US"
        one.LUTDescriptor = [2000, first, bits]
    np.testing.assert_allclose(found * top, apply_voi_lut(pixels.astype(stored), header, index=item), atol=1e-6)


def test_a_signed_first_value_where_only_the_rescale_makes_values_negative():
    header = dataset(
        breast(), RescaleSlope=1, RescaleIntercept=-2000, VOILUTSequence=[lut_item(65536 - 2000, list(range(4096)), 12)]
    )
    np.testing.assert_allclose(mine(header, breast()) * 4095, breast(), atol=1e-9)


def test_lut_items_come_before_windows_and_too_few_give_the_first():
    header = dataset(breast(), VOILUTSequence=[lut_item(0, list(range(4096)), 12)], WindowCenter=50, WindowWidth=20)
    assert mine(header, breast(), 1).max() == 1 and set(np.unique(mine(header, np.array([0, 30, 90]), 1))) == {0, 1}
    function, flags = voi.voi(header, 2, 0.0)
    np.testing.assert_allclose(function(breast()), breast() / 4095)
    assert flags == ("voi_item_missing",)


def test_the_files_of_pydicom_with_luts():
    """pydicom-data's vlut_04 (VOI LUT) and mlut_18 (modality LUT)."""
    for name in ("vlut_04.dcm", "mlut_18.dcm"):
        path = get_testdata_file(name, download=False)
        if path is None:
            pytest.skip("pydicom-data is not installed")
        image, header = dicom.read(path), pydicom.dcmread(path)
        found = voi.modality(image.header)[0](image.stored)
        expected = apply_modality_lut(header.pixel_array, header)
        np.testing.assert_array_equal(found, expected)
        if "VOILUTSequence" in header:
            function, _ = voi.voi(image.header, 0, found.min())
            shown, reference = function(found), apply_voi_lut(expected, header)
            np.testing.assert_allclose(shown / shown.max(), reference / reference.max(), atol=1e-9)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 12])
def test_lut_data_as_bytes(tmp_path, big, bits):
    """OW words in the file's byte order; entries of 8 bits may be packed two to a word."""
    pixels, curve = breast(top=255), np.arange(256) ** 2 // (256 if bits == 8 else 16)
    for packed in (False, True) if bits == 8 and not big else (False,):
        item = lut_item(0, [0], bits, 256)
        kind = np.uint8 if packed else ">u2" if big else "<u2"
        item["LUTData"] = pydicom.DataElement(0x00283006, "OW", curve.astype(kind).tobytes())
        header = dataset(pixels, VOILUTSequence=[item])
        if big:
            header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            header.PixelData = pixels.astype(">u2").tobytes()
        header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        image = dicom.read(tmp_path / "a.dcm")
        np.testing.assert_allclose(intensity.grey(image, "voi").array, curve[pixels] / (2**bits - 1), atol=1e-6)


@pytest.mark.parametrize(
    "bits, low, high, shown",
    [
        (16, 0, 4095, (0, 1)),  # declares the container
        (14, 0, 2047, (0, 1)),  # 11 of the 14 declared are used
        (12, 100, 2000, (0, 1)),
        (10, 0, 4095, (0, 1)),  # holds more than it declares
        (12, 5, 4090, (5 / 4095, 4090 / 4095)),  # nothing is wrong
        (16, 0, 65535, (0, 1)),
    ],
)
def test_a_lut_of_other_bits_than_declared_is_scaled_by_what_its_entries_span(bits, low, high, shown):
    header = dataset(breast(), VOILUTSequence=[lut_item(0, np.linspace(low, high, 4096).astype(int).tolist(), bits)])
    function, flags = voi.voi(header, 0, 0)
    np.testing.assert_allclose(function(np.array([0, 4095])), shown)
    assert flags == (("voi_bits_wrong",) if high.bit_length() != bits else ())


@pytest.mark.parametrize("grouped", [False, True])
def test_a_decimal_comma_is_mended_and_flagged(tmp_path, grouped):
    """Also in functional groups; and what is no number at all is flagged as well, not taken for absent."""
    tags = dict(WindowCenter=[1900.5, 700.5], WindowWidth=[1300.5, 90.5], RescaleSlope=1.5, RescaleIntercept=-10.5)
    right = write(
        tmp_path / "right.dcm", breast(), RescaleType="US", EstimatedRadiographicMagnificationFactor="1.8", **tags
    )
    if grouped:
        window, values, frame = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = tags["WindowCenter"], tags["WindowWidth"]
        values.RescaleSlope, values.RescaleIntercept = tags["RescaleSlope"], tags["RescaleIntercept"]
        frame.FrameVOILUTSequence, frame.PixelValueTransformationSequence = [window], [values]
        write(
            tmp_path / "a.dcm",
            breast(),
            EstimatedRadiographicMagnificationFactor="1.8",
            PerFrameFunctionalGroupsSequence=[frame],
        )
    whole = (tmp_path / "a.dcm" if grouped else right).read_bytes()
    texts = (b"1900.5", b"700.5", b"1300.5", b"90.5", b"-10.5", b"1.5 ", b"1.8 ")
    for number in texts:
        assert number in whole
        whole = whole.replace(number, number.replace(b".", b","))
    (tmp_path / "comma.dcm").write_bytes(whole)
    image = dicom.read(tmp_path / "comma.dcm")
    grey, expected = intensity.grey(image, "voi", 1), intensity.grey(dicom.read(right), "voi", 1)
    np.testing.assert_array_equal(grey.array, expected.array)
    assert grey.flags == (*expected.flags, "decimal_comma") and "magnification" in grey.flags
    (tmp_path / "x.dcm").write_bytes(whole.replace(b"1900,5", b"abcdef").replace(b"-10,5", b"x.y.z"))
    assert {"voi_invalid", "rescale_invalid"} <= set(intensity.grey(dicom.read(tmp_path / "x.dcm"), "voi").flags)


@pytest.mark.parametrize(
    "tags",
    [
        dict(RescaleSlope=0, RescaleIntercept=5),
        dict(RescaleSlope=float("inf"), RescaleIntercept=0),
        dict(ModalityLUTSequence=[Dataset()]),
    ],
)
def test_a_broken_modality_step_is_left_out_and_flagged(tags):
    header = dataset(breast())
    for name, value in tags.items():
        if name == "ModalityLUTSequence":
            setattr(header, name, value)
        else:
            header[name] = pydicom.DataElement(pydicom.tag.Tag(name), "FD", float(value))
    rescale, flags = voi.modality(header)
    assert flags == ("rescale_invalid",)
    np.testing.assert_array_equal(rescale(breast()), breast())


def test_functional_groups_hold_the_window_of_multi_frame_files(tmp_path):
    window, transformation, shared, frame = Dataset(), Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 900, 401
    transformation.RescaleSlope, transformation.RescaleIntercept = 2, -50
    frame.FrameVOILUTSequence, shared.PixelValueTransformationSequence = [window], [transformation]
    path = write(
        tmp_path / "a.dcm",
        breast(),
        NumberOfFrames=3,
        PixelData=np.stack([breast()] * 3).tobytes(),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[Dataset(), frame, Dataset()],
    )
    plain = write(
        tmp_path / "b.dcm",
        breast(),
        WindowCenter=900,
        WindowWidth=401,
        RescaleSlope=2,
        RescaleIntercept=-50,
        RescaleType="US",
    )
    found = intensity.grey(dicom.read(path, "middle"), "voi")
    np.testing.assert_array_equal(found.array, intensity.grey(dicom.read(plain), "voi").array)
