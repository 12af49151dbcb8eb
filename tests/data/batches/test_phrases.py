"""Labels, phrases and the report of an image."""

import json

from mammoclip_jax.data.batches.phrases import Unit, units

BOX, OTHER = [1, 2, 30, 40], [50, 60, 70, 80]
ROW = {
    "laterality": "L",
    "view": "CC",
    "labels": {"mass": 1, "calcification": 0, "birads": 4},
    "boxes": [{"label": "mass", "box": BOX}],
    "texts": ["There is an oval mass in the left breast. Right cyst. No calcification. Dense on MLO.", "Benign."],
    "sections": ["findings", "impression"],
}


def test_three_levels():
    assert units(ROW) == [
        Unit("label", "mass", tuple(BOX)),
        Unit("label", "calcification", None, True),
        Unit("phrase", "There is an oval mass in the left breast.", tuple(BOX)),
        Unit("phrase", "No calcification.", None, True),
        Unit("report", " ".join(ROW["texts"]), None),
    ]


def test_rows_of_an_index_have_json():
    row = ROW | {"labels": json.dumps(ROW["labels"]), "boxes": json.dumps(ROW["boxes"])}
    assert units(row) == units(ROW)


def test_a_choice_of_boxes_gives_none():
    row = ROW | {"boxes": [{"label": "mass", "box": BOX}, {"label": "mass", "box": OTHER}]}
    found = units(row)
    assert [u.box for u in found if u.level == "label" and not u.negated] == [tuple(BOX), tuple(OTHER)]
    assert all(u.box is None for u in found if u.level == "phrase")


def test_phrases_of_boxes():
    row = ROW | {"boxes": [{"label": "mass", "box": BOX, "phrase": "oval mass"}, {"label": "other", "box": OTHER}]}
    phrases = [u for u in units(row) if u.level == "phrase"]
    assert phrases[0] == Unit("phrase", "oval mass", tuple(BOX)) and phrases[1].box == tuple(BOX)


def test_a_denied_finding_gets_no_box():
    row = ROW | {"texts": ["No mass."], "sections": ["caption"], "labels": {}}
    assert [u for u in units(row) if u.level == "phrase"] == [Unit("phrase", "No mass.", None, True)]


def test_nothing_known():
    assert units({"labels": "{}", "boxes": "[]", "texts": []}) == []
