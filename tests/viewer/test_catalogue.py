"""Exams of a data set: opaque names, filters, order, how they hang, texts as stored."""

import json

import numpy as np
import pytest
from small_set import dataset

from mammoclip_jax.delivery.hanging import Hung
from mammoclip_jax.viewer.catalogue import Catalogue, Filters


@pytest.fixture(scope="module")
def data():
    return dataset()


@pytest.fixture(scope="module")
def catalogue(data):
    return Catalogue(data)


def test_names_say_nothing_and_stay(catalogue, data):
    again = Catalogue(dataset())
    assert again.exams == catalogue.exams and again.images == catalogue.images
    assert len({*catalogue.exams, *catalogue.images}) == 6 + 24 and all(len(name) == 16 for name in catalogue.exams)
    said = json.dumps([catalogue.summary(e) | {"v": catalogue.views(e), "o": catalogue.others(e)} for e in range(6)])
    for column in ("patient", "study", "image"):
        assert not any(value in said for value in data.index[column])
    with pytest.raises(KeyError):
        catalogue.exam("p000")


def test_facets_count_exams(catalogue, data):
    assert catalogue.facets["vendor"] == {"Maker A": 3, "Maker B": 3}
    assert catalogue.facets["density"] == {"A": 2, "B": 2, "C": 1, "D": 1}
    assert "split" not in catalogue.facets  # there is but one
    assert sum(catalogue.facets["mass"].values()) >= 6


def test_filters_and_order(catalogue, data):
    mass = catalogue.of_label("mass") == "1"
    exams = lambda keep: sorted(set(catalogue.exam_of[keep].tolist()))  # noqa: E731
    assert catalogue.select(Filters(labels={"mass": "1"})).tolist() == exams(mass)
    of_a = (data.index["vendor"] == "Maker A").to_numpy()
    assert catalogue.select(Filters({"vendor": "Maker A"}, {"mass": "1"})).tolist() == exams(mass & of_a)
    assert catalogue.select(Filters(text="MASS IN BREAST 3")).tolist() == exams(mass & (catalogue.exam_of == 3))
    inside = np.arange(24) == 9
    assert catalogue.select(Filters(inside=inside)).tolist() == [2]
    score = np.full(24, np.nan)
    score[[0, 5, 12]] = [0.2, 0.9, 0.5]
    assert catalogue.select(order="highest", score=score).tolist() == [1, 3, 0, 2, 4, 5]
    assert catalogue.select(order="lowest", score=score).tolist() == [0, 3, 1, 2, 4, 5]
    assert catalogue.select(Filters(low=0.3, high=0.6), score=score).tolist() == [3]
    assert catalogue.select(order="wrong first", score=score, wrong=1 - score).tolist()[:3] == [0, 3, 1]


def test_right_breasts_are_mirrored_and_hang_at_the_left(catalogue):
    rows = catalogue.hung(0)
    views = catalogue.views(0)
    assert [row["view"] for row in rows] == ["CC", "MLO"]
    for row in rows:
        assert views[row["left"]["place"]]["laterality"] == "R" and row["left"]["mirrored"]
        assert views[row["right"]["place"]]["laterality"] == "L" and not row["right"]["mirrored"]
    assert [catalogue.mirrored(place) for place in range(4)] == [view["laterality"] == "R" for view in views]
    assert Hung(0, True)._asdict() == {"place": 0, "mirrored": True}


def test_reports_once_and_boxes_on_the_canvas(catalogue, data):
    reports = catalogue.reports(2)
    assert sorted(side for one in reports for side in one["of"]) == ["L", "R"]
    assert {one["text"] for one in reports} == {text for texts in data.index["texts"][8:12] for text in texts}
    boxes = [box["box"] for view in catalogue.views(2) for box in view["boxes"]]
    assert boxes == [item["box"] for text in data.index["boxes_canvas"][8:12] for item in json.loads(text)]


def test_stretched_pixels_are_as_tall_as_in_the_original(data):
    other = dataset()
    transform = {"original": [400, 100], "crop": [0, 0, 400, 100], "flip_horizontal": False, "scale": [0.16, 0.48]}
    other.index["transform"] = json.dumps(transform | {"offset": [0, 0], "canvas": [64, 48]})
    assert Catalogue(other).views(0)[0]["tall"] == pytest.approx(3)
    assert Catalogue(data).views(0)[0]["tall"] == 1


def test_other_exams_of_the_patient(data):
    other = dataset()
    other.index["patient"] = ["a"] * 8 + ["b"] * 16
    other.index.loc[4:7, "labels"] = '{"study_day": 365}'
    catalogue = Catalogue(other)
    assert catalogue.others(0) == [{"id": catalogue.exams[1], "day": "365"}]
    assert len(catalogue.others(3)) == 3
