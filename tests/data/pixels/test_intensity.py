"""Polarity, VOI and padding against arrays worked out by hand from DICOM PS3.3."""

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset
from tiny_dicom import dataset, write

from mammoclip_jax.data.pixels import dicom, geometry, intensity

RAMP = np.array([[0, 100, 200, 300, 400, 500, 600, 1000]], np.uint16)


def shown(tmp_path, pixels=RAMP, policy="voi", **tags):
    return intensity.grey(dicom.read(write(tmp_path / "image.dcm", pixels, **tags)), policy)


def test_without_a_window_voi_is_min_max(tmp_path):
    np.testing.assert_allclose(shown(tmp_path).array, RAMP / 1000, atol=1e-6)


def test_linear_window(tmp_path):
    # c = 300, w = 401: x <= 299.5 - 200 is 0, x > 299.5 + 200 is 1, else (x - 299.5) / 400 + 0.5.
    expected = [[0, 0.00125, 0.25125, 0.50125, 0.75125, 1, 1, 1]]
    np.testing.assert_allclose(shown(tmp_path, WindowCenter=300, WindowWidth=401).array, expected, atol=1e-6)


def test_the_first_of_several_windows(tmp_path):
    one = shown(tmp_path, WindowCenter=300, WindowWidth=401)
    several = shown(tmp_path, WindowCenter=[300, 50], WindowWidth=[401, 10])
    np.testing.assert_array_equal(one.array, several.array)


def test_linear_exact_and_sigmoid(tmp_path):
    exact = shown(tmp_path, WindowCenter=300, WindowWidth=400, VOILUTFunction="LINEAR_EXACT").array
    np.testing.assert_allclose(exact, [[0, 0, 0.25, 0.5, 0.75, 1, 1, 1]], atol=1e-6)
    sigmoid = shown(tmp_path, WindowCenter=300, WindowWidth=400, VOILUTFunction="SIGMOID").array
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-4 * (RAMP - 300.0) / 400)), atol=1e-6)


def test_monochrome1_is_inverted_once_after_the_window(tmp_path):
    plain = shown(tmp_path, WindowCenter=300, WindowWidth=401).array
    tags = dict(WindowCenter=300, WindowWidth=401, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(shown(tmp_path, **tags).array, 1 - plain, atol=1e-6)
    # The presentation LUT shape says the same once more; it must not invert back.
    inverse = shown(tmp_path, PresentationLUTShape="INVERSE", **tags).array
    np.testing.assert_allclose(inverse, 1 - plain, atol=1e-6)


def test_rescale_comes_before_the_window(tmp_path):
    # x -> 2 x - 100: the window 500 / 801 of it is 299.75 / 400.5 of the stored values.
    array = shown(
        tmp_path, WindowCenter=500, WindowWidth=801, RescaleSlope=2, RescaleIntercept=-100, RescaleType="US"
    ).array
    expected = np.clip((2 * RAMP - 100.0 - 499.5) / 800 + 0.5, 0, 1)
    np.testing.assert_allclose(array, expected, atol=1e-6)


def test_signed_values(tmp_path):
    pixels = np.array([[-500, -100, 0, 100, 500]], np.int16)
    array = shown(tmp_path, pixels, WindowCenter=0.5, WindowWidth=201).array
    np.testing.assert_allclose(array, [[0, 0, 0.5, 1, 1]], atol=1e-6)


def lut_item(first: int, values: list[int], bits: int, length: int | None = None) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values) if length is None else length, first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = values
    item["LUTData"].VR = "US"
    return item


def test_voi_lut_goes_before_the_window_and_clamps_at_its_ends(tmp_path):
    # Stored 200 maps to entry 0; everything below too; 200 + 255 and above to the last entry.
    values = [k * 16 for k in range(256)]
    item = lut_item(200, values, 12)
    array = shown(tmp_path, VOILUTSequence=[item], WindowCenter=5, WindowWidth=2).array
    expected = [[0, 0, 0, 100 * 16 / 4095, 200 * 16 / 4095, 4080 / 4095, 4080 / 4095, 4080 / 4095]]
    np.testing.assert_allclose(array, expected, atol=1e-6)


