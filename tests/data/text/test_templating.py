"""Captions from template files."""

import itertools
import json

import numpy as np
import pytest

from mammoclip_jax.data.text import captions, label_values, reports, templating
from mammoclip_jax.errors import UserError

FINDINGS = [
    "mass",
    "suspicious_calcification",
    "architectural_distortion",
    "global_asymmetry",
    "focal_asymmetry",
    "asymmetry",
    "suspicious_lymph_node",
    "nipple_retraction",
    "skin_retraction",
    "skin_thickening",
]
LABELS = {
    "density": "C",
    "birads": 4,
    "mass": 1,
    "mass_shape": "oval",
    "mass_margins": "spiculated",
    "calcification": 0,
    "race": "White",
    "ethnicity": float("nan"),
    "age": 61,
    "image_type": "2D",
    "procedure": "Screening Bilateral",
    "laterality": "L",
    "view": "MLO",
}


def test_mama_without_chance():
    assert captions.render("mama", LABELS) == (
        "Procedure reported: Screening Bilateral; Reason for procedure: Screening; "
        "Patient info: This patient is White, unknown, and 61 years old. "
        "Image info: This is a 2D full-field digital mammogram of the left breast with MLO view. "
        "Breast composition: The breast is heterogeneously dense, which may hide small masses. "
        "Findings: The mammogram shows that a finding is there that is suspicious. The mass is oval, with spiculated "
        "margins. Impressions: BI-RADS Category 4: suspicious. Overall Assessment: Biopsy should be considered."
    )


def test_mama_leaves_out_what_it_does_not_know():
    assert captions.render("mama", {}) == ""
    assert captions.render("mama", {"density": "A"}) == "Breast composition: The breast is almost entirely fatty."
    assert "Hispanic" not in captions.render("mama", LABELS)


def test_mama_drops_fields_and_keeps_findings():
    rng = np.random.default_rng(0)
    texts = [captions.render("mama", LABELS, rng) for _ in range(400)]
    assert 0.14 < np.mean(["61 years" in text for text in texts]) < 0.27
    assert 0.14 < np.mean(["left breast" in text for text in texts]) < 0.27
    assert all("BI-RADS Category 4" in text and "dense" in text for text in texts)
    none = captions.render("mama", LABELS, rng, dropout=1.0)
    assert "unknown, unknown, and unknown years" in none and "left" not in none
    assert "left breast with unknown view" in captions.render("mama", LABELS, rng, {"side": 0.0, "view": 1.0})


@pytest.mark.parametrize("finding", FINDINGS)
def test_attribute_prompts(finding):
    for side, name, other in (("L", "left", "right"), ("R", "right", "left")):
        there = captions.all_attribute_prompts(finding, True, side)
        away = captions.all_attribute_prompts(finding, False, side)
        assert not set(there) & set(away)
        assert all(name in text and other not in text and "{" not in text for text in (*there, *away))
        term = label_values.ABSENT[finding]
        assert all(reports.negated(text, term.split()[-1]) for text in away)
        assert not any(reports.negated(text) for text in there)
        assert captions.attribute_prompts(finding, True, side) == there[0]
        assert captions.attribute_prompts(finding, False, side, np.random.default_rng(1)) in away
    assert len(captions.all_attribute_prompts("Mass", True, "L")) == 2 * 10 * 8 * 3


def test_attribute_prompts_that_do_not_exist():
    assert "left" in captions.attribute_prompts("No Finding", True, "L")
    for arguments, words in (
        ((("no finding"), False, "L"), "no prompt"),
        (("mas", True, "L"), "mean 'mass'"),
        (("mass", True, ""), "laterality"),
    ):
        with pytest.raises(UserError, match=words):
            captions.attribute_prompts(*arguments)


@pytest.mark.parametrize("template", ["mammo_clip", "findings"])
def test_no_positive_is_denied(template):
    rng = np.random.default_rng(0)
    for values in itertools.product((0, 1, None), repeat=3):
        for keys in itertools.combinations([*FINDINGS, "calcification"], 3):
            labels = dict(zip(keys, values, strict=True))
            text = captions.render(template, labels | {"laterality": "R"}, rng)
            for sentence in reports.sentences(text):
                for key in keys:
                    if labels[key] == 1:
                        assert not reports.negated(sentence, label_values.ABSENT[key]), (labels, text)
            assert "left" not in text
            if all(value is None for value in values):
                assert text == ""


def test_no_finding_replaces_the_negatives():
    text = captions.render("mammo_clip", dict.fromkeys(label_values.ABSENT, 0) | {"laterality": "L"})
    assert text == "There is no abnormal finding in the left breast."


def test_the_template_findings_says_what_is_known():
    assert captions.render("findings", {"density": "B", "mass": 1, "skin_thickening": 0, "birads": 2}) == (
        "The breast is of scattered fibroglandular density. There is a mass. There is no skin thickening. "
        "BI-RADS 2: benign."
    )
    assert captions.render("findings", {"cancer": 1, "pathology": "malignant"}) == ""


GOOD = {
    "fields": {"side": {}},
    "slots": {"x": ["a"]},
    "sections": [{"name": "s", "parts": [{"texts": ["{side} {x}"]}]}],
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sections": []}, "no sections"),
        ({"section": []}, "mean 'sections'"),
        ({"slots": {"x": []}}, "slot 'x'"),
        ({"slots": {"side": ["a"], "x": ["a"]}}, "both a field and a slot"),
        ({"fields": {"sid": {}}}, "mean 'sid'"),
        ({"fields": {"side": {"dropout": 2, "unknown": "u"}}}, "0 to 1"),
        ({"fields": {"side": {"dropout": 0.5}}}, "word for"),
        ({"fields": {"side": {"value": {}}}}, "mean 'values'"),
        ({"sections": GOOD["sections"] * 2}, "differ"),
        ({"sections": [{"name": "s", "parts": [{"texts": ["{side"]}]}]}, "brace"),
        ({"sections": [{"name": "s", "parts": [{"texts": [" "]}]}]}, "blank"),
        ({"sections": [{"name": "s"}]}, "parts"),
    ],
)
def test_malformed_templates(change, words, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=words):
        templating.load(str(path))


def test_templates_by_path(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(GOOD))
    assert captions.render(str(path), {"side": "left"}) == "Left a"
    with pytest.raises(UserError, match="Known: chest, findings, mama, mammo_clip"):
        captions.render("mamma", {})
    path.with_name("bad.json").write_text("{")
    with pytest.raises(UserError, match="bad.json"):
        templating.load(str(path.with_name("bad.json")))
