"""Folds and fractions of a data set by patient, stratified by label: no patient is ever on two sides."""

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from mammoclip_jax.errors import UserError


def folds(patients, strata, count: int, seed: int = 0) -> np.ndarray:
    """Int [n]: the fold, 0 to `count` - 1, of each item; a patient's items share one, the strata are spread evenly.

    Raises:
        UserError: fewer patients than folds.
    """
    patients, strata = np.asarray(patients, dtype=str), np.asarray(strata, dtype=str)
    known = len(np.unique(patients))
    if not 2 <= count <= known:
        raise UserError(f"{known} patients cannot be split into {count} folds: choose from 2 to {known}.")
    fold_of = np.zeros(len(patients), int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, members) in enumerate(splitter.split(patients, strata, patients)):
        fold_of[members] = fold
    return fold_of


def fraction(patients, strata, share: float, seed: int = 0) -> np.ndarray:
    """Bool [n]: the items of `share` of the patients of each stratum, rounded up to whole patients.

    A patient's stratum is the last, in sorted order, of its items'. Of a seed, a smaller share is part of a larger.

    Raises:
        UserError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"a fraction of {share} of the patients: it must be above 0 and at most 1.")
    return _drawn(patients, strata, lambda members: int(np.ceil(share * members - 1e-9)), seed)


def shots(patients, strata, count: int, seed: int = 0) -> np.ndarray:
    """Bool [n]: the items of `count` patients of each stratum, or of all that a smaller one has.

    Strata are those of `fraction`, and of the same seed fewer shots are part of more.

    Raises:
        UserError: `count` is below 1.
    """
    if count < 1:
        raise UserError(f"{count} shots: there must be at least 1 patient of each class.")
    return _drawn(patients, strata, lambda members: count, seed)


def _drawn(patients, strata, wanted, seed: int) -> np.ndarray:
    patients, strata = np.asarray(patients, dtype=str), np.asarray(strata, dtype=str)
    names, place = np.unique(patients, return_inverse=True)
    order = np.unique(strata, return_inverse=True)[1]
    stratum = np.zeros(len(names), int)
    np.maximum.at(stratum, place, order)
    chosen = np.zeros(len(names), bool)
    rng = np.random.default_rng(seed)
    for value in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == value))
        chosen[members[: wanted(len(members))]] = True
    return chosen[place]
