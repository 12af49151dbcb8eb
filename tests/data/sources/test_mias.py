"""mini-MIAS: on the real films where they are at hand, else on a small folder in the same format."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.pixels.breast import crop_of, find
from mammoclip_jax.data.pixels.render import Preprocessing, render
from mammoclip_jax.data.sources import mias
from mammoclip_jax.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "mias"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data of {SHARED} is not here")
LINES = [
    "mdb001 G CIRC B 535 425 197",
    "mdb002 F NORM",
    "mdb003 D CALC M *NOTE 3*",
    "mdb004 D SPIC M 10 20 30",
    "mdb004 D ASYM B 500 600 70",
    "mdb005 F NORM",
    "mdb006 X NORM",
    "mdb7",
    "mdb008 F CIRC B 2000 2000 10",
]


def make(root: Path) -> Path:
    (root / "Info.txt").write_text("1st column: mdb\n" + "\n".join(LINES))
    return root


def test_rows(tmp_path):
    table = mias.read(make(tmp_path))
    rows = table.rows.set_index("image")
    assert list(rows.index) == ["mdb001", "mdb002", "mdb003", "mdb004", "mdb005", "mdb008"]
    assert json.loads(rows.loc["mdb001", "boxes"]) == [{"label": "mass", "box": [338, 402, 732, 796]}]
    assert json.loads(rows.loc["mdb003", "boxes"]) == [] == json.loads(rows.loc["mdb008", "boxes"])
    assert [item["box"] for item in json.loads(rows.loc["mdb004", "boxes"])] == [
        [0, 974, 40, 1024],
        [430, 354, 570, 494],
    ]
    assert json.loads(rows.loc["mdb002", "labels"]) == {
        "density": "F",
        "abnormal": 0,
        "calcification": 0,
        "mass": 0,
        "architectural_distortion": 0,
        "asymmetry": 0,
        "cancer": 0,
    }
    labels = json.loads(rows.loc["mdb004", "labels"])
    assert labels == {"density": "D", "abnormal": 1, "mass": 1, "asymmetry": 1, "abnormality": "SPIC,ASYM", "cancer": 1}
    assert list(rows["patient"]) == ["mias001", "mias001", "mias002", "mias002", "mias003", "mias004"]
    assert set(rows["laterality"]) == {""} and set(rows["view"]) == {"MLO"} and set(rows["size"]) == {"1024 1024"}
    assert list(rows["row"])[:2] == ["Info.txt:2", "Info.txt:3"] and list(rows["file"])[0] == "mdb001.pgm"
    assert [(problem.kind, problem.row) for problem in table.problems] == [
        ("malformed line", "Info.txt:8"),
        ("malformed line", "Info.txt:9"),
    ]
    assert table.table_rows == len(LINES) and table.partial and table.public_ids


def test_a_film_without_a_line_is_a_problem(tmp_path):
    (make(tmp_path) / "mdb099.pgm").touch()
    assert [problem.reason for problem in mias.read(tmp_path).problems[2:]] == ["no line in Info.txt"]
    with pytest.raises(UserError, match="Info.txt"):
        mias.read(tmp_path / "nowhere")


@needs_shared
def test_real_counts_and_splits():
    table = checked(mias.read(SHARED))
    assert len(table.rows) == 162 and not table.problems and table.table_rows == 166
    assert table.rows["patient"].nunique() == 81
    assert (table.rows.groupby("patient")["split"].nunique() == 1).all()
    assert set(table.rows["split"]) == {"train", "val", "test"}


@pytest.fixture(scope="module")
def boxed():
    rows = mias.read(SHARED).rows
    return list(rows[rows["boxes"] != "[]"].itertuples())


@needs_shared
def test_real_circles_lie_on_bright_tissue(boxed):
    """A circle read with the wrong origin falls outside the breast for many films; none does with the right one."""
    inside = []
    for row in boxed[:30]:
        film = cv2.imread(str(SHARED / row.file), cv2.IMREAD_UNCHANGED)
        for item in json.loads(row.boxes):
            x0, y0, x1, y1 = item["box"]
            y, x = (y0 + y1) // 2, (x0 + x1) // 2
            inside.append(film[y - 5 : y + 5, x - 5 : x + 5].mean() > 60)
    assert all(inside)


@needs_shared
@pytest.mark.parametrize("geometry", ["fit", "stretch"])
def test_real_boxes_show_the_same_tissue_on_the_canvas(boxed, geometry):
    """What the canvas shows in a box is the film's own box: mirrored, scaled, never moved."""
    for row in boxed[:6]:
        film = cv2.imread(str(SHARED / row.file), cv2.IMREAD_UNCHANGED).astype(np.float32)
        rendered = render(SHARED / row.file, Preprocessing(geometry, 400, 240))
        box = np.array(json.loads(row.boxes)[0]["box"])
        x0, y0, x1, y1 = np.rint(rendered.transform.boxes([box])[0]).astype(int)
        seen = rendered.image[y0:y1, x0:x1].astype(np.float32)
        patch = film[box[1] : box[3], box[0] : box[2]]
        patch = patch[:, ::-1] if rendered.transform.flip_horizontal else patch
        expected = cv2.resize(patch, seen.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.9


@needs_shared
def test_real_crops_hold_the_finding(boxed):
    for row in boxed:
        image = cv2.imread(str(SHARED / row.file), cv2.IMREAD_UNCHANGED)
        crop = crop_of(find(image), image.shape)
        for item in json.loads(row.boxes):
            x0, y0, x1, y1 = item["box"]
            assert crop[1] <= (x0 + x1) / 2 < crop[3] and crop[0] <= (y0 + y1) / 2 < crop[2], row.image
