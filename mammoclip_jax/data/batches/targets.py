"""The labels of breasts that terms compare (`config.data.targets`): from the data set's labels, or read from the texts."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.batches import units
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text import chest_findings, findings, label_values, reports
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

FLAGS = (*label_values.PRESENT, "abnormal", "cancer", "biopsy", "invasive", *chest_findings.FINDINGS)  # 1 or 0
WORDS = ("mass_shape", "mass_margins", "mass_density", "calcification_type", "calcification_distribution")
UNCERTAIN = -1  # of a finding that the data set calls so (NAME_uncertain) and nothing else: MedCLIP's value of it
# Ordinal fields with their greatest difference: density A to D is 1 to 4, BI-RADS 1 to 6.
RANGES = {"density": 3.0, "birads": 5.0}
# By source: the fields that it may be asked for.
FIELDS = {"labels": (*FLAGS, *WORDS, *RANGES), "text": (*findings.FINDINGS, *chest_findings.FINDINGS)}


class Targets(NamedTuple):
    """Which labels, K of them; none where the source is ""."""

    source: str = ""
    fields: tuple[str, ...] = ()


def targets(given: Mapping[str, Any]) -> Targets:
    """The `Targets` of `config.data.targets`.

    Raises:
        UserError: there is no such source or field, or one of both is missing.
    """
    for name in given:
        check_name(name, Targets._fields, "field config.data.targets:")
    source, fields = given.get("source", ""), tuple(given.get("fields", ()))
    if bool(source) != bool(fields):
        raise UserError(
            f"config.data.targets has source={source!r} and fields={fields}: it takes both, such as "
            'source="labels" and fields=("mass", "calcification"), or neither.'
        )
    if source:
        check_name(source, FIELDS, "source of config.data.targets")
    for field in fields:
        check_name(field, FIELDS[source], f"field of config.data.targets, with source={source!r},")
    if len(set(fields)) != len(fields):
        raise UserError(f"config.data.targets.fields={fields} names a field twice: take one of them out.")
    return Targets(source, fields)


def ranges(fields: Sequence[str]) -> tuple[float, ...]:
    """The greatest difference of each ordinal field, 0 of a nominal one; () where all are nominal."""
    spans = tuple(RANGES.get(field, 0.0) for field in fields)
    return spans if any(spans) else ()


@dataclass(frozen=True)
class OfLabels:
    """The labels of drawn images. Can be pickled."""

    values: tuple[np.ndarray, ...]  # by data set: float32 [rows K] of each row's breast, NaN where unknown
    fields: tuple[str, ...]
    words: Mapping[str, Mapping[str, int]]  # field of WORDS to the number of each of its words

    def __call__(self, source: int, records: Sequence[int], texts: Sequence[str]) -> dict[str, np.ndarray]:
        return _batched(self.values[source][list(records)])

    def of_texts(self, texts: Sequence[str], labels: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Labels of texts without image: those that are known of each, else what it says."""
        values = np.full((len(texts), len(self.fields)), np.nan, np.float32)
        readable = tuple(field for field in self.fields if field in FIELDS["text"])
        for row, (text, given) in enumerate(zip(texts, labels, strict=True)):
            said = dict(zip(readable, _said(frozenset([text]), "", readable)))
            for place, field in enumerate(self.fields):
                value = _value(field, [(given, [])])
                value = self.words[field].get(value) if field in WORDS else value
                values[row, place] = said.get(field, np.nan) if value is None else value
        return _batched(values, "text_")


