"""exam.html: hangs right, needs nothing from anywhere, says what lacks, and names nobody."""

import base64
import re

import cv2
import numpy as np
import pytest

from mammoclip_jax.delivery.page import exam_page

FILES = "Doe_Jane_19560203"


def view(side, name, folder, **more):
    """A view with its picture: bright at the chest wall, as it is displayed."""
    picture = np.zeros((40, 30), np.uint8)
    picture[:, :10] = 200
    heat = np.zeros((40, 30, 4), np.uint8)
    heat[5:10, 20:25] = (0, 0, 255, 150)
    if side == "R":
        picture, heat = picture[:, ::-1], heat[:, ::-1]
    stem = f"{side}-{name}"
    cv2.imwrite(str(folder / f"{stem}.png"), picture)
    cv2.imwrite(str(folder / f"{stem}_mass_map.png"), heat)
    return {
        "file": f"{FILES}/{stem}.dcm",
        "laterality": side,
        "view": name,
        "notes": [],
        "scores": {"mass": 0.25},
        "original": [40, 30],
        "transform": {"flip_horizontal": side == "R", "flip_vertical": False},
        "picture": f"{stem}.png",
        "maps": {"mass": f"{stem}_mass_map.png"},
    } | more


@pytest.fixture
def exam(tmp_path):
    box = [{"label": "mass", "score": 0.9, "box": [20, 5, 25, 10]}]
    views = [view("L", "MLO", tmp_path, boxes=box), view("R", "CC", tmp_path), view("L", "CC", tmp_path)]
    return {
        "exam": "exam-0001",
        "views": views,
        "breasts": [{"laterality": "L", "files": [f"{FILES}/x.dcm"], "scores": {"mass": {"mean": 0.2, "max": 0.25}}}],
        "scores": {"mass": {"mean": 0.2, "max": 0.25}},
        "problems": 1,
        "missing": ["R MLO"],
        "left_out": [{"file": f"{FILES}/spot.dcm", "reason": "spot"}, {"file": "y", "reason": "spot"}],
    }


SAID = {
    "aggregation": {"view": "a difference of cosines", "exam": "mean and max"},
    "method": "grad_cam",
    "stage": "stage3",
    "step": 540,
    "preprocessing": {"geometry": "fit", "chest_wall": "left", "height": 192, "width": 128, "bits": 8},
    "preprocessing_fingerprint": "0123456789abcdef",
    "provenance": {"data": {"vindr": {}}},
    "model": {"name": "demo", "kind": "dual encoder", "fingerprint": "feedc0ffee"},
}


def pictures(page, kind):
    """The embedded pictures of an element's kind, in order."""
    found = re.findall(rf'<image class="{kind}[^>]*?href="data:image/\w+;base64,([^"]+)"', page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_UNCHANGED) for each in found]


def test_the_views_hang_with_their_chest_walls_together(exam, tmp_path):
    page = exam_page(exam, SAID, tmp_path)
    assert re.findall(r'data-view="([^"]+)"', page) == ["R CC", "L CC", "R MLO", "L MLO"]
    right, *left = pictures(page, "film")
    assert right[:, -8:].mean() > 150 > 50 > right[:, :15].mean()
    assert all(film[:, :8].mean() > 150 > 50 > film[:, 15:].mean() for film in left)
    heat = pictures(page, "heat")
    assert heat[0][7, 7, 3] == 150 and heat[1][7, 22, 3] == 150  # the layers go with their images


def test_what_is_stored_another_way_round_is_turned(exam, tmp_path):
    """Stored mirrored and upside down: the picture is the stored one, the page shows it upright."""
    one = exam["views"][2]
    cv2.imwrite(str(tmp_path / one["picture"]), cv2.imread(str(tmp_path / one["picture"]), 0)[::-1, ::-1])
    one["transform"] = {"flip_horizontal": True, "flip_vertical": True}
    one["boxes"] = [{"label": "mass", "score": 0.9, "box": [5, 30, 10, 35]}]
    page = exam_page(exam | {"views": [one]}, SAID, tmp_path)
    (film,) = pictures(page, "film")
    assert film[:, :8].mean() > 150
    assert 'x="66.667%" y="12.500%"' in page


def test_boxes_lie_on_the_picture_as_it_hangs(exam, tmp_path):
    page = exam_page(exam, SAID, tmp_path)
    assert 'x="66.667%" y="12.500%" width="16.667%" height="12.500%"' in page and "<title>mass 0.90</title>" in page


def test_the_page_says_what_lacks_and_what_made_it(exam, tmp_path):
    page = exam_page(exam, SAID, tmp_path)
    for said in (
        "Missing: R MLO",
        "1 file of the exam could not be read",
        "2 images, spot",
        "a difference of cosines",
        "grad_cam at stage3",
        "feedc0ffee",
        "+0.250",
    ):
        assert said in page
    assert "not there" in page and "vindr" in page


def test_nothing_is_asked_of_anybody_and_nobody_is_named(exam, tmp_path):
    exam["views"][0]["notes"] = ['laterality unknown <script>alert("x")</script>']
    page = exam_page(exam, SAID | {"provenance": {"data": {"/home/someone/data/x": {}}}}, tmp_path)
    assert not re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?(?!data:)[^"')\s]""", page)
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert "Doe" not in page and ".dcm" not in page and str(tmp_path) not in page and "/home/someone" not in page
    assert "<script>alert" not in page


def test_a_page_without_pictures_scores_or_maps(tmp_path):
    bare = {"exam": "exam-0002", "views": [{"laterality": None, "view": None}], "left_out": [], "missing": []}
    page = exam_page(bare, {}, tmp_path)
    assert "view unknown" in page and "<h2>Scores</h2>" not in page
    assert "no view was scored" in exam_page(bare | {"views": []}, {}, tmp_path)
