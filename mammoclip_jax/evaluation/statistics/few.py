"""Few patients: when the bootstrap is not trusted, and what is said instead.

With few patients of a class the bootstrap is too sure: nominal 95 % intervals of an AUROC hold in 45, 68, 82 and 89 %
of simulated studies with 1, 2, 3 and 5 positive patients. So below FEW patients a metric has the interval named here,
where one is known to hold, or none, with the reason.

The interval is that of Clopper and Pearson 1934 for a rate in so many patients. It also covers an AUROC, whose variance
is at most A (1 - A) / min(positives, negatives) whatever the scores' distribution (Birnbaum and Klose 1957, "Bounds for
the variance of the Mann-Whitney statistic"), that of a rate in as many trials; counts then need not be whole. Patients
with unlike numbers of images count as fewer (`effective`), and as if all images of one were alike: on the safe side.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import beta

LEVEL = 0.95
FEW = 10  # patients of the rarer class: from here on the bootstrap holds (tests/evaluation/test_coverage.py)


class Bound(NamedTuple):
    """An interval that does not come from resamples."""

    low: float
    high: float
    how: str


def count(patients) -> int:
    """How many patients."""
    return len(np.unique(np.asarray(patients, dtype=str)))


def effective(patients) -> float:
    """How many patients of equally many items each are worth `patients` [n]: (Σk)² / Σk² for k items (Kish 1965)."""
    _, items = np.unique(np.asarray(patients, dtype=str), return_counts=True)
    return float(items.sum() ** 2 / (items**2).sum())


def binomial(value: float, trials: float) -> Bound:
    """Clopper and Pearson's interval of a rate `value` in `trials`, which need not be whole."""
    hits = min(max(value, 0.0), 1.0) * trials
    misses = trials - hits
    low = beta.ppf((1 - LEVEL) / 2, hits, misses + 1) if hits > 1e-9 else 0.0
    high = beta.ppf((1 + LEVEL) / 2, hits + 1, misses) if misses > 1e-9 else 1.0
    return Bound(float(low), float(high), f"exact binomial interval, {trials:.3g} patient{'s' * (trials != 1)}")


def area(value: float, truth, patients) -> Bound:
    """Of an AUROC `value` of truth [n], 0 or 1: as a rate in the patients of the rarer class."""
    truth, patients = np.asarray(truth).astype(bool), np.asarray(patients)
    return binomial(value, min(effective(patients[truth]), effective(patients[~truth])))


def mean_of(bounds) -> Bound:
    """Of a mean over classes, from the bounds of each: their means, which hold whether or not they are independent.

    Adding the distances by their squares does not: with one patient of each of two classes it holds in 91 %.
    """
    low, high = (float(np.mean([bound[i] for bound in bounds])) for i in range(2))
    return Bound(low, high, "mean of the classes' exact binomial intervals")


def too_few(patients, whose: str = "", needs: int = FEW) -> str:
    """Why so few `patients` have no interval by bootstrap, or ""."""
    there = count(patients)
    said = f"{there} patient{'s' * (there != 1)}{whose and ' ' + whose}"
    return f"no interval: {said}, {needs} are needed" if there < needs else ""


def rarest_class(truth, prediction, patients) -> str:
    """`too_few` of the class that fewest patients have, of those that occur."""
    del prediction
    truth, patients = np.asarray(truth), np.asarray(patients)
    return too_few(min((patients[truth == k] for k in np.unique(truth)), key=count), "of the rarest class")


def beside_commonest(truth, prediction, patients) -> str:
    """`too_few` of the patients with an item beside the commonest class; of all, where only one class occurs."""
    del prediction
    truth, patients = np.asarray(truth), np.asarray(patients)
    classes, items = np.unique(truth, return_counts=True)
    if len(classes) == 1:
        return too_few(patients)
    return too_few(patients[truth != classes[items.argmax()]], "beside the commonest class")
