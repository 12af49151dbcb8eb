import json

import pytest

from mammoclip_jax.data.manifest import COLUMNS, SourceTable, breast_keys, checked, frame, split_of
from mammoclip_jax.errors import UserError


def row(image: str, **values) -> dict:
    return {
        "dataset": "d",
        "patient": "p",
        "study": "s",
        "image": image,
        "file": image + ".png",
        "split": "train",
    } | values


def table(*rows: dict) -> SourceTable:
    return SourceTable(frame(rows), [], "", "", True)


def test_frame_has_all_columns_and_types():
    rows = frame([row("a", labels={"mass": 1}, boxes=[{"label": "mass", "box": [1, 2, 3, 4]}], texts=["x"])])
    assert list(rows.columns) == list(COLUMNS)
    assert json.loads(rows["labels"][0]) == {"mass": 1} and rows["sections"][0] == ["caption"]
    assert rows["real"].dtype == bool and rows["laterality"].dtype == "str"
    assert frame([])["real"].dtype == bool
    with pytest.raises(KeyError, match="patint"):
        frame([row("a", patint="x")])


@pytest.mark.parametrize(
    "wrong, reason",
    [
        ({"laterality": "left"}, "unknown laterality"),
        ({"split": "holdout"}, "unknown split"),
        ({"study": " "}, "empty identifier"),
        ({"texts": ["  "]}, "blank text"),
        ({"boxes": [{"label": "mass", "box": [5, 2, 3, 4]}]}, "malformed box"),
    ],
)
def test_a_wrong_row_becomes_a_problem(wrong, reason):
    result = checked(table(row("a"), row("b", **wrong), row("c")))
    assert list(result.rows["image"]) == ["a", "c"]
    assert [(problem.image, problem.kind) for problem in result.problems] == [("b", reason)]
    assert result.problems[0].remedy


def test_each_repetition_of_an_image_is_a_problem():
    result = checked(table(row("a"), row("b"), row("a"), row("a")))
    assert list(result.rows["image"]) == ["a", "b"]
    assert [problem.kind for problem in result.problems] == ["duplicate image id"] * 2


def test_a_patient_in_two_splits_is_an_error():
    with pytest.raises(UserError, match="p9"):
        checked(table(row("a", patient="p9"), row("b", patient="p9", split="test")))
    with pytest.raises(UserError, match="lines 3, 8 of the table"):
        checked(
            table(row("a", patient="p9", row="t.csv:3"), row("b", patient="p9", split="test", row="t.csv:8"))._replace(
                public_ids=False
            )
        )
    assert checked(table()).rows.empty


def test_a_box_outside_the_size_of_the_tables_is_a_problem():
    boxes = [{"label": "mass", "box": [10, 95, 20, 120]}]
    result = checked(
        table(row("a", size="100 50", boxes=boxes), row("b", size="90 50", boxes=boxes), row("c", boxes=boxes))
    )
    assert list(result.rows["image"]) == ["a", "c"] and result.problems[0].kind == "box outside image"


def test_breasts_of_unknown_side_are_apart():
    rows = frame([row("a", laterality="L"), row("b", laterality="L"), row("c"), row("d")])
    assert breast_keys(rows).nunique() == 3


def test_splits_depend_on_the_patient_alone():
    splits = [split_of(f"patient{number}", 0.1, 0.2) for number in range(5000)]
    assert splits == [split_of(f"patient{number}", 0.1, 0.2) for number in range(5000)]
    assert abs(splits.count("test") / 5000 - 0.2) < 0.02 and abs(splits.count("val") / 5000 - 0.1) < 0.02
