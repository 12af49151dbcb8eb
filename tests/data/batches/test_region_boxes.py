"""Boxes that a detector learns from: those of tables take the place of the annotated ones, where the labels allow it."""

import json

import numpy as np
import pandas as pd
import pytest
from small_phantoms import prepared

from mammoclip_jax import tasks
from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import labelled
from mammoclip_jax.data.batches.region_boxes import with_boxes_of
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    made = prepared(tmp_path_factory.mktemp("boxes"), exams=1, mass_prevalence=1.0)
    known = [{"mass": 1, "calcification": 0}, {"mass": 0}, {"mass": 1}, {}]
    made.index["labels"] = [json.dumps(labels) for labels in known]
    rows = [
        (0, 1, 2, 11, 22, 0.9, "mass", []),
        (0, 3, 4, 5, 6, 0.5, "calcification", []),  # which the image is known to lack
        (1, 1, 1, 9, 9, 0.4, "mass", []),  # the same
        (3, 2, 2, 8, 8, 0.2, "mass, calcification", []),
        (3, 2, 3, 8, 8, 0.2, "", []),
    ]
    frame = pd.DataFrame(rows, columns=region_tables.COLUMNS.names)
    region_tables.write(made.path, "factor", frame, {"method": "factor"})
    return made


def test_boxes_of_a_table_take_the_place_of_annotated_ones(dataset):
    found = with_boxes_of(dataset, ("factor",))
    boxes = [json.loads(own) for own in found.index["boxes_canvas"]]
    assert boxes == [
        [{"labels": ["mass"], "box": [1, 2, 11, 22]}],
        [],
        [],
        [{"labels": ["mass", "calcification"], "box": [2, 2, 8, 8]}],
    ]
    np.testing.assert_array_equal(found.read(2), dataset.read(2))
    both = with_boxes_of(dataset, ("boxes", "factor"))
    annotated = [json.loads(own) for own in dataset.index["boxes_canvas"]]
    assert [json.loads(own) for own in both.index["boxes_canvas"]] == [a + b for a, b in zip(annotated, boxes)]
    assert with_boxes_of(dataset, ("boxes",)) is dataset
    with pytest.raises(UserError, match="no regions 'factors'"):
        with_boxes_of(dataset, ("factors",))
    with pytest.raises(UserError, match="sources is empty"):
        with_boxes_of(dataset, ())


def test_an_image_that_shows_a_label_without_a_box_teaches_no_background(dataset):
    found = with_boxes_of(dataset, ("factor",))
    examples = labelled.examples([found], dataset.index["split"][0], labelled.Target(("mass",), boxes=True))
    targets = {example.images[0][0]: example.target[0] for example in examples}
    assert targets == {0: 1, 1: 0, 3: 1}  # row 2 has a mass somewhere


def test_a_detectors_config_may_name_a_table_and_nothing_else_of_regions():
    config = defaults()
    config.task.kind, config.model.labels = "detector", ("mass",)
    config.data.folders.set = "set"
    config.data.regions.sources = ("factor",)
    config.data.regions.make.factor = dict(method="factor", model="runs/factor")
    tasks.check(config)
    config.data.regions.places = 4
    with pytest.raises(UserError, match="nothing reads config.data.regions.places"):
        tasks.check(config)
