"""Sections, sentences, negation, and the text of a mirrored image."""

import numpy as np
import pytest

from mammoclip_jax.data.text import reports

REPORT = """EXAM: Digital screening mammogram
Clinical History: family history of breast cancer.

FINDINGS:
The breasts are heterogeneously
dense. RIGHT BREAST: A 1.5 cm oval mass.

LEFT BREAST: normal. IMPRESSION: 1. Probably benign mass. BI-RADS: 3
2. Short interval follow-up.
RECOMMENDATION:
"""


def test_sections_of_a_report():
    assert reports.sections(REPORT) == {
        "technique": "Digital screening mammogram",
        "indication": "family history of breast cancer.",
        "findings": "The breasts are heterogeneously dense. RIGHT BREAST: A 1.5 cm oval mass.\nLEFT BREAST: normal.",
        "impression": "1. Probably benign mass. BI-RADS: 3\n2. Short interval follow-up.",
    }


@pytest.mark.parametrize(
    "text, expected",
    [
        ("No mass.", {"report": "No mass."}),
        ("", {}),
        ("FINDINGS: \n IMPRESSION: \n", {}),
        ("findings: no mass. impression: negative.", {"findings": "no mass.", "impression": "negative."}),
        ("FINDINGS\nNo mass.\nCONCLUSION\nNegative.", {"findings": "No mass.", "impression": "Negative."}),
        (
            "Seen today. FINDINGS: a. IMPRESSION: b. FINDINGS: c.",
            {"report": "Seen today.", "findings": "a. c.", "impression": "b."},
        ),
        ("The findings: are unclear", {"report": "The findings: are unclear"}),
        ("BREAST DENSITY: B\nFINDINGS: a\r\nIMPRESSION: b", {"density": "B", "findings": "a", "impression": "b"}),
    ],
)
def test_sections_of_odd_reports(text, expected):
    assert reports.sections(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("No mass. A 1.5 cm cyst! Stable?", ["No mass.", "A 1.5 cm cyst!", "Stable?"]),
        ("no mass. no calcification.", ["no mass.", "no calcification."]),
        ("It measures approx. 3 mm. See fig. 2.", ["It measures approx. 3 mm.", "See fig. 2."]),
        ("Density category B. No mass.", ["Density category B.", "No mass."]),
        ("1. Benign. 2. Follow up.\n3) Call.\n- One", ["Benign.", "Follow up.", "Call.", "One"]),
        ("A line that is\nbroken. End", ["A line that is broken.", "End"]),
        ("...", []),
    ],
)
def test_sentences(text, expected):
    assert reports.sentences(text) == expected


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("Left breast", "Right breast"),
        ("LEFT and right, left-sided, Leftward", "RIGHT and left, right-sided, Rightward"),
        ("LCC, RMLO, L-MLO, lcc and R CC views", "RCC, LMLO, R-MLO, rcc and L CC views"),
        ("Lt. breast, rt axilla", "Rt. breast, lt axilla"),
        ("L: normal. R: mass (L), L/R.", "R: normal. L: mass (R), R/L."),
        ("R/O cancer; BI-RADS 4; L4; upright; 3 L/min", "R/O cancer; BI-RADS 4; L4; upright; 3 L/min"),
        ("L breast, r breast, R-sided", "R breast, l breast, L-sided"),
        ("mass at 2 o'clock left", "mass at 10 o'clock right"),
        ("at 12 and 6 o'clock", "at 12 and 6 o'clock"),
        ("10-11 o'clock, 10:30 position", "2-1 o'clock, 1:30 position"),
        ("1.5 cm mass, 2 mm, seen at 10:30 am", "1.5 cm mass, 2 mm, seen at 10:30 am"),
        ("lat view, LAT, lid", "lat view, LAT, lid"),
        ("nothing here", "nothing here"),
        ("RUOQ, LLIQ; luiq and rloq", "LUOQ, RLIQ; ruiq and lloq"),
        ("R UOQ, L-LIQ, rt UIQ, Lt. upper outer quadrant", "L UOQ, R-LIQ, lt UIQ, Rt. upper outer quadrant"),
        ("UOQ, LOQ, LIQ, UIQs, LIQUID, RUOQX", "UOQ, LOQ, LIQ, UIQs, LIQUID, RUOQX"),
    ],
)
def test_swap_laterality(text, mirrored):
    assert reports.swap_laterality(text) == mirrored
    assert reports.swap_laterality(mirrored) == text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Mass in the UPPER outer quadrant", True),
        ("lower breast", True),
        ("inner half", True),
        ("medially", True),
        ("lateral", True),
        ("superior", True),
        ("inferior aspect", True),
        ("at 3 o'clock", True),
        ("at 3 o’clock", True),
        ("UOQ", True),
        ("axillary node", True),
        ("at 10:30", True),
        ("above the nipple", True),
        ("lateral aspect of the breast on the CC view", True),
        ("RUOQ", True),
        ("luiq", True),
        ("LLIQ and RLOQ", True),
        ("LOQ", True),
        ("RUQ", True),
        ("superolateral", True),
        ("lateral view", False),
        ("lateral magnification views", False),
        ("on the true lateral", False),
        ("medial and lateral projections", False),
        ("mediolateral oblique view", False),
        ("left mass", False),
        ("bilateral masses", False),
        ("retroareolar, posterior third", False),
        ("", False),
        ("a spiculated mass", False),
        ("central", False),
    ],
)
def test_names_position(text, expected):
    assert reports.names_position(text) is expected


