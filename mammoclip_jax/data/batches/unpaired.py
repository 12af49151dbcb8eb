"""Images without texts and texts without images, together in the rows of a batch (MedCLIP's decoupling, arXiv:2210.10163).

A breast without texts is drawn as any other. Texts that belong to no image, the pool, take the place of those it lacks:
the row then holds an image and texts that are no pair, and no place of a batch is left empty. Terms that need pairs leave
such rows out; `soft_targets` compares all images with all texts by their labels.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.data import reported
from mammoclip_jax.data.batches import targets, texts, units
from mammoclip_jax.data.batches.texts import TextOptions
from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.data.store.shared import Shared
from mammoclip_jax.data.store.side_tables import read_frame
from mammoclip_jax.data.text import concepts
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

log = logging.getLogger(__name__)
REPORTS = "reports"  # the pool of the data sets' own reports whose images are not there


class Unpaired(NamedTuple):
    """What is drawn beside pairs."""

    images: bool = False  # breasts without texts
    texts: str = ""  # "reports", or a lexicon of data/text/lexicons, whose prompts are texts; "": none
    share: float = 0.0  # probability that a breast with texts of its own is given others all the same

    @property
    def asked(self) -> bool:
        """Whether a row may be no pair."""
        return self.images or bool(self.texts)


def unpaired(given: Mapping[str, Any]) -> Unpaired:
    """The `Unpaired` of `config.data.unpaired`.

    Raises:
        UserError: there is no such field, or one is set that nothing reads.
    """
    for name in given:
        check_name(name, Unpaired._fields, "field config.data.unpaired:")
    found = Unpaired(**given)
    if not 0 <= found.share <= 1:
        raise UserError(f"config.data.unpaired.share={found.share} is a probability: 0 to 1.")
    if found.share and not found.texts:
        raise UserError(
            f"config.data.unpaired.share={found.share} is the part of the rows that get texts without image, and there "
            f'are none: set config.data.unpaired.texts, to "{REPORTS}" or a lexicon\'s name.'
        )
    if found.texts and not (found.images or found.share):
        raise UserError(
            f"nothing reads config.data.unpaired.texts={found.texts!r}: they take the place of texts that a breast lacks "
            "(config.data.unpaired.images=True) or has (config.data.unpaired.share)."
        )
    return found


class Alone(NamedTuple):
    """Texts of no image that say the same: those of a breast's report, or of a concept."""

    texts: tuple[str, ...]
    labels: str  # JSON, as in the manifest


def pool(datasets: Sequence[Dataset], split: str, wanted: Unpaired, text: TextOptions) -> tuple[Alone, ...]:
    """The texts without image that training draws from: first one of these, all alike, then one of its texts.

    Raises:
        UserError: there are none, or there is no such lexicon.
    """
    if not wanted.texts:
        return ()
    if wanted.texts != REPORTS:
        made = concepts.load(wanted.texts)
        return tuple(Alone(concept.prompts, json.dumps(dict(concept.values))) for concept in made if concept.values)
    found = []
    for dataset in datasets:
        remedy = (
            "no report of this data set lacks its image, or an older version prepared it: prepare it again, or take "
            f'config.data.unpaired.texts="{REPORTS}" out'
        )
        frame = read_frame(dataset.path, reported.ALONE, remedy)
        frame = frame[frame["split"] == split].reset_index(drop=True)
        of_breast, labels = texts.of_breasts(frame, text), frame["labels"].tolist()
        for places in units.members(units.breasts(frame)):
            own = tuple(of_breast(places))
            if own:
                found.append(Alone(own, labels[places[0]]))
    if not found:
        folders = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(
            f"no report without image in split {split!r} of {folders}: take config.data.unpaired.texts out."
        )
    log.info("%d reports without image in split %s", len(found), split)
    return tuple(found)


def drawable(datasets: Sequence[Dataset], split: str, wanted: Unpaired, text: TextOptions) -> set[str]:
    """Every text that may take the place of a breast's own; "" where a breast may have none."""
    made = {words for alone in pool(datasets, split, wanted, text) for words in alone.texts}
    return made | ({""} if wanted.images and not made else set())


def check_read(wanted: Unpaired, without_text: int) -> None:
    """Raises UserError where nothing reads the texts without image, since no breast lacks one."""
    if wanted.texts and not wanted.share and not without_text:
        raise UserError(
            f"nothing reads config.data.unpaired.texts={wanted.texts!r}: every breast has a text of its own. Set "
            "config.data.unpaired.share above 0, or take it out."
        )


@dataclass(frozen=True)
class Decoupled:
    """The texts of a row, and what they are to its images. Can be pickled."""

    pool: Sequence[Alone]
    share: float
    labels: targets.OfLabels | targets.OfTexts | None = None

    def __call__(
        self, own: list[str], known: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[list[str], dict[str, np.ndarray]]:
        """(the row's T texts, keys of the Batch that say whose they are and what).

        Args:
            own: those drawn of its breast, "" where it has none.
            known: target [V K] and known [V K] of its images, where labels are asked for; text t has those of row t.
        """
        drawn, labels, paired = own, None, any(own)
        if self.pool and (not paired or rng.random() < self.share):
            chosen = [self.pool[int(rng.integers(len(self.pool)))] for _ in own]
            drawn = [alone.texts[int(rng.integers(len(alone.texts)))] for alone in chosen]
            labels, paired = [json.loads(alone.labels) for alone in chosen], False
        row = {"paired": np.bool_(paired), "has_text": np.bool_(any(drawn))}
        if self.labels and labels is not None:
            row |= self.labels.of_texts(drawn, labels)
        elif self.labels:
            views = [place % len(known["target"]) for place in range(len(own))]
            has_text = np.bool_(any(own))
            row |= {"text_target": known["target"][views] * has_text, "text_known": known["known"][views] & has_text}
        return drawn, row


def decoupled(
    datasets: Sequence[Dataset],
    split: str,
    wanted: Unpaired,
    text: TextOptions,
    labels: targets.OfLabels | targets.OfTexts | None,
) -> Decoupled | None:
    """What `wanted` makes of the texts drawn; None where all rows are pairs. Raises UserError as `pool`."""
    return Decoupled(Shared(pool(datasets, split, wanted, text)), wanted.share, labels) if wanted.asked else None
