"""Fisher's exact test of two rates, with patients of several images counted for what they are worth.

Images of one patient fail together. Where patients have several, counts are divided by their design effect first (Rao
and Scott 1992, "A simple method for the analysis of clustered binary data"), never raised; with one image a patient the
test is Fisher's to the digit.
"""

from collections.abc import Iterable

import numpy as np
from scipy.stats import hypergeom, norm

from mammoclip_jax.evaluation.statistics.few import effective


def worse(right_slice, n_slice, right_rest, n_rest) -> np.ndarray:
    """One-sided p that the slice is no worse: P(right in slice <= observed), hypergeometric; of ints of one shape.

    It is the p of a permutation of who is in the slice, both margins fixed: the gap in rates grows with that one count.
    """
    right_slice, n_slice, right_rest, n_rest = _ints(right_slice, n_slice, right_rest, n_rest)
    return hypergeom.cdf(right_slice, n_slice + n_rest, right_slice + right_rest, n_slice)


def different(right_slice, n_slice, right_rest, n_rest) -> np.ndarray:
    """Two-sided p: twice the smaller of both one-sided ones, at most 1."""
    right_slice, n_slice, right_rest, n_rest = _ints(right_slice, n_slice, right_rest, n_rest)
    one, other = worse(right_slice, n_slice, right_rest, n_rest), worse(right_rest, n_rest, right_slice, n_slice)
    return np.minimum(1.0, 2 * np.minimum(one, other))


def worse_within(tables: Iterable[tuple[int, int, int, int]]) -> float:
    """One-sided p that the slice is no worse within strata, from the counts of `worse` in each (Mantel and Haenszel 1959,
    normal, without continuity correction); 1 where no stratum has both sides."""
    apart = variance = 0.0
    for right_slice, n_slice, right_rest, n_rest in tables:
        n, right = n_slice + n_rest, right_slice + right_rest
        if n > 1:
            apart += right_slice - n_slice * right / n
            variance += n_slice * n_rest * right * (n - right) / (n**2 * (n - 1))
    return float(norm.cdf(apart / np.sqrt(variance))) if variance > 0 else 1.0


def _ints(*counts):
    return (np.asarray(x, np.int64) for x in counts)


def design_effect(right, patients) -> float:
    """How much more a rate varies with patients drawn whole than with images drawn singly; at least 1.

    Where all are right, or all wrong, images of a patient are taken to be alike (`few.effective`).
    """
    right = np.asarray(right, np.float64)
    n = len(right)
    _, patient = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if n == 0 or patient.max() + 1 == n:
        return 1.0
    rate = right.mean()
    if rate in (0.0, 1.0):
        return n / effective(patients)
    together = np.bincount(patient, right - rate)
    return float(max(1.0, (together**2).sum() / (n * rate * (1 - rate))))


def images(right, member) -> tuple[int, int, int, int]:
    """(right in slice, slice, right in rest, rest): what the tests take; right, member bool [n]."""
    return int(right[member].sum()), int(member.sum()), int(right[~member].sum()), int((~member).sum())


def worth(right, member, patients) -> tuple[int, int, int, int]:
    """As `images`, divided by the design effect of either side and rounded; patients str [n]."""
    out: list[int] = []
    for side in (member, ~member):
        n = int(side.sum())
        counted = n / design_effect(right[side], patients[side])
        out += [round(counted * right[side].sum() / max(n, 1)), round(counted)]
    return tuple(out)
