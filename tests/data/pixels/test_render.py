import json
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from tiny_dicom import breast, write

from mammoclip_jax.data.pixels import geometry
from mammoclip_jax.data.pixels.breast import published_crop
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.dicom import Unreadable
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.errors import UserError

SMALL = dict(height=64, width=48)


def test_fit_mirrors_by_where_the_breast_lies(tmp_path):
    left = render(write(tmp_path / "l.dcm", breast(), ImageLaterality="L", ViewPosition="CC"), Preprocessing(**SMALL))
    mirrored = np.ascontiguousarray(breast()[:, ::-1])
    right = render(write(tmp_path / "r.dcm", mirrored, ImageLaterality="R"), Preprocessing(**SMALL))
    assert (left.laterality, left.view, left.flags) == ("L", "CC", ())
    assert not left.transform.flip_horizontal and right.transform.flip_horizontal and right.flags == ()
    np.testing.assert_allclose(left.image.astype(int), right.image, atol=6)
    # Stored the other way round: the pixels decide, and a flag tells.
    odd = render(write(tmp_path / "o.dcm", mirrored, ImageLaterality="L"), Preprocessing(**SMALL))
    assert odd.flags == ("chest_wall_unexpected",) and odd.transform.flip_horizontal


def test_what_the_table_says_goes_first_and_differences_are_flagged(tmp_path):
    path = write(tmp_path / "a.dcm", breast(), ImageLaterality="L", ViewPosition="CC")
    rendered = render(path, Preprocessing(**SMALL), "L", "MLO")
    assert (rendered.laterality, rendered.view, rendered.flags) == ("L", "MLO", ("view_differs",))


@pytest.mark.parametrize("bits", [8, 16])
def test_quantisation_uses_the_whole_range(tmp_path, bits):
    rendered = render(write(tmp_path / "a.dcm", breast()), Preprocessing(height=120, width=90, bits=bits, crop="none"))
    assert rendered.image.dtype == (np.uint8 if bits == 8 else np.uint16)
    expected = np.rint(breast() / breast().max() * (2**bits - 1))
    np.testing.assert_allclose(rendered.image, expected, atol=1)