@pytest.mark.parametrize(
    "sentence, whole, mass, calcification",
    [
        ("No mass.", True, True, False),
        ("There is a mass.", False, False, False),
        ("A mass without calcifications.", False, False, True),
        ("No suspicious masses, calcifications or architectural distortion.", True, True, True),
        ("Negative for malignancy.", True, False, False),
        ("No calcification, but a mass is present.", False, False, True),
        ("There is no mass, there is an asymmetry.", False, True, False),
        ("No mass, benign calcifications are present.", False, True, False),
        ("No masses, suspicious calcifications, or areas of distortion are identified.", True, True, True),
        ("no mass, calcification and distortion", True, True, True),
        ("No evidence of mass, calcification, asymmetry, or distortion. There is skin thickening.", False, True, True),
        ("No masses, asymmetries, distortion are identified.", True, True, False),
        ("No asymmetry, distortion, suspicious calcifications and masses are seen.", True, True, True),
        ("No mass and there is a calcification.", False, True, False),
        ("No mass and a calcification is present.", False, True, False),
        ("No mass, asymmetry or distortion, benign calcifications are present.", False, True, False),
        ("No mass, and stable calcifications are noted.", False, True, False),
        ("Mass is not seen.", True, True, False),
        ("The mass has resolved.", True, True, False),
        ("No change in the mass.", False, False, False),
        ("No significant interval change in the calcifications.", False, False, False),
        ("A mass cannot be excluded.", False, False, False),
        ("The breast is dense.", False, False, False),
        ("Nothing was not normal without doubt.", True, False, False),
        ("Mass: none", True, True, False),
        ("Masses: None. ", True, True, False),
        ("Mass - none.", True, True, False),
        ("Masses absent.", True, True, False),
        ("Masses: No suspicious masses.", True, True, False),
        ("Mass or calcification: not seen", True, True, True),
        ("Masses: none; calcifications: benign.", False, True, False),
        ("Mass: 9 mm, oval. Calcifications: none.", False, False, True),
        ("Mass: 0.9 cm", False, False, False),
        ("Mass: no change.", False, False, False),
        ("A mass is seen in the breast: no calcifications.", False, False, True),
        ("A mass cannot be completely excluded.", False, False, False),
        ("A mass couldn't entirely be ruled out.", False, False, False),
        ("It is not possible to exclude a mass.", False, False, False),
        ("There is no doubt of a mass.", False, False, False),
        ("Without any doubt there is a mass.", False, False, False),
        ("No further imaging of the mass is needed.", False, False, False),
    ],
)
def test_negation(sentence, whole, mass, calcification):
    assert reports.negated(sentence) is whole
    assert reports.negated(sentence, "mass") is mass
    assert reports.negated(sentence.upper(), "calcification") is calcification


