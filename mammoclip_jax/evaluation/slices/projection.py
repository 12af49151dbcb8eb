"""A linear map from a classifier's features to the vectors of a dual encoder: closed-form ridge regression.

LADDER (arXiv:2408.07832, section 3.1) fits it by SGD. Its R² is about one scalar mean of all entries, by which
predicting the mean vector already scores .5 on unit vectors in a narrow cone; here it is about the mean vector.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve

from mammoclip_jax.errors import UserError

# Strengths to choose from, as parts of the mean eigenvalue of the features' scatter: they fit features of any scale.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
LEAST_R2 = 0.3
_ROWS = 8192  # of a block: bounds what is held in float64


class Projector(NamedTuple):
    """projected = weights @ features + bias."""

    weights: np.ndarray  # float64 [D, c]
    bias: np.ndarray  # float64 [D]
    strength: float = 0.0  # lambda
    r2: float = np.nan  # of the validation part

    def __call__(self, features) -> np.ndarray:
        """Float64 [n, D] of features [n, c]."""
        return self.along(features, np.eye(len(self.bias)))

    def along(self, features, directions) -> np.ndarray:
        """Float64 [n, m]: the products of the projected features [n, c] with `directions` [m, D].

        No projected vector is made: the directions go the other way.
        """
        directions = np.asarray(directions, np.float64)
        back, shift = (directions @ self.weights).T, directions @ self.bias
        out = np.empty((len(features), len(directions)))
        for rows in blocks(len(features)):
            out[rows] = np.asarray(features[rows], np.float64) @ back + shift
        return out


def nothing_to_project(size: int) -> Projector:
    """What leaves vectors [n, size], which are in the dual encoder's space already, as they are."""
    return Projector(np.eye(size), np.zeros(size))


def blocks(count: int) -> Iterator[slice]:
    """`count` rows in runs that are few enough to be copied."""
    for start in range(0, count, _ROWS):
        yield slice(start, start + _ROWS)


def mean_of(x) -> np.ndarray:
    """Float64 [c]: mean of the rows of `x` [n, c]."""
    return sum(np.asarray(x[rows], np.float64).sum(axis=0) for rows in blocks(len(x))) / len(x)


def products(x, y, mean_x: np.ndarray, mean_y: np.ndarray) -> np.ndarray:
    """Float64 [c, d]: Σ (x - mean_x)ᵀ (y - mean_y) over the rows of `x` [n, c] and `y` [n, d]."""
    total = np.zeros((len(mean_x), len(mean_y)))
    for rows in blocks(len(x)):
        total += (np.asarray(x[rows], np.float64) - mean_x).T @ (np.asarray(y[rows], np.float64) - mean_y)
    return total


def ridge(features, vectors, strengths: Sequence[float]) -> list[Projector]:
    """One map for each strength λ: the least ‖Y - X Wᵀ - b‖² + λ‖W‖², b free.

    W = Yᵀ X (XᵀX + λI)⁻¹ of the centred data, b = mean(Y) - W mean(X).

    Args:
        features: X [n, c]; vectors: Y [n, D], rows of the same images.
    """
    mean_x, mean_y = mean_of(features), mean_of(vectors)
    scatter, shared = products(features, features, mean_x, mean_x), products(features, vectors, mean_x, mean_y)
    return [_solved(scatter, shared, mean_x, mean_y, strength) for strength in strengths]


def _solved(scatter, shared, mean_x, mean_y, strength: float) -> Projector:
    weights = solve(scatter + strength * np.eye(len(scatter)), shared, assume_a="pos").T
    return Projector(weights, mean_y - weights @ mean_x, float(strength))


def r_squared(projector: Projector, features, vectors) -> float:
    """1 - Σ‖y - ŷ‖² / Σ‖y - mean(y)‖², the mean being a vector; 0 for predicting that mean."""
    mean, error, spread = mean_of(vectors), 0.0, 0.0
    for rows in blocks(len(vectors)):
        true = np.asarray(vectors[rows], np.float64)
        error += ((true - projector(features[rows])) ** 2).sum()
        spread += ((true - mean) ** 2).sum()
    return float(1 - error / spread) if spread > 0 else float("nan")


def fit(
    train: tuple, validation: tuple, *, strengths: Sequence[float] = STRENGTHS, least: float = LEAST_R2
) -> Projector:
    """The map of the strength that does best on the validation part; equals go to the strongest.

    Args:
        train, validation: (features [n, c], vectors [n, D]).
        strengths: parts of the mean eigenvalue of the scatter of the training features.
        least: R² on the validation part below which no map is given.

    Raises:
        UserError: the features say too little of the vectors; features or vectors that are not finite, or do not pair.
    """
    for what, (features, vectors) in (("training", train), ("validation", validation)):
        _check(what, np.asarray(features), np.asarray(vectors))
    mean_x, mean_y = mean_of(train[0]), mean_of(train[1])
    scatter, shared = products(train[0], train[0], mean_x, mean_x), products(*train, mean_x, mean_y)
    scale = np.trace(scatter) / len(scatter)
    best = None
    for part in sorted(strengths, reverse=True) if scale > 0 else ():
        made = _solved(scatter, shared, mean_x, mean_y, part * scale)
        made = made._replace(r2=r_squared(made, *validation))
        best = made if best is None or made.r2 > best.r2 else best
    if best is None or not best.r2 >= least:
        found = (
            "the classifier's features are all alike" if best is None else f"R² is {best.r2:.3f}, {least:g} is needed"
        )
        raise UserError(
            f"the classifier's features do not reach the space of the dual encoder: on the validation part {found}. "
            "Sentences found through such a map would say nothing of the classifier: take a dual encoder that knows "
            "such images, more training images, or only hypotheses from metadata."
        )
    return best


def _check(what: str, features: np.ndarray, vectors: np.ndarray) -> None:
    if len(features) != len(vectors) or len(features) < 2:
        raise UserError(
            f"the {what} part has {len(features)} rows of features and {len(vectors)} of vectors: give both of the same "
            "images, two at least."
        )
    for name, values in (("features", features), ("vectors", vectors)):
        bad = sum(int((~np.isfinite(values[rows]).all(axis=1)).sum()) for rows in blocks(len(values)))
        if bad:
            raise UserError(f"the {name} of {bad} {what} images are not finite: look at the weights that made them.")
