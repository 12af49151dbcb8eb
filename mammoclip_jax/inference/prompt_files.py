"""Prompt files: the texts that stand for a finding and its absence, or for the classes of a label.

    {"description": "...",
     "slots": {"side": ["left", "right"]},
     "labels": {
      "mass": {"slots": {"shape": ["round", "irregular"]},
               "positive": ["There is a {shape} mass in the {side} breast."],
               "negative": ["There is no mass in the {side} breast."]},
      "density": {"classes": {"A": ["The breast is almost entirely fatty."],
                              "B": [{"template": "mama", "labels": {"density": "B"}}]}}}}

A text with slots stands for all its fillings, in the order of the slots' lists; one without is taken as it is written.
{"template", "labels"} is the text that a caption template (`data/text/templates`) makes of these labels. A label has a
pair of sides or classes. Classes go from the least to the most concerning: a breast or an exam whose images have
several has the last of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mammoclip_jax.data.text import templating
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

PROMPTS = Path(__file__).with_name("prompt_texts")
MOST_TEXTS = 10_000  # of a side or class: more is a slot too many, not an ensemble
_LIKE = '{"labels": {"mass": {"positive": ["mass"], "negative": ["no mass"]}}}'
_GAP = re.compile(r"\{(.*?)\}")


class Pair(NamedTuple):
    """Texts that say a finding is there and that it is not. Several of a side are averaged as embeddings."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


class Prompts(NamedTuple):
    """A prompt file, checked and with its slots filled."""

    source: str  # for messages: the path, or "the given prompts"
    pairs: dict[str, Pair]
    classes: dict[str, dict[str, tuple[str, ...]]]  # {label: {class: texts}}


def load_prompts(prompts: str | Path | Mapping[str, Any]) -> dict[str, Pair]:
    """{label: Pair} of the labels that have a pair, see `load`.

    Raises:
        UserError: as `load`; or the file has classes only.
    """
    loaded = load(prompts)
    if not loaded.pairs:
        raise UserError(
            f"{loaded.source} has classes only ({', '.join(loaded.classes)}), no label with texts under "
            "'positive' and 'negative', which is needed here."
        )
    return loaded.pairs


def load(prompts: str | Path | Mapping[str, Any]) -> Prompts:
    """Prompts from a name in `inference/prompt_texts`, a JSON file, or the mapping that a file holds as "labels".

    Raises:
        UserError: no such file, or a mistake in it; the message names the file, the label and what to do.
    """
    if isinstance(prompts, Mapping):
        source, content = "the given prompts", {"labels": prompts}
    else:
        path = _path(prompts)
        source, content = str(path), dict(_json(path))
    try:
        return _parse(source, content)
    except _Mistake as mistake:
        raise UserError(f"{source}: {mistake}") from mistake


def prompts_name(prompts: str | Path | Mapping[str, Any]) -> str:
    """How a protocol calls the prompts."""
    return "the given prompts" if isinstance(prompts, Mapping) else f"the {Path(prompts).stem} prompts"


class _Mistake(Exception):
    """What is wrong with a prompt file, without the file's name."""


def _path(prompts: str | Path) -> Path:
    path = Path(prompts) if str(prompts).endswith(".json") else PROMPTS / f"{prompts}.json"
    if not path.is_file():
        known = sorted(p.stem for p in PROMPTS.glob("*.json"))
        raise UserError(
            f"no prompt file {str(prompts)!r}.{suggestion(str(prompts), known)} Known: {', '.join(known)}; "
            "or give the path of a .json file."
        )
    return path


