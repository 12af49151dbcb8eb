"""Captions from the labels of data sets without reports."""

import itertools
import re

import pandas as pd
import pytest

from mammoclip_jax.data.text import captions, reports

MASS = {
    "breast_density": 3,
    "left or right breast": "LEFT",
    "image view": "CC",
    "abnormality type": "mass",
    "mass shape": "IRREGULAR",
    "mass margins": "SPICULATED",
    "assessment": 5,
    "pathology": "MALIGNANT",
}
CALC = {
    "breast density": 2,
    "left or right breast": "LEFT",
    "image view": "MLO",
    "abnormality type": "calcification",
    "calc type": "PLEOMORPHIC",
    "calc distribution": "CLUSTERED",
    "assessment": 4,
    "pathology": "BENIGN",
}


def test_a_mass():
    assert captions.cbis_ddsm([MASS], "L", "") == [
        "The breast is heterogeneously dense. There is an irregular mass with spiculated margins in the left breast.",
        "Mass in the left breast. BI-RADS 5: highly suggestive of malignancy.",
    ]


def test_calcifications_of_one_view():
    assert captions.cbis_ddsm([MASS, CALC], "L", "MLO") == [
        "There are scattered areas of fibroglandular density. There are pleomorphic calcifications in a cluster in the "
        "left breast on the mediolateral oblique view.",
        "Calcifications in the left breast on the mediolateral oblique view. BI-RADS 4: suspicious abnormality, biopsy "
        "should be considered.",
    ]


@pytest.mark.parametrize(
    "shape, margins, phrase",
    [
        ("OVAL", "CIRCUMSCRIBED", "an oval mass with circumscribed margins"),
        ("ROUND-OVAL", "ILL_DEFINED-SPICULATED", "a round-oval mass with ill-defined and spiculated margins"),
        (
            "IRREGULAR-ARCHITECTURAL_DISTORTION",
            "SPICULATED",
            "an irregular mass with architectural distortion and spiculated margins",
        ),
        ("ARCHITECTURAL_DISTORTION", float("nan"), "architectural distortion"),
        ("FOCAL_ASYMMETRIC_DENSITY", float("nan"), "a focal asymmetry"),
        ("OVAL-LYMPH_NODE", "CIRCUMSCRIBED", "an oval intramammary lymph node with circumscribed margins"),
        (float("nan"), float("nan"), "a mass"),
    ],
)
def test_shapes_that_are_findings(shape, margins, phrase):
    row = {**MASS, "mass shape": shape, "mass margins": margins}
    assert f"There is {phrase} in the left breast." in captions.cbis_ddsm([row], "L", "")[0]


def test_rows_of_both_views_and_breasts():
    rows = pd.DataFrame(
        [
            MASS,
            {**MASS, "image view": "MLO"},
            {**MASS, "left or right breast": "RIGHT", "mass shape": "OVAL", "assessment": 2},
        ]
    )
    left, right = captions.cbis_ddsm(rows, "L", ""), captions.cbis_ddsm(rows, "R", "")
    assert left[0].count("mass") == 1 and "oval" not in left[0] and "right" not in " ".join(left)
    assert "oval" in right[0] and "BI-RADS 2" in right[1]
    assert captions.cbis_ddsm(rows, "R", "MLO") == []


@pytest.mark.parametrize("assessments, expected", [((2, 0), 0), ((0, 4), 4), ((4, 5), 5), ((1, 3), 3)])
def test_the_highest_concern_stands_for_the_breast(assessments, expected):
    rows = [{**MASS, "assessment": a} for a in assessments]
    assert f"BI-RADS {expected}:" in captions.cbis_ddsm(rows, "L", "")[1]


def test_pathology_changes_nothing():
    for a, b in itertools.combinations(("MALIGNANT", "BENIGN", "BENIGN_WITHOUT_CALLBACK"), 2):
        assert captions.cbis_ddsm([{**MASS, "pathology": a}], "L", "") == captions.cbis_ddsm(
            [{**MASS, "pathology": b}], "L", ""
        )
    for severity in "BM":
        assert captions.mias({"tissue": "G", "finding": "SPIC", "severity": severity}) == captions.mias(
            {"tissue": "G", "finding": "SPIC"}
        )


