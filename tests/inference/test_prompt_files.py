"""Prompt files: what they expand to, and that mistakes name file, label and remedy."""

import json

import pytest

from mammoclip_jax.data.text import templating
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import prompt_files
from mammoclip_jax.inference.prompt_files import PROMPTS, load, load_prompts

NAMES = sorted(path.stem for path in PROMPTS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_the_package_are_whole(name):
    loaded = load(name)
    sides = [side for pair in loaded.pairs.values() for side in pair]
    sides += [texts for named in loaded.classes.values() for texts in named.values()]
    assert sides and all(texts and all(text.strip() and "{" not in text for text in texts) for texts in sides)
    assert all(len(set(texts)) == len(texts) for texts in sides)
    assert load(name) == loaded  # the same in the same order


def test_the_published_pairs_are_as_published():
    assert load_prompts("mammo_clip") == {
        "mass": (("mass",), ("no mass",)),
        "calcification": (("suspicious calcification",), ("no suspicious calcification",)),
        "cancer": (("malignancy",), ("no malignancy",)),
    }


def test_the_classes_of_density_and_birads():
    for name in ("density_birads", "mama"):
        classes = load(name).classes
        assert list(classes["density"]) == list("ABCD")
        assert list(classes["birads"]) == list("1236045")  # as data/text/captions.CONCERN
    vindr = load("mama_vindr").classes
    assert list(vindr["birads"]) == list("12345") and vindr["density"] == load("mama").classes["density"]
    assert all(texts == load("mama").classes["birads"][name] for name, texts in vindr["birads"].items())
    assert load("mama").classes["birads"]["4"] == (templating.render("mama", {"birads": 4}),)


def test_slots_are_filled_in_order_and_texts_without_them_stay_as_they_are():
    raw = {
        "mass": {
            "slots": {"shape": ["round", "irregular"], "side": ["left", "right"]},
            "positive": ["a {shape} mass, {side}; {side}", "mass"],
            "negative": "no mass",
        }
    }
    assert load_prompts(raw)["mass"].positive == (
        "A round mass, left; left",
        "A round mass, right; right",
        "An irregular mass, left; left",
        "An irregular mass, right; right",
        "mass",
    )


def test_a_labels_slots_go_before_those_of_the_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {
                "slots": {"x": ["file"], "y": ["y"]},
                "labels": {
                    "a": {"slots": {"x": ["label"]}, "positive": "is {x} {y}", "negative": "not"},
                    "b": {"classes": {"1": ["one {x}"], "2": ["two"]}},
                },
            }
        )
    )
    loaded = load(path)
    assert loaded.pairs["a"].positive == ("Is label y",) and loaded.classes["b"]["1"] == ("One file",)
    assert loaded.source == str(path)


PAIR = {"positive": ["mass"], "negative": ["no mass"]}


@pytest.mark.parametrize(
    "labels, message",
    [
        ({}, "is empty"),
        ({"mass": {"positive": ["mass"]}}, "'mass' needs texts under both 'positive' and 'negative'"),
        ({"mass": {"positive": [], "negative": ["x"]}}, "'positive' and 'negative'"),
        ({"mass": ["mass"]}, "'mass' should map .* not be a list"),
        ({"mass": PAIR | {"negativ": ["x"]}}, "no key 'negativ'. Did you mean 'negative'"),
        ({"mass": PAIR | {"positive": [3]}}, "'positive' holds 3"),
        ({"mass": PAIR | {"positive": [" "]}}, "not blank"),
        ({"mass": PAIR | {"positive": 3}}, "'positive' holds 3"),
        ({"mass": PAIR | {"positive": ["no mass"]}}, "'no mass' is under both 'positive' and 'negative'"),
        ({"mass": PAIR | {"positive": ["a {shap} mass"], "slots": {"shape": ["x"]}}}, "no slot. Did you mean 'shape'"),
        ({"mass": PAIR | {"positive": ["a { mass"]}}, "a brace too many"),
        ({"mass": PAIR | {"slots": {"shape": "round"}}}, "slot 'shape' holds 'round'"),
        ({"mass": PAIR | {"slots": {"Shape": ["round"]}}}, "small letters"),
        ({"mass": PAIR | {"positive": [{"template": "mama"}]}}, "name a template and its labels"),
        ({"mass": PAIR | {"positive": [{"template": "mamma", "labels": {}}]}}, "Did you mean 'mama'"),
        ({"mass": PAIR | {"positive": [{"template": "mama", "labels": {"site": "x"}}]}}, "says nothing about"),
        ({"density": PAIR | {"classes": {"A": ["a"], "B": ["b"]}}}, "classes and a pair"),
        ({"density": {"classes": {"A": ["a"]}}}, "needs two at least"),
        ({"density": {"classes": {"A": ["a"], "B": ["a"]}}}, "'a' is under both 'A' and 'B'"),
        ({"density": {"classes": ["A", "B"]}}, "should map"),
        ({"density": {"classes": {"A": [], "B": ["b"]}}}, "class 'A' holds"),
    ],
)
def test_mistakes_name_the_file_the_label_and_what_to_do(tmp_path, labels, message):
    with pytest.raises(UserError, match="the given prompts: .*" + message):
        load(labels)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match="mine.json: .*" + message):
        load(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Did you mean 'mammo_clip'"):
        load("mamo_clip")
    path = tmp_path / "broken.json"
    for content in ("{", "[1]", '{"mass": {}}', "\udcff"):
        path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match="broken.json is not a prompt file"):
            load(path)
    path.write_text('{"labels": {"mass": {"positive": "x", "negative": "y"}}, "slot": {}}')
    with pytest.raises(UserError, match="the file has no key 'slot'. Did you mean 'slots'"):
        load(path)
    with pytest.raises(UserError, match="density_birads.json has classes only"):
        load_prompts("density_birads")
    monkeypatch.setattr(prompt_files, "MOST_TEXTS", 149)
    with pytest.raises(UserError, match="label 'mass', 'positive' stands for 150 texts"):
        load("ensemble")
