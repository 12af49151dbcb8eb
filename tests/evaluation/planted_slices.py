"""Data with a planted shortcut: a classifier's features, a dual encoder's vectors, sentences and their vectors.

Six attributes are hidden in both encoders. Of the training images `PLANTED` agrees with the class in 92 %, of the others in
half, so that a classifier learns it and fails where the two disagree; the other five have nothing to do with anything.
"""

import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.text.reports import negated
from mammoclip_jax.evaluation.slices import repair
from mammoclip_jax.evaluation.slices.run import Bank, Part

PLANTED = "calcification"
TERMS = {  # of each attribute, with what says it
    PLANTED: ("grouped calcifications", "suspicious calcifications"),
    "dense tissue": ("dense tissue", "dense breast"),
    "skin marker": ("a skin marker", "a metallic marker"),
    "surgical clip": ("a surgical clip", "a clip"),
    "implant": ("an implant", "a silicone implant"),
    "old age": ("old age", "elderly"),
}
WORDS = {  # of each attribute, that its texts hold
    PLANTED: "calcification",
    "dense tissue": "dense",
    "skin marker": "marker",
    "surgical clip": "clip",
    "implant": "implant",
    "old age": "elderly|old age",
}
FEATURES, VECTORS = 32, 24


class Planted(NamedTuple):
    train: Part
    validation: Part
    test: Part
    bank: Bank
    directions: np.ndarray  # [6, VECTORS]

    def embed(self, texts) -> np.ndarray:
        return embed(texts, self.directions)


def texts() -> list[str]:
    """The bank: 252 sentences, 36 an attribute and as many of nothing."""
    places = ("left breast", "right breast", "upper outer quadrant", "axilla", "central region", "lower breast")
    made = []
    for terms in TERMS.values():
        for place in places:
            for bare in (term.removeprefix("a ").removeprefix("an ") for term in terms):
                made += [f"There is {bare} in the {place}.", f"No {bare} in the {place}."]
                made += [f"Without evidence of {bare} on the {place}."]
    for place in places:
        made += [f"The {place} is imaged in {n} views." for n in ("two", "three", "four", "more", "standard", "extra")]
    return made


def embed(texts, directions) -> np.ndarray:
    """Unit vectors: the directions of the attributes that a text names, turned round where it denies them, and noise."""
    out = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=VECTORS) * 0.08 for text in texts])
    for place, words in enumerate(WORDS.values()):
        for row, text in enumerate(texts):
            named = [word for word in words.split("|") if word in text.lower()]
            if named:
                out[row] += directions[place] * (-1 if negated(text, named[0]) else 1)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def planted(seed: int, sizes=(1500, 1600, 1500), agreement: float = 0.92) -> Planted:
    rng = np.random.default_rng(seed)
    # Orthogonal, so that every seed is as hard.
    directions = np.linalg.qr(rng.normal(size=(VECTORS, 6)))[0].T
    mixing = np.linalg.qr(rng.normal(size=(FEATURES, 7)))[0].T
    parts = [_part(rng, n, p, directions, mixing) for n, p in zip(sizes, (agreement, 0.5, 0.5))]
    head = repair.fit_head(parts[0].features, parts[0].truth, 1e6)
    parts = [part._replace(score=head.probabilities(part.features)) for part in parts]
    bank = texts()
    return Planted(*parts, Bank(bank, embed(bank, directions)), directions)


def _part(rng, n: int, agreement: float, directions, mixing) -> Part:
    truth = rng.integers(0, 2, n)
    hidden = rng.integers(0, 2, (n, 6))
    hidden[:, 0] = np.where(rng.random(n) < agreement, truth, 1 - truth)
    signs = 2.0 * np.column_stack([truth, hidden]) - 1
    features = (signs * np.array([1.65, *[3.0] * 6])) @ mixing + rng.normal(size=(n, FEATURES))
    vectors = signs[:, 1:] @ directions + rng.normal(size=(n, VECTORS)) * 0.1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = pd.DataFrame({"hidden": hidden[:, 0]})
    return Part(features, truth, np.zeros(n), np.arange(n).astype(str), vectors, columns)


def shuffled(part: Part, seed: int) -> Part:
    """The same images with truth and score of others: what they show says nothing of where the classifier errs."""
    order = np.random.default_rng(seed).permutation(len(part.truth))
    return part._replace(features=part.features[order], vectors=part.vectors[order])
