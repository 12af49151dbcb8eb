"""Lexicons of concepts: their labels are labels, nothing is said twice, and what is known denies what it must."""

import json

import numpy as np
import pytest

from mammoclip_jax.data.batches import targets
from mammoclip_jax.data.phantom import lesions
from mammoclip_jax.data.sources import chexpert, embed_codes
from mammoclip_jax.data.text import concepts, label_values
from mammoclip_jax.data.text.concepts import allowed, load, of_box
from mammoclip_jax.errors import UserError

LEXICONS = sorted(path.stem for path in concepts.FOLDER.glob("*.json"))
EVERY = [f"{name}:{level}" for name in LEXICONS for level in concepts.LEVELS]
WORDS = {key: set(words.values()) for key, (_, words) in embed_codes.WORDS.items()}
PHANTOM = {
    "mass_shape": set(lesions.MASS_SHAPES),
    "mass_margins": set(lesions.MASS_MARGINS),
    "calcification_type": set(lesions.CALCIFICATION_MORPHOLOGIES),
    "calcification_distribution": set(lesions.CALCIFICATION_DISTRIBUTIONS),
}


def names(given, mask):
    return [concept.name for concept, there in zip(given, mask, strict=True) if there]


@pytest.mark.parametrize("name", EVERY)
def test_what_a_concept_implies_are_labels_that_allow_it(name):
    made = load(name)
    findings = set(chexpert.FINDINGS.values()) if name.startswith("chest") else set(label_values.PRESENT)
    for concept in made:
        labels = dict(concept.values)
        for key, value in labels.items():
            if key == "laterality":
                assert value in ("L", "R")
            elif key in targets.WORDS:
                assert value in (PHANTOM if name.startswith("phantom") else WORDS)[key]
            else:
                assert key in findings and value in (0, 1)
        assert concept.finding in (labels if labels else ("",))
        assert not labels or allowed([concept], labels).all()
        assert not set("{}") & set("".join(concept.prompts))
    prompts = [prompt for concept in made for prompt in concept.prompts]
    assert len(set(prompts)) == len(prompts) and [c.finding for c in made].count("") == 1


def test_how_many_concepts_there_are():
    """The table in docs/regions.md."""
    counts = {name: [len(load(f"{name}:{level}")) for level in concepts.LEVELS] for name in LEXICONS}
    assert counts == {
        "chest": [14, 27, 14, 14],
        "chest_five": [6, 11, 6, 6],
        "mammo": [13, 25, 79, 301],
        "phantom": [3, 5, 51, 123],
    }
    assert load("mammo") == load("mammo:findings")


def test_prompts_have_the_words_of_their_labels():
    of = {concept.name: concept.prompts for concept in load("mammo:lexicon") + load("mammo:places")}
    assert of["mass, irregular, spiculated"][0] == "There is an irregular mass with spiculated margins."
    assert of["mass, equal-density"][0] == "There is an equal-density mass."
    assert of["suspicious calcification, amorphous, grouped"][1] == (
        "Amorphous calcifications with grouped distribution are seen."
    )
    assert of["mass, right, upper inner quadrant, middle"][0] == (
        "A mass in the upper inner quadrant of the right breast at middle depth."
    )
    assert [c.prompts[0] for c in load("phantom:presence") if c.values and c.values[0][1] == 0] == [
        "No mass.",
        "There are no calcifications.",
    ]


@pytest.mark.parametrize(
    "name, labels, expected",
    [
        ("phantom", {"mass": 1, "calcification": 0}, ["background", "mass"]),
        ("phantom", {"mass": 0}, ["background", "calcification"]),
        ("phantom", {"density": "B", "birads": 2}, []),
        ("phantom", {}, []),
        ("phantom", {"abnormal": 0}, ["background"]),
        ("phantom", {"suspicious_calcification": 1, "mass": "0"}, ["background", "calcification"]),
        ("phantom:presence", {"suspicious_calcification": 1}, ["background", "mass", "no mass", "calcification"]),
        ("phantom:presence", {"mass": 1, "abnormal": 0}, ["background", "mass", "no calcification"]),
        ("chest_five", {"no_finding": 1}, ["background"]),
        ("chest_five", {"edema_uncertain": 1}, []),
        (
            "chest_five",
            {"edema": 1, "atelectasis": 0, "cardiomegaly": 0, "consolidation": 0},
            ["background", "edema", "pleural effusion"],
        ),
    ],
)
def test_what_labels_deny(name, labels, expected):
    assert set(names(load(name), allowed(load(name), labels))) == set(expected)


