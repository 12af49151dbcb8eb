"""Captions from templates: JSON files that declare sections, wordings and fields; checked when they are loaded.

    {"description": "...", "between": " ", "shuffle": false,
     "fields": {"side": {"label": "laterality", "values": {"L": "left", "R": "right"}, "unknown": "unknown",
                         "dropout": 0.8}},
     "slots": {"depth": ["anterior", "middle", "posterior"]},
     "sections": [{"name": "image", "prefix": "Image info: ",
                   "parts": [{"when": {"mass": ["1"]}, "texts": ["A mass in the {side} breast, {depth} depth."]}]}]}

A field is a label (by default of its own name) in words: `values` maps it (several wordings as a list), `contains`
looks for a part of it, without either it is taken as written. A slot is free choice. A text is open where all its
fields are known or have a word for "unknown"; a part without an open text is left out, as is one of which nothing at
all is known, and a section without parts. `dropout` is the probability that a field is said to be unknown though it is
known (MaMA, Du et al., arXiv 2409.18119).
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.text import label_values
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

FOLDER = Path(__file__).parent / "templates"
_GAP = re.compile(r"\{([a-z_]+)\}")


class Field(NamedTuple):
    """How a label becomes words."""

    label: str
    values: Mapping[str, tuple[str, ...]]  # empty: the label as it is written
    contains: Mapping[str, str]  # part of the label, in lower case, to word
    unknown: str  # "": a text with it is not open where it is unknown
    dropout: float


class Part(NamedTuple):
    """One sentence, or a few, of a section."""

    when: Mapping[str, tuple[str, ...]]  # label to the values with which the part is said
    texts: tuple[str, ...]


class Section(NamedTuple):
    name: str
    prefix: str
    parts: tuple[Part, ...]


class Template(NamedTuple):
    """A template file, checked."""

    name: str
    between: str  # of sections
    shuffle: bool  # parts and sections come in random order where there is an rng
    fields: Mapping[str, Field]
    slots: Mapping[str, tuple[str, ...]]
    sections: tuple[Section, ...]


# --- loading ---------------------------------------------------------------------------------------------------------


@functools.cache
def load(name: str, folder: Path = FOLDER, kind: str = "caption template") -> Template:
    """The template of this name in a folder, by default data/text/templates, or of a JSON file given by its path.

    Raises:
        UserError: there is none, or it is malformed; names the file, the place in it, and what to do.
    """
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.json"))
        raise UserError(
            f"there is no {kind} {name!r}.{suggestion(name, known)} Known: {', '.join(known)}; "
            "or give the path of a .json file."
        )
    try:
        return parse(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from error


def parse(name: str, raw: Mapping[str, Any]) -> Template:
    """A Template of the JSON object of a file. Raises UserError naming the place of a mistake."""
    _known(raw, ("description", "between", "shuffle", "fields", "slots", "sections"), "the template")
    fields = {key: _field(key, value) for key, value in raw.get("fields", {}).items()}
    slots = {key: _texts(value, f"slot {key!r}") for key, value in raw.get("slots", {}).items()}
    both = sorted(set(fields) & set(slots))
    _require(not both, f"{both} are both a field and a slot: rename one")
    sections = tuple(_section(value) for value in raw.get("sections", ()))
    _require(sections, "it has no sections")
    names = [section.name for section in sections]
    _require(len(set(names)) == len(names), f"section names must differ: {names}")
    for section in sections:
        for text in (text for part in section.parts for text in part.texts):
            for gap in _GAP.findall(text):
                _require(
                    gap in fields or gap in slots,
                    f"section {section.name!r}: {text!r} names {{{gap}}}, which is "
                    f"no field and no slot.{suggestion(gap, [*fields, *slots])}",
                )
            _require("{" not in _GAP.sub("", text), f"section {section.name!r}: {text!r} has a brace too many")
    return Template(name, str(raw.get("between", " ")), bool(raw.get("shuffle", False)), fields, slots, sections)


def _field(name: str, raw: Mapping[str, Any]) -> Field:
    where = f"field {name!r}"
    _known(raw, ("label", "values", "contains", "unknown", "dropout"), where)
    values = {key: _texts(value, f"{where}, value {key!r}") for key, value in raw.get("values", {}).items()}
    dropout = raw.get("dropout", 0.0)
    _require(isinstance(dropout, int | float) and 0 <= dropout <= 1, f"{where}: dropout={dropout!r} must be in 0 to 1")
    _require(not dropout or raw.get("unknown"), f'{where}: dropout needs a word for "unknown"')
    return Field(raw.get("label", name), values, dict(raw.get("contains", {})), raw.get("unknown", ""), float(dropout))


def _section(raw: Mapping[str, Any]) -> Section:
    where = f"section {raw.get('name')!r}"
    _known(raw, ("name", "prefix", "parts"), where)
    _require(raw.get("name") and raw.get("parts"), f"{where}: a section needs a name and parts")
    parts = []
    for part in raw["parts"]:
        _known(part, ("when", "texts"), where)
        when = {key: tuple(values) for key, values in part.get("when", {}).items()}  # "": where it is unknown
        parts.append(Part(when, _texts(part.get("texts", ()), where)))
    return Section(raw["name"], raw.get("prefix", ""), tuple(parts))


def _texts(value: str | list[str], where: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    right = texts and all(isinstance(t, str) and t.strip() for t in texts)
    _require(right, f"{where}: texts must be strings, not blank")
    return texts


def _known(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in raw:
        _require(key in keys, f"{where} has no key {key!r}.{suggestion(key, keys)} Known: {', '.join(keys)}")


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise UserError(message)


# --- rendering -------------------------------------------------------------------------------------------------------


def render(
    template: str | Template,
    fields: Mapping[str, Any],
    rng: np.random.Generator | None = None,
    dropout: float | Mapping[str, float] | None = None,
) -> str:
    """The caption of one image or breast; "" where the template has nothing to say about it.

    Args:
        template: a name, a path, or what `load` returned.
        fields: labels of a manifest row (see `label_values.consistent`), and "laterality", "view", "boxes".
        rng: draws wordings, slots, order and dropout. Without it the first wording of each, and no dropout.
        dropout: of all fields that the template lets drop, or by field; None for what the template says.
    """
    template = load(template) if isinstance(template, str) else template
    known = label_values.consistent({k: v for k, v in fields.items() if k != "boxes"}, fields.get("boxes", ()))
    words = {name: _word(field, known, rng) for name, field in template.fields.items()}
    said = dict(words)
    for name, field in template.fields.items():
        chance = dropout.get(name, field.dropout) if isinstance(dropout, Mapping) else dropout
        if rng is not None and field.dropout and rng.random() < (field.dropout if chance is None else chance):
            said[name] = ""
    sections = []
    for section in template.sections:
        texts = [
            text
            for part in _order(section.parts, template.shuffle, rng)
            if (text := _part(template, part, known, words, said, rng))
        ]
        sections += [section.prefix + " ".join(texts)] if texts else []
    return template.between.join(_order(sections, template.shuffle, rng))


class Able:
    """(labels and boxes as JSON, laterality, view of a row) -> whether `render` has something to say of its labels.

    Rows that are alike in all that rendering asks of them are rendered once.
    """

    def __init__(self, template: str | Template):
        self._template = load(template) if isinstance(template, str) else template
        parts = [part for section in self._template.sections for part in section.parts]
        fields = self._template.fields.values()
        self._by_value = {
            *label_values.READ,
            *(label for part in parts for label in part.when),
            *(field.label for field in fields if field.values or field.contains),
        }
        self._as_written = {field.label for field in fields} - self._by_value  # open wherever there is any value
        self._labels: dict[str, tuple] = {}
        self._boxes: dict[str, frozenset[str]] = {"[]": frozenset()}
        self._known: dict[tuple, bool] = {}

    def __call__(self, labels: str, boxes: str, laterality: str, view: str) -> bool:
        if labels not in self._labels:
            self._labels[labels] = self._of_labels(json.loads(labels))
        if boxes not in self._boxes:
            names = (name for item in json.loads(boxes) for name in label_values.names_of(item))
            self._boxes[boxes] = frozenset(label_values.PRESENT.keys() & map(label_values.key_of, names))
        key = self._labels[labels], self._boxes[boxes], laterality, view
        if key not in self._known:
            said, drawn = json.loads(labels), json.loads(boxes)
            fields = said | {"laterality": laterality, "view": view, "boxes": drawn}
            known = label_values.consistent(said, drawn)
            self._known[key] = bool(known) and bool(render(self._template, fields))
        return self._known[key]

    def _of_labels(self, labels: Mapping[str, Any]) -> tuple:
        """What decides of labels: values, of some whether there is any, and whether there is any of others."""
        values, there, more = [], [], False
        for name in sorted(labels):
            if name in self._by_value:
                values.append((name, repr(labels[name])))
            elif label_values.written(labels[name]):
                there += [name] if name in self._as_written else []
                more = True
        return tuple(values), tuple(there), more


def _order(items, shuffle: bool, rng: np.random.Generator | None) -> list:
    return [items[i] for i in rng.permutation(len(items))] if shuffle and rng is not None else list(items)


def _word(field: Field, known: Mapping[str, str], rng: np.random.Generator | None) -> str:
    label = known.get(field.label, "")
    if field.contains:
        return next((word for part, word in field.contains.items() if part in label.lower()), "")
    if not field.values:
        return label
    return _pick(field.values.get(label, ("",)), rng)


def _part(
    template: Template,
    part: Part,
    known: Mapping[str, str],
    words: Mapping[str, str],
    said: Mapping[str, str],
    rng: np.random.Generator | None,
) -> str:
    """One text of a part; "" where it does not apply or nothing of it is known."""
    if not all(known.get(label, "") in values for label, values in part.when.items()):
        return ""
    texts = [text for text in part.texts if _open(template, text, words)]
    if not texts:
        return ""
    # A slot stands for one choice in the whole text.
    chosen = {name: _pick(values, rng) for name, values in template.slots.items()}
    return fill(_pick(texts, rng), {name: said[name] or template.fields[name].unknown for name in said} | chosen)


def _open(template: Template, text: str, words: Mapping[str, str]) -> bool:
    gaps = [gap for gap in _GAP.findall(text) if gap in template.fields]
    complete = all(words[gap] or template.fields[gap].unknown for gap in gaps)
    return complete and (not gaps or any(words[gap] for gap in gaps))


def _pick(options: tuple[str, ...] | list[str], rng: np.random.Generator | None) -> str:
    return options[0 if rng is None else int(rng.integers(len(options)))]


def fill(text: str, words: Mapping[str, str]) -> str:
    """`text` with its gaps filled, "a" and "an" put right, and a capital at its start."""
    text = _GAP.sub(lambda match: words[match[1]], text)
    # Not a capital inside a text: "density A is".
    text = re.sub(r"(\ba|^A)n?(?= [aeiou])", r"\1n", re.sub(r"(\ba|^A)n(?= [^aeiouAEIOU])", r"\1", text))
    return text[:1].upper() + text[1:]


def gaps(text: str) -> list[str]:
    """The names of fields and slots in a text, in order."""
    return list(dict.fromkeys(_GAP.findall(text)))


def every(text: str, slots: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """All fillings of a text whose gaps are slots, in the order of the slots' options."""
    names = gaps(text)
    for chosen in product(*(slots[name] for name in names)):
        yield fill(text, dict(zip(names, chosen, strict=True)))


