"""Non-maximum suppression against a naive loop, with ties, and the same whatever the batch."""

import functools

import jax
import numpy as np
import pytest
from naive_boxes import naive_iou

from mammoclip_jax.models.nms import nms


def naive_nms(boxes, scores, threshold=0.05, overlap=0.5, limit=100, class_aware=True):
    """[(box number, class)] kept."""
    if class_aware:
        pool = [(a, c) for a in range(len(boxes)) for c in range(scores.shape[1])]
    else:
        pool = [(a, list(row).index(max(row))) for a, row in enumerate(scores)]
    pool = sorted((pair for pair in pool if scores[pair] > threshold), key=lambda pair: -scores[pair])  # stable
    kept = []
    for a, c in pool:
        if len(kept) < limit and not any(
            naive_iou(boxes[a], boxes[b]) > overlap and (c == d or not class_aware) for b, d in kept
        ):
            kept.append((a, c))
    return kept


def random_case(seed, count=60, classes=3, ties=False):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 30, (count, 2))], -1).astype(np.float32)
    boxes[5] = boxes[4]
    scores = rng.random((count, classes)).astype(np.float32) ** 2
    return boxes, np.round(scores, 1) if ties else scores


def check(found, boxes, scores, kept, limit):
    n = len(kept)
    assert found.valid.shape == (limit,) and list(found.valid) == [True] * n + [False] * (limit - n)
    np.testing.assert_array_equal(found.boxes[:n], [boxes[a] for a, _ in kept] if n else np.zeros((0, 4)))
    np.testing.assert_array_equal(found.scores[:n], [scores[pair] for pair in kept])
    np.testing.assert_array_equal(found.classes[:n], [c for _, c in kept])
    assert not found.boxes[n:].any() and not found.scores[n:].any() and (found.classes[n:] == -1).all()


@pytest.mark.parametrize("class_aware", [True, False])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("limit", [7, 100])
def test_equals_a_loop(class_aware, ties, limit):
    options = {"class_aware": class_aware, "limit": limit}
    run = jax.jit(functools.partial(nms, **options))
    for seed in range(6):
        boxes, scores = random_case(seed, ties=ties)
        check(run(boxes, scores), boxes, scores, naive_nms(boxes, scores, **options), limit)


def test_thresholds_are_exclusive():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]], np.float32)  # IoU .5
    scores = np.array([[0.9], [0.8], [0.05]], np.float32)
    found = nms(boxes, scores, overlap=0.5, threshold=float(np.float32(0.05)))
    assert list(found.valid[:3]) == [True, True, False]
    assert list(nms(boxes, scores, overlap=0.49).valid[:2]) == [True, False]


def test_nothing_above_the_threshold_and_not_a_number():
    boxes, scores = random_case(0)
    assert not nms(boxes, scores * 0.01).valid.any()
    scores[:, :] = np.nan
    assert not nms(boxes, scores).valid.any()


def test_candidates_are_the_highest_scores_first_of_equals():
    boxes, scores = random_case(1, ties=True)
    few = nms(boxes, scores, candidates=40)
    pairs = sorted(np.ndindex(scores.shape), key=lambda pair: -scores[pair])[:40]
    lowered = np.zeros_like(scores)
    for pair in pairs:
        lowered[pair] = scores[pair]
    check(few, boxes, scores, naive_nms(boxes, lowered), 100)
    every = nms(boxes, scores, candidates=None)
    jax.tree.map(np.testing.assert_array_equal, every, nms(boxes, scores))


def test_each_image_as_if_it_were_alone():
    cases = [random_case(seed, ties=seed % 2 == 0) for seed in range(4)]
    boxes, scores = (np.stack(x) for x in zip(*cases))
    together = jax.jit(jax.vmap(nms))(boxes, scores)
    for i, case in enumerate(cases):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[i], together), nms(*case))
