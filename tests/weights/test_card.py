"""The card says what the model is and where it comes from, whatever the texts that it is given contain."""

import json
import re

import pytest
import yaml

from mammoclip_jax.data.pixels.render import CHOICES, Preprocessing
from mammoclip_jax.evaluation.result import Result, to_json
from mammoclip_jax.weights import card, folder, licences

PARAMETERS = {"image_encoder": 28340784, "image_projection": 1049088, "text_encoder": 108310272, "logit_scale": 1}


def trained():
    """meta of a run on phantoms."""
    return {
        "kind": "dual_encoder",
        "step": 540,
        "tokenizer": "{}",
        "config": {
            "name": "demo",
            "data": {"text_length": 256},
            "image": {"mean": 0.3, "std": 0.25, "channels": 3, "intensity": "minmax"},
            "model": {"image": {"name": "efficientnet", "variant": "b5"}, "text": {"name": "bert"}, "dim": 512},
        },
        "preprocessing": {"geometry": "fit", "height": 1520, "width": 912, "intensity": "voi", "bits": 16},
        "provenance": {
            "data": {
                "phantom": {
                    "real": False,
                    "licence": "CC0-1.0",
                    "citation": "this package",
                    "fingerprint": "ab",
                    "counts": {"images": 1200, "patients": 300, "reasons": {}},
                }
            },
            "versions": {"jax": "0.10.2"},
            "devices": "1 x cpu",
        },
    }


def imported(licence="mammo_clip", origin="shawn24/Mammo-CLIP", **changes):
    """meta of published weights, as `opening.import_weights` makes it."""
    found = licences.find(licence)
    entry = {"weights": origin, "licence": found.key, "title": found.title, "stated": False, "layout": "mammo_clip"}
    return (
        trained() | {"tokenizer": None, "provenance": {"data": {}, "licences": [entry], "notes": ["A note."]}} | changes
    )


