"""Sentences as characters of a text and as tokens, by every kind of tokenizer."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mammoclip_jax.data.text import marks, reports, templating
from mammoclip_jax.data.text.tokenizer import Tokenize, train_wordpiece
from mammoclip_jax.errors import UserError

TEXT = (
    "Procedure reported: digital screening; Reason: screening; The breast is C.  There is a 1.5 cm mass, approx. round."
    "\n1. BI-RADS Category 4: suspicious.\n- Left mass ≥ 3 mm é; cut"
)
SENTENCES = [
    "Procedure reported: digital screening;",
    "Reason: screening;",
    "The breast is C.",
    "There is a 1.5 cm mass, approx. round.",
    "BI-RADS Category 4: suspicious.",
    "Left mass ≥ 3 mm é;",
    "cut",
]
MAMA = ("<|startoftext|>", "<|padtext|>", "<|masktext|>", "<|separatetext|>", "<|unknowntext|>", "<|keytext|>")
FRAME = ("<|startoftext|>", "<|endoftext|>")


def _bpe():
    """Byte-level, as GPT-2's: a word's token begins with the space before it; no token is set at the ends."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.train_from_iterator(
        [TEXT] * 3,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Tokenize(made)


def _unigram():
    """As SentencePiece's: words begin with a mark for the space before them."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        [TEXT] * 3,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return Tokenize(made)


TOKENIZERS = {
    "wordpiece": lambda: Tokenize(train_wordpiece([TEXT], 300)),
    "bpe": _bpe,
    "unigram": _unigram,
    "wordpiece [SEP]": lambda: Tokenize(train_wordpiece([TEXT], 300)).extended(separator="[SEP]"),
    "bpe MaMA": lambda: _bpe().extended(MAMA, FRAME, "<|separatetext|>"),
    "unigram <sep>": lambda: _unigram().extended(("<sep>",), separator="<sep>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokens(request):
    return TOKENIZERS[request.param]()


def test_spans_are_the_sentences_and_their_clauses():
    assert [TEXT[a:b] for a, b in marks.spans(TEXT)] == SENTENCES
    assert marks.spans("") == marks.spans(" ... \n") == []


@given(
    st.lists(
        st.sampled_from(
            ["Mass", "a", "1.5", "cm;", "no", "end.", "1.", "2)", "-", "\n", "\n\n", "; x", "?", "é", "approx."]
        )
    )
)
def test_spans_lose_no_word_of_a_sentence(words):
    text = " ".join(words)
    found = [text[a:b] for a, b in marks.spans(text)]
    together = " ".join(" ".join(found).split())
    assert all(sentence in together for sentence in reports.sentences(text))
    assert all(one[1] <= other[0] for one, other in zip(marks.spans(text), marks.spans(text)[1:]))


def test_a_separator_takes_the_place_of_the_stop_or_follows_the_end():
    text, places = marks.separated(TEXT, "<S>")
    assert [text[a:b] for a, b in places] == [sentence.rstrip(".;") + "<S>" for sentence in SENTENCES]
    assert text.replace("<S>", "") == TEXT.replace(";", "").replace("C.", "C").replace("round.", "round").replace(
        "suspicious.", "suspicious"
    )
    assert marks.separated(TEXT, "") == (TEXT, marks.spans(TEXT))


def test_every_tokenizer_marks_the_tokens_of_each_sentence(tokens):
    """A naive loop: a token is of a sentence where the text up to it and the text up to its end say so."""
    text, places = marks.separated(TEXT, tokens._separator)
    encoding = tokens._tokenizer.encode(text)
    ids, mask, sentence = tokens.encode_sentences([TEXT], 200, 99)
    assert mask[0].sum() == len(encoding.ids) and (sentence[0][~mask[0]] == -1).all()
    for number, (start, end) in zip(sentence[0], encoding.offsets):
        last = [i for i, (a, b) in enumerate(places) if a < end <= b]
        assert number == (last[0] if last and end > start else -1)
    for i in range(len(places)):
        own = [span for span, number in zip(encoding.offsets, sentence[0]) if number == i]
        said = text[own[0][0] : own[-1][1]].strip()
        assert said == text[slice(*places[i])]
    np.testing.assert_array_equal(ids, tokens.encode([TEXT], 200)[0])
    if tokens._separator:
        separator = tokens._tokenizer.token_to_id(tokens._separator)
        for i in range(len(places)):
            own = ids[0][sentence[0] == i]
            assert own[-1] == separator and (own[:-1] != separator).all()


def test_marks_do_not_depend_on_the_padding(tokens):
    long = tokens.encode_sentences([TEXT, "", "no stop"], 256, 3)
    for length in (144, 200):
        for ours, theirs in zip(tokens.encode_sentences([TEXT, "", "no stop"], length, 3), long):
            np.testing.assert_array_equal(ours, theirs[:, :length])
    assert set(long[2][0]) == {-1, 0, 1, 2} and set(long[2][1]) == {-1} and set(long[2][2]) == {-1, 0}


def test_a_sentence_that_is_cut_has_no_number(tokens):
    _, mask, whole = tokens.encode_sentences([TEXT], 200, 99)
    for length in range(tokens._n_special + 1, int(mask.sum())):
        ids, _, sentence = tokens.encode_sentences([TEXT], length, 99)
        assert ids[0].tolist() == tokens.encode([TEXT], length)[0][0].tolist()
        room = length - tokens._n_after
        fitting = [i for i in range(len(SENTENCES)) if np.flatnonzero(whole[0] == i)[-1] < room]
        expected = np.where(np.isin(whole[0][:length], fitting), whole[0][:length], -1)
        np.testing.assert_array_equal(sentence[0], np.where(np.arange(length) < room, expected, -1))


def test_mama_captions_have_a_sentence_a_section():
    fields = {"procedure": "digital screening", "laterality": "L", "view": "CC", "density": "C", "birads": 2, "age": 60}
    caption = templating.render("mama", fields)
    assert [caption[a:b].split(":")[0] for a, b in marks.spans(caption)] == [
        "Procedure reported",
        "Reason for procedure",
        "Patient info",
        "Image info",
        "Breast composition",
        "Findings",
        "Impressions",
        "Overall Assessment",
    ]


def test_special_tokens_are_added_in_order_and_once():
    plain = _bpe()
    made = plain.extended(MAMA, FRAME, "<|separatetext|>")
    assert made.vocab_size == plain.vocab_size + 6 and made.fingerprint != plain.fingerprint
    assert [made._tokenizer.token_to_id(token) for token in MAMA] == list(range(plain.vocab_size, made.vocab_size))
    ids, mask = made.encode(["A mass. End"], 20)
    assert made.tokens(ids[0][mask[0]])[:: len(ids[0][mask[0]]) - 1] == list(FRAME)
    assert made.extended(MAMA).vocab_size == made.vocab_size
    assert plain.extended() is plain
    for other in (Tokenize.from_json(made.to_json()), pickle.loads(pickle.dumps(made))):
        assert other.fingerprint == made.fingerprint
        np.testing.assert_array_equal(other.encode([TEXT], 99)[0], made.encode([TEXT], 99)[0])


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("bpe", dict(separator="<sep>"), "'<sep>' of config.data.separator.*special_tokens"),
        ("bpe", dict(frame=("<s>", "<|endoftext|>")), "'<s>' of config.data.frame"),
        ("bpe", dict(frame=("<|endoftext|>",)), "first and the last token"),
        ("wordpiece", dict(frame=("[CLS]", "[SEP]")), "this one sets 2"),
    ],
)
def test_tokens_that_cannot_be_are_errors(kind, options, message):
    with pytest.raises(UserError, match=message):
        TOKENIZERS[kind]().extended(**options)
