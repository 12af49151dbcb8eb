"""Boxes all over the breast: where they lie, and that they cover what is there to be found."""

import json

import numpy as np
import pytest

from mammoclip_jax.boxes import area, iou
from mammoclip_jax.data.pixels import breast
from mammoclip_jax.data.regions import sliding


@pytest.fixture(scope="module")
def found(dataset):
    method = sliding.sliding(dataset)
    rows = range(len(dataset))
    return method.find(rows, [dataset.read(row) for row in rows])


def test_boxes_are_of_the_sizes_on_the_breast_and_apart(dataset, found):
    for row, each in enumerate(found):
        image = dataset.read(row)
        boxes = each.boxes.astype(np.float64)
        assert len(boxes) == 64 and not any(each.labels)
        assert (np.diff(each.scores) <= 0).all() and each.scores[0] > 0.5 and (each.scores >= 0).all()
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (128, 192)).all()
        sides = np.sqrt(area(boxes)) / 192
        assert (np.abs(np.log(sides[:, None] / sliding.SCALES)).min(axis=1) < 0.25).all()
        assert len({np.abs(np.log(side / np.array(sliding.SCALES))).argmin() for side in sides}) == 4
        overlaps = iou(boxes[:, None], boxes) - np.eye(64)
        assert overlaps.max() <= 0.5 + 1e-6
        tissue, factor = breast.breast_mask(image)
        assert factor == 1
        inside = [tissue[int(y0) : int(y1), int(x0) : int(x1)].mean() for x0, y0, x1, y1 in boxes]
        assert min(inside) >= 0.5 and tissue.mean() < 0.9


def test_lesions_are_covered(dataset, found):
    """All by .25, most by .5; and a few places by contrast cover more than as many drawn at random."""
    best, few, blind = [], [], []
    for row, each in enumerate(found):
        truth = np.array([item["box"] for item in json.loads(dataset.index["boxes_canvas"][row])], np.float32)
        best += list(iou(truth[:, None], each.boxes).max(axis=1))
        for share, least in ((0.0, few), (1.0, blind)):
            boxes = sliding.propose(dataset.read(row), places=16, drawn=share).boxes
            least += list(iou(truth[:, None], boxes).max(axis=1))
    best = np.array(best)
    assert len(best) >= 8 and (best >= 0.25).all() and (best >= 0.5).mean() >= 0.7
    assert np.mean(few) > np.mean(blind) + 0.1


def test_the_seed_draws_a_share_and_nothing_else(dataset):
    image = dataset.read(0)
    one, same, other = (sliding.propose(image, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.boxes, same.boxes)
    shared = {tuple(box) for box in one.boxes} & {tuple(box) for box in other.boxes}
    assert 48 <= len(shared) < 64  # a quarter is drawn
    few = sliding.propose(image, places=8, drawn=0.0, seed=1)
    assert len(few.boxes) == 8 and {tuple(box) for box in few.boxes} <= shared
    assert few.dropped["not sampled"] == one.dropped["not sampled"] + 56


def test_an_image_of_nothing_and_of_16_bits(dataset):
    flat = sliding.propose(np.full((96, 64), 90, np.uint8))
    assert len(flat.boxes) == 64 and np.isfinite(flat.scores).all()
    image = dataset.read(0)
    deep = sliding.propose(image.astype(np.uint16) * 257)
    assert np.median(iou(deep.boxes[:16, None], sliding.propose(image).boxes).max(axis=1)) > 0.9
