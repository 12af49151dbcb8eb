"""Scores in windows: where they lie, which count, and what becomes of their scores, by loops."""

import math

import numpy as np
import pytest
from toys import HEIGHT, WIDTH, Toy, breasts

from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.looking import looking
from mammoclip_jax.inference.looks import Looks, found, looks
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.inference.prompt_files import load_prompts
from mammoclip_jax.inference.scorers import scorer_of
from mammoclip_jax.inference.windows import LEAST, Windows, places

CANVAS = (HEIGHT * 2, WIDTH * 2)


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.0, 3.0])
def test_windows_cover_the_canvas_and_overlap_by_half(factor):
    size, canvas = (40, 24), (round(40 * factor), round(24 * factor))
    boxes = places(size, canvas)
    seen = np.zeros(canvas, int)
    for left, top, right, bottom in boxes:
        assert right - left == 24 and bottom - top == 40 and left >= 0 and top >= 0
        seen[top:bottom, left:right] += 1
    assert seen.shape == canvas and seen.min() >= 1
    for column in (0, 1):
        starts = np.unique(boxes[:, column])
        assert np.diff(starts).max() <= (24, 40)[column] / 2 + 1
    assert len(boxes) == {1.1: 4, 1.5: 4, 2.0: 9, 3.0: 25}[factor]


def naive(image, pool):
    """[2], the two scores of one image by looking at its windows one after another; and the boxes of the highest."""
    boxes, inside = places((HEIGHT, WIDTH), CANVAS), breast_mask(image)
    kept = [box for box in boxes if inside[box[1] : box[3], box[0] : box[2]].mean() >= LEAST]
    each = [Toy().classify(image[None, y0:y1, x0:x1])[0].astype(float) for x0, y0, x1, y1 in kept]
    pooled = []
    for k in range(2):
        values = [scores[k] for scores in each]
        none = 1.0
        for value in values:
            none *= 1 - value
        pooled.append(
            {
                "max": max(values),
                "mean": sum(values) / len(values),
                "noisy_or": 1 - none,
                "lse": math.log(sum(math.exp(10 * value) for value in values) / len(values)) / 10,
            }[pool]
        )
    return pooled, [kept[max(range(len(each)), key=lambda w: each[w][k])] for k in range(2)], len(kept)


@pytest.mark.parametrize("pool", ["max", "mean", "noisy_or", "lse"])
def test_scores_of_windows_are_pooled_as_a_loop_does(pool):
    images = np.maximum(breasts(3, CANVAS), 1)
    images[:, :, 13:] = 0
    images[2, 3:6, 1:4] = 255
    toy = Toy()
    model = Windows(toy, 2.0, pool)
    expected = [naive(image, pool) for image in images]
    np.testing.assert_allclose(model.classify(images), [scores for scores, *_ in expected], rtol=1e-5)
    assert sum(toy.seen) == sum(count for *_, count in expected)
    each = model.found(images, lambda one, x: dict(zip(one.labels, one.classify(x).T)))
    for i, (_, best, _) in enumerate(expected):
        np.testing.assert_array_equal([each.window[label][i] for label in model.labels], best)
    np.testing.assert_allclose(model.classify(images[1:2]), model.classify(images)[1:2], rtol=1e-6)
    assert model.preprocessing["height"] == 2 * HEIGHT and toy.preprocessing["height"] == HEIGHT


def test_windows_outside_of_the_breast_are_left_out_and_none_is_no_reason_to_stop():
    images = np.zeros((2, 128, 96), np.uint8)
    images[0, 10:118, :30] = np.random.default_rng(0).integers(90, 200, (108, 30))  # the last column of windows is air
    toy = Toy(size=(64, 48))
    Windows(toy, 2.0).classify(images[:1])
    assert toy.seen == [6]
    Windows(toy, 2.0).classify(images[1:])
    assert toy.seen == [6, 9]


