"""Back-translation with translators made up here."""

import builtins
import json
import sys
import types

import pandas as pd
import pytest
import transformers

from mammoclip_jax.data.text import augment_text
from mammoclip_jax.errors import UserError

TEXTS = ["No mass in the left breast.", "A 5 mm mass.", "Benign.", "Dense tissue.", "A cyst on the right.", "Normal."]
SAID = {
    "No mass in the left breast.": "A mass in the left breast.",
    "A 5 mm mass.": "A 6 mm mass.",
    "Benign.": " ",
    "Dense tissue.": "The tissue is dense.",
    "A cyst on the right.": "A cyst on the left.",
    "Normal.": "normal.",
}


@pytest.fixture
def folder(tmp_path):
    rows = [
        dict(texts=TEXTS[:3], split="train"),
        dict(texts=[*TEXTS[2:], " "], split="train"),
        dict(texts=["Of the test."], split="test"),
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "index.parquet")
    return tmp_path


def _translate(texts, seed):
    return [SAID[text] for text in texts]


def _seeded(texts, seed):
    return [f"{text} Seen again {'so ' * (seed % 7)}" for text in texts]


def test_what_says_something_else_is_dropped_and_counted(folder):
    counts = augment_text.augment(folder, _translate, model="m", batch=4)
    assert counts == {"texts": 6, "kept": 1, "empty": 1, "same": 1, "negation": 1, "side": 1, "number": 1}
    assert augment_text.alternatives(folder) == {"Dense tissue.": ("The tissue is dense.",)}
    assert not (folder / augment_text.JOURNAL).exists()


@pytest.mark.parametrize("dies", [1, 2, 3])
@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_killed_run_goes_on_to_the_same_file(folder, dies, cut):
    augment_text.augment(folder, _seeded, model="m", batch=2)
    whole = pd.read_parquet(folder / "texts_augmented.parquet")
    (folder / "texts_augmented.parquet").unlink()
    calls = []

    def dying(texts, seed):
        calls.append(seed)
        if len(calls) == dies:
            raise KeyboardInterrupt
        return _seeded(texts, seed)

    with pytest.raises(KeyboardInterrupt):
        augment_text.augment(folder, dying, model="m", batch=2)
    journal = folder / augment_text.JOURNAL
    journal.write_bytes(journal.read_bytes()[: -cut or None])  # a line half written
    asked = []
    augment_text.augment(folder, lambda texts, seed: asked.append(seed) or _seeded(texts, seed), model="m", batch=2)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "texts_augmented.parquet"), whole)
    assert len(asked) == 3 - (dies - 1) + (cut > 0 and dies > 1)


def test_another_model_starts_afresh(folder):
    (folder / augment_text.JOURNAL).write_text(
        json.dumps({"model": "old", "batch": 2, "seed": 42}) + "\n" + json.dumps([TEXTS[0], "Old."]) + "\n"
    )
    augment_text.augment(folder, _seeded, model="m", batch=2)
    assert "Old." not in set(pd.read_parquet(folder / "texts_augmented.parquet")["augmented"])


def test_errors_name_what_to_do(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no index.parquet"):
        augment_text.augment(tmp_path / "none", _translate, model="m")
    with pytest.raises(UserError, match="gave 0 texts"):
        augment_text.augment(folder, lambda texts, seed: [], model="m")
    with pytest.raises(UserError, match="augment_text --data"):
        augment_text.alternatives(tmp_path / "none")
    real = builtins.__import__

    def without_it(name, *arguments, **options):
        if name == "sentencepiece":
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_it)
    with pytest.raises(UserError, match=r"pip install torch transformers\[sentencepiece\]"):
        augment_text.translator("a", "b")


def test_translates_with_two_models(monkeypatch):
    """The wiring to transformers, which a stand-in of its interface plays here: forth upper case, back lower case."""
    seeds, torch = [], [True]

    class Model:
        def eval(self):
            return self

        def generate(self, input_ids, do_sample, temperature, num_beams):
            assert do_sample and temperature == 1.5 and num_beams == 5
            return input_ids

    class Tokenizer:
        def __init__(self, name, local_files_only):
            self.change = {"forth": str.upper, "back": str.lower}[name]

        def __call__(self, texts, **options):
            return {"input_ids": texts}

        def batch_decode(self, ids, skip_special_tokens):
            return [self.change(text) for text in ids]

    stand_in = types.SimpleNamespace(
        AutoTokenizer=types.SimpleNamespace(from_pretrained=Tokenizer),
        set_seed=seeds.append,
        AutoModelForSeq2SeqLM=types.SimpleNamespace(from_pretrained=lambda name, local_files_only: Model()),
    )
    assert set(vars(stand_in)) <= set(dir(transformers)) and hasattr(transformers.utils, "is_torch_available")
    monkeypatch.setitem(sys.modules, "sentencepiece", types.ModuleType("sentencepiece"))
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    monkeypatch.setitem(sys.modules, "transformers.utils", types.SimpleNamespace(is_torch_available=lambda: torch[0]))
    assert augment_text.translator("forth", "back")(["A Mass", "b"], 3) == ["a mass", "b"]
    assert seeds == [3]
    torch[0] = False
    with pytest.raises(UserError, match="pip install torch"):
        augment_text.translator("forth", "back")
