"""What is said of the regions of drawn images, in a batch (`config.data.phrases`): a part of `phrases.units`, tokenised.

A unit's box is in original pixels. Where it lies on the canvas follows from the index's `transform`, as prepare placed it, so
that folders of any version serve; which of a view's regions that is, from its corners.
"""

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data.batches import phrases
from mammoclip_jax.data.pixels.canvas_boxes import canvas_box
from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.text import concepts, findings, label_values, reports
from mammoclip_jax.data.text.tokenizer import Tokenize
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

# The bit of each finding in `phrase_findings`. A kind has that of its general finding too.
BITS = {key: 1 << place for place, key in enumerate(label_values.PRESENT)}
for _general, _kinds in label_values.FAMILIES.items():
    BITS |= {kind: BITS[kind] | BITS[_general] for kind in _kinds}


class Phrases(NamedTuple):
    """Which texts about regions, and how many of a row; none where `count` is 0."""

    count: int = 0
    length: int = 32  # tokens
    levels: tuple[str, ...] = ("label", "phrase")  # of `phrases.LEVELS`


def wanted(given: Mapping[str, Any]) -> Phrases:
    """The `Phrases` of `config.data.phrases`. Raises UserError for an unknown field or level, or a number below 0."""
    for name in given:
        check_name(name, Phrases._fields, "field config.data.phrases:")
    found = Phrases(**given)._replace(levels=tuple(given.get("levels", Phrases().levels)))
    for level in found.levels:
        check_name(level, phrases.LEVELS, "level of config.data.phrases.levels:")
    if found.count < 0 or found.count and not found.levels:
        raise UserError(f"config.data.phrases={dict(given)}: count is 0 (none) or more, and levels name at least one.")
    return found


class Spoken(NamedTuple):
    """A text of an image, and the place on the canvas that it speaks of."""

    level: int  # place in `phrases.LEVELS`
    text: str
    box: tuple[float, ...] | None  # left, top, right, bottom in canvas pixels; None: no box of its own
    negated: bool
    findings: int  # BITS of those that it affirms, or its box shows, or, negated, denies


def of_image(row: Mapping[str, Any], levels: Sequence[str]) -> tuple[Spoken, ...]:
    """The texts of a row of the index at these levels. One whose box the crop has cut off speaks of no place."""
    transform = Transform.from_json(row["transform"])
    shown: dict[tuple, set[str]] = {}  # by box: its findings
    for item in json.loads(row["boxes"]):
        shown.setdefault(tuple(item["box"]), set()).update(concepts.findings_of(item))
    found = []
    for unit in phrases.units(row):
        if unit.level in levels:
            box = canvas_box(unit.box, transform) if unit.box else None
            names = shown[unit.box] if unit.box and unit.level != "label" else set()
            level = phrases.LEVELS.index(unit.level)
            found.append(Spoken(level, unit.text, tuple(box) if box else None, unit.negated, _findings(unit, names)))
    return tuple(found)


def name_position(spoken: Sequence[Spoken]) -> bool:
    """Whether one of these texts names a position, so that its image must not be turned upside down."""
    return any(reports.names_position(said.text) for said in spoken)


def _findings(unit: phrases.Unit, shown: set[str]) -> int:
    """BITS of what a unit says and its box shows."""
    if unit.level == "label":
        names = phrases.of_label(unit)
    else:
        names = [key for key in findings.FINDINGS if findings.said((unit.text,), key) == int(not unit.negated)]
    return functools.reduce(operator.or_, (BITS[name] for name in {*names, *shown} & BITS.keys()), 0)


@dataclass(frozen=True)
class OfRegions:
    """The texts about the regions of drawn images. Can be pickled."""

    wanted: Phrases
    tokenizer: Tokenize
    known: dict[tuple[int, int], tuple[Spoken, ...]] = field(default_factory=dict, compare=False)  # by source and row

    def spoken(self, dataset: Dataset, source: int, records: Sequence[int]) -> list[tuple[Spoken, ...]]:
        """All that is said of each drawn image, computed when it is first drawn."""
        for record in records:
            if (source, record) not in self.known:
                row = dataset.index.iloc[record].to_dict()
                self.known[source, record] = of_image(row, self.wanted.levels)
        return [self.known[source, record] for record in records]

    def __call__(
        self,
        spoken: Sequence[Sequence[Spoken]],
        regions: Mapping[str, np.ndarray],
        mirrored: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """The keys phrase_... of a Batch for one row.

        Texts that have a region come first, but that a quarter of the places is for denials, where there are any; then
        those of no region. Each kind in random order.

        Args:
            spoken: by view.
            regions: boxes [V R 4] and box_classes [V R] of its images.
            mirrored: whether the row, or each of its views, is: laterality words are swapped.
        """
        placed, denied, rest = [], {}, {}
        for view, texts in enumerate(spoken):
            for said in texts:
                place = _place(said.box, regions["boxes"][view], regions["box_classes"][view])
                if place >= 0:
                    placed.append((said, view, place))
                else:
                    (denied if said.negated else rest).setdefault(said[:2], (said, view, -1))
        denied, rest = list(denied.values()), list(rest.values())
        placed, denied, rest = ([part[i] for i in rng.permutation(len(part))] for part in (placed, denied, rest))
        count = self.wanted.count
        first = count - min(len(denied), count // 4)
        chosen = (placed[:first] + denied + placed[first:] + rest)[:count]
        flips = np.broadcast_to(mirrored, len(spoken))
        texts = [reports.swap_laterality(s.text) if flips[view] else s.text for s, view, _ in chosen]
        ids, mask = self.tokenizer.encode(texts + [""] * (count - len(chosen)), self.wanted.length)
        mask[len(chosen) :] = False
        batch = {
            "phrase_ids": ids,
            "phrase_mask": mask,
            "phrase_region": np.full((count, 2), -1, np.int32),
            "phrase_negated": np.zeros(count, bool),
            "phrase_level": np.full(count, -1, np.int32),
            "phrase_findings": np.zeros(count, np.int32),
        }
        for i, (said, view, place) in enumerate(chosen):
            batch["phrase_region"][i] = (view, place) if place >= 0 else -1
            batch["phrase_negated"][i], batch["phrase_level"][i] = said.negated, said.level
            batch["phrase_findings"][i] = said.findings
        return batch


def _place(box: tuple[float, ...] | None, boxes: np.ndarray, classes: np.ndarray) -> int:
    """Which of a view's regions the box is; -1 where it is none."""
    if box is None:
        return -1
    same = (boxes == np.array(box, np.float32)).all(axis=1) & (classes >= 0)
    return int(same.argmax()) if same.any() else -1