def test_maps_of_windows_are_averaged_where_they_overlap():
    images = np.maximum(breasts(9, CANVAS), 61)  # more than are looked at together; all is breast
    found = Windows(Toy(), 2.0).saliency(images, ["calcification"] * 9, raw=True)
    slope, sums, counts = np.linspace(2, 1, WIDTH), np.zeros(CANVAS), np.zeros(CANVAS)
    for x0, y0, x1, y1 in places((HEIGHT, WIDTH), CANVAS):
        if breast_mask(images[8])[y0:y1, x0:x1].mean() >= LEAST:
            sums[y0:y1, x0:x1] += (images[8, y0:y1, x0:x1].astype(float) - 100) / 155 * slope * 2
            counts[y0:y1, x0:x1] += 1
    np.testing.assert_allclose(found[8], sums / np.maximum(counts, 1), rtol=1e-4, atol=1e-5)
    shown = Windows(Toy(), 2.0).saliency(images, ["calcification"] * 9)
    np.testing.assert_allclose(shown[8], np.maximum(found[8], 0) / found[8].max(), rtol=1e-5)


def test_boxes_of_windows_lie_on_the_canvas_and_those_of_one_lesion_are_one():
    image = np.maximum(breasts(1, CANVAS), 60)
    image[image > 150] = 150
    image[0, 17:21, 13:17] = 255
    model = Windows(Toy(kind="detector"), 2.0)
    found = model.detect(image)
    (whole,) = [box for box, valid in zip(found.boxes[0], found.valid[0]) if valid and tuple(box) == (13, 17, 17, 21)]
    seen = [x0 for x0, y0, x1, y1 in places((HEIGHT, WIDTH), CANVAS) if x0 <= 13 and x1 >= 17 and y0 <= 17 and y1 >= 21]
    assert found.scores[0, 0] == pytest.approx(max(0.5 + (13 - x0) / 40 for x0 in seen))
    assert found.valid[0].sum() == 1 and whole is not None


def test_prompts_are_asked_of_each_window():
    images, plain = np.maximum(breasts(2, CANVAS), 1), Toy(kind="dual_encoder", labels=())
    pairs = load_prompts({"mass": {"positive": "a mass", "negative": "no mass"}})
    positive, negative = plain.embed_text(["a mass", "no mass"])
    scorer = scorer_of(Windows(plain, 2.0), pairs, "score", "", "")
    scores = found(scorer.model, images, scorer.score).scores["mass"]
    for image, score in zip(images, scores, strict=True):
        inside, each = breast_mask(image), []
        for x0, y0, x1, y1 in places((HEIGHT, WIDTH), CANVAS):
            if inside[y0:y1, x0:x1].mean() >= LEAST:
                (vector,) = plain.embed_image(image[None, y0:y1, x0:x1])
                each.append(vector @ positive - vector @ negative)
        assert score == pytest.approx(max(each), abs=1e-6)
    assert "2 times as large the highest of the windows" in scorer.aggregation["view"]


def test_windows_of_mirrored_looks_and_what_is_refused():
    images = breasts(2, CANVAS)
    both = looking(Toy(), looks(mirror=True, windows=2.0))
    assert both.looks == Looks(True, 2.0, "max")
    np.testing.assert_allclose(both.classify(images), Windows(Mirrored(Toy()), 2.0).classify(images))
    assert looking(both, Looks()) is both and looking(both, both.looks) is both
    whole, classes = Toy(), Toy()
    whole.config.task.unit, classes.config.model.activation = "breast", "softmax"
    for call, said in (
        (lambda: looking(both, looks(mirror=True)), "looks in its own way already \\(mirror=True, windows=2.0"),
        (lambda: looks(windows=0.5), "above 1 and at most 4"),
        (lambda: looks(pool="mean"), "without windows"),
        (lambda: looks(windows=2, pool="mx"), "Did you mean 'max'"),
        (lambda: Windows(whole, 2.0), "scores a whole breast"),
        (lambda: Windows(classes, 2.0, "max"), "pool='mean'"),
        (lambda: Windows(Toy(kind="dual_encoder"), 2.0, "noisy_or"), "cosines are none"),
        (lambda: both.classify(images[:, :16]), "32 x 24"),
    ):
        with pytest.raises(UserError, match=said):
            call()
