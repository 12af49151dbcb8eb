"""Names that no rule finds, by a token classification model of transformers: an extra, offline, after the rules.

The model is a folder on this machine, as `save_pretrained` or a hub's snapshot leaves it, with config.json, weights and
a fast tokenizer; nothing is downloaded. Of its labels those of _MARKS count, with or without a prefix ("B-PATIENT").
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mammoclip_jax.data.text import words
from mammoclip_jax.data.text.names import protected, tokens
from mammoclip_jax.errors import UserError

_KINDS = {
    "name": "per person patient doctor staff name hcw username givenname firstname lastname surname middlename",
    "place": "loc location hospital hosp street city zip zipcode address institution",
    "phone": "phone phonenumber telephonenum fax",
    "email": "email",
    "id": "id idnum medicalrecord ssn account",
}
_MARKS = {label: f"[{kind}]" for kind, labels in _KINDS.items() for label in labels.split()}
_LEAST = 0.5  # the model's probability from which on a span counts
_OVERLAP = 64  # tokens that two windows of a long text share
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")
_NEEDED = "pip install mammoclip_jax[recognise]"


class Recogniser(NamedTuple):
    """A model ready to use."""

    hide: Callable[[str], str]  # text -> text without what the model takes for a person, a place, a number
    name: str  # its class and a hash of its files; no path


def load(folder: str | Path) -> Recogniser:
    """The recogniser in `folder`.

    Raises:
        UserError: no such model, torch is not installed, or none of the model's labels is known.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--recogniser={folder} is no model: it has no config.json. Give the folder of a token "
            "classification model of transformers; nothing is downloaded."
        )
    try:
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
        from transformers.utils import is_torch_available
    except ImportError as error:
        raise UserError(f"a recogniser needs {error.name}: {_NEEDED}, or leave --recogniser out") from error
    if not is_torch_available():
        raise UserError(f"a recogniser needs torch: {_NEEDED}, or leave --recogniser out")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForTokenClassification.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the recogniser in {folder} ({type(error).__name__}). Give the whole folder of a "
            "token classification model."
        ) from error
    labels = model.config.id2label.values()
    if not any(_mark(label) for label in labels):
        raise UserError(
            f"the recogniser in {folder} knows nobody: it has the labels {', '.join(labels)}, and none of "
            f"{', '.join(_MARKS)}"
        )
    longest = getattr(model.config, "max_position_embeddings", 512) - 2  # RoBERTa's positions begin at 2
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    find = pipeline(
        "token-classification",
        model=model,
        tokenizer=tokenizer,
        aggregation_strategy="first",
        stride=min(_OVERLAP, longest // 4),
    )

    def hide(text: str) -> str:
        return hide_spans(text, find(text)) if text.strip() else text

    return Recogniser(hide, f"{type(model).__name__} {_digest(folder)}")


def hide_spans(text: str, spans: list[dict]) -> str:
    """`text` with marks for what a pipeline found: dicts of entity_group, score, start and end.

    Spans grow to whole words. A mark of the rules, an eponym and words that radiologists write stay.
    """
    stay = [match.span() for match in re.finditer(r"\[\w+\]", text)] + protected(text)
    for span in sorted(spans, key=lambda span: -span["start"]):
        mark, start, end = _mark(span["entity_group"]), span["start"], span["end"]
        start -= len(re.search(r"\w*$", text[:start])[0])
        end += len(re.match(r"\w*", text[end:])[0])
        said = {token.key for token in tokens(text[start:end])}
        clinical = said and said <= words.CLINICAL - words.COMMON
        if not mark or span["score"] < _LEAST or clinical or any(start < last and end > first for first, last in stay):
            continue
        text = text[:start] + mark + text[end:]
        stay.append((start, len(text)))  # what follows is done: two windows may find the same
    return text


def _mark(label: str) -> str:
    """From "B-PATIENT" to "[name]"; "" for a label that identifies nobody."""
    return _MARKS.get(re.sub(r"^[BIESLU]-", "", label).replace("_", "").lower(), "")


def _digest(folder: Path) -> str:
    """16 hex digits of the model's files."""
    whole = hashlib.sha256()
    for path in sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]