# --- attribute prompts -----------------------------------------------------------------------------------------------


def attribute_prompts(
    finding: str, present: bool, laterality: str, rng: np.random.Generator | None = None, template: str = "mammo_clip"
) -> str:
    """One sentence that says that a finding is there, or not, in the breast of this laterality.

    Drawn from `all_attribute_prompts`, the first without `rng`.
    """
    prompts = all_attribute_prompts(finding, present, laterality, template)
    return _pick(prompts, rng)


@functools.cache
def all_attribute_prompts(
    finding: str, present: bool, laterality: str, template: str = "mammo_clip"
) -> tuple[str, ...]:
    """Every sentence of it: wording x subtype x position x depth, for laterality "L" or "R".

    Raises:
        UserError: an unknown finding or laterality, or one that cannot be said to be absent ("no_finding").
    """
    loaded = load(template)
    key = label_values.key_of(finding)
    parts = {
        (section.name, value): part
        for section in loaded.sections
        for part in section.parts
        for value in part.when.get(section.name, ())
    }
    known = sorted({name for name, _ in parts})
    _require(key in known, f"there is no prompt for {finding!r}.{suggestion(key, known)} Known: {', '.join(known)}.")
    _require((key, str(int(present))) in parts, f"{finding!r} has no prompt for present={present}")
    sides = loaded.fields["side"].values
    _require(laterality in sides, f"laterality {laterality!r} must be one of {', '.join(sides)}")
    slots = dict(loaded.slots) | {"side": sides[laterality]}
    return tuple(dict.fromkeys(filled for text in parts[key, str(int(present))].texts for filled in every(text, slots)))
