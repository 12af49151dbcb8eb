"""The planted shortcut of phantoms: a ring that goes with a finding in training and with nothing elsewhere."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom import generate, report_text, skin_marker
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.sources import reader
from mammoclip_jax.errors import UserError

SMALL = Parameters(height=160, width=128)
RINGS = replace(SMALL, shortcut="mass", shortcut_share=0.9, shortcut_held_out=0.5)


@pytest.mark.parametrize("label", ["mass", "calcification"])
def test_the_share_holds_in_training_and_nothing_does_elsewhere(label):
    parameters = replace(RINGS, shortcut=label)
    found = [
        (skin_marker.held_out(parameters, exam.patient), breast.has(label), breast.skin_marker)
        for exam in (exams.draw(parameters, number) for number in range(700))
        for breast in exam.breasts.values()
    ]
    away, there, ring = np.array(found).T
    assert abs(away.mean() - 0.5) < 0.06
    for finding in (True, False):
        held = there == finding
        agrees = (ring == there)[held & ~away]
        assert abs(agrees.mean() - 0.9) < 4 * np.sqrt(0.09 / agrees.size)
        assert abs(ring[held & away].mean() - 0.5) < 4 * np.sqrt(0.25 / (held & away).sum())


def test_nothing_changes_where_it_is_off(tmp_path):
    """The identifiers, the facts and the words are those of sets that were made before there was a shortcut."""
    assert not {name for name in SMALL.as_json() if "shortcut" in name}
    generate.generate(tmp_path / "set", 3, SMALL)
    report = (tmp_path / "set/exams/phantom-0-000002/report.txt").read_bytes()
    assert hashlib.sha256(report).hexdigest().startswith("b66edab0ffe86645")
    facts = (tmp_path / "set/exams/phantom-0-000002/exam.json").read_text() + (
        tmp_path / "set/phantom.json"
    ).read_text()
    assert "skin_marker" not in facts and "shortcut" not in facts
    with pytest.raises(UserError, match="shortcut_share=0.5 without a shortcut"):
        generate.generate(tmp_path / "other", 1, replace(SMALL, shortcut_share=0.5))
    with pytest.raises(UserError, match="'masses' is no finding"):
        generate.generate(tmp_path / "other", 1, replace(SMALL, shortcut="masses"))


def test_a_ring_is_all_that_it_adds_to_the_image():
    """The lesions, boxes and masks of a breast are as without; the ring is small, bright and in the breast."""
    seen = 0
    for number in range(6):
        plain, ringed = exams.draw(SMALL, number), exams.draw(RINGS, number)
        for laterality, view in exams.VIEWS:
            before, after = (exams.render(exam, laterality, view) for exam in (plain, ringed))
            assert before.boxes == after.boxes and np.array_equal(before.mask, after.mask)
            changed = ~np.isclose(before.density, after.density, atol=1e-6)
            assert changed.any() == ringed.breasts[laterality].skin_marker
            if changed.any():
                seen += 1
                assert (changed <= before.breast).all() and after.density[changed].mean() > 1
                rows, columns = np.nonzero(changed)
                assert np.ptp(rows) <= 2 * skin_marker.RADIUS * 160 + 1 and len(rows) < 120
                assert np.ptp(columns) <= 2 * skin_marker.RADIUS * 160 + 1
    assert seen >= 4


def test_labels_and_reports_say_what_is_there(tmp_path):
    generate.generate(tmp_path / "set", 4, RINGS)
    rows = reader("phantom")(tmp_path / "set", test_fraction=0.3, val_fraction=0.2).rows
    drawn = {exam.patient: exam for exam in (exams.draw(RINGS, number) for number in range(4))}
    for row in rows.itertuples():
        breast = drawn[row.patient].breasts[row.laterality]
        assert json.loads(row.labels)["skin_marker"] == breast.skin_marker
        assert (row.split == "train") != skin_marker.held_out(RINGS, row.patient)
    said = {True: 0, False: 0}
    for number in range(60):
        exam = exams.draw(RINGS, number)
        for side, breast in exam.breasts.items():
            (findings, impression), sections = report_text.texts(exam, side)
            found = [sentence for sentence in findings.split(". ") if "kin marker" in sentence]
            assert sections == ["findings", "impression"] and "marker" not in impression
            assert len(found) <= 1 and all(
                ("o skin marker" in text) != breast.skin_marker and text in report_text.report(exam) for text in found
            )
            assert found or not breast.skin_marker
            said[breast.skin_marker] += len(found)
    assert said[True] > 30 and said[False] > 10


def test_fractions_that_are_not_the_shortcuts_are_refused(tmp_path):
    generate.generate(tmp_path / "set", 1, RINGS)
    with pytest.raises(UserError, match="must add up to that"):
        reader("phantom")(tmp_path / "set")
