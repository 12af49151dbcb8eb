"""Boxes and masks of a data set as regions."""

import json

import numpy as np

from mammoclip_jax.data.regions import annotated


def test_boxes_are_those_of_the_index(dataset):
    found = annotated.boxes(dataset).find(range(len(dataset)), None)
    for each, text in zip(found, dataset.index["boxes_canvas"], strict=True):
        items = json.loads(text)
        assert list(each.labels) == [item["label"] for item in items] and each.boxes.dtype == np.float32
        np.testing.assert_array_equal(each.boxes, np.array([item["box"] for item in items], np.float32).reshape(-1, 4))
    assert sum(len(each.boxes) for each in found) >= 8


def test_parts_of_masks_lie_where_the_boxes_do(dataset):
    method = annotated.masks(dataset, least=0.0)
    assert not method.pixels and method.made_by["options"]["channels"] == ["mass", "calcification"]
    for each, text in zip(method.find(range(len(dataset)), None), dataset.index["boxes_canvas"], strict=True):
        for kind in ("mass", "calcification"):
            boxes = np.array([item["box"] for item in json.loads(text) if item["label"] == kind])
            own = np.array([box for box, label in zip(each.boxes, each.labels) if label == kind])
            assert len(own) == len(boxes) if kind == "mass" else bool(len(own)) == bool(len(boxes))
            if len(own):  # a cluster is many parts
                around = [own[:, :2].min(0), boxes[:, :2].min(0), own[:, 2:].max(0), boxes[:, 2:].max(0)]
                assert np.abs(around[0] - around[1]).max() <= 3 and np.abs(around[2] - around[3]).max() <= 3