def _json(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(
            f"{path} is not a prompt file ({type(error).__name__}: {error}); it should be JSON like {_LIKE}."
        ) from error
    if not isinstance(raw, Mapping) or "labels" not in raw:
        raise UserError(f'{path} is not a prompt file: it has no "labels"; it should be JSON like {_LIKE}.')
    return raw


def _parse(source: str, raw: Mapping[str, Any]) -> Prompts:
    _keys(raw, ("description", "slots", "labels"), "the file")
    labels = _mapping(raw["labels"], '"labels"')
    if not labels:
        raise _Mistake(f'"labels" is empty; it should be like {_LIKE}.')
    slots, pairs, classes = _slots(raw, "the file"), {}, {}
    for label, entry in labels.items():
        where = f"label {label!r}"
        entry = _mapping(entry, where)
        _keys(entry, ("slots", "positive", "negative", "classes"), where)
        own = slots | _slots(entry, where)
        if "classes" in entry:
            if {"positive", "negative"} & set(entry):
                raise _Mistake(f"{where} has classes and a pair; leave one of them out.")
            named = _mapping(entry["classes"], f'{where}, "classes"')
            classes[label] = {
                str(name): _texts(texts, own, f"{where}, class {name!r}") for name, texts in named.items()
            }
            if len(named) < 2:
                raise _Mistake(f"{where} has {len(named)} classes; it needs two at least.")
            _apart(classes[label], where)
        else:
            if not (entry.get("positive") and entry.get("negative")):
                raise _Mistake(f"{where} needs texts under both 'positive' and 'negative', or 'classes'.")
            pairs[label] = Pair(*(_texts(entry[side], own, f"{where}, {side!r}") for side in Pair._fields))
            _apart(pairs[label]._asdict(), where)
    return Prompts(source, pairs, classes)


def _apart(sides: Mapping[str, tuple[str, ...]], where: str) -> None:
    """A text on two sides tells them apart no more, and is a slip of the pen."""
    seen: dict[str, str] = {}
    for side, texts in sides.items():
        for text in texts:
            if seen.setdefault(text, side) != side:
                raise _Mistake(f"{where}: {text!r} is under both {seen[text]!r} and {side!r}; take it out of one.")


def _texts(value: Any, slots: Mapping[str, tuple[str, ...]], where: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(items, Sequence) or not items:
        raise _Mistake(f"{where} holds {value!r}; it should be a text or a list of texts.")
    texts = tuple(dict.fromkeys(text for item in items for text in _filled(item, slots, where)))
    if len(texts) > MOST_TEXTS:
        raise _Mistake(f"{where} stands for {len(texts)} texts, over the limit of {MOST_TEXTS}: shorten its slots.")
    return texts


def _filled(item: Any, slots: Mapping[str, tuple[str, ...]], where: str) -> Sequence[str]:
    if isinstance(item, Mapping):
        return [_captioned(item, where)]
    if not isinstance(item, str) or not item.strip():
        raise _Mistake(f"{where} holds {item!r}; each text should be a string that is not blank.")
    gaps = _GAP.findall(item)
    for gap in gaps:
        if gap not in slots:
            raise _Mistake(
                f"{where}: {item!r} names {{{gap}}}, which is no slot.{suggestion(gap, slots)} "
                f"Slots: {', '.join(slots) or 'none'}."
            )
    if {"{", "}"} & set(_GAP.sub("", item)):
        raise _Mistake(f"{where}: {item!r} has a brace too many.")
    return list(templating.every(item, slots)) if gaps else [item]


def _captioned(item: Mapping[str, Any], where: str) -> str:
    _keys(item, ("template", "labels"), where)
    if not isinstance(item.get("template"), str) or "labels" not in item:
        raise _Mistake(f"{where}: {dict(item)!r} should name a template and its labels.")
    try:
        text = templating.render(item["template"], _mapping(item["labels"], f'{where}, "labels"'))
    except UserError as error:
        raise _Mistake(f"{where}: {error}") from error
    if not text:
        raise _Mistake(f"{where}: the template {item['template']!r} says nothing about {dict(item['labels'])!r}.")
    return text


def _slots(raw: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    slots = _mapping(raw.get("slots", {}), f'{where}, "slots"')
    for name, words in slots.items():
        if not (isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)):
            raise _Mistake(f"{where}: slot {name!r} holds {words!r}; it should be a list of words, none blank.")
        if not re.fullmatch("[a-z_]+", name):
            raise _Mistake(f"{where}: slot {name!r} should be named in small letters and underscores.")
    return {name: tuple(dict.fromkeys(words)) for name, words in slots.items()}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _Mistake(f"{where} should map names to their texts, not be a {type(value).__name__}.")
    return value


def _keys(raw: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in known:
            raise _Mistake(f"{where} has no key {key!r}.{suggestion(str(key), known)} Known: {', '.join(known)}.")
