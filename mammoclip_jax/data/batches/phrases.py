"""The texts of an image at three levels, for region-phrase training: labels, phrases, the whole report."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mammoclip_jax.data.text import findings, label_values, marks, reports

LEVELS = ("label", "phrase", "report")
_NO = "no "  # before the name of a finding that is not there: its text must not be that of one that is


class Unit(NamedTuple):
    """One text, the region it speaks of, and whether it denies what it names."""

    level: str  # one of LEVELS
    text: str
    box: tuple[float, float, float, float] | None  # x0, y0, x1, y1 of the box item; None: the whole image
    negated: bool = False


def units(row: Any) -> list[Unit]:
    """Labels, then phrases, then the report of a row of the manifest or of an index (mapping, Series or named tuple).

    A label is a finding's short name, with a unit for each of its boxes, or one without box; one labelled 0 is
    negated: "no mass".
    A phrase is a sentence of the texts about this side and view (of the findings, where a section is named so), with
    the box of which it names the label or the phrase: only where one box alone fits. One that refers back ("It is oval.")
    and names no finding has the box of the sentence before. A box item's own "phrase" is a unit too.
    """
    row = _fields(row)
    labels, boxes = (json.loads(row[key]) if isinstance(row[key], str) else row[key] for key in ("labels", "boxes"))
    items = _labels(labels, boxes)
    texts = [text.strip() for text in row["texts"] if text.strip()]
    own = [
        Unit("phrase", item["phrase"].strip(), tuple(item["box"]), reports.negated(item["phrase"]))
        for item in boxes
        if str(item.get("phrase") or "").strip()
    ]
    for text in _of_view(row):
        box = None
        for sentence in reports.sentences(text):
            back = reports.REFERS_BACK.match(sentence) and not findings.named(sentence)
            box = box if back and not reports.negated(sentence) else _box(sentence, boxes)
            own.append(Unit("phrase", sentence, box, reports.negated(sentence)))
    items += dict.fromkeys(own)
    return items + ([Unit("report", " ".join(dict.fromkeys(texts)), None)] if texts else [])


class Sentence(NamedTuple):
    """A sentence, and where it stands: the `number`-th of `marks.spans(context)`."""

    text: str
    context: str
    number: int


def affirming(row: Any, label: str) -> list[Sentence]:
    """The sentences of a row's texts that affirm a finding, a key of `label_values.PRESENT`, of its own side and view.

    Of the findings, where a section is named so. A sentence ends at a semicolon too, as those of `marks`.
    """
    return [
        Sentence(" ".join(text[start:end].split()), text, number)
        for text in _of_view(_fields(row))
        for number, (start, end) in enumerate(marks.spans(text))
        if affirms(text[start:end], label)
    ]


def affirms(sentence: str, label: str) -> bool:
    """Does a sentence name a finding without denying it? Calcifications of any kind are the same here."""
    return findings.said((sentence,), "calcification" if "calcification" in label else label) == 1


def _fields(row: Any) -> Mapping[str, Any]:
    return row if isinstance(row, Mapping) else row.to_dict() if hasattr(row, "to_dict") else row._asdict()


def _of_view(row: Mapping[str, Any]) -> list[str]:
    """What the texts say of this side and view: the findings, where a section is named so."""
    texts, sections = row["texts"], list(row.get("sections", ()))
    own = [t for t, name in zip(texts, sections, strict=False) if name == "findings" and t.strip()]
    return [
        reports.for_view(reports.for_side(text, row.get("laterality", "")), row.get("view", ""))
        for text in own or [text.strip() for text in texts if text.strip()]
    ]


def _labels(labels: Mapping[str, Any], boxes: list[Mapping[str, Any]]) -> list[Unit]:
    flags = label_values.flags(labels, boxes)
    items = []
    for key in label_values.present(flags):
        name = label_values.ABSENT.get(key, key.replace("_", " "))
        placed = [tuple(item["box"]) for item in boxes if key in map(label_values.key_of, label_values.names_of(item))]
        items += [Unit("label", name, box) for box in placed or [None]]
    return items + [Unit("label", f"{_NO}{label_values.ABSENT[key]}", None, True) for key in label_values.absent(flags)]


def of_label(unit: Unit) -> list[str]:
    """The keys of `label_values.PRESENT` that a unit of the level "label" names, or denies."""
    name = unit.text.removeprefix(_NO) if unit.negated else unit.text
    return [key for key in label_values.PRESENT if label_values.ABSENT.get(key, key.replace("_", " ")) == name]


def _box(sentence: str, boxes: list[Mapping[str, Any]]) -> tuple | None:
    """The only box whose phrase or finding the sentence affirms; None where there is none, or a choice."""
    fitting = {tuple(item["box"]) for item in boxes if _names(sentence, item)}
    return fitting.pop() if len(fitting) == 1 else None


def _names(sentence: str, item: Mapping[str, Any]) -> bool:
    phrase = str(item.get("phrase") or "").strip(" .").lower()
    if phrase and phrase in sentence.lower():
        return not reports.negated(sentence)
    return any(affirms(sentence, label_values.key_of(name)) for name in label_values.names_of(item))