BREASTS = """The breasts are dense. RIGHT BREAST: A 1.5 cm mass. It is oval. Stable.

LEFT BREAST: normal. IMPRESSION: Benign. Left cyst. It measures 3 mm. There are bilateral calcifications."""


def test_the_sentences_of_one_breast():
    assert reports.for_side(BREASTS, "L") == (
        "The breasts are dense.\nLEFT BREAST: normal. IMPRESSION: Benign. Left cyst. It measures 3 mm. There are "
        "bilateral calcifications."
    )
    assert reports.for_side(BREASTS, "R") == (
        "The breasts are dense. RIGHT BREAST: A 1.5 cm mass. It is oval. Stable.\nIMPRESSION: Benign. There are "
        "bilateral calcifications."
    )
    assert reports.for_side(BREASTS, "") == BREASTS
    assert reports.for_side("Right mass.", "L") == "" and reports.for_side("No mass. Dense.", "L") == "No mass. Dense."
    assert reports.for_side("A mass on the left, none on the right.", "R") == "A mass on the left, none on the right."


def test_a_breast_keeps_its_lines_of_a_form_and_every_addendum():
    form = (
        "BREAST COMPOSITION: c\nRIGHT BREAST:\nMasses: A 9 mm mass.\nLEFT BREAST:\nMasses: None.\n"
        "Addendum: RUOQ means left."
    )
    assert reports.for_side(form, "L") == (
        "BREAST COMPOSITION: c\nLEFT BREAST:\nMasses: None.\nAddendum: RUOQ means left."
    )
    assert reports.for_side(form, "R") == (
        "BREAST COMPOSITION: c\nRIGHT BREAST:\nMasses: A 9 mm mass.\nAddendum: RUOQ means left."
    )
    assert reports.sides("RUOQ") == {"R"} and reports.sides("UOQ, LLIQ") == {"L"}


def test_a_mirrored_report_has_mirrored_sentences():
    for side, other in ("LR", "RL"):
        mirrored = reports.for_side(reports.swap_laterality(BREASTS), other)
        assert mirrored == reports.swap_laterality(reports.for_side(BREASTS, side))


def test_the_sentences_of_one_view():
    text = "Dense. Mass on the CC view. It is round. Asymmetry on MLO. A 5 cc cyst. RCC and RMLO views. Seen on XCCL."
    assert reports.for_view(text, "CC") == "Dense. Mass on the CC view. It is round. A 5 cc cyst. RCC and RMLO views."
    assert reports.for_view(text, "MLO") == "Dense. Asymmetry on MLO. A 5 cc cyst. RCC and RMLO views."
    assert reports.for_view(text, "") == text
    assert reports.for_view("On the craniocaudal view.", "MLO") == ""
    assert reports.for_view("On the mediolateral oblique view.", "MLO") != ""


@pytest.mark.parametrize("text", [" " * 30_000, "\n" * 20_000, "1-" * 10_000, "no mass, " * 3_000, "left " * 5_000])
def test_odd_text_costs_no_more_than_its_length(text):
    """Patterns that go back and forth would take minutes; a hang is what this test would show."""
    reports.sections(text), reports.sentences(text), reports.negated(text)
    reports.swap_laterality(text), reports.names_position(text), reports.for_side(text, "L")


def test_what_is_looked_for_first_misses_no_side():
    """`sides` and `for_side` search for a few letters before the whole patterns, and leave texts alone without them."""
    words = (
        "left Right Lt lt. rt L R L: R. (L) L/R R/O RCC L-MLO rml LUOQ r-uoq L liq l breast rt axilla leftward LEFT-sided now "
        "away BREAST: breasts both bilateral either it Addendum: LEFT RIGHT: Mass: 3 cm the view. , ; \n"
    ).split(" ")
    rng = np.random.default_rng(0)
    for count in rng.integers(1, 20, 400):
        text = " ".join(rng.choice(words, count))
        named = {match[0][0].upper() for match in reports._SIDE.finditer(text)}
        assert reports.sides(text) == ({"L", "R"} if reports._BOTH_SIDES.search(text) else named), text
        for side in "LR":
            assert reports.for_side(text, side) == reports._only(text, side, reports._named_sides), text
