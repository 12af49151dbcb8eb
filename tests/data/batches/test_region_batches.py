"""Regions of images in batches: which come first, and the concepts that nothing known of them denies."""

import json

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.batches import regions
from mammoclip_jax.data.batches.regions import Regions
from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.errors import UserError

from fake_sets import FakeDataset  # isort: skip

MASS = {"label": "Mass", "box": [10, 10, 30, 30]}
CALCIFICATION = {"label": "calcification", "box": [40, 40, 44, 44]}
# Concepts of the lexicon, in its order.
M, C, BACKGROUND = range(3)


def row(labels, boxes=(), split="train"):
    return dict(labels=json.dumps(labels), boxes_canvas=json.dumps(list(boxes)), split=split)


ROWS = [
    row({"mass": 1, "calcification": 1}, [MASS, CALCIFICATION]),
    row({"mass": 0, "calcification": 0}),
    row({"mass": 1, "calcification": 0}),  # somewhere
    row({}),
    row({"mass": 1, "calcification": 0}, [MASS]),
    row({"mass": 1, "calcification": 1}, [MASS], split="test"),
]
LEXICON = {
    "sections": [
        {"name": "mass", "parts": [{"when": {"mass": ["1"]}, "texts": "a mass"}]},
        {"name": "specks", "parts": [{"when": {"calcification": ["1"]}, "texts": "calcifications"}]},
        {"name": "background", "parts": [{"texts": "no finding"}]},
    ]
}
# Of each image a region on the mass's place and one that touches nothing.
PLACES = [[12, 12, 28, 28], [60, 60, 70, 70]]


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"fingerprint": "f"}))
    (tmp_path / "lexicon.json").write_text(json.dumps(LEXICON))
    return FakeDataset(ROWS, tmp_path)


def table(dataset, name="others", labels=("", ""), cosines=(), **info):
    frame = pd.DataFrame(
        [(i, *box, 0.5, label, list(cosines)) for i in range(len(ROWS)) for box, label in zip(PLACES, labels)],
        columns=tables.COLUMNS.names,
    )
    tables.write(dataset.path, name, frame, info)


def read(dataset, records, **options):
    wanted = Regions(**{"places": 4, "concepts": str(dataset.path / "lexicon.json")} | options)
    return regions.reader([dataset], "train", wanted)(0, records, np.random.default_rng(0))


def shown(found, view):
    """{box: concepts allowed} of a view."""
    return {
        tuple(map(int, box)): np.flatnonzero(allowed).tolist()
        for box, kind, allowed in zip(found["boxes"][view], found["box_classes"][view], found["region_allowed"][view])
        if kind >= 0
    }


def test_a_box_shows_its_finding_and_what_is_not_there_is_marked(dataset):
    found = read(dataset, [0, 1, 4])
    assert shown(found, 0) == {(10, 10, 30, 30): [M], (40, 40, 44, 44): [C]}
    assert shown(found, 1) == {} and shown(found, 2) == {(10, 10, 30, 30): [M]}
    assert (found["region_cosines"] == 0).all() and found["region_allowed"].dtype == bool
    np.testing.assert_array_equal(np.sort(found["box_classes"])[0], [-1, -1, 0, 0])


def test_without_a_teacher_a_region_is_only_what_it_must_be(dataset):
    table(dataset)
    found = read(dataset, range(5), sources=("others",))
    denied = {tuple(place): [BACKGROUND] for place in PLACES}  # both findings are denied
    unknown = {tuple(place): [] for place in PLACES}
    assert [shown(found, view) for view in range(5)] == [unknown, denied, unknown, unknown, unknown]
    found = read(dataset, range(5), sources=("boxes", "others"), background=True)
    assert shown(found, 0)[tuple(PLACES[0])] == [] and shown(found, 0)[tuple(PLACES[1])] == [BACKGROUND]
    # The mass of image 2 has no box: it may be anywhere. Of image 3 nothing is known.
    assert shown(found, 2) == unknown and shown(found, 3) == unknown
    assert shown(found, 4)[tuple(PLACES[1])] == [BACKGROUND]


def test_a_teacher_may_say_all_that_is_not_denied(dataset):
    table(dataset, cosines=(0.1, 0.9, 0.2))
    found = read(dataset, range(5), sources=("others",))
    allowed = [shown(found, view)[tuple(PLACES[0])] for view in range(5)]
    assert allowed == [[M, C, BACKGROUND], [BACKGROUND], [M, BACKGROUND], [], [M, BACKGROUND]]
    np.testing.assert_allclose(found["region_cosines"][:, :2], np.broadcast_to([0.1, 0.9, 0.2], (5, 2, 3)), rtol=1e-6)
    # Its own label narrows nothing: the cosines say as much, and more.
    table(dataset, labels=("specks", "nothing"), cosines=(0.1, 0.9, 0.2))
    found = read(dataset, [0, 4], sources=("others",))
    assert [shown(found, view)[tuple(place)] for view, place in enumerate(PLACES)] == [
        [M, C, BACKGROUND],
        [M, BACKGROUND],
    ]
    # A label that a method gave is one concept, unless the image denies it.
    table(dataset, labels=("Calcification, other", ""))
    found = read(dataset, [0, 4], sources=("others",))
    assert [shown(found, view)[tuple(PLACES[0])] for view in range(2)] == [[C], []]


def test_annotated_boxes_come_before_others_and_those_are_any(dataset):
    table(dataset)
    wanted = Regions(2, ("boxes", "others"), str(dataset.path / "lexicon.json"))
    draw = regions.reader([dataset], "train", wanted)
    drawn = [draw(0, [0, 4], np.random.default_rng(seed)) for seed in range(20)]
    assert all(set(shown(found, 0)) == {(10, 10, 30, 30), (40, 40, 44, 44)} for found in drawn)
    others = [set(shown(found, 1)) - {(10, 10, 30, 30)} for found in drawn]
    assert set.union(*others) == {tuple(place) for place in PLACES} and {len(other) for other in others} == {1}


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(places=-1), "must be 0"),
        (dict(places=0, concepts="phantom"), "nothing reads config.data.regions.concepts"),
        (dict(places=2), "names no lexicon"),
        (dict(places=2, sources=(), concepts="phantom"), "sources is empty"),
        (dict(places=2, concepts="phantom", background=True), "a table in config.data.regions.sources"),
    ],
)
def test_what_does_not_go_together_is_an_error(given, message):
    usual = dict(places=0, sources=("boxes",), concepts="", background=False)
    with pytest.raises(UserError, match=message):
        regions.regions(usual | given)


def test_tables_that_are_not_there_or_of_other_concepts(dataset):
    with pytest.raises(UserError, match="has no regions 'others'"):
        read(dataset, [0], sources=("others",))
    table(dataset, concepts={"names": ["a", "b"]})
    with pytest.raises(UserError, match="were compared with the concepts a, b"):
        read(dataset, [0], sources=("others",))
    with pytest.raises(UserError, match="no image in split 'test2'"):
        regions.reader([dataset], "test2", Regions(2, concepts="phantom"))
