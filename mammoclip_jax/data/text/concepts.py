"""Concepts that a region may show, with the prompts that name them: lexicons, which are templates (text/templating.py).

Each part of a section makes concepts, one for every choice of the values in its `when`: the labels that the concept
implies, its finding first. The part's texts, filled with the words of these labels, are its prompts. The section
"background" makes the concept without a finding, which nothing denies.

`load("mammo:lexicon")` takes one of the LEVELS of a lexicon, `load("mammo")` its findings:

    findings   a concept a finding
    presence   these, and one that denies each
    lexicon    findings, and their descriptors: shape, margins, morphology, distribution, ...
    places     findings, and each on either side at each place: parts that name the laterality; a slot is a place
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from mammoclip_jax.data.text import label_values, templating
from mammoclip_jax.data.text.templating import Part, Template
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

FOLDER = Path(__file__).with_name("lexicons")
LEXICONS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
BACKGROUND = "background"
LEVELS = {
    "findings": ("findings",),
    "presence": ("findings", "presence"),
    "lexicon": ("findings", "lexicon"),
    "places": ("findings", "places"),
}
SIDE = "laterality"
# CheXpert's "no finding" says nothing of them.
NO_FINDINGS = ("support_devices",)


class Concept(NamedTuple):
    """What a region may show, and how it is said."""

    name: str
    finding: str  # key of the labels; "": background
    values: tuple[tuple[str, Any], ...]  # labels that it implies: 1 or 0 of a finding, else a word
    prompts: tuple[str, ...]


# --- loading ---------------------------------------------------------------------------------------------------------


@functools.cache
def load(name: str) -> tuple[Concept, ...]:
    """The concepts of a lexicon in data/text/lexicons, or of a JSON file given by its path; "NAME" or "NAME:LEVEL".

    Raises:
        UserError: there is no such lexicon or level, or a mistake in it; names the lexicon and the place.
    """
    lexicon, _, level = name.rpartition(":") if ":" in name else (name, "", "findings")
    check_name(level, LEVELS, f"level of the lexicon {lexicon!r}:")
    template = templating.load(lexicon, FOLDER, "lexicon of concepts")
    made: list[Concept] = []
    for section in template.sections:
        for part in section.parts:
            if section.name == BACKGROUND:
                made.append(Concept(BACKGROUND, "", (), part.texts))
            elif not part.when:
                raise UserError(
                    f"lexicon {lexicon!r}: section {section.name!r} has a part without `when`: name a finding"
                )
            elif _level(part) in LEVELS[level]:
                made += _of_part(template, part)
    _check(made, name)
    return tuple(made)


def _level(part: Part) -> str:
    """The level that a part is of."""
    if len(part.when) > 1:
        return "places" if SIDE in part.when else "lexicon"
    return "presence" if part.when[next(iter(part.when))] == ("0",) else "findings"


def _of_part(template: Template, part: Part) -> list[Concept]:
    slots = [gap for gap in templating.gaps(part.texts[0]) if gap in template.slots]
    finding, made = next(iter(part.when)), []
    for values in product(*part.when.values()):
        implied = dict(zip(part.when, values, strict=True))
        words = {
            name: field.values.get(implied[field.label], (implied[field.label],))[0]
            for name, field in template.fields.items()
            if field.label in implied
        }
        said = label_values.ABSENT.get(finding, finding.replace("_", " "))
        named = [said if implied[finding] == "1" else f"no {said}", *words.values()]
        for chosen in product(*(template.slots[slot] for slot in slots)):
            filled = words | dict(zip(slots, chosen, strict=True))
            made.append(
                Concept(
                    ", ".join([*named, *chosen]),
                    finding,
                    tuple((key, int(value) if value in ("0", "1") else value) for key, value in implied.items()),
                    tuple(templating.fill(text, filled) for text in part.texts),
                )
            )
    return made


def _check(made: Sequence[Concept], name: str) -> None:
    prompts = [prompt for concept in made for prompt in concept.prompts]
    for what, given in (("concept", [concept.name for concept in made]), ("prompt", prompts)):
        again = next((x for place, x in enumerate(given) if x in given[:place]), None)
        if again is not None:
            raise UserError(f"lexicon {name!r} has the {what} {again!r} twice: take one of them out.")
    if sum(not concept.finding for concept in made) != 1:
        raise UserError(
            f'lexicon {name!r} needs one section {BACKGROUND!r}, with one part: {{"texts": ["normal tissue"]}}.'
        )


# --- what is known of images and boxes -------------------------------------------------------------------------------


def allowed(
    concepts: Sequence[Concept], labels: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]] = ()
) -> Bool[np.ndarray, " C"]:
    """Bool [C]: the concepts that the labels of an image do not deny; none where no label of theirs is known.

    A finding that is there denies its absence and the other way round, the general finding's absence that of its kinds,
    a known word every other one of its field. "abnormal" 0 and "no_finding" 1 deny all findings of which nothing else is
    known. Background is denied by nothing.

    Args:
        labels: of a manifest row; with "laterality" that of the image as it is shown.
        boxes: annotated ones; a finding that has one is there.
    """
    labels = dict(labels) | {finding: 1 for item in boxes for finding in findings_of(item)}
    known = {key: _known(key, value, labels) for key, value in _values(concepts)}
    if not any(states for key, states in known.items() if key != SIDE):
        return np.zeros(len(concepts), bool)
    return np.array([all(not known[key] or str(value) in known[key] for key, value in c.values) for c in concepts])


def of_box(concepts: Sequence[Concept], item: Mapping[str, Any], labels: Mapping[str, Any]) -> Bool[np.ndarray, " C"]:
    """Bool [C]: the concepts that a box of the manifest may show: of its findings, and not denied.

    What the box says counts before what the image's labels say. A kind of which the lexicon knows no concept is the general
    finding. A box without label is `allowed` what the image is.
    """
    named = findings_of(item)
    if not named:
        return allowed(concepts, labels)
    findings = {concept.finding for concept in concepts}
    general = {kind: key for key, kinds in label_values.FAMILIES.items() for kind in kinds}
    named = {name if name in findings else general.get(name, name) for name in named}
    own = {key: item[key] for key, _ in _values(concepts) if key in item}
    here = allowed(concepts, dict(labels) | own | dict.fromkeys(named, 1))
    return here & np.array([c.finding in named and dict(c.values)[c.finding] == 1 for c in concepts])


def findings_of(item: Mapping[str, Any]) -> set[str]:
    """Keys of the labels that a box of the manifest is of."""
    return {label_values.key_of(name) for name in label_values.names_of(item)} - {""}


def _values(concepts: Sequence[Concept]) -> dict[tuple[str, Any], None]:
    return dict.fromkeys(pair for concept in concepts for pair in concept.values)


def _known(key: str, value: Any, labels: Mapping[str, Any]) -> tuple[str, ...]:
    """What is known of a label, as texts: "1" or "0" of a finding, else its words; () where nothing is."""
    if not isinstance(value, int):
        given = labels.get(key)
        words = given if isinstance(given, (list, tuple)) else label_values.text_of(given).split(",")
        texts = [label_values.text_of(word) for word in words]
        return tuple(text if key == SIDE else text.lower() for text in texts if text)
    state = _state(key, labels)
    return () if state is None else (str(state),)


def _state(key: str, labels: Mapping[str, Any]) -> int | None:
    """Is a finding there (1), denied (0), or not known?"""
    flag = label_values.flag(labels.get(key))
    kinds = label_values.FAMILIES.get(key, ())
    if flag or any(label_values.flag(labels.get(kind)) for kind in kinds):
        return 1
    if flag is not None:
        return flag
    general = [name for name, kinds in label_values.FAMILIES.items() if key in kinds]
    denied = any(label_values.flag(labels.get(name)) == 0 for name in (*general, "abnormal"))
    denied |= label_values.flag(labels.get("no_finding")) == 1 and key not in NO_FINDINGS
    return 0 if denied else None
