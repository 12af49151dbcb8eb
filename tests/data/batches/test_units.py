"""Which images stand for a breast or an exam, and in which order they are asked."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.batches.units import View, breasts, exams, standing, views

SIX = ["L CC", "L ML", "L MLO", "R ML", "R CC", "R MLO"]


def named(images):
    """A flagged view is "L CC spot", no known side is "-"."""
    return [View(side.strip("-"), view, tuple(flags)) for side, view, *flags in (name.split(" ") for name in images)]


def chosen(images, count, rng=None):
    places, there = standing(named(images), count, rng)
    assert len(places) == len(there) == count
    return [images[place] for place in places[there]]


@pytest.mark.parametrize(
    "images, count, expected",
    [
        (SIX, 4, ["L CC", "R CC", "L MLO", "R MLO"]),
        (SIX[::-1], 4, ["L CC", "R CC", "L MLO", "R MLO"]),
        (["L CC", "L MLO", "L ML", "R CC", "R LM"], 4, ["L CC", "L MLO", "R CC"]),  # screening views alone
        (["L ML", "L AT"], 2, ["L ML", "L AT"]),  # unless there are none
        (["L AT", "L CC", "L CC", "L MLO"], 2, ["L CC", "L MLO"]),
        (["L CC spot", "L CC", "L MLO magnification", "L MLO", "L CC for_processing"], 2, ["L CC", "L MLO"]),
        (["L CC synthetic_2d", "L CC", "L MLO synthetic_2d", "L MLO tomosynthesis"], 2, ["L CC", "L MLO synthetic_2d"]),
        (["L CC synthetic_2d", "L CC", "L CC"], 2, ["L CC", "L CC"]),
        (["- CC", "L XCCL", "L CC", "- MLO"], 4, ["L CC", "- CC", "- MLO"]),
        (["- CC", *SIX], 4, ["L CC", "R CC", "L MLO", "R MLO"]),
        (["L ", "L AT"], 2, ["L "]),
        (["R CC"], 1, ["R CC"]),
    ],
)
def test_standard_views_stand_for_a_breast_or_an_exam(images, count, expected):
    assert sorted(chosen(images, count)) == sorted(expected)
    for seed in range(5):
        assert sorted(chosen(images, count, np.random.default_rng(seed))) == sorted(expected)


def test_images_of_one_view_are_told_apart_by_chance_in_training_alone():
    images = named(["L CC"] * 3 + ["L MLO"])
    assert standing(images, 2)[0].tolist() == [0, 3]
    drawn = {tuple(standing(images, 2, np.random.default_rng(seed))[0]) for seed in range(30)}
    assert drawn == {(0, 3), (1, 3), (2, 3)}


def test_a_place_without_an_image_repeats_another_and_is_masked():
    places, there = standing(named(["L MLO", "R CC"]), 4)
    assert there.tolist() == [True, True, False, False] and set(places) == {0, 1}


def test_exams_of_two_patients_with_one_number_are_two():
    rows = pd.DataFrame(
        {
            "dataset": "films",
            "patient": list("aabb"),
            "study": "1",
            "image": list("0123"),
            "laterality": ["L", "L", "L", ""],
        }
    )
    assert exams(rows).tolist() == [0, 0, 1, 1] and breasts(rows).tolist() == [0, 0, 1, 2]


def test_what_an_index_says_of_its_images():
    rows = pd.DataFrame({"laterality": ["L", ""], "view": ["CC", ""], "flags": ["", "spot,voi_flat"]})
    assert views(rows) == [View("L", "CC"), View("", "", ("spot", "voi_flat"))]
    assert views(rows.drop(columns="flags"))[1] == View("", "")
