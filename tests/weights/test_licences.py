"""Terms are found by name, forbid what they forbid, and travel through every generation of models."""

import datetime
import json

import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import layouts, licences

MAMMO_FM = {"weights": "the lab's own copy", "licence": "mammo_fm", "title": "Mammo-FM", "stated": True}
MIT = {"weights": "somebody/encoder", "licence": "mit", "title": "MIT", "stated": True}


def provenance(*entries, **data):
    return {"licences": list(entries), "data": data}


@pytest.mark.parametrize(
    "text, key",
    [
        ("mammo_clip", "mammo_clip"),
        ("Mammo-CLIP", "mammo_clip"),
        ("cc by-nc-sa 4.0", "cc-by-nc-sa-4.0"),
        ("Apache License 2.0", "apache-2.0"),
        ("MIT", "mit"),
        ("CC0-1.0", "cc0-1.0"),
        ("CC BY 3.0", "cc-by-3.0"),
        ("answerdotai/ModernBERT-base", "modernbert"),
        ("", "unknown"),
        ("  ", "unknown"),
        ("weights of Mammo FM, academic", "mammo_fm"),
    ],
)
def test_names_are_found_however_they_are_written(text, key):
    assert licences.find(text).key == key


def test_any_other_text_is_kept_and_forbids_nothing():
    found = licences.find("by agreement with the hospital, 2026")
    assert found.key == found.title == "by agreement with the hospital, 2026"
    assert found.allows_export and found.allows_initialising and found.hub == "other"
    assert licences.find(found.key) == found


def test_the_layouts_name_licences_that_there_are():
    for name in layouts.LAYOUTS:
        assert layouts.layout(name).licence in licences.LICENCES


def test_no_two_entries_answer_to_one_name():
    names = {}
    for licence in licences.LICENCES.values():
        for name in {licences._letters(name) for name in (licence.key, licence.title, *licence.also)}:
            assert names.setdefault(name, licence.key) == licence.key
        assert licences.find(licence.title).key == licence.key


def test_mammo_fm_is_neither_exported_nor_started_from():
    for action, flag in (("export", "--override_licence"), ("initialise", "config.warm_start.NAME.override")):
        with pytest.raises(UserError) as error:
            licences.check(action, provenance(MIT, MAMMO_FM))
        for part in ("the lab's own copy", "no redistribution", flag):
            assert part in str(error.value)
        assert "somebody/encoder" not in str(error.value)


def test_an_override_becomes_a_record():
    record = licences.check("export", provenance(MAMMO_FM, MIT), " letter of the authors, 3 May 2026 ")
    assert record == {
        "action": "export",
        "override": "letter of the authors, 3 May 2026",
        "of": ["the lab's own copy"],
        "date": datetime.date.today().isoformat(),
    }
    with pytest.raises(UserError):
        licences.check("export", provenance(MAMMO_FM), "   ")


def test_what_nothing_forbids_needs_no_record():
    free = {"weights": "w", "licence": "terms that nobody knows", "title": "t", "stated": True}
    assert licences.check("export", provenance(MIT, free), "not needed") is None
    assert licences.check("export", {}) is None


def test_data_sets_have_a_say():
    from mammoclip_jax.data.sources import embed

    embed_data = {"licence": embed.LICENCE, "real": True, "counts": {"images": 4}}
    trained = provenance(hospital={"licence": "private"}, embed=embed_data)
    with pytest.raises(UserError, match="data set embed"):
        licences.check("export", trained)
    assert licences.check("initialise", trained) is None


def test_terms_travel_over_two_generations():
    parent = provenance(MAMMO_FM, embed={"licence": "EMBED Research Use Agreement", "real": True, "counts": {}})
    overridden = {"action": "initialise", "override": "letter", "of": ["the lab's own copy"], "date": "2026-05-03"}
    child = {
        "licences": licences.inherit([parent, provenance(MIT)]),
        "overrides": [overridden],
        "data": {"phantom": {"licence": "CC0-1.0", "real": False, "counts": {}}},
    }
    child = json.loads(json.dumps(child))  # as in a checkpoint
    grandchild = {
        "licences": licences.inherit([child, provenance(MIT)]),
        "overrides": licences.inherit_overrides([child, parent, child]),
        "data": {},
    }
    assert [entry["weights"] for entry in grandchild["licences"]] == [
        "the lab's own copy",
        "data set embed",
        "somebody/encoder",
        "data set phantom",
    ]
    assert grandchild["licences"][0] == MAMMO_FM
    assert grandchild["overrides"] == [overridden]
    for generation in (child, grandchild):
        with pytest.raises(UserError) as error:  # the override was of another action
            licences.check("export", generation)
        assert "the lab's own copy" in str(error.value) and "data set embed" in str(error.value)
    assert licences.check("export", grandchild, "letters")["of"] == ["the lab's own copy", "data set embed"]


def test_an_unknown_action_is_named():
    with pytest.raises(UserError, match="exprot"):
        licences.check("exprot", {})