def front(text):
    """(YAML in front, Markdown)."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_model_trained_on_phantoms_says_so():
    head, body = front(card.render(trained(), parameters=PARAMETERS))
    assert head == {
        "library_name": "mammoclip_jax",
        "license": "unknown",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["mammography", "medical-imaging", "jax", "flax", "clip"],
    }
    for part in (
        "# demo\n",
        "Trained on generated phantoms only",
        "not a medical device",
        "1200 images, 300 patients",
        "phantom: this package",
        "| all | 137,700,145 |",
        "| image_encoder | 28,340,784 |",
        "efficientnet (variant b5)",
        "1520 x 912 pixels of 16 bits",
        "stretched to [0, 1]",
        "CC0-1.0",
        "256 tokens",
        "in one space, so that texts can be compared with images. Step 540 of its training.\n",
        "Not measured here",
        "embed_text",
        "jax 0.10.2",
    ):
        assert part in body, part


def test_real_and_mixed_data_are_told_apart():
    meta = trained()
    phantom = meta["provenance"]["data"]["phantom"]
    meta["provenance"]["data"] = {"hospital": phantom | {"real": True}}
    assert "phantoms" not in card.render(meta, parameters=PARAMETERS)
    meta["provenance"]["data"]["phantom"] = phantom
    text = card.render(meta, parameters=PARAMETERS)
    assert "Part of the training data is generated phantoms" in text and "phantoms only" not in text


def test_metrics_stand_with_their_intervals():
    results = to_json(
        [
            Result(
                "phantom/zero_shot",
                "Two prompts a label.",
                {
                    "mass/auroc": {"value": 0.8874, "low": 0.8171, "high": 0.936, "n": 256},
                    "cyst/auroc": {"value": None, "low": None, "high": None, "n": 0, "reason": "no positive case"},
                },
            )
        ]
    )
    text = card.render(trained(), parameters=PARAMETERS, results=results)
    assert "| phantom/zero_shot/mass/auroc | 0.887 | 0.817 to 0.936 | 256 |" in text
    assert "| phantom/zero_shot/cyst/auroc | – (no positive case) |  | 0 |" in text
    assert "- phantom/zero_shot: Two prompts a label." in text and "Not measured" not in text


def test_published_weights_carry_their_terms():
    head, body = front(card.render(imported(), parameters=PARAMETERS))
    assert head["license"] == "cc-by-nc-sa-4.0" and head["base_model"] == ["shawn24/Mammo-CLIP"]
    for part in (
        "(presumed)",
        "unresolved",
        "No commercial use: shawn24/Mammo-CLIP",
        "under the same terms: shawn24",
        "A note.",
        "embed_tokens",
        "Imported, not trained here",
        "tokenizer is not in this folder",
    ):
        assert part in body, part


def test_several_terms_are_other_and_all_are_named():
    meta = trained()
    parent = imported()["provenance"] | {
        "overrides": [{"action": "export", "override": "a letter", "of": ["the lab's copy"], "date": "2026-05-03"}]
    }
    other = imported("mammo_fm", "the lab's copy")["provenance"]
    meta["provenance"] |= {
        "licences": licences.inherit([parent, other]),
        "overrides": licences.inherit_overrides([parent, other]),
    }
    head, body = front(card.render(meta, parameters=PARAMETERS))
    assert head["license"] == "other" and "Mammo-CLIP" in head["license_name"] and "Mammo-FM" in head["license_name"]
    assert '2026-05-03, export, of the lab\'s copy: "a letter"' in body and "no hosting or serving" in body


def test_data_of_parents_is_named_and_counts_as_phantom():
    meta = trained()
    meta["provenance"] = {
        "data": {},
        "licences": licences.inherit([trained()["provenance"]]),
        "parents": [
            {"name": "a", "what": "runs/first", "origin": "first", "kind": "dual_encoder", "step": 540, "report": {}},
            {"name": "b", "what": "MiniLM", "origin": "", "kind": "text_encoder", "step": 0},
        ],
    }
    head, body = front(card.render(meta, parameters=PARAMETERS))
    assert "started from:\n\n- first (dual encoder, step 540)\n- MiniLM (text encoder)\n" in body
    assert "- phantom (generated phantoms), licence: CC0 1.0" in body and "phantoms only" in body
    assert head["license"] == "unknown"
    again = trained()
    again["provenance"]["licences"] = meta["provenance"]["licences"]
    assert "started from were trained on" not in card.render(again, parameters=PARAMETERS)  # the same data set


def test_the_hub_is_told_one_licence_or_none():
    for ours, told in (
        (["mit", "dinov2"], "other"),
        (["dinov2", "apache-2.0"], "apache-2.0"),
        (["embed"], "other"),
        (["as agreed"], "other"),
        (["unknown"], "unknown"),
        ([], "unknown"),
    ):
        meta = trained()
        meta["provenance"]["licences"] = [imported(licence)["provenance"]["licences"][0] for licence in ours]
        assert front(card.render(meta, parameters=PARAMETERS))[0]["license"] == told, ours


@pytest.mark.parametrize(
    "kind, task, part",
    [
        ("image_encoder", "image-feature-extraction", "config.warm_start"),
        ("detector", "object-detection", "birads_2"),
        ("text_encoder", "feature-extraction", "config.warm_start"),
        ("classifier", "image-classification", "classify"),
    ],
)
def test_parts_of_models_lack_whole_sections(kind, task, part):
    is_text = kind == "text_encoder"
    tower = "text" if is_text else "image"
    meta = imported(
        kind=kind,
        preprocessing={} if is_text else trained()["preprocessing"],
        config={
            "name": "part",
            "image": {} if is_text else {"mean": 0, "std": 1, "channels": 1, "intensity": "range"},
            "data": {"text_length": 0},
            "model": {tower: {"name": "x", "none": None}, "labels": ["birads_1", "birads_2"]},
        },
    )
    text = card.render(meta, parameters={"encoder": 2})
    head, body = front(text)
    assert head["pipeline_tag"] == task and part in body and "tokens" not in body.partition("## Training")[0]
    assert ("## Input" in body) != is_text


def test_texts_from_elsewhere_break_neither_tables_nor_pages():
    bad = 'x | y\n---\nlicense: mit\n<script>alert("1")</script>'
    meta = imported(licence=bad, origin=bad)
    meta["config"] = meta["config"] | {"name": bad}
    meta["provenance"]["data"] = {bad: {"real": True, "licence": bad, "citation": bad, "counts": None}}
    meta["provenance"]["notes"] = [bad]
    meta["provenance"]["overrides"] = [{"action": "export", "override": bad, "of": [bad], "date": "2026-05-03"}]
    head, body = front(card.render(meta, parameters=PARAMETERS))
    assert head["license"] == "other" and head["license_name"] == bad
    assert not re.search("<[a-z/]", body) and "\n---\n" not in body
    rows = [line for line in body.splitlines() if line.startswith("|") and "x \\|" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_the_page_is_well_formed_markdown():
    for meta in (trained(), imported()):
        body = front(card.render(meta, parameters=PARAMETERS))[1]
        assert not re.search(r"\n\n\n", body) and not re.search(r"[^\n]\n## ", body)
        assert not re.search(r"[^|\n]\n\|", body)  # a table starts after an empty line
        assert body.count("```") == 2 and "{%" not in body


def test_every_kind_of_folder_has_a_card():
    assert set(card.TASKS) == set(folder.KINDS)


def test_the_words_are_of_choices_that_there_are():
    assert "window says. The breast is found and cropped. The crop is resized" in card.render(
        trained() | {"preprocessing": {"crop": "robust"} | trained()["preprocessing"]}, parameters=PARAMETERS
    )
    fields = {name for name, _ in card._STEPS}
    assert fields <= set(CHOICES) and all(value in CHOICES[name] for name, value in card._STEPS)
    for name in ("geometry", "crop", "intensity"):
        assert (name, getattr(Preprocessing(), name)) in card._STEPS


def test_the_folder_holds_the_card(tmp_path):
    text = card.render(trained(), parameters=PARAMETERS)
    meta = trained() | {"tokenizer": json.dumps({"pad_token": "[PAD]", "tokenizer": "{}"})}
    out = folder.write(tmp_path / "m", {"params": {}, "batch_stats": {}}, meta, card=text)
    assert (out / "README.md").read_text() == text
