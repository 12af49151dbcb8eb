"""Phrases: what stands out among sentences, denied and affirmed; the lexicon and its mistakes."""

import json

import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices import phrases
from mammoclip_jax.evaluation.slices.phrases import Phrase, Phrases

CLIPS = [f"There is a surgical clip in the {where}." for where in ("axilla", "left breast", "upper breast", "tail")]
NO_CLIPS = [f"No surgical clips in the {where}." for where in ("axilla", "left breast", "upper breast", "tail")]
OTHERS = [f"The study of {k} March is compared." for k in range(40)]


def test_log_odds_by_a_loop():
    top, rest, prior = [3, 0, 9], [5, 80, 9], [8.0, 2.5, 1]
    for w, found in enumerate(phrases.log_odds(top, rest, prior)):
        inside = (top[w] + prior[w]) / (sum(top) + sum(prior) - top[w] - prior[w])
        outside = (rest[w] + prior[w]) / (sum(rest) + sum(prior) - rest[w] - prior[w])
        spread = np.sqrt(1 / (top[w] + prior[w]) + 1 / (rest[w] + prior[w]))
        assert found == pytest.approx(np.log(inside / outside) / spread)


def test_the_lexicon_has_about_150_phrases():
    entries = phrases.lexicon()
    assert 130 <= len(entries) <= 180
    names = {one.name for one in entries}
    assert {"calcification", "mass", "implant", "pacemaker", "view marker", "old age", "scar", "dense tissue"} <= names
    assert all(one.name == one.name.lower() for one in entries)


def test_n_grams_in_the_singular_do_not_cross_a_comma():
    found = phrases.n_grams("Coarse calcifications, two masses and biopsies.", 2)
    assert found["coarse", "calcification"] == "Coarse calcifications"
    assert ("two", "mass") in found and ("and", "biopsy") in found and ("calcification", "two") not in found


@pytest.mark.parametrize("chosen, denied", [(range(4), False), (range(4, 8), True)])
def test_a_phrase_stands_out_affirmed_or_denied_and_names_the_same_hypothesis(chosen, denied):
    found = Phrases(CLIPS + NO_CLIPS + OTHERS).candidates(chosen, least_z=1.0)
    assert [(one.hypothesis.name, one.denied, one.count) for one in found] == [("surgical clip", denied, 4)]
    assert found[0].hypothesis.source == "lexicon"
    assert found[0].hypothesis.positive == tuple(CLIPS) and found[0].hypothesis.negative == tuple(NO_CLIPS)


def test_without_denials_the_others_are_the_other_side_and_with_few_affirmations_templates():
    (one,) = Phrases(CLIPS + OTHERS * 2).candidates(range(4), least_z=1.0)
    assert one.hypothesis.positive == tuple(CLIPS) and one.hypothesis.negative == tuple((OTHERS * 2)[::2])
    (one,) = Phrases([*NO_CLIPS, *OTHERS, CLIPS[0]]).candidates(range(4), least_z=1.0)
    assert one.denied and "There is surgical clip." in one.hypothesis.positive


def test_what_no_sentence_affirms_is_no_hypothesis():
    assert Phrases(NO_CLIPS + OTHERS).candidates(range(4), least_z=1.0) == []


def test_a_side_alone_is_no_hypothesis():
    texts = [f"Left breast {k}." for k in range(6)] + OTHERS
    assert Phrases(texts).candidates(range(6), least_z=1.0, least=2) == []


def test_what_the_lexicon_lacks_is_an_n_gram_and_the_class_is_no_hypothesis():
    texts = [f"A purple stripe{' near the cancer' * (k % 2)}, cancer {k}." for k in range(6)] + OTHERS
    found = Phrases(texts, leave_out=("cancer",)).candidates(range(6), least_z=1.0)
    names = [one.hypothesis.name for one in found]
    assert len(names) == 1 and names[0] in ("purple", "stripe", "purple stripe")  # all of them are the same
    assert all(one.hypothesis.source == "n-gram" for one in found)


def test_an_assessment_is_no_hypothesis_whatever_stands_beside_it():
    texts = [f"BI-RADS category {k % 3}, probably benign; a biopsy is recommended." for k in range(6)] + OTHERS
    assert Phrases(texts).candidates(range(6), least_z=1.0, least=2) == []


def test_other_words_for_a_phrase_count_as_it_and_a_lexicon_of_ones_own_is_taken():
    own = [Phrase("device", also=("gadgets", "apparatus"), against=("nothing of the kind",))]
    texts = ["A gadget is seen.", "An apparatus.", "Two devices."] + OTHERS
    found = Phrases(texts, own).candidates(range(3), least_z=1.0)
    assert [(one.hypothesis.name, one.count) for one in found] == [("device", 3)]
    assert "There is nothing of the kind." in found[0].hypothesis.negative


def test_where_nothing_stands_out_there_is_no_hypothesis():
    assert Phrases(CLIPS + NO_CLIPS).candidates([0, 1, 4, 5]) == []
    assert Phrases(["", "..."]).candidates([0]) == []


def test_mistakes_of_a_lexicon_are_named(tmp_path):
    path = tmp_path / "own.json"
    with pytest.raises(UserError, match="own.json is no lexicon .FileNotFound"):
        phrases.lexicon(path)
    for wrong in ("[]", "{", json.dumps({"groups": {"a": [{"also": ["b"]}]}})):
        path.write_text(wrong)
        with pytest.raises(UserError, match="is no lexicon"):
            phrases.lexicon(path)
    path.write_text(json.dumps({"groups": {"a": ["scar"], "b": [{"name": "mark", "also": ["scars"]}]}}))
    with pytest.raises(UserError, match="has 'scar' twice"):
        phrases.lexicon(path)