def test_the_published_recipe_step_by_step(tmp_path):
    """Border, min-max, crop and stretch of Mammo-CLIP, written down apart."""
    import cv2

    pixels = breast(260, 200)
    preprocessing = Preprocessing("stretch", 64, 48, "published", 8, "published")
    rendered = render(write(tmp_path / "a.dcm", pixels), preprocessing)
    inner = pixels[5:-5, 5:-5].astype(np.float64)
    grey = ((inner - inner.min()) / (inner.max() - inner.min()) * 255).astype(np.uint8)
    y0, x0, y1, x1 = (value - 5 for value in rendered.transform.crop)
    expected = cv2.resize(grey[y0:y1, x0:x1], (48, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(rendered.image, expected)
    assert (x0, y0 > 0, y1 < 250) == (0, True, True) and (y0, x0, y1, x1) == published_crop(grey)


def test_wrong_parameters_name_the_near_one():
    with pytest.raises(UserError, match="Did you mean 'stretch'"):
        Preprocessing(geometry="strech")
    with pytest.raises(UserError, match="8-bit"):
        Preprocessing(intensity="published", bits=16)
    with pytest.raises(UserError, match="height 0"):
        Preprocessing(height=0)


def test_constant_image(tmp_path):
    with pytest.raises(Unreadable, match="constant image"):
        render(write(tmp_path / "a.dcm", np.full((40, 30), 9, np.uint16)), Preprocessing(**SMALL))


def placed(*boxes, crop=(0, 0, 100, 100)):
    transform = geometry.fit((100, 100), crop, (50, 50), laterality="R")
    result = place_boxes(json.dumps([{"label": "mass", "box": box} for box in boxes]), transform)
    return [[item["box"] for item in json.loads(part)] for part in result[:2]] + [result.flags]


def test_boxes_follow_and_are_clipped():
    assert placed([10, 20, 30, 40]) == [[[10, 20, 30, 40]], [[35, 10, 45, 20]], ()]
    assert placed([-5, 20, 30, 140])[0] == [[0, 20, 30, 100]]
    assert placed([-5, 20, 30, 140])[2] == ("box_clipped_to_image",)
    kept, canvas, flags = placed([0, 0, 30, 30], [50, 50, 60, 60], crop=(0, 20, 100, 100))
    assert len(kept) == 2 and len(canvas) == 2 and flags == ("box_cut_by_crop",)
    kept, canvas, flags = placed([0, 0, 10, 10], crop=(0, 20, 100, 100))
    assert len(kept) == 1 and canvas == [] and flags == ("box_outside_crop",)
    with pytest.raises(ValueError, match="width 100"):
        placed([200, 200, 220, 220])


def test_mutated_files_are_rendered_or_refused(tmp_path):
    """Any other exception, or a crash of a decoder, fails the test."""
    generator = np.random.default_rng(0)
    names = ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm")
    files = [Path(get_testdata_file(name)).read_bytes() for name in names]
    files.append(
        write(
            tmp_path / "own.dcm", breast(), WindowCenter=300, WindowWidth=400, PixelPaddingValue=0, ImageLaterality="L"
        ).read_bytes()
    )
    rendered = 0
    for number in range(400):
        data = bytearray(files[number % len(files)])
        for place in generator.integers(132, len(data) if number % 3 else 2000, generator.integers(1, 20)):
            data[place] = generator.integers(0, 256)
        (tmp_path / "mutated.dcm").write_bytes(data)
        try:
            rendered += render(tmp_path / "mutated.dcm", Preprocessing(**SMALL)).image.shape == (64, 48)
        except Unreadable as error:
            assert error.reason and error.remedy
    assert 50 < rendered < 390


def test_no_mirroring_where_images_stay_as_they_are(tmp_path):
    mirrored = write(tmp_path / "r.dcm", np.ascontiguousarray(breast()[:, ::-1]), ImageLaterality="R")
    rendered = render(mirrored, Preprocessing(**SMALL, chest_wall="as_is"))
    assert not rendered.transform.flip_horizontal and rendered.transform.content[3] == SMALL["width"]
    left = render(mirrored, Preprocessing(**SMALL))
    np.testing.assert_allclose(rendered.image[:, ::-1].astype(int), left.image, atol=1)


def test_a_chest_stands_in_the_middle_and_has_no_side(tmp_path):
    """PatientOrientation L\\F, as of any frontal chest radiograph, would tell the side of a breast."""
    pixels = np.ascontiguousarray(breast()[:, ::-1])
    path = write(tmp_path / "chest.dcm", pixels, Modality="DX", PatientOrientation=["L", "F"])
    whole = dict(crop="none", outside="kept", height=64, width=96)
    rendered = render(path, Preprocessing(**whole, chest_wall="centre"))
    top, left, bottom, right = rendered.transform.content
    assert rendered.laterality == "" and not rendered.transform.flip_horizontal
    assert (top, bottom) == (0, 64) and left == 96 - right > 0
    kept = render(path, Preprocessing(**whole))
    np.testing.assert_array_equal(rendered.image[:, left:right], kept.image[:, : right - left][:, ::-1])


def test_a_view_that_fills_the_frame_gives_no_verdict(tmp_path):
    pixels = np.ascontiguousarray(breast(400, 300)[150:250, 20:120])
    rendered = render(write(tmp_path / "m.dcm", pixels, ImageLaterality="R"), Preprocessing(**SMALL))
    assert "chest_wall_unexpected" not in rendered.flags and rendered.transform.crop == (0, 0, 100, 100)


def test_preprocessing_of_older_folders_is_read():
    old = dict(geometry="fit", height=64, width=48, intensity="voi", bits=8, crop="robust")
    assert Preprocessing.from_dict(old) == Preprocessing(**SMALL, outside="kept")
    new = Preprocessing(**SMALL, outside="masked", chest_wall="as_is", frames="middle", voi_item=1)
    assert Preprocessing.from_dict(json.loads(json.dumps(new.__dict__))) == new
    with pytest.raises(UserError, match="Did you mean 'height'"):
        Preprocessing.from_dict(old | {"heigth": 3})


@pytest.mark.parametrize(
    "values,message",
    [
        (dict(outside="mask"), "Did you mean 'masked'"),
        (dict(chest_wall="lefft"), "Did you mean 'left'"),
        (dict(frames="midle"), "Did you mean 'middle'"),
        (dict(voi_item=-1), "voi_item -1"),
    ],
)
def test_wrong_new_parameters_are_named(values, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(**values)
    assert Preprocessing().masks and not Preprocessing(intensity="published").masks
    assert Preprocessing(intensity="published", outside="masked").masks


def test_a_window_that_hides_the_skin_does_not_cut_it_off(tmp_path):
    """The breast is searched before the window; what the window shows of it is another matter. Signed pixels too."""
    pixels = breast(400, 300).astype(np.int16) - 1000
    plain = render(write(tmp_path / "a.dcm", pixels, ImageLaterality="L"), Preprocessing(**SMALL))
    tags = dict(ImageLaterality="L", WindowCenter=2400, WindowWidth=600)
    narrow = render(write(tmp_path / "b.dcm", pixels, **tags), Preprocessing(**SMALL))
    np.testing.assert_allclose(narrow.transform.crop, plain.transform.crop, atol=4)
    hot = pixels.copy()
    hot[3, 290] = 32000
    np.testing.assert_allclose(
        render(write(tmp_path / "c.dcm", hot, **tags), Preprocessing(**SMALL)).transform.crop,
        plain.transform.crop,
        atol=4,
    )