@dataclass(frozen=True)
class OfTexts:
    """What the drawn texts say of the breast of each drawn image. Can be pickled."""

    fields: tuple[str, ...]
    breasts: tuple[np.ndarray, ...]  # by data set: number of each row's breast
    sides: tuple[np.ndarray, ...]  # and its laterality

    def __call__(self, source: int, records: Sequence[int], texts: Sequence[str]) -> dict[str, np.ndarray]:
        breasts, sides = self.breasts[source], self.sides[source]
        own = [breasts[records[place % len(records)]] for place in range(len(texts))]  # of each text
        said = [
            _said(frozenset(t for t, breast in zip(texts, own) if breast == breasts[row]), sides[row], self.fields)
            for row in records
        ]
        return _batched(np.array(said, np.float32))

    def of_texts(self, texts: Sequence[str], labels: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """What texts without image say; labels that are known of them are not used."""
        return _batched(np.array([_said(frozenset([text]), "", self.fields) for text in texts], np.float32), "text_")


def reader(datasets: Sequence[Dataset], split: str, wanted: Targets) -> OfLabels | OfTexts | None:
    """(position of the data set, V drawn rows of its index, T drawn texts) -> target [V K] and known [V K] of a Batch.

    The rows' breasts (`units.breasts`) have the labels. Text t is of the breast of row t, modulo V.

    Values: 1 and 0 of findings and other yes/no labels (-1: uncertain, `data/sources/chest_labels.py`), density and
    BI-RADS as numbers, words by their place among all that occur. From labels a breast has the highest that its images
    have; a box says that its finding is there; BI-RADS 0 (incomplete) is no assessment, so it is not known. From texts:
    `findings.said` of the sentences about the breast's side, as they were before a flip renames the side.

    Raises:
        UserError: no image of the split has a value of a field.
    """
    if not wanted.source:
        return None
    indexes = [dataset.index.reset_index(drop=True) for dataset in datasets]
    breasts = tuple(map(units.breasts, indexes))
    if wanted.source == "text":
        return OfTexts(wanted.fields, breasts, tuple(index["laterality"].to_numpy() for index in indexes))
    tables = [_table(index, own, split, wanted.fields) for index, own in zip(indexes, breasts)]
    values = tuple(np.full((len(table), len(wanted.fields)), np.nan, np.float32) for table in tables)
    words: dict[str, dict[str, int]] = {}
    for place, field in enumerate(wanted.fields):
        occurring = sorted({row[place] for table in tables for row in table if row[place] is not None})
        if not occurring:
            folders = ", ".join(str(dataset.path) for dataset in datasets)
            raise UserError(
                f"config.data.targets.fields has {field!r}, and no image in split {split!r} of {folders} has a value of "
                "it: take it out."
            )
        numbers = {value: number if field in WORDS else value for number, value in enumerate(occurring)}
        if field in WORDS:
            words[field] = numbers
        for table, column in zip(tables, values):
            column[:, place] = [numbers.get(row[place], np.nan) for row in table]
    return OfLabels(values, wanted.fields, words)


def _table(index, breasts: np.ndarray, split: str, fields: Sequence[str]) -> list[list]:
    """Of each row the values of its breast in the split, None where unknown."""
    images: dict[int, list] = {}
    for number, own, labels, boxes in zip(breasts, index["split"], index["labels"], index["boxes"]):
        if own == split:
            images.setdefault(number, []).append((json.loads(labels), json.loads(boxes)))
    unknown: list = [None] * len(fields)
    of_breast = {number: [_value(field, own) for field in fields] for number, own in images.items()}
    return [of_breast.get(number, unknown) for number in breasts]


def _value(field: str, images: Sequence[tuple[Mapping, list]]) -> str | int | None:
    """Of a breast: the highest number of its images, or all their words."""
    if field in WORDS:
        return ", ".join(sorted({word for labels, _ in images for word in _words(labels.get(field))})) or None
    values = [_number(field, labels, boxes) for labels, boxes in images]
    return max((value for value in values if value is not None), default=None)


def _words(value: Any) -> list[str]:
    texts = map(label_values.text_of, value if isinstance(value, (list, tuple)) else [value])
    return [text.lower() for text in texts if text]


def _number(field: str, labels: Mapping, boxes: list) -> int | None:
    if field == "density":
        return label_values.density_number(labels.get(field))
    if field == "birads":
        return label_values.birads_number(labels.get(field)) or None
    states = label_values.flags(labels, boxes)
    known = states[field] if field in states else label_values.flag(labels.get(field))
    return UNCERTAIN if known is None and label_values.flag(labels.get(f"{field}_uncertain")) else known


@functools.lru_cache(maxsize=2**16)
def _said(texts: frozenset[str], side: str, fields: tuple[str, ...]) -> tuple[float, ...]:
    sentences = [sentence for text in texts for sentence in reports.sentences(reports.for_side(text, side))]
    states = [findings.said(sentences, field) for field in fields]
    return tuple(np.nan if state is None else float(state) for state in states)


def _batched(values: np.ndarray, of: str = "") -> dict[str, np.ndarray]:
    return {f"{of}target": np.nan_to_num(values), f"{of}known": ~np.isnan(values)}
