"""What a header says is stored mirrored or upside down is turned, and boxes, masks and maps with it."""

import json

import numpy as np
import pytest
from pydicom.dataset import Dataset
from tiny_dicom import breast, write

from mammoclip_jax.data.pixels import orientation
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.pixels.render import Preprocessing, render

FORMS = ({"geometry": "fit"}, {"geometry": "fit", "chest_wall": "as_is"}, {"geometry": "stretch"})
BOX = [10, 12, 34, 30]  # x0, y0, x1, y1 of a bright square in the upper half of a left breast


def picture() -> np.ndarray:
    pixels = breast()
    pixels[:20] = pixels[:20] // 2  # the two halves differ
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 3000
    return pixels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "laterality, view, way, turned, flags",
    [
        ("L", "MLO", ["P", "FR"], (1, -1), ("stored_mirrored",)),
        ("R", "CC", ["A", "L"], (1, -1), ("stored_mirrored",)),
        ("L", "MLO", ["A", "HL"], (-1, 1), ("stored_upside_down",)),
        ("L", "CC", ["A", "L"], (-1, 1), ("stored_upside_down",)),
        ("R", "CC", ["P", "R"], (-1, 1), ("stored_upside_down",)),
        ("R", "ML", ["A", "H"], (-1, -1), ("stored_upside_down", "stored_mirrored")),
        ("L", "CC", ["A", "R"], (1, 1), ()),
        ("R", "MLO", ["P", "FL"], (1, 1), ()),
    ],
)
def test_the_image_and_its_boxes_are_turned(tmp_path, form, laterality, view, way, turned, flags):
    shown = picture()[:, :: 1 if laterality == "L" else -1]  # as it is displayed
    preprocessing = Preprocessing(height=60, width=45, crop="none", **form)
    tags = dict(ImageLaterality=laterality, ViewPosition=view)
    expected = render(write(tmp_path / "shown.dcm", np.ascontiguousarray(shown), **tags), preprocessing)
    stored = np.ascontiguousarray(shown[:: turned[0], :: turned[1]])
    got = render(write(tmp_path / "stored.dcm", stored, PatientOrientation=way, **tags), preprocessing)
    np.testing.assert_array_equal(got.image, expected.image)
    assert got.flags == flags

    height, width = stored.shape
    marked = np.zeros(stored.shape, bool)
    marked[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    marked = marked[:, :: 1 if laterality == "L" else -1][:: turned[0], :: turned[1]]
    (y0, x0), (y1, x1) = np.argwhere(marked).min(axis=0), np.argwhere(marked).max(axis=0) + 1
    transform = Transform.from_json(got.transform.to_json())
    placed = place_boxes(json.dumps([{"label": "mass", "box": [int(x0), int(y0), int(x1), int(y1)]}]), transform)
    box = [round(value) for value in json.loads(placed.canvas)[0]["box"]]
    canvas = np.zeros(got.image.shape, bool)
    canvas[box[1] : box[3], box[0] : box[2]] = True
    np.testing.assert_array_equal(transform.image(marked.astype(np.float32)) > 0.5, canvas)
    np.testing.assert_array_equal(transform.map_inverse(canvas.astype(np.float32)) > 0.5, marked)


def test_a_header_that_the_pixels_contradict_is_not_believed(tmp_path):
    path = write(tmp_path / "a.dcm", breast(), ImageLaterality="L", ViewPosition="MLO", PatientOrientation=["P", "H"])
    rendered = render(path, Preprocessing(height=60, width=45))
    assert rendered.flags == ("orientation_contradictory",)
    assert not rendered.transform.flip_horizontal and not rendered.transform.flip_vertical


def test_where_the_pixels_show_no_chest_wall_the_header_does(tmp_path):
    pixels = np.ascontiguousarray(breast(400, 300)[150:250, 20:120])
    path = write(tmp_path / "a.dcm", pixels, ImageLaterality="L", ViewPosition="CC", PatientOrientation=["P", "R"])
    rendered = render(path, Preprocessing(height=60, width=45))
    assert rendered.transform.flip_horizontal and rendered.flags == ("stored_mirrored",)


@pytest.mark.parametrize(
    "value", ["", "CC", "MLO", "AP", ["A"], ["A", ""], ["A", "FX"], ["DOE", "JANE"], ["A", "F", "R"]]
)
def test_an_odd_orientation_says_nothing(value):
    header = Dataset()
    header.PatientOrientation = value
    assert orientation.stored(header, "L", "MLO") == ("", False)


def test_without_a_laterality_a_craniocaudal_view_says_nothing_of_up_and_down():
    header = Dataset()
    header.PatientOrientation = ["A", "L"]
    assert orientation.stored(header, "", "CC") == ("left", False)
    assert orientation.stored(header, "L", "") == ("left", False)
