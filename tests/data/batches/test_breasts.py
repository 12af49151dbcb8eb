"""Which images and texts of a split make an example."""

import pytest
from fake_sets import FakeDataset

from mammoclip_jax.data.batches.breasts import Breast, breasts
from mammoclip_jax.errors import UserError


def _group(rows, **options):
    return breasts([FakeDataset(rows)], "train", **options)


def test_a_breast_is_one_side_of_one_study_of_one_patient_and_dataset():
    found = _group(
        [
            dict(),
            dict(view="MLO"),
            dict(laterality="R"),
            dict(study="s1"),
            dict(dataset="other"),
            dict(split="val"),
            dict(patient="q", view="MLO"),
        ]
    ).items
    assert [b.views for b in found] == [((0,), (1,)), ((2,),), ((3,),), ((4,),), ((6,),)]


def test_images_without_laterality_are_breasts_of_their_own():
    assert [b.views for b in _group([dict(laterality=""), dict(laterality="", view="MLO")]).items] == [((0,),), ((1,),)]


def test_other_views_only_by_option():
    rows = [dict(), dict(view="AT"), dict(view="LM", laterality="R"), dict(view="", study="s1")]
    found = _group(rows)
    assert [b.views for b in found.items] == [((0,),), ((3,),)]
    assert found.without_view == 1
    assert [b.views for b in _group(rows, other_views=True).items] == [((0,), (1,)), ((2,),), ((3,),)]


def test_views_are_ordered_whatever_the_order_of_rows():
    assert _group([dict(view="MLO"), dict(), dict(view="MLO")]).items[0].views == ((1,), (0, 2))


def test_empty_texts_are_no_positives():
    rows = [
        dict(texts=["", "one"]),
        dict(view="MLO", texts=["one ", "two"]),
        dict(study="s1", texts=["", " "]),
        dict(study="s2", texts=[]),
    ]
    found = _group(rows)
    assert found.items == [Breast(0, ((0,), (1,)), ("one", "two"))]
    assert (found.without_text, found.without_view) == (2, 0)


def test_a_split_without_breasts_is_an_error_naming_the_folder():
    with pytest.raises(UserError, match="'test' of fake"):
        breasts([FakeDataset([dict()])], "test")


def test_breasts_without_text_are_taken_where_they_are_asked_for():
    rows = [dict(texts=[]), dict(view="MLO", texts=[" "]), dict(study="s1"), dict(study="s2", view="AT", texts=[])]
    found = _group(rows, textless=True)
    assert [(b.views, b.texts) for b in found.items] == [(((0,), (1,)), ()), (((2,),), ("a text",))]
    assert (found.without_text, found.without_view) == (1, 1)
