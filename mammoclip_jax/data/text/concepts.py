"""Concepts that regions are told apart by: names and sentences of a lexicon file, and which of them an image can show.

A file is {"concepts": [{"name", "finding", "values": {label: value}, "prompts": [sentence, ...]}, ...]}. `finding` is a
key of the labels, "" for the background; `values` are the labels of an image that shows the concept.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from mammoclip_jax.data.text import label_values
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

FOLDER = Path(__file__).with_name("lexicons")
LEXICONS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


class Concept(NamedTuple):
    """What a region may show."""

    name: str
    finding: str  # a key of the labels; "": tissue without a finding
    values: tuple[tuple[str, Any], ...]  # the labels of an image that shows it
    prompts: tuple[str, ...]


def load(name: str) -> tuple[Concept, ...]:
    """The concepts of a lexicon: one of LEXICONS, or a .json file.

    Raises:
        UserError: there is no such lexicon or file, or the file is not of the form above.
    """
    path = Path(name)
    if path.suffix != ".json":
        check_name(name, LEXICONS, "lexicon of concepts")
        path = FOLDER / f"{name}.json"
    try:
        items = json.loads(path.read_text())["concepts"]
        found = tuple(
            Concept(item["name"], item["finding"], tuple(item.get("values", {}).items()), tuple(item["prompts"]))
            for item in items
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no lexicon of concepts ({error!r}): data/text/concepts.py says what one holds."
        ) from error
    names = [concept.name for concept in found]
    if not found or len(set(names)) < len(names) or not all(concept.prompts for concept in found):
        raise UserError(f"{path}: give each concept a name of its own and a prompt at the least.")
    return found


def allowed(
    concepts: Sequence[Concept], labels: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]] = ()
) -> Bool[np.ndarray, " C"]:
    """Those that no known label of an image denies: none, where no label that any of them implies is known.

    Args:
        boxes: annotated ones; a finding that has one is there.
    """
    states = label_values.consistent(labels, boxes)
    read = {key for concept in concepts for key, _ in concept.values}
    if not read & states.keys():
        return np.zeros(len(concepts), bool)
    return np.array([_fits(concept, states) for concept in concepts])


def of_box(concepts: Sequence[Concept], item: Mapping[str, Any], labels: Mapping[str, Any]) -> Bool[np.ndarray, " C"]:
    """Those of the findings of a box that neither the box nor its image's labels deny."""
    findings = findings_of(item)
    states = label_values.consistent({**labels, **item, **dict.fromkeys(findings, 1)}, [item])
    return np.array([concept.finding in findings and _fits(concept, states) for concept in concepts])


def findings_of(item: Mapping[str, Any]) -> set[str]:
    """Keys of the labels that a box of the manifest is of."""
    return set(map(label_values.key_of, label_values.names_of(item)))


def _fits(concept: Concept, states: Mapping[str, str]) -> bool:
    return all(states.get(key, str(value)) == str(value) for key, value in concept.values)
