"""What methods share: suppression as by its definition, boxes on the canvas."""

import numpy as np

from mammoclip_jax.boxes import iou
from mammoclip_jax.data.regions.found import Found, by_size, on_canvas, suppressed


def test_suppression_is_greedy():
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 20, (60, 2))
    boxes, scores = np.concatenate([corner, corner + generator.uniform(3, 12, (60, 2))], 1), generator.random(60)
    scores[7] = scores[3] = 2.0  # equal ones: the first counts as the higher
    boxes[7] = boxes[3]
    wanted = []
    for place in sorted(range(60), key=lambda place: (-scores[place], place)):
        if all(iou(boxes[place], boxes[kept]) <= 0.3 for kept in wanted):
            wanted.append(place)
    assert suppressed(boxes, scores, 0.3, 60).tolist() == wanted and 5 < len(wanted) < 40 and wanted[0] == 3
    assert suppressed(boxes, scores, 0.3, 4).tolist() == wanted[:4]


def test_what_is_not_on_the_canvas_is_dropped_and_counted():
    boxes = np.array([[-4, 2, 6, 30], [70, 2, 80, 9], [5, 5, 5, 9]], np.float32)
    found = on_canvas(
        Found(boxes, np.arange(3.0), ["a", "b", "c"], [np.ones(2), None, None], {"outside": 1}), height=20, width=64
    )
    assert found.boxes.tolist() == [[0, 2, 6, 20]] and list(found.labels) == ["a"] and found.scores.tolist() == [0]
    assert len(found.cosines) == 1 and found.dropped == {"outside": 1, "outside the canvas": 2}
    assert by_size(np.array([[0, 0, 2, 8], [0, 0, 1, 1]]), 0.1, 0.4, (10, 5)).tolist() == [True, True]
    assert by_size(np.array([[0, 0, 2, 8], [0, 0, 1, 1]]), 0.2, 0.3, (10, 5)).tolist() == [False, False]
