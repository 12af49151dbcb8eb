"""Sentences that tell a classifier's right decisions from its wrong ones, within one class (LADDER, section 3.2).

Δ is the mean projected vector of the images that are decided rightly, minus that of those decided wrongly. A sentence
t scores ⟨t, Δ⟩. High ones name what the right have and the wrong lack, low ones the other way round. In the class that a
shortcut speaks against, the former deny the attribute ("no calcification"), so both ends are looked at.

Were right and wrong dealt out at random within the class, a score would have the mean 0 and the variance
S² (1/n_right + 1/n_wrong), S² being the sample variance of ⟨t, projected⟩ over the class: that of a difference of means
of a finite population split in two. It needs no permutations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mammoclip_jax.data.text import duplicates
from mammoclip_jax.evaluation.slices.projection import Projector, mean_of, products

TOP = 100  # sentences of each end
ALIKE = 0.95  # cosine above which two sentences count as one


class Contrast(NamedTuple):
    """How right and wrong decisions of one class differ in the space of the sentences."""

    delta: np.ndarray  # float64 [D]
    covariance: np.ndarray  # float64 [D, D], of the projected features of the class, by n - 1
    right: int  # images
    wrong: int


class Retrieved(NamedTuple):
    """One end of the list of sentences, the most telling first."""

    place: np.ndarray  # int [k], in the bank
    score: np.ndarray  # float64 [k]
    z: np.ndarray  # float64 [k]
    merged: np.ndarray  # int [k]: how many others it stands for


def contrast(projector: Projector, features, right) -> Contrast | None:
    """Of the images of one class: features [n, c], right bool [n]; None where all or none are right."""
    right = np.asarray(right, bool)
    if right.all() or not right.any():
        return None
    mean = mean_of(features)
    scatter = products(features, features, mean, mean) / (len(right) - 1)
    apart = mean_of(features[right]) - mean_of(features[~right])
    weights = projector.weights
    return Contrast(weights @ apart, weights @ scatter @ weights.T, int(right.sum()), int((~right).sum()))


def score(sentences, found: Contrast) -> tuple[np.ndarray, np.ndarray]:
    """(⟨t, Δ⟩, its exact z under the null) of each sentence's vector; two of float64 [S], of sentences [S, D]."""
    vectors = np.asarray(sentences, np.float64)
    scores = vectors @ found.delta
    variance = ((vectors @ found.covariance) * vectors).sum(axis=1) * (1 / found.right + 1 / found.wrong)
    flat = variance <= 1e-18 * max(float(variance.max(initial=0.0)), 1e-300)
    return scores, np.where(flat, 0.0, scores / np.sqrt(np.where(flat, 1.0, variance)))


def top(values, count: int) -> np.ndarray:
    """Int: positions of the `count` greatest of `values` [n], falling; of equals the first comes first."""
    return np.argsort(-np.asarray(values), kind="stable")[:count]


def retrieve(
    texts: Sequence[str], sentences, found: Contrast, *, count: int = TOP, alike: float = ALIKE
) -> tuple[Retrieved, Retrieved]:
    """(of the right, of the wrong): the sentences with the greatest and the least z, at most `count` of each.

    Sentences that say the same, and those whose vectors' cosine is above `alike`, count as the first of them.

    Args:
        texts: the bank [S]; sentences: its unit vectors [S, D].
    """
    scores, z = score(sentences, found)
    said = duplicates.exact(texts)
    return tuple(_end(scores, z, top(sign * z, len(z)), sentences, said, count, alike) for sign in (1, -1))


def _end(scores, z, order, sentences, said, count: int, alike: float) -> Retrieved:
    kept, merged = [], []
    vectors = np.empty((count, np.shape(sentences)[1]))
    place_of: dict[int, int] = {}
    for place in order:
        vector = np.asarray(sentences[place], np.float64)
        same = place_of.get(int(said[place]))
        if same is None and kept:
            cosine = vectors[: len(kept)] @ vector
            same = int(cosine.argmax()) if cosine.max() > alike else None
        if same is not None:
            merged[same] += 1
        elif len(kept) == count:
            break
        else:
            place_of[int(said[place])] = len(kept)
            vectors[len(kept)] = vector
            kept.append(int(place))
            merged.append(0)
    kept = np.array(kept, int)
    return Retrieved(kept, scores[kept], z[kept], np.array(merged, int))
