"""The extra recogniser, with a stand-in for transformers and torch."""

import json
import sys
import types

import pytest
import transformers

from mammoclip_jax.data.text import recognise
from mammoclip_jax.errors import UserError


class Tokenizer:
    model_max_length = 10**30


class Model:
    config = types.SimpleNamespace(
        id2label={0: "O", 1: "B-PATIENT", 2: "I-PATIENT", 3: "B-HOSP", 4: "B-DATE"}, max_position_embeddings=514
    )

    def eval(self):
        return self


def _find(text):
    """Knows two people, a hospital, and takes a mass for one."""
    known = {
        "Zelen": "PATIENT",
        "Quorthon": "PATIENT",
        "Wexford": "HOSP",
        "Mass": "PATIENT",
        "Paget": "PATIENT",
        "Monday": "DATE",
        "name": "PATIENT",
    }
    return [
        {
            "entity_group": label,
            "score": 0.3 if word == "Quorthon" else 0.9,
            "start": text.index(word),
            "end": text.index(word) + len(word),
        }
        for word, label in known.items()
        if word in text
    ]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    torch, asked = [True], []

    def pipeline(task, model, tokenizer, aggregation_strategy, stride):
        asked.append((task, tokenizer.model_max_length, aggregation_strategy, stride))
        return _find

    def loaded(kind):
        def from_pretrained(folder, local_files_only):
            assert local_files_only and folder == tmp_path
            return kind()

        return types.SimpleNamespace(from_pretrained=from_pretrained)

    fake = types.SimpleNamespace(
        AutoTokenizer=loaded(Tokenizer), AutoModelForTokenClassification=loaded(Model), pipeline=pipeline
    )
    assert set(vars(fake)) <= set(dir(transformers)) and hasattr(transformers.utils, "is_torch_available")
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.utils", types.SimpleNamespace(is_torch_available=lambda: torch[0]))
    return types.SimpleNamespace(folder=tmp_path, torch=torch, asked=asked, fake=fake)


def test_names_and_places_go_and_findings_stay(stand_in):
    found = recognise.load(stand_in.folder)
    assert stand_in.asked == [("token-classification", 512, "first", 64)]
    assert found.hide("Seen: Zelenka at Wexford on Monday. Mass, Paget disease, by [name].") == (
        "Seen: [name] at [place] on Monday. Mass, Paget disease, by [name]."
    )
    assert found.hide("Perhaps Quorthon.") == "Perhaps Quorthon." and found.hide(" ") == " "
    assert found.name.startswith("Model ") and str(stand_in.folder) not in found.name
    (stand_in.folder / "model.safetensors").write_bytes(b"others")
    assert recognise.load(stand_in.folder).name != found.name


def test_what_is_missing_is_named(stand_in, monkeypatch, tmp_path_factory):
    with pytest.raises(UserError, match="no config.json"):
        recognise.load(tmp_path_factory.mktemp("empty"))
    monkeypatch.setattr(Model, "config", types.SimpleNamespace(id2label={0: "O", 1: "B-GENE"}))
    with pytest.raises(UserError, match="knows nobody.*B-GENE"):
        recognise.load(stand_in.folder)

    def damaged(folder, local_files_only):
        raise OSError("no file named model.safetensors")

    stand_in.fake.AutoTokenizer.from_pretrained = damaged
    with pytest.raises(UserError, match="cannot load the recogniser"):
        recognise.load(stand_in.folder)
    stand_in.torch[0] = False
    with pytest.raises(UserError, match=r"needs torch: pip install mammoclip_jax\[recognise\]"):
        recognise.load(stand_in.folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers: pip install mammoclip_jax\[recognise\]"):
        recognise.load(stand_in.folder)


def test_two_windows_that_find_the_same_hide_it_once():
    span = {"entity_group": "PER", "score": 1.0, "start": 3, "end": 10}
    assert recognise.hide_spans("By Zelenka.", [span, span | {"end": 6}]) == "By [name]."
    assert json.dumps(recognise.hide_spans("", [])) == '""'
