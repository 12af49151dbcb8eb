"""Logistic regression on standardised features, L2-regularised as strongly as other data than the tested choose.

scikit-learn's `LogisticRegression` (L-BFGS, multinomial for classes) does the fitting. Where there are more features
than items, it works in the space that the items span: the optimum of an L2-regularised loss lies there (the representer
theorem; Schoelkopf, Herbrich and Smola 2001), so this changes nothing but the time.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from mammoclip_jax.data import subsets
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name

CS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
INNER_FOLDS = 5
_ITERATIONS, _TOLERANCE = 2000, 1e-5
_ROWS = 2**14  # in float64 at a time
_SMALL = 10_000_000  # numbers, below which threads of the linear algebra cost more than they save


class Part:
    """Some rows of a matrix, which are copied when a slice of them is asked for."""

    def __init__(self, matrix: np.ndarray, rows: np.ndarray):
        self._matrix, self._rows = matrix, rows
        self.shape = (len(rows), matrix.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen):
        """A slice as an array; of positions, or where True, a part again."""
        rows = self._rows[chosen]
        return self._matrix[rows] if isinstance(chosen, slice) else Part(self._matrix, rows)


class Items(NamedTuple):
    """What is learnt from, or tested on."""

    features: np.ndarray | Part  # float [n, c]
    target: np.ndarray  # int [n], 0 to K - 1
    patients: np.ndarray  # str [n]

    def take(self, chosen: np.ndarray) -> "Items":
        """The items at these positions, or where this is True."""
        return Items(*(values[chosen] for values in self))


class Fit(NamedTuple):
    """Logits ((x - mean) / scale) @ kernel + bias of K classes; -inf of a class that was not among the items."""

    mean: np.ndarray  # float [c]
    scale: np.ndarray  # float [c]
    kernel: np.ndarray  # float [c, K]
    bias: np.ndarray  # float [K]

    def probabilities(self, features: np.ndarray | Part) -> np.ndarray:
        """Float [n, K], rows that sum to one."""
        parts = (features[start : start + _ROWS] for start in range(0, max(len(features), 1), _ROWS))
        logits = np.concatenate([((part - self.mean) / self.scale) @ self.kernel + self.bias for part in parts])
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


class Options(NamedTuple):
    """How a probe is fitted: the strengths to choose from, ascending, what chooses, and scikit-learn's class_weight."""

    cs: tuple[float, ...] = CS
    choose_by: str = "auroc"
    class_weight: str | None = None


def check(options: Options) -> None:
    """Raises UserError for an unknown criterion or class_weight, or strengths that are none."""
    check_name(options.choose_by, CRITERIA, "criterion of choose_by")
    if options.class_weight not in (None, "balanced"):
        raise UserError(f"there is no class_weight {options.class_weight!r}: leave it out, or take 'balanced'.")
    if not options.cs or min(options.cs) <= 0:
        raise UserError(f"cs is {options.cs}: give strengths above 0, such as {CS}.")


class Chosen(NamedTuple):
    """A strength, and in words what it was chosen on."""

    c: float
    on: str


def fit(items: Items, classes: int, cs: Sequence[float], class_weight: str | None = None) -> list[Fit]:
    """One fit for each strength of `cs` (scikit-learn's C, ascending; each starts from the one before).

    Mean and scale are those of `items`. With one class alone every image is given that class.
    """
    with threadpool_limits(1 if math.prod(items.features.shape) < _SMALL else None, "blas"):
        return _fit(items, classes, cs, class_weight)


def _fit(items: Items, classes: int, cs: Sequence[float], class_weight: str | None) -> list[Fit]:
    z = np.empty(items.features.shape)  # the only one in memory
    for start in range(0, len(z), _ROWS):
        z[start : start + _ROWS] = items.features[start : start + _ROWS]
    mean = z.mean(axis=0)
    z -= mean
    scale = np.sqrt(np.einsum("nc,nc->c", z, z) / len(z))  # z.std makes another
    scale = np.where(scale > 1e-6 * np.abs(mean), scale, 1.0)  # constant but for float32's rounding: as it is
    present = np.unique(items.target)
    bias = np.full(classes, -np.inf)
    if len(present) == 1:
        bias[present] = 0.0
        return [Fit(mean, scale, np.zeros((len(mean), classes)), bias)] * len(cs)
    z /= scale
    basis = None
    if len(z) < z.shape[1]:
        basis = _basis(z)
        z = z @ basis.T
    solver = LogisticRegression(max_iter=_ITERATIONS, tol=_TOLERANCE, class_weight=class_weight, warm_start=True)
    fits = []
    for c in cs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at the weakest strengths of separable classes
            solver.set_params(C=c).fit(z, items.target)
        weights, offsets = solver.coef_, solver.intercept_
        if len(present) == 2:  # one logit, of the second class
            weights, offsets = np.vstack([0 * weights, weights]), np.r_[0.0, offsets]
        kernel, own_bias = np.zeros((len(mean), classes)), bias.copy()
        kernel[:, present] = (weights if basis is None else weights @ basis).T
        own_bias[present] = offsets
        fits.append(Fit(mean, scale, kernel, own_bias))
    return fits


def _basis(z: np.ndarray) -> np.ndarray:
    """Orthonormal rows [rank, c] that span the rows of `z` [n, c], from the small matrix of their products."""
    values, vectors = np.linalg.eigh(z @ z.T)
    kept = values > 1e-10 * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])).T @ z


def choose(items: Items, classes: int, options: Options, validation: Items | None = None, seed: int = 0) -> Chosen:
    """The strength that does best on `validation`, or, without one of two classes, on folds of `items` by patient.

    Equals go to the smallest. Where a class has one patient alone nothing can be chosen: the middle one is taken.
    """
    cs, criterion = options.cs, CRITERIA[options.choose_by]
    if len(cs) == 1:
        return Chosen(cs[0], "given")
    if validation is not None and len(np.unique(validation.target)) > 1:
        fits = fit(items, classes, cs, options.class_weight)
        values = [criterion(validation.target, one.probabilities(validation.features)) for one in fits]
        return Chosen(cs[int(np.argmax(values))], "validation split")
    present = np.unique(items.target)
    patients = min(len(np.unique(items.patients[items.target == k])) for k in present)
    count = min(INNER_FOLDS, patients)
    if len(present) < 2 or count < 2:
        return Chosen(cs[len(cs) // 2], "too few patients to choose: the middle one")
    fold = subsets.folds(items.patients, items.target, count, seed)
    held_out = np.zeros((len(cs), len(fold), classes))
    for k in range(count):
        test = items.features[fold == k]
        held_out[:, fold == k] = [
            one.probabilities(test) for one in fit(items.take(fold != k), classes, cs, options.class_weight)
        ]
    values = [criterion(items.target, probabilities) for probabilities in held_out]
    return Chosen(cs[int(np.argmax(values))], f"{count} inner folds")


def _auroc(target: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the classes that are there of the AUROC of one against the rest."""
    present = np.unique(target)
    return float(np.mean([roc_auc_score(target == k, probabilities[:, k]) for k in present]))


def _log_likelihood(target: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean, of the true classes."""
    return float(np.log(np.maximum(probabilities[np.arange(len(target)), target], 1e-12)).mean())


CRITERIA: dict[str, Callable] = {"auroc": _auroc, "log_loss": _log_likelihood}  # the higher, the better
