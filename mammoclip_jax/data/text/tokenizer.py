"""Text to token ids: a WordPiece vocabulary trained on the corpus at hand, or any Hugging Face tokenizer."""

import hashlib
import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from mammoclip_jax.data.text import marks
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.names import HUB, on_hub

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_TOKENS = ("[PAD]", "<pad>", "<|padding|>", "<|endoftext|>")  # in the order they are looked for


class Tokenize:
    """A `tokenizers.Tokenizer` with a fixed output shape. Can be pickled, and encodes the same in every thread.

    Attributes: `pad_id` int, `vocab_size` int, `fingerprint` (hexadecimal SHA-256 of vocabulary and rules).
    """

    def __init__(self, tokenizer: Tokenizer, pad_token: str | None = None, separator: str = ""):
        """`tokenizer` is copied. `pad_token`: by default the first of PAD_TOKENS that the vocabulary holds. `separator`:
        the special token that takes the place of each sentence's stop; "": none."""
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        # Files on the hub often carry the padding and truncation of somebody's training run (MiniLM's: 128 tokens).
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        pad_token = pad_token or next((t for t in PAD_TOKENS if self._tokenizer.token_to_id(t) is not None), None)
        self._pad_token = pad_token
        pad_id = None if pad_token is None else self._tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise UserError(
                f"the tokenizer has no padding token (looked for {pad_token or ', '.join(PAD_TOKENS)}): "
                "add one to its vocabulary, or choose another tokenizer"
            )
        self.pad_id: int = pad_id
        self._separator = separator
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.fingerprint: str = hashlib.sha256((self._canonical() + separator).encode()).hexdigest()
        frame = self._tokenizer.encode("").ids  # special tokens alone, such as [CLS] [SEP]
        one = self._tokenizer.encode("a")
        self._n_special = len(frame)
        self._n_after = len(one.ids) - 1 - max((i for i, s in enumerate(one.special_tokens_mask) if not s), default=-1)

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int32 [N, L] padded on the right with `pad_id`, and mask bool [N, L], True for real tokens.

        A text of more than `length` tokens loses tokens at its end, but keeps the closing special token ([SEP]).
        Raises UserError where `length` has no room for the special tokens and one more.
        """
        return self.encode_sentences(texts, length, 0)[:2]

    def encode_sentences(self, texts: Sequence[str], length: int, count: int) -> tuple[np.ndarray, ...]:
        """`encode`, and the number of each token's sentence, int32 [N, L], from 0 (`data.text.marks`).

        -1: special tokens at the ends, padding, what lies between sentences, those behind the first `count`, and a
        sentence that does not fit whole: its tokens stay in the text, but its end, and what it says there, are missing.
        """
        if length <= self._n_special:
            raise UserError(
                f"text length {length} is too short: {self._n_special} special tokens and the text must "
                "fit; raise data.text_length"
            )
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        mask = np.zeros((len(texts), length), bool)
        sentence = np.full((len(texts), length), -1, np.int32)
        for row, text in enumerate(texts):
            text, sentences = marks.separated(text, self._separator) if self._separator or count else (text, [])
            encoding = self._tokenizer.encode(text)
            tokens = encoding.ids
            room = len(tokens) if len(tokens) <= length else length - self._n_after
            tokens = tokens[:room] + (tokens[len(tokens) - self._n_after :] if room < len(tokens) else [])
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = True
            if count:
                sentence[row, :room] = marks.of_tokens(encoding.offsets, sentences, room, count)[:room]
        return ids, mask, sentence

    def extended(
        self, special_tokens: Sequence[str] = (), frame: Sequence[str] = (), separator: str = ""
    ) -> "Tokenize":
        """This tokenizer with more special tokens, in this order behind the vocabulary (those that it lacks), with a
        first and a last token of each text (`frame`), and a separator of sentences; itself where nothing is asked for.

        MaMA's, of a GPT-2: special_tokens <|startoftext|> <|padtext|> <|masktext|> <|separatetext|> <|unknowntext|>
        <|keytext|>, frame <|startoftext|> <|endoftext|>, separator <|separatetext|> (backbones/utils.py, get_tokenizer).

        Raises:
            UserError: the frame is not two tokens, the tokenizer has one already, or lacks a token of frame or separator.
        """
        if not (special_tokens or frame or separator):
            return self
        made = Tokenizer.from_str(self._tokenizer.to_str())
        made.add_special_tokens(list(special_tokens))
        for field, token in [
            *(("frame", token) for token in frame),
            *([("separator", separator)] if separator else []),
        ]:
            if made.token_to_id(token) is None:
                raise UserError(
                    f"the tokenizer has no token {token!r} of config.data.{field}: name it in "
                    "config.data.special_tokens too."
                )
            made.add_special_tokens([token])  # so that the text is cut there, whatever stands beside it
        if frame:
            if len(frame) != 2 or self._n_special:
                raise UserError(
                    f"config.data.frame={tuple(frame)} must be the first and the last token of a text, of a "
                    f"tokenizer that sets none; this one sets {self._n_special}."
                )
            template = processors.TemplateProcessing(
                single=f"{frame[0]}:0 $A:0 {frame[1]}:0", special_tokens=[(t, made.token_to_id(t)) for t in {*frame}]
            )
            own = made.post_processor
            made.post_processor = processors.Sequence([own, template]) if own else template
        return Tokenize(made, self._pad_token, separator)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The token strings of `ids`, for people."""
        return [self._tokenizer.id_to_token(int(i)) for i in ids]

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, readable by `load` and by the Hugging Face libraries."""
        write_text(path, self._tokenizer.to_str(pretty=True))

    def to_json(self) -> str:
        """Everything that `from_json` needs, for a checkpoint."""
        more = {"separator": self._separator} if self._separator else {}
        return json.dumps({"pad_token": self._pad_token, "tokenizer": self._tokenizer.to_str()} | more)

    @classmethod
    def from_json(cls, text: str) -> "Tokenize":
        """What `to_json` wrote."""
        kept = json.loads(text)
        return cls(Tokenizer.from_str(kept["tokenizer"]), kept["pad_token"], kept.get("separator", ""))

    def _canonical(self) -> str:
        return json.dumps(json.loads(self._tokenizer.to_str()), sort_keys=True)


def train_wordpiece(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """Train a lower-cased BERT-style WordPiece tokenizer; the same texts give the same vocabulary.

    Ids start with SPECIAL_TOKENS ([PAD] is 0), then letters, digits and punctuation alone and as continuations, so
    that no English word becomes [UNK] in a prompt that the corpus lacks. `vocab_size` is an upper bound.
    Raises UserError where the texts hold no words, or `vocab_size` is smaller than the alphabet.
    """
    texts = sorted({text for text in texts if text.strip()})  # once each, however many images share it
    if not texts:
        raise UserError("cannot train a tokenizer: the corpus holds no text; give tokenizer=PATH or a hub name")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base = [*SPECIAL_TOKENS, *_alphabet(tokenizer, texts)]
    if vocab_size < len(base):
        raise UserError(f"vocab_size={vocab_size} is too small: the alphabet of this corpus alone takes {len(base)}")
    # The trainer numbers continuations ("##a") in the order of a randomly seeded hash table, and breaks ties by those
    # numbers. Handing it the whole alphabet as special tokens fixes their numbers, and with them the result.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=base, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _bert(tokenizer.get_vocab())


def _alphabet(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Characters of the corpus and of plain English, alone and as continuations, in a fixed order."""
    seen = set(string.ascii_lowercase + string.digits + string.punctuation)
    for text in texts:
        seen.update(tokenizer.normalizer.normalize_str(text))
    seen = sorted(c for c in seen if not c.isspace())
    return seen + [f"##{c}" for c in seen if c.isalnum()]