def test_mias():
    assert captions.mias({"tissue": "F", "finding": "SPIC"}) == [
        "The breast is almost entirely fatty. There is a spiculated mass.",
        "Spiculated mass.",
    ]
    assert captions.mias({"tissue": "D", "finding": "NORM"}) == [
        "The breast tissue is dense and glandular. There is no mass, calcification, architectural distortion or "
        "asymmetry.",
        "Negative mammogram.",
    ]
    assert captions.mias([{"tissue": "G", "finding": "CALC"}, {"tissue": "G", "finding": "ARCH"}]) == [
        "The breast tissue is fatty and glandular. There are calcifications. There is architectural distortion.",
        "Calcifications and architectural distortion.",
    ]
    assert captions.mias({"tissue": "", "finding": ""}) == []


def test_positives_are_never_negatives_too():
    terms = {
        "CALC": "calcification",
        "CIRC": "mass",
        "SPIC": "mass",
        "MISC": "mass",
        "ASYM": "asymmetry",
        "ARCH": "architectural distortion",
        "NORM": None,
    }
    for classes in itertools.product(terms, repeat=2):
        texts = captions.mias([{"tissue": "G", "finding": c} for c in classes])
        for sentence in (s for text in texts for s in reports.sentences(text)):
            assert not any(terms[c] and reports.negated(sentence, terms[c]) for c in classes)


def test_the_official_tables(real_data):
    tables = pd.concat(pd.read_csv(path) for path in sorted((real_data / "cbis_ddsm").glob("*.csv")))
    assert len(tables) == 3568
    groups = tables.groupby(["patient_id", "left or right breast"])
    texts = {key: captions.cbis_ddsm(rows, key[1][0], "") for key, rows in groups}
    assert {len(found) for found in texts.values()} == {2}
    joined = " ".join(text for found in texts.values() for text in found)
    assert not re.search(r"\b(?:nan|none|a [aeiou]\w+)\b|_|  ", joined, re.IGNORECASE)
    assert len(set(map(tuple, texts.values()))) > 700
    malignant = {key for key, rows in groups if "MALIGNANT" in set(rows["pathology"])}
    assert not any("carcinoma" in text or "malignant" in text for key in malignant for text in texts[key])


# --- from the label vocabulary ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, boxes, place, expected",
    [
        ({}, (), ("", ""), []),
        ({"cancer": 1, "biopsy": 1, "age": 50}, (), ("L", "CC"), []),
        ({"mass": float("nan"), "density": None, "birads": ""}, (), ("", ""), []),
        ({"density": "c"}, (), ("", ""), ["The breast is heterogeneously dense."]),
        (
            {"density": 2.0, "mass": 0, "calcification": 0, "birads": 1},
            (),
            ("L", ""),
            [
                "There are scattered areas of fibroglandular density. There is no mass or calcification in the left breast.",
                "BI-RADS 1: negative.",
            ],
        ),
        (
            {
                "mass": 1,
                "mass_shape": "irregular",
                "mass_margins": ["ill-defined", "spiculated"],
                "mass_density": "high",
            },
            (),
            ("R", "MLO"),
            [
                "There is a high-density irregular mass with ill-defined and spiculated margins in the right breast "
                "on the mediolateral oblique view.",
                "Mass in the right breast on the mediolateral oblique view.",
            ],
        ),
        ({"mass": 1}, [{"label": "Mass"}, {"label": "mass"}], ("", ""), ["There are two masses.", "Mass."]),
        (
            {},
            [{"label": "Architectural Distortion"}],
            ("", ""),
            ["There is architectural distortion.", "Architectural distortion."],
        ),
        ({"birads": 2}, (), ("", ""), ["There is a benign finding.", "BI-RADS 2: benign finding."]),
        ({"abnormal": 0}, (), ("", ""), ["There is no abnormal finding.", "Negative mammogram."]),
        (
            {"suspicious_calcification": 1, "calcification": 0, "asymmetry": 0, "focal_asymmetry": 1},
            (),
            ("", ""),
            [
                "There are suspicious calcifications. There is a focal asymmetry.",
                "Suspicious calcifications and focal asymmetry.",
            ],
        ),
    ],
)
def test_findings(labels, boxes, place, expected):
    assert captions.findings(labels, boxes, *place) == expected


def test_findings_never_deny_what_is_there():
    keys = ("mass", "calcification", "suspicious_calcification", "asymmetry", "focal_asymmetry", "skin_thickening")
    for values in itertools.product((0, 1, None), repeat=len(keys)):
        labels = dict(zip(keys, values, strict=True))
        texts = captions.findings(labels, laterality="L")
        assert all(text.strip() for text in texts)
        for sentence in (s for text in texts for s in reports.sentences(text)):
            for key in keys:
                word = key.replace("_", " ")
                assert not (labels[key] == 1 and reports.negated(sentence, word)), (labels, texts)
                assert labels[key] is not None or word not in sentence or key in ("calcification", "asymmetry")
