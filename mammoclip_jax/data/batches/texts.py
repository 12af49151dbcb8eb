"""Which texts of a breast a step sees: drawn, varied, in another order, and fitting the flips of its images."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.text import reports, templating


class Augment(NamedTuple):
    """What the host decides about a breast, as probabilities. The device does the flips."""

    flip_horizontal: float  # laterality words in the texts change with it
    flip_vertical: float  # only for breasts whose drawn texts name no position
    shuffle_sentences: float  # of each text
    each_view: bool = False  # flips of each view, told to its own text; else one for all of a row


class TextOptions(NamedTuple):
    """Which texts of a breast are drawn."""

    captions: str = ""  # a template: captions are rendered anew at each drawing, of the view drawn with it
    captions_share: float = 1.0  # probability that a caption takes a report text's place; always where none is
    captions_dropout: float = -1.0  # of the template's fields; below 0 is what the template says
    pairing: str = "any"  # "sections": the first text from the findings, the second from the impression
    own_side: bool = False  # without the sentences about the other breast
    augmented: float = 0.0  # probability of a text's variant of texts_augmented.parquet, where it has one


PAIRINGS = ("any", "sections")


def text_options(data) -> TextOptions:
    """The fields of that name in `config.data`."""
    return TextOptions(**{name: data[name] for name in TextOptions._fields})


def of_breasts(rows: pd.DataFrame, text: TextOptions) -> Callable[[Iterable[int]], dict[str, str]]:
    """(places of a breast's rows) -> text to section, without blank and repeated texts."""
    sides, texts = rows["laterality"].tolist(), rows["texts"].tolist()
    sections = rows["sections"].tolist() if text.pairing == "sections" else None

    def of_breast(places: Iterable[int]) -> dict[str, str]:
        section_of: dict[str, str] = {}
        seen: dict[tuple[str, str], str] = {}  # the images of a breast share its report
        for row in places:
            names = sections[row] if sections else ()
            for place, whole in enumerate(texts[row]):
                if text.own_side and (whole, sides[row]) not in seen:
                    seen[whole, sides[row]] = reports.for_side(whole, sides[row])
                kept = (seen[whole, sides[row]] if text.own_side else whole).strip()
                if kept:
                    section_of.setdefault(kept, names[place] if place < len(names) else "")
        return section_of

    return of_breast


def caption_fields(rows: pd.DataFrame, text: TextOptions) -> list[str]:
    """What the caption of each row is rendered from, as JSON; "" where the template cannot speak of its labels."""
    able = templating.Able(text.captions)
    columns = [rows[name].tolist() for name in ("labels", "boxes", "laterality", "view")]
    words = {word: json.dumps(word) for column in columns[2:] for word in set(column)}
    return [
        f'{_open(labels)}"laterality": {words[side]}, "view": {words[view]}, "boxes": {boxes}}}'
        if able(labels, boxes, side, view)
        else ""
        for labels, boxes, side, view in zip(*columns)
    ]


def sample_captions(tables: Iterable[pd.DataFrame], captions: str, each: int = 4, most: int = 20_000) -> list[str]:
    """Captions of the training images in these index tables, for a vocabulary; the same at every call; [] without a template.

    Args:
        captions: the template, as in `TextOptions`; "" is none.
        each: captions of an image, drawn anew.
        most: of all; images are then taken at equal distances.
    """
    if not captions:
        return []
    rows = pd.concat([table[table["split"] == "train"] for table in tables], ignore_index=True)
    rows = rows.iloc[:: max(1, -(-len(rows) * each // most))]
    rng = np.random.default_rng(0)
    fields = [json.loads(own) for own in caption_fields(rows, TextOptions(captions=captions)) if own]
    return [templating.render(captions, own, rng) for own in fields for _ in range(each)]


def _open(labels: str) -> str:
    """A JSON object to which more can be added."""
    content = labels.strip()[1:-1].strip()
    return f"{{{content}, " if content else "{"


def draw(
    texts: Sequence[str],
    sections: Sequence[str],
    fields: Sequence[tuple[int, str]],
    records: Sequence[int],
    count: int,
    options: TextOptions,
    variants: Mapping[str, Sequence[str]],
    rng: np.random.Generator,
) -> list[str]:
    """Choose `count` texts of a breast, "" where it has none, as `options` say.

    Args:
        fields: row and, as JSON, what its caption is rendered from.
        records: rows of the views drawn, in turn those of the captions.
        variants: text to its augmented texts.
    """
    if not texts:
        drawn = [""] * count
    elif options.pairing == "sections":
        drawn = draw_sections(texts, sections, count, rng)
    else:
        drawn = draw_texts(texts, count, rng)
    if options.augmented:
        drawn = [_variant(text, variants, options.augmented, rng) for text in drawn]
    if fields:
        of_row = dict(fields)
        dropout = None if options.captions_dropout < 0 else options.captions_dropout
        for place, text in enumerate(drawn):
            if not text or rng.random() < options.captions_share:
                own = of_row.get(records[place % len(records)], fields[0][1])
                drawn[place] = templating.render(options.captions, json.loads(own), rng, dropout)
    return drawn


def draw_texts(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Choose `count` texts without replacement, then again from the start."""
    order = rng.permutation(len(texts))
    return [texts[order[i % len(texts)]] for i in range(count)]


def draw_sections(texts: Sequence[str], sections: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Findings, impression, findings, ... , where both exist: each drawn as `draw_texts` does; else as `draw_texts`."""
    parts = [
        [text for text, name in zip(texts, sections, strict=True) if name == wanted]
        for wanted in ("findings", "impression")
    ]
    if not all(parts):
        return draw_texts(texts, count, rng)
    drawn = [draw_texts(part, (count + 1) // 2, rng) for part in parts]
    return [text for pair in zip(*drawn, strict=True) for text in pair][:count]


def _variant(text: str, variants: Mapping[str, tuple[str, ...]], chance: float, rng: np.random.Generator) -> str:
    others = variants.get(text, ())
    return others[int(rng.integers(len(others)))] if others and rng.random() < chance else text


def augment_texts(
    texts: list[str], augment: Augment, rng: np.random.Generator, beside: Sequence[bool] = ()
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Shuffle sentences, decide the flips, and make the texts fit them.

    Returns the texts, and whether the device shall flip horizontally and vertically: one answer for the row, or with
    `augment.each_view` one a text, whose view alone it is for. `beside` says of each view whether anything else that is
    said of it names a position.
    """
    drawn = rng.random((2, len(texts)) if augment.each_view else 2).T
    horizontal, vertical = (drawn < (augment.flip_horizontal, augment.flip_vertical)).T
    fixed = np.array([reports.names_position(text) for text in texts])
    fixed = np.array(beside) | (fixed if augment.each_view else fixed.any()) if len(beside) else fixed
    vertical = vertical & ~(fixed if augment.each_view else fixed.any())
    swapped = np.broadcast_to(horizontal, len(texts))
    texts = [reports.swap_laterality(text) if swap else text for text, swap in zip(texts, swapped, strict=True)]
    return [_shuffled(t, rng) if rng.random() < augment.shuffle_sentences else t for t in texts], horizontal, vertical


def _shuffled(text: str, rng: np.random.Generator) -> str:
    sentences = reports.sentences(text)
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))