def test_no_finding_leaves_devices_and_general_findings_their_kinds():
    chest, mammo = load("chest"), load("mammo")
    assert names(chest, allowed(chest, {"no_finding": 1})) == ["background", "support devices"]
    none = names(mammo, allowed(mammo, {"asymmetry": 0, "calcification": 1, "suspicious_calcification": 0}))
    assert not {"asymmetry", "focal asymmetry", "global asymmetry", "suspicious calcification"} & set(none)
    assert {"mass", "calcification"} <= set(none)


def test_words_and_sides_that_are_known_deny_others():
    lexicon, places = load("mammo:lexicon"), load("mammo:places")
    found = names(lexicon, allowed(lexicon, {"mass": 1, "mass_shape": ["Oval", "round"], "mass_margins": "obscured"}))
    assert {"mass, oval, obscured", "mass, round", "mass, high-density"} <= set(found)
    assert not any("irregular" in name or "spiculated" in name for name in found)
    found = names(places, allowed(places, {"mass": 1, "calcification": 0, "laterality": "L"}))
    assert any("left" in name for name in found) and not any("right" in name for name in found)
    assert not allowed(places, {"laterality": "L"}).any()


def test_boxes_show_their_finding_and_nothing_else():
    mammo, phantom, lexicon = load("mammo"), load("phantom"), load("mammo:lexicon")
    box = {"label": "Suspicious Calcification", "box": [0, 0, 1, 1]}
    assert names(mammo, of_box(mammo, box, {"mass": 1})) == ["suspicious calcification"]
    assert names(phantom, of_box(phantom, box, {})) == ["calcification"]
    assert names(mammo, of_box(mammo, {"labels": ["Mass", "Asymmetry"], "label": "Mass"}, {"mass": 0})) == [
        "mass",
        "asymmetry",
    ]
    assert not of_box(phantom, {"label": "nipple retraction"}, {"mass": 1}).any()
    np.testing.assert_array_equal(of_box(phantom, {"label": ""}, {"mass": 0}), allowed(phantom, {"mass": 0}))
    own = names(lexicon, of_box(lexicon, {"label": "mass", "mass_shape": "oval"}, {"mass_shape": "oval, round"}))
    assert "mass, oval, obscured" in own and not any("round" in name for name in own)
    presence = load("phantom:presence")
    assert names(presence, of_box(presence, {"label": "mass"}, {})) == ["mass"]


def test_mistakes_are_named(tmp_path):
    for name, message in (
        ("mamo", "no lexicon of concepts 'mamo'. Did you mean 'mammo'"),
        ("mammo:finding", "no level of the lexicon 'mammo': 'finding'. Did you mean 'findings'"),
    ):
        with pytest.raises(UserError, match=message):
            load(name)

    def lexicon(number, *sections):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"sections": list(sections)}))
        return str(path)

    background = {"name": "background", "parts": [{"texts": "normal"}]}
    mass = {"name": "mass", "parts": [{"when": {"mass": ["1"]}, "texts": "a mass"}]}
    again = {"name": "again", "parts": [{"when": {"calcification": ["1"]}, "texts": "a mass"}]}
    assert len(load(lexicon(0, background, mass))) == 2
    for number, (sections, message) in enumerate(
        [
            ((mass,), "needs one section 'background'"),
            ((background, mass, again), "has the prompt 'A mass' twice"),
            ((background, {"name": "mass", "parts": [{"texts": "a mass"}]}), "'mass' has a part without `when`"),
        ],
        1,
    ):
        with pytest.raises(UserError, match=message):
            load(lexicon(number, *sections))
