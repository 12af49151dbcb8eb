"""Tokenizers: trained, loaded, and shaped."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError

CORPUS = [
    "FINDINGS: There is an irregular mass with spiculated margins in the left breast. No suspicious calcifications.",
    "Scattered fibroglandular densities. No mass, distortion or suspicious calcifications in the right breast.",
    "No mass is seen in the left breast. Benign calcifications in the right breast without change.",
    "The breasts are heterogeneously dense. Left breast: oval mass without calcifications. Right breast: no mass.",
]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train_wordpiece(CORPUS, 400)


@pytest.fixture(scope="module")
def tokens(trained):
    return tokenizer.Tokenize(trained)


def test_special_tokens_come_first(trained):
    assert [trained.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert sorted(trained.get_vocab().values()) == list(range(trained.get_vocab_size()))


def test_negation_and_laterality_are_whole_words(trained):
    assert {"no", "without", "left", "right", "mass", "breast"} <= set(trained.get_vocab())


def test_training_is_the_same_in_every_process(trained):
    program = (
        "import sys, json, hashlib\nfrom mammoclip_jax.data.text import tokenizer\n"
        "t = tokenizer.train_wordpiece(json.load(sys.stdin), 400)\n"
        "print(hashlib.sha256(t.to_str().encode()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(CORPUS[::-1] * 2),
        text=True,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert found.strip() == hashlib.sha256(trained.to_str().encode()).hexdigest()


def test_words_outside_the_corpus_are_not_unknown(tokens):
    ids, mask = tokens.encode(["Zebra-like density? Approx. 12 x 7 mm (biopsy #3)"], 64)
    assert mask.sum() > 10 and 1 not in ids[mask]


def test_case_does_not_matter(tokens):
    np.testing.assert_array_equal(tokens.encode(["LEFT Breast"], 8)[0], tokens.encode(["left breast"], 8)[0])


def test_encode_pads_masks_and_truncates(tokens):
    ids, mask = tokens.encode(["no mass", "", "no mass in the left breast without calcifications"], 6)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (3, 6)
    assert tokens.tokens(ids[0]) == ["[CLS]", "no", "mass", "[SEP]", "[PAD]", "[PAD]"]
    assert tokens.tokens(ids[1]) == ["[CLS]", "[SEP]"] + ["[PAD]"] * 4
    assert tokens.tokens(ids[2]) == ["[CLS]", "no", "mass", "in", "the", "[SEP]"]  # the end stays
    np.testing.assert_array_equal(mask.sum(axis=1), [4, 2, 6])
    with pytest.raises(UserError, match="text_length"):
        tokens.encode(["no mass"], 2)


def test_padding_and_truncation_in_the_file_are_switched_off(trained, tmp_path):
    spoilt = Tokenizer.from_str(trained.to_str())
    spoilt.enable_padding(length=128)
    spoilt.enable_truncation(5)
    spoilt.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    clean = tokenizer.Tokenize(trained)
    for a, b in zip(loaded.encode(CORPUS, 40), clean.encode(CORPUS, 40), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.fingerprint == clean.fingerprint
    assert spoilt.padding is not None  # the caller's object is left as it was


def test_save_load_and_pickle_keep_everything(tokens, tmp_path):
    tokens.save(tmp_path / "tokenizer.json")
    for other in (
        tokenizer.load(tmp_path),
        tokenizer.load(str(tmp_path / "tokenizer.json")),
        pickle.loads(pickle.dumps(tokens)),
    ):
        assert (other.fingerprint, other.vocab_size, other.pad_id) == (tokens.fingerprint, tokens.vocab_size, 0)
        np.testing.assert_array_equal(other.encode(CORPUS, 20)[0], tokens.encode(CORPUS, 20)[0])


def test_fingerprint_depends_on_the_vocabulary(tokens):
    assert tokenizer.Tokenize(tokenizer.train_wordpiece(CORPUS[:2], 400)).fingerprint != tokens.fingerprint


def test_hugging_face_folder_with_vocabulary_alone(tmp_path):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "mass", "##es"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    loaded = tokenizer.load(tmp_path)
    assert loaded.tokens(loaded.encode(["No masses"], 6)[0][0]) == ["[CLS]", "no", "mass", "##es", "[SEP]", "[PAD]"]


def test_hub_out_of_reach_is_an_error_with_a_remedy(monkeypatch):
    import huggingface_hub
    import transformers

    def refuse(name, local_files_only=False):
        raise OSError(f"We couldn't connect to 'https://huggingface.co' to load {name}")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, name, timeout: refuse(name))
    with pytest.raises(UserError, match="someone/clinical-bert.*couldn't connect.*give its path"):
        tokenizer.load("hf://someone/clinical-bert")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_: pytest.fail("a path was sent to the hub"))
    for path in ("runs/b5", "tokeniser"):
        with pytest.raises(UserError, match=f"{path}.*no such folder here; a name on the hub is hf://{path}"):
            tokenizer.load(path)


def test_wrong_files_are_errors_that_name_them(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at .*absent"):
        tokenizer.load(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer.json"):
        tokenizer.load(tmp_path)


def test_training_refuses_an_empty_corpus_and_a_tiny_vocabulary():
    with pytest.raises(UserError, match="no text"):
        tokenizer.train_wordpiece(["", " "], 400)
    with pytest.raises(UserError, match="vocab_size=50"):
        tokenizer.train_wordpiece(CORPUS, 50)


def test_json_of_a_checkpoint_gives_the_same_tokenizer():
    made = tokenizer.Tokenize(tokenizer.train_wordpiece(["no mass in the left breast"] * 3, 200), "[SEP]")
    read = tokenizer.Tokenize.from_json(made.to_json())
    assert (read.pad_id, read.fingerprint) == (made.pad_id, made.fingerprint)
    for ours, theirs in zip(read.encode(["left mass"], 9), made.encode(["left mass"], 9)):
        np.testing.assert_array_equal(ours, theirs)
