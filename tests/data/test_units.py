"""Which images stand for a breast or an exam, and in which order they are asked."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.units import breasts, exams, standing

SIX = ["L CC", "L ML", "L MLO", "R ML", "R CC", "R MLO"]


def named(images):
    return [(name[0].strip("-"), name[2:]) for name in images]


def chosen(images, count, rng=None):
    places, there = standing(named(images), count, rng)
    assert len(places) == len(there) == count
    return [images[place] for place in places[there]]


@pytest.mark.parametrize("images, count, expected", [
    (SIX, 4, ["L CC", "R CC", "L MLO", "R MLO"]),
    (SIX[::-1], 4, ["L CC", "R CC", "L MLO", "R MLO"]),
    (["L CC", "L MLO", "L ML", "R CC", "R LM"], 4, ["L CC", "R CC", "L MLO", "R LM"]),   # the side that lacks one
    (["L AT", "L CC", "L CC", "L MLO"], 2, ["L CC", "L MLO"]),
    (["L AT", "L CC", "L CC"], 2, ["L CC", "L AT"]),                                     # another view before another image
    (["- CC", "L XCCL", "L CC", "- MLO"], 4, ["L CC", "L XCCL", "- CC", "- MLO"]),
    (["- CC", *SIX], 4, ["L CC", "R CC", "L MLO", "R MLO"]),
    (["L ", "L AT"], 2, ["L ", "L AT"]),
    (["R CC"], 1, ["R CC"]),
])
def test_standard_views_come_first(images, count, expected):
    assert sorted(chosen(images, count)) == sorted(expected)
    for seed in range(5):
        assert sorted(chosen(images, count, np.random.default_rng(seed))) == sorted(expected)


def test_images_of_one_view_are_told_apart_by_chance_in_training_alone():
    images = [("L", "CC")] * 3 + [("L", "MLO")]
    assert standing(images, 2)[0].tolist() == [0, 3]
    drawn = {tuple(standing(images, 2, np.random.default_rng(seed))[0]) for seed in range(30)}
    assert drawn == {(0, 3), (1, 3), (2, 3)}


def test_a_place_without_an_image_repeats_another_and_is_masked():
    places, there = standing([("L", "MLO"), ("R", "CC")], 4)
    assert there.tolist() == [True, True, False, False] and set(places) == {0, 1}


def test_exams_of_two_patients_with_one_number_are_two():
    rows = pd.DataFrame({"dataset": "films", "patient": list("aabb"), "study": "1", "image": list("0123"),
                         "laterality": ["L", "L", "L", ""]})
    assert exams(rows).tolist() == [0, 0, 1, 1] and breasts(rows).tolist() == [0, 0, 1, 2]
