"""MLO views turned upright, from the file to the canvas."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_dicom import write

from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.canvas_boxes import place_boxes
from mammoclip_jax.data.pixels.render import Preprocessing, Source, render
from mammoclip_jax.errors import UserError

PHANTOM = exams.draw(Parameters(seed=3, height=256, width=208), 0)
PLAIN = Preprocessing(height=200, width=160)
UPRIGHT = dataclasses.replace(PLAIN, upright=True)
WAYS = {("L", False): "A\\FR", ("L", True): "A\\HL", ("R", False): "P\\FL", ("R", True): "P\\HR"}


def view(folder, side: str = "L", name: str = "MLO", upside_down: bool = False, mark: tuple[int, int] | None = None):
    """A DICOM file of a phantom's left breast, mirrored for the right one; `mark` is the corner of a bright square."""
    density = exams.render(PHANTOM, "L", name).density.copy()
    if mark:
        density[mark[1] : mark[1] + 6, mark[0] : mark[0] + 6] = 1.2
    density = density[:: -1 if upside_down else 1, :: -1 if side == "R" else 1]
    pixels = np.ascontiguousarray((np.clip(density, 0, 1.3) * 3000).astype(np.uint16))
    return write(
        folder / f"{side}{name}{upside_down}{mark}.dcm",
        pixels,
        ImageLaterality=side,
        ViewPosition=name,
        PatientOrientation=WAYS[side, upside_down].split("\\"),
    )


def test_the_muscle_is_the_left_side(tmp_path):
    angle, distance = PHANTOM.outline("L", "MLO").muscle()
    got = render(view(tmp_path), UPRIGHT)
    assert got.flags == ("upright",) and abs(-got.transform.rotation - angle) <= 5
    turn, y = np.radians(angle), np.linspace(10, 90, 5)
    edge = np.stack([(distance - y * np.sin(turn)) / np.cos(turn), y], axis=1)
    assert (edge > 0).all()
    assert (np.abs(got.transform.points(edge)[:, 0]) < 0.06 * 200).all()
    top, left, bottom, right = got.transform.content
    assert left == 0 and right <= 160 and bottom - top <= 200


@pytest.mark.parametrize("side, upside_down", [("R", False), ("L", True), ("R", True)])
def test_however_it_is_stored(tmp_path, side, upside_down):
    plain, other = render(view(tmp_path), UPRIGHT), render(view(tmp_path, side, upside_down=upside_down), UPRIGHT)
    assert ("upright" in other.flags, "stored_upside_down" in other.flags) == (True, upside_down)
    assert other.transform.rotation == plain.transform.rotation * (1 if (side == "R") == upside_down else -1)
    difference = np.abs(other.image.astype(int) - plain.image)
    assert np.mean(difference > 12) < 0.01


@pytest.mark.parametrize("side", "LR")
def test_boxes_follow_within_half_a_pixel(tmp_path, side):
    """A bright square's centre and box on the canvas, against those that the transform gives."""
    corner = np.array([70, 130])
    got, plain = render(view(tmp_path, side, mark=tuple(corner)), UPRIGHT), render(view(tmp_path, side), UPRIGHT)
    assert got.transform == plain.transform
    added = got.image.astype(float) - plain.image
    added[added < 10] = 0
    ys, xs = np.mgrid[:200, :160] + 0.5
    centre = np.array([(added * xs).sum(), (added * ys).sum()]) / added.sum()
    x = corner[0] if side == "L" else 208 - corner[0] - 6
    box = [float(x), float(corner[1]), float(x + 6), float(corner[1] + 6)]
    boxes = place_boxes(json.dumps([{"label": "mass", "box": box}]), got.transform)
    placed = np.array(json.loads(boxes.canvas)[0]["box"]).reshape(2, 2)
    np.testing.assert_allclose(placed.mean(axis=0), centre, atol=0.5)
    hull = got.transform.boxes([box])[0]
    half = 3 * got.transform.scale[0] * (np.cos(angle := np.radians(abs(got.transform.rotation))) + np.sin(angle))
    np.testing.assert_allclose(hull, [*(placed.mean(axis=0) - half), *(placed.mean(axis=0) + half)], atol=0.5)
    middle = got.transform.points_inverse([centre])[0]
    np.testing.assert_allclose(middle, np.reshape(box, (2, 2)).mean(axis=0), atol=0.5 / got.transform.scale[0])


def test_without_a_line_the_view_stays_as_it_is(tmp_path):
    cc = view(tmp_path, name="CC")
    taken_for_mlo = render(cc, UPRIGHT, "L", "MLO")
    assert taken_for_mlo.flags == ("view_differs", "no_pectoral_line")
    plain = render(cc, PLAIN)
    np.testing.assert_array_equal(taken_for_mlo.image, plain.image)
    assert taken_for_mlo.transform == plain.transform
    untouched = render(cc, UPRIGHT)
    assert untouched.flags == () and untouched.transform == plain.transform


def test_the_crop_of_the_file_holds_for_every_recipe(tmp_path):
    path = view(tmp_path)
    for recipe in (
        dict(crop="none"),
        dict(crop="published"),
        dict(geometry="stretch"),
        dict(chest_wall="as_is"),
        dict(intensity="published"),
        dict(bits=16),
        dict(outside="kept"),
    ):
        got = render(path, dataclasses.replace(UPRIGHT, **recipe))
        assert "upright" in got.flags and got.image.shape == (200, 160) and got.image.std() > 1


def test_one_scale_for_a_breast(tmp_path):
    shared = dataclasses.replace(UPRIGHT, scale="breast")
    cc, mlo = view(tmp_path, name="CC"), view(tmp_path)
    apart = [render(path, UPRIGHT).transform.scale for path in (cc, mlo)]
    assert abs(apart[0][1] - apart[1][1]) > 0.01
    together = [render(path, shared, others=[Source(other)]) for path, other in ((cc, mlo), (mlo, cc))]
    scales = [got.transform.scale[1] for got in together]
    assert max(scales) == pytest.approx(min(scales), abs=0.01) == pytest.approx(min(apart)[1], abs=0.01)
    assert all("scale_alone" not in got.flags for got in together)
    alone = render(cc, shared)
    assert alone.flags == ("scale_alone",) and alone.transform.scale == apart[0]


def test_what_no_reader_compares_shares_no_scale(tmp_path):
    shared = dataclasses.replace(PLAIN, scale="breast")
    cc, mlo = view(tmp_path, name="CC"), view(tmp_path)
    assert "scale_alone" in render(cc, shared, others=[Source(mlo, view="ML")]).flags
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(mlo.read_bytes()[:2000])
    assert "scale_alone" in render(cc, shared, others=[Source(damaged)]).flags
    assert "scale_alone" in render(cc, shared, "L", "XCCL", [Source(mlo)]).flags


def test_the_options_are_written_only_where_they_are_chosen():
    assert not {"upright", "scale"} & PLAIN.as_dict().keys()
    both = dataclasses.replace(UPRIGHT, scale="breast")
    assert Preprocessing.from_dict(json.loads(json.dumps(both.as_dict()))) == both
    for wrong, said in (
        (dict(scale="brest"), "Did you mean 'breast'"),
        (dict(upright="yes"), "no upright 'yes'"),
        (dict(scale="breast", geometry="stretch"), "geometry 'stretch' keeps no scale"),
    ):
        with pytest.raises(UserError, match=said):
            Preprocessing(**wrong)
