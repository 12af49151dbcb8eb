"""The hottest part of a map against its boxes, by loops over pixels and boxes."""

import numpy as np
import pytest
from naive_boxes import naive_iou

from mammoclip_jax.data.regions.of_maps import hottest
from mammoclip_jax.evaluation.evaluators.saliency import inside
from mammoclip_jax.evaluation.metrics import regions


def naive_regions(part):
    """Bounding boxes (x0, y0, x1, y1) of what is connected over sides and corners, by flooding."""
    left, found = {tuple(place) for place in np.argwhere(part)}, []
    while left:
        edge, seen = [left.pop()], []
        while edge:
            y, x = edge.pop()
            seen.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        (y0, x0), (y1, x1) = np.min(seen, axis=0), np.max(seen, axis=0)
        found.append((x0, y0, x1 + 1, y1 + 1))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quantile", [0.7, 0.95])
def test_overlap_equals_loops(seed, quantile):
    rng = np.random.default_rng(seed)
    boxes = np.array([[2.0, 3.0, 9.4, 12.0], [8.0, 1.0, 14.0, 8.6], [16.2, 20.0, 20.0, 26.0]])
    heat = rng.random((30, 24)).astype(np.float32) * 0.2
    for x0, y0, x1, y1 in boxes[:2].astype(int) + rng.integers(-2, 3, (2, 4)):
        heat[max(y0, 0) : y1, max(x0, 0) : x1] += 0.5
    tissue = np.ones(heat.shape, bool)
    tissue[:, 21:] = False
    part = hottest(heat, tissue, quantile)
    least = np.quantile([heat[place] for place in np.ndindex(heat.shape) if tissue[place]], quantile)
    both = either = size = box_size = 0
    for y, x in np.ndindex(heat.shape):
        hot = tissue[y, x] and heat[y, x] >= least
        assert part[y, x] == hot
        boxed = any(x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x0, y0, x1, y1 in boxes)
        both, either, size, box_size = both + (hot and boxed), either + (hot or boxed), size + hot, box_size + boxed
    found = regions.overlap(part, boxes)
    around = naive_regions(part)
    assert found.iou == pytest.approx(both / either) and found.dice == pytest.approx(2 * both / (size + box_size))
    assert found.boxes == 3 and found.regions == len(around)
    assert found.found == tuple(
        sum(any(naive_iou(box, other) >= limit for other in around) for box in boxes) for limit in (0.25, 0.5)
    )


def test_some_boxes_are_found_and_one_is_not():
    boxes = np.array([[2.0, 2.0, 8.0, 8.0], [12.0, 12.0, 16.0, 16.0]])
    part = np.zeros((20, 20), bool)
    part[2:8, 2:6] = True  # IoU 24 / 36 with the first
    assert regions.overlap(part, boxes).found == (1, 1)
    part[2:8, 4:6] = False  # 12 / 36
    assert regions.overlap(part, boxes).found == (1, 0)


def test_a_flat_map_and_one_that_is_mostly_zero():
    tissue = np.ones((6, 5), bool)
    flat = regions.overlap(hottest(np.full((6, 5), 0.3), tissue, 0.9), np.array([[0.0, 0, 2, 2]]))
    assert (flat.iou, flat.dice, flat.found, flat.regions) == (0, 0, (0, 0), 0)
    heat = np.zeros((6, 5))
    heat[2, 3] = 1
    assert hottest(heat, tissue, 0.5).sum() == 1  # the median is 0, and 0 is no prediction


def test_the_mask_of_boxes_is_what_is_inside_them():
    boxes = np.random.default_rng(0).uniform(0, 20, (5, 2)).repeat(2, axis=0).reshape(5, 4) + [0, 0, 4.5, 6]
    grid = np.stack(np.meshgrid(np.arange(24), np.arange(30)), -1).reshape(-1, 2) + 0.5
    np.testing.assert_array_equal(regions.boxes_mask(boxes, (30, 24)).ravel(), inside(grid, boxes))
