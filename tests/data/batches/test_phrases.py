"""Labels, phrases and the report of an image."""

import json

import pytest

from mammoclip_jax.data.batches.phrases import Sentence, Unit, affirming, affirms, units

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
        Unit("label", "no calcification", None, True),
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


def test_the_sentences_that_affirm_a_finding_of_the_side_and_view():
    text = "Dense. Mass on the right. There is\nan oval mass; no calcification. A mass on MLO. Masses: none."
    row = ROW | {"texts": [text, "A mass."]}
    own = "Dense. There is\nan oval mass; no calcification. Masses: none."
    (found,) = affirming(row, "mass")
    assert found == Sentence("There is an oval mass;", found.context, 1)
    assert " ".join(found.context.split()) == " ".join(own.split())
    assert affirming(row, "calcification") == []
    assert [s.text for s in affirming(row | {"sections": []}, "mass")] == ["There is an oval mass;", "A mass."]


@pytest.mark.parametrize(
    "sentence, label, expected",
    [
        ("Grouped microcalcifications are seen.", "calcification", True),
        ("No suspicious microcalcifications are seen.", "calcification", False),
        ("Coarse calcifications, no microcalcifications.", "calcification", True),
        ("A mass without calcifications.", "mass", True),
        ("A mass without calcifications.", "calcification", False),
        ("An asymmetric density and focal asymmetries.", "focal_asymmetry", True),
        ("Biomass.", "mass", False),
    ],
)
def test_what_affirms(sentence, label, expected):
    assert affirms(sentence, label) == expected