def test_voi_lut_that_declares_more_bits_than_it_uses(tmp_path):
    item = lut_item(0, [k * 4 for k in range(1024)], 16)
    array = shown(tmp_path, VOILUTSequence=[item]).array
    np.testing.assert_allclose(array, np.minimum(RAMP, 1023) / 1023, atol=1e-6)


def test_modality_lut_sequence(tmp_path):
    item = lut_item(0, [1000 - k for k in range(1001)], 16)
    item.ModalityLUTType = "US"
    array = shown(tmp_path, ModalityLUTSequence=[item]).array
    np.testing.assert_allclose(array, 1 - RAMP / 1000, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_darkest_and_left_out_of_min_max(tmp_path, photometric):
    pixels = np.array([[4095, 4095, 100, 200, 300, 500]], np.uint16)
    array = shown(tmp_path, pixels, PixelPaddingValue=4095, PhotometricInterpretation=photometric).array
    inner = np.array([0, 0.25, 0.5, 1])
    expected = np.concatenate([[0, 0], inner if photometric == "MONOCHROME2" else 1 - inner])
    np.testing.assert_allclose(array, [expected], atol=1e-6)


def test_padding_range(tmp_path):
    pixels = np.array([[0, 5, 10, 20, 30]], np.uint16)
    array = shown(tmp_path, pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=5).array
    np.testing.assert_allclose(array, [[0, 0, 0, 0.5, 1]], atol=1e-6)


@pytest.mark.parametrize(
    "tags, flag",
    [
        ({"WindowCenter": 300, "WindowWidth": 0}, "voi_invalid"),
        ({"WindowCenter": 30000, "WindowWidth": 10}, "voi_flat"),
        ({"VOILUTSequence": [Dataset()]}, "voi_invalid"),
    ],
)
def test_a_useless_window_falls_back_to_min_max(tmp_path, tags, flag):
    grey = shown(tmp_path, **tags)
    np.testing.assert_allclose(grey.array, RAMP / 1000, atol=1e-6)
    assert grey.flags == (flag,)


def test_raw_min_max_knows_no_window_but_polarity(tmp_path):
    array = shown(
        tmp_path,
        policy="raw_minmax",
        WindowCenter=300,
        WindowWidth=401,
        RescaleSlope=-1,
        RescaleIntercept=0,
        PhotometricInterpretation="MONOCHROME1",
    ).array
    np.testing.assert_allclose(array, 1 - RAMP / 1000, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_published_steps(tmp_path, photometric):
    generator = np.random.default_rng(0)
    pixels = generator.integers(50, 4000, (40, 30)).astype(np.uint16)
    pixels[0, 0], pixels[20, 2] = 0, 60000  # in the border: must not count
    grey = shown(
        tmp_path,
        pixels,
        "published",
        WindowCenter=300,
        WindowWidth=401,
        RescaleSlope=1,
        RescaleIntercept=-100,
        PhotometricInterpretation=photometric,
    )
    inner = pixels[5:-5, 5:-5].astype(np.float64)
    if photometric == "MONOCHROME1":
        inner = inner.max() - inner
    expected = ((inner - inner.min()) / (inner.max() - inner.min()) * 255).astype(np.uint8)
    assert grey.inside == (5, 5, 35, 25) and grey.array.dtype == np.uint8
    np.testing.assert_array_equal(grey.array[5:-5, 5:-5], expected)


def test_bits_above_bits_stored_do_not_count(tmp_path):
    pixels = RAMP | np.array([[0, 1, 0, 0, 1, 0, 0, 1]], np.uint16) << 15  # an overlay of old in bit 15
    np.testing.assert_allclose(shown(tmp_path, pixels, bits_stored=12).array, RAMP / 1000, atol=1e-6)


@pytest.mark.parametrize("policy", intensity.POLICIES)
def test_constant_image(tmp_path, policy):
    with pytest.raises(intensity.FlatImage):
        shown(tmp_path, np.full((40, 30), 7, np.uint16), policy)


@pytest.mark.parametrize("policy", intensity.POLICIES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
def test_a_region_and_the_preview_are_parts_of_the_whole(tmp_path, policy, dtype):
    pixels = np.arange(40 * 30).reshape(40, 30)
    pixels = (pixels % 251 if dtype == np.uint8 else pixels * (100000 if dtype == np.uint32 else 1)).astype(dtype)
    tags = dict(WindowCenter=300, WindowWidth=401, PhotometricInterpretation="MONOCHROME1")
    path = write(tmp_path / "a.dcm", pixels, **tags) if dtype != np.float32 else tmp_path / "a.tiff"
    if dtype == np.float32:
        cv2.imwrite(str(path), pixels)
    grey = intensity.grey(dicom.read(path), policy)
    assert grey.shape == (40, 30) and grey.array.dtype == (np.uint8 if policy == "published" else np.float32)
    np.testing.assert_array_equal(grey.region(3, 5, 20, 11), grey.array[3:20, 5:11])
    preview = grey.array if policy == "published" else (grey.array * 255).astype(np.uint8)
    assert grey.preview().dtype == np.uint8 and grey.search().dtype == np.uint8
    np.testing.assert_array_equal(grey.preview(), preview)


def test_negative_padding_written_as_unsigned(tmp_path):
    pixels = np.array([[-2000, -2000, 100, 200, 300, 500]], np.int16)
    for value, vr in ((-2000, "SS"), (63536, "US")):
        header = dataset(pixels)
        header.add_new("PixelPaddingValue", vr, value)
        header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        array = intensity.grey(dicom.read(tmp_path / "a.dcm"), "voi").array
        np.testing.assert_allclose(array, [[0, 0, 0, 0.25, 0.5, 1]], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_padding_that_covers_all_is_a_mistake(tmp_path, dtype):
    grey = shown(
        tmp_path,
        (RAMP * 1000 if dtype == np.uint32 else RAMP).astype(dtype),
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=0 if dtype == np.uint32 else 60000,
    )
    np.testing.assert_allclose(grey.array, np.where(RAMP == 0, 0, grey.array), atol=1e-6)
    assert grey.array.max() == 1


def test_the_chosen_one_of_several_windows(tmp_path):
    image = dicom.read(write(tmp_path / "a.dcm", RAMP, WindowCenter=[300, 50], WindowWidth=[401, 101]))
    second = intensity.grey(image, "voi", voi_item=1)
    np.testing.assert_allclose(second.array, np.clip((RAMP - 49.5) / 100 + 0.5, 0, 1), atol=1e-6)
    third = intensity.grey(image, "voi", voi_item=2)
    np.testing.assert_array_equal(third.array, intensity.grey(image, "voi").array)
    assert second.flags == () and third.flags == ("voi_item_missing",)


@pytest.mark.parametrize(
    "tags, line",
    [
        ({}, True),
        ({"PhotometricInterpretation": "MONOCHROME1"}, True),
        ({"RescaleSlope": 2, "RescaleIntercept": -50}, True),
        ({"WindowCenter": 300, "WindowWidth": 401}, False),  # cuts values off
        ({"PixelPaddingValue": 0}, False),
    ],
)
def test_a_smaller_copy_is_the_mean_of_grey_values(tmp_path, tags, line):
    pixels = np.random.default_rng(0).integers(0, 1001, (60, 40)).astype(np.uint16)
    grey, crop = shown(tmp_path, pixels, **tags), (3, 5, 51, 37)
    assert (grey._line is not None) == line
    for size in ((24, 8), (17, 13), (48, 32), (90, 70)):
        found = grey.resized(crop, size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, geometry.resize(grey.region(*crop), size), atol=1e-6)