def _bert(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def load(name_or_path: str | Path) -> Tokenize:
    """Load a tokenizer.json file, a folder (a data set, or one in Hugging Face form), or a name on the hub.

    That is "hf://OWNER/NAME"; without the "hf://" only the hub's local cache is looked into.

    Raises UserError, with what to do instead, where it is not there, not readable or out of reach.
    """
    path = Path(name_or_path)
    if path.is_dir() and (path / "tokenizer.json").exists() and not (path / "tokenizer_config.json").exists():
        path = path / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenize(Tokenizer.from_file(str(path)))
        except UserError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise UserError(f"{path} is not a tokenizer.json: {error}") from error
    if not path.is_dir() and (path.is_absolute() or str(name_or_path).startswith(".") or path.suffix == ".json"):
        raise UserError(f"no tokenizer at {path}: give a tokenizer.json, a folder that holds one, or a hub name")
    return _from_transformers(str(name_or_path))


def _from_transformers(name: str) -> Tokenize:
    import transformers  # seconds to import, and only for names and folders of the hub

    try:
        loaded = _pretrained(transformers.AutoTokenizer, name)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the tokenizer {name!r} ({reason}). Where the hub is out of reach, copy the "
            "model's folder here and give its path, or use the tokenizer.json of the data set"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer {name!r} has no fast version: convert it to a tokenizer.json first")
    return Tokenize(backend, loaded.pad_token or loaded.eos_token)


def _pretrained(auto, name: str):
    """What is here already before the hub, which is asked once: its downloads try again for half a minute."""
    if Path(name).is_dir():
        return auto.from_pretrained(name)
    name, ask = on_hub(name)
    try:
        return auto.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError):
        if not ask:
            raise OSError(f"there is no such folder here; a name on the hub is {HUB}{name}") from None
        import huggingface_hub

        try:
            huggingface_hub.HfApi().model_info(name, timeout=10)
        except Exception as error:  # of its HTTP library, or of its own: no network, no such model, no permission
            raise OSError(str(error)) from error
        return auto.from_pretrained(name)
