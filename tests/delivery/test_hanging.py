"""How an exam's views hang: right breast at the viewer's left, chest walls in the middle, each image once."""

import pytest

from mammoclip_jax.delivery.hanging import Hung, Row, Standing, chest_wall, hang, in_original

FOUR = [
    Standing("L", "MLO", "left"),
    Standing("R", "CC", "left"),
    Standing("L", "CC", "left"),
    Standing("R", "MLO", "left"),
]


def test_canvases_with_the_wall_at_the_left():
    """As `prepare` makes them: those of the right breast are mirrored, the others stay."""
    assert hang(FOUR) == [Row("CC", Hung(1, True), Hung(2, False)), Row("MLO", Hung(3, True), Hung(0, False))]


def test_images_as_they_are_displayed_stay():
    own = [view._replace(chest_wall={"L": "left", "R": "right"}[view.laterality]) for view in FOUR]
    assert not any(hung.mirrored for row in hang(own) for hung in row[1:])


def test_a_left_breast_stored_mirrored_is_mirrored_back():
    (row,) = hang([Standing("L", "CC", "right")])
    assert row == Row("CC", None, Hung(0, True))


def test_other_views_second_images_and_unknown_sides_hang_below():
    views = [
        ("R", "ML", "left"),
        ("R", "CC", "left"),
        ("R", "CC", "left"),
        ("", "CC", "left"),
        ("L", "", "left"),
        ("", "", ""),
    ]
    rows = hang(views)
    assert [row.view for row in rows] == ["CC", "CC", "ML", "", ""]
    assert rows[1] == Row("CC", Hung(2, True), None) and rows[3].right == Hung(4, False)
    assert rows[4] == Row("", Hung(3, False), Hung(5, False))  # never mirrored
    places = [hung.place for row in rows for hung in row[1:] if hung]
    assert sorted(places) == list(range(len(views)))
    assert hang([]) == []


@pytest.mark.parametrize(
    "preprocessing, laterality, flags, wall",
    [
        ({}, "R", (), "left"),
        ({"geometry": "fit", "chest_wall": "left"}, "", (), "left"),
        ({"geometry": "fit", "chest_wall": "as_is"}, "R", (), "right"),
        ({"geometry": "stretch"}, "R", (), "right"),
        ({"geometry": "stretch"}, "L", ("chest_wall_unexpected",), "right"),
        ({"geometry": "stretch"}, "", (), ""),
        ({"geometry": "fit", "chest_wall": "centre"}, "", (), ""),
    ],
)
def test_the_wall_on_a_canvas_is_known_from_its_preparation(preprocessing, laterality, flags, wall):
    assert chest_wall(preprocessing, laterality, flags) == wall


def test_the_wall_in_the_original():
    assert [in_original(*pair) for pair in (("left", True), ("left", False), ("", True))] == ["right", "left", ""]
