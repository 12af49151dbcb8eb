"""From two models and their data set folders to the arrays that `analyse` takes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from mammoclip_jax.data.text.label_values import text_of
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.features import Features, TextBank, label_values
from mammoclip_jax.evaluation.slices.columns import metadata
from mammoclip_jax.evaluation.slices.join import joined
from mammoclip_jax.evaluation.slices.run import Bank, Part

PARTS = {"train": "train", "validation": "val", "test": "test"}  # of `analyse`: the split that is it


class Gathered(NamedTuple):
    """The arguments of `analyse` with what they were made of.

    Attributes:
        parts: {"train", "validation", "test": Part}.
        rows: {part: int [n]}: positions of its images in the classifier's index.
        bank, embed: of the dual encoder; None without one.
        counts: images of each part; images without the label, joined, in one folder only; sentences.
    """

    parts: dict[str, Part]
    rows: dict[str, np.ndarray]
    bank: Bank | None
    embed: Callable | None
    counts: dict[str, int]


def gather(
    classifier,
    dataset,
    label: str,
    *,
    language=None,
    language_dataset=None,
    sentences: Sequence[str] = (),
    columns: Sequence[str] = (),
    use_metadata: bool = True,
    cache: str | Path = "",
) -> Gathered:
    """Features, scores, vectors and metadata of the images whose label is known, by split.

    Scores are the probabilities of single images: the classifier's head on their pooled features.

    Args:
        classifier: an `inference.heads.Classifier`; dataset: its data set (`store.shards.Dataset`).
        language: an `inference.dual_encoder.DualEncoder`, or None; language_dataset: the same images, prepared for it; None:
            the same folder.
        sentences: the bank.
        columns: keys of labels that are metadata too.
        use_metadata: whether the parts get columns of it at all.
        cache: folder that keeps features; "": none.

    Raises:
        UserError: a split is missing or has one class, the label is unknown throughout, or the folders do not join.
    """
    index = dataset.index
    truth = label_values(index, label)
    usable = ~np.isnan(truth)
    counts = {"without_label": int((~usable).sum())}
    partner = np.arange(len(index))
    if language is not None and language_dataset is not None:
        both = joined(index, language_dataset.index)
        partner = np.full(len(index), -1)
        partner[both.first] = both.second
        usable &= partner >= 0
        counts |= both.counts
    rows = {part: np.flatnonzero((index["split"] == split).to_numpy() & usable) for part, split in PARTS.items()}
    _check(rows, truth, label, index)
    counts |= {part: len(places) for part, places in rows.items()}
    table = described(index, columns) if use_metadata else None
    weights, bias = classifier.head(label)
    features = Features(classifier, dataset, folder=cache)
    vectors = Features(language, language_dataset or dataset, folder=cache) if language is not None else None
    parts = {}
    for part, places in rows.items():
        own = features.of("pooled", places)
        parts[part] = Part(
            own,
            truth[places].astype(int),
            expit(own.astype(np.float64) @ weights.astype(np.float64) + bias),
            index["patient"].astype(str).to_numpy()[places],
            vectors.images(partner[places]) if vectors is not None else None,
            table.iloc[places].reset_index(drop=True) if table is not None else None,
        )
    bank, embed = None, None
    if language is not None:
        embed = TextBank(language).embed_text
        if not len(sentences):
            raise UserError("there is no sentence to look for errors with: give --sentences, --prompts or --captions.")
        bank = Bank(list(sentences), embed(list(sentences)))
        counts["sentences"] = len(sentences)
    return Gathered(parts, rows, bank, embed, counts)


def described(index: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """`columns.metadata`, with these keys of the labels besides.

    Raises:
        UserError: no image has such a key.
    """
    table, labels = metadata(index), [json.loads(text) for text in index["labels"]]
    for name in columns:
        values = [text_of(_plain(one.get(name))) for one in labels]
        if not any(values):
            known = sorted({key for one in labels for key in one})
            raise UserError(f"no image has a label {name!r}; there are: {', '.join(known)}.")
        table[name] = [value or "unknown" for value in values]
    return table


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _check(rows, truth, label: str, index: pd.DataFrame) -> None:
    for part, places in rows.items():
        classes = set(truth[places].tolist())
        if classes != {0.0, 1.0}:
            there = ", ".join(f"{split} {n}" for split, n in index["split"].value_counts().items())
            raise UserError(
                f"the split {PARTS[part]!r} has {len(places)} images whose {label!r} is known, and needs some with and some "
                f"without it: slices are found on val, measured on test, and mapped on train. Images by split: {there}. "
                "Prepare the data set with a part for validation, as --option=val_fraction=0.2 does where splits are drawn."
            )
