"""Reports of many shapes: what becomes of each section."""

import re
from pathlib import Path

import pytest

from mammoclip_jax.data.phantom import exam, report_text
from mammoclip_jax.data.text.sections import HEADINGS, sections, told

SHAPES = Path(__file__).with_name("report_shapes.txt")


def shapes() -> list:
    """(report, texts, dropped sections) of each block of the file."""
    found = []
    for block in SHAPES.read_text().split("\n=== ")[1:]:
        name, _, body = block.strip("\n").partition("\n")
        report, *expected = body.split("\n--- ")
        texts = dict(part.split("\n", 1) for part in expected[:-1])
        dropped = set(re.findall(r"\w+", expected[-1].removeprefix("dropped:")))
        if name.startswith("windows"):
            report = report.replace("\n", "\r\n")
        found.append(pytest.param(report, texts, dropped, id=name))
    return found


def test_there_are_forty_shapes():
    assert len(shapes()) >= 40


@pytest.mark.parametrize("report, texts, dropped", shapes())
def test_a_report_keeps_its_findings(report, texts, dropped):
    found = told(report)
    assert found.texts == texts
    assert set(found.dropped) == dropped


@pytest.mark.parametrize("report, texts, dropped", shapes())
def test_no_word_of_a_report_is_lost(report, texts, dropped):
    """What is neither kept nor dropped stands in headings."""
    parts = told(report).parts
    headings = " ".join(heading for words in HEADINGS.values() for heading in words)
    left = words(report) - words(" ".join((parts["kept"] | parts["dropped"]).values())) - words(headings)
    assert left <= {"mammographic", "bi", "rads", "ii", "iii", "am"}
    assert set(parts["kept"]) | set(parts["dropped"]) == set(sections(report))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{2,}", text.lower()))


def test_the_body_below_the_comparison_needs_an_empty_line():
    assert told("COMPARISON: None.\nNo mass.\nIMPRESSION: Negative.").texts == {"impression": "Negative."}
    assert told("COMPARISON: None.\n\nNo mass.").texts == {"findings": "No mass."}


def test_prose_is_no_heading():
    report = "FINDINGS: She came for these\nfindings\nof long ago. The history: none. No mass\nreport - of it."
    assert list(sections(report)) == ["findings"]


def test_the_reports_of_phantoms_keep_what_they_say_of_both_breasts():
    for number in range(12):
        drawn = exam.draw(exam.Parameters(), number)
        found = told(report_text.report(drawn))
        assert report_text.density(drawn) in found.texts["findings"] and set(found.dropped) == {"technique"}
        for side in "LR":
            assert report_text.findings(drawn, side) in found.texts["findings"]
            assert report_text.impression(drawn, side) in found.texts["impression"]


def test_a_report_without_findings_and_impression_gives_all_it_has():
    found = told("TECHNIQUE: Two views.\nRECOMMENDATION: Biopsy.\nADDENDUM: Done.")
    assert found.texts == {"technique": "Two views.\nAddendum: Done.", "recommendation": "Biopsy.\nAddendum: Done."}
    assert not found.dropped and told("ADDENDUM: Done.").texts == {"addendum": "Done."} and told("").texts == {}


@pytest.mark.parametrize(
    "text",
    [
        "* " * 20_000,
        "ADDENDUM 1 " * 5_000,
        "Findings\n\n" * 5_000,
        "Masses\n" * 5_000,
        "1. Masses\n" * 5_000,
        "a\n\n" * 20_000,
    ],
)
def test_odd_text_costs_no_more_than_its_length(text):
    """As in test_reports.py: a hang is what this test would show."""
    told(text)
