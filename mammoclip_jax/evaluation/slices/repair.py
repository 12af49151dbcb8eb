"""Last layers on frozen features that do well in every group, and the methods that they are compared with.

A group is a class with or without an attribute; a pseudo-group takes the attribute from a hypothesis's score instead of
from a label. All heads are logistic, on features standardised by what they are fitted on, and come back as heads of the
plain features. Each method gives one head, and a head gives one score of every image, whatever its class.

    erm             all images alike
    class_balanced  classes weigh the same
    jtt             what `erm` gets wrong counts several times (Liu et al., arXiv:2107.09044)
    group_dro       the worst group's loss (Sagawa et al., arXiv:1911.08731); the game of its paper, with an entropy on
                    the groups' weights, has the smooth maximum here as its value, which is convex: solved, not played
    balanced        draws with as many images of all four groups; with pseudo-groups this is LADDER's repair, with true
                    ones DFR (Kirichenko et al., arXiv:2204.02937)
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.slices.projection import blocks

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C; the smaller, the stronger the regularisation
DRAWS = 10
UPWEIGHTS = (2, 5, 20)  # of JTT
SHARPNESS = 20.0  # of the smooth maximum over the groups' losses; within log(4) / 20 of the worst one
_LEAST = 2  # images of each group, below which nothing is balanced


class Head(NamedTuple):
    """logit = features @ weights + bias; positive from 0 on."""

    weights: np.ndarray  # float64 [c]
    bias: float

    def logits(self, features) -> np.ndarray:
        """Float64 [n] of features [n, c]."""
        out = np.empty(len(features))
        for rows in blocks(len(features)):
            out[rows] = np.asarray(features[rows], np.float64) @ self.weights + self.bias
        return out

    def probabilities(self, features) -> np.ndarray:
        """Float64 [n]."""
        return expit(self.logits(features))


class Scale(NamedTuple):
    """(features - mean) / spread, what does not vary left as it is."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, features) -> "Scale":
        features = np.asarray(features, np.float64)
        mean, spread = features.mean(axis=0), features.std(axis=0)
        return cls(mean, np.where(spread > 1e-6 * np.maximum(np.abs(mean), 1e-12), spread, 1.0))

    def __call__(self, features) -> np.ndarray:
        return (np.asarray(features, np.float64) - self.mean) / self.spread

    def plain(self, head: Head) -> Head:
        """The same head, of features that are not standardised."""
        weights = head.weights / self.spread
        return Head(weights, float(head.bias - weights @ self.mean))


class Held(NamedTuple):
    """What a strength is chosen on: features, class and group of images that no fit has seen."""

    features: np.ndarray
    truth: np.ndarray
    group: np.ndarray  # int [n]: `groups`, -1 unknown


def groups(truth, attribute) -> np.ndarray:
    """Int64 [n]: 2 * class + attribute; -1 where the attribute (1, 0 or NaN) is unknown."""
    attribute = np.asarray(attribute, np.float64)
    unknown = np.isnan(attribute)
    return np.where(unknown, -1, 2 * np.asarray(truth, np.int64) + np.where(unknown, 0, attribute).astype(np.int64))


def fit_head(features, truth, c: float, *, weights=None, balanced: bool = False) -> Head:
    """The optimum of Σ weight log(1 + exp(-±logit)) + ‖w‖² / (2c), bias free, on the features as they are.

    Args:
        features: [n, c]; truth: int [n], both classes.
        weights: float [n], 1 by default; `balanced` gives both classes the same weight besides.

    Raises:
        UserError: one class only.
    """
    truth = np.asarray(truth).astype(int)
    if len(np.unique(truth)) < 2:
        raise UserError(f"a last layer needs images of both classes; {int(truth.sum())} of {len(truth)} are positive.")
    solver = LogisticRegression(C=c, tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None)
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of separable classes at the weakest strengths
        solver.fit(np.asarray(features, np.float64), truth, sample_weight=weights)
    return Head(solver.coef_[0].copy(), float(solver.intercept_[0]))


def balanced_rows(group, seed: int = 0) -> np.ndarray:
    """Int, ascending: rows with as many of each of the four groups as the smallest has, drawn without replacement.

    Raises:
        UserError: a group has nearly none.
    """
    group = np.asarray(group)
    sizes = np.array([(group == k).sum() for k in range(4)])
    if sizes.min() < _LEAST:
        shown = ", ".join(f"class {k // 2} {'with' if k % 2 else 'without'}: {size}" for k, size in enumerate(sizes))
        raise UserError(f"groups cannot be balanced ({shown}): take another hypothesis, or more validation images.")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(group == k))[: sizes.min()] for k in range(4)]
    return np.sort(np.concatenate(drawn))


def extreme_rows(score, truth, count: int) -> np.ndarray:
    """Int [4 count]: of each class, 0 first, the `count` rows with the highest score and the `count` with the lowest.

    What LADDER means; its code takes the lowest of the negatives from the positives (mitigate_error_slices.py:151).
    """
    score, rows = np.asarray(score, np.float64), []
    for label in (0, 1):
        members = np.flatnonzero(np.asarray(truth) == label)
        if len(members) < 2 * count:
            raise UserError(
                f"{count} highest and lowest of class {label} are asked for, which has {len(members)} images."
            )
        order = members[np.argsort(-score[members], kind="stable")]
        rows += [order[:count], order[-count:]]
    return np.concatenate(rows)


def worst_accuracy(head: Head, held: Held) -> float:
    """The least accuracy over the groups that are there, deciding at logit 0."""
    right = (head.logits(held.features) >= 0) == (held.truth == 1)
    return min(right[held.group == k].mean() for k in range(4) if (held.group == k).any())


def _chosen(make: Callable[..., Head], choices: Sequence, held: Held):
    """The choice whose head has the best worst group; equals go to the first."""
    values = [worst_accuracy(make(choice), held) for choice in choices]
    return choices[int(np.argmax(values))]


def erm(features, truth, held: Held, *, cs: Sequence[float] = CS) -> Head:
    scale = Scale.of(features)
    x = scale(features)
    make = lambda c: scale.plain(fit_head(x, truth, c))
    return make(_chosen(make, cs, held))


def class_balanced(features, truth, held: Held, *, cs: Sequence[float] = CS) -> Head:
    scale = Scale.of(features)
    x = scale(features)
    make = lambda c: scale.plain(fit_head(x, truth, c, balanced=True))
    return make(_chosen(make, cs, held))


def jtt(features, truth, held: Held, *, cs: Sequence[float] = CS, upweights: Sequence[int] = UPWEIGHTS) -> Head:
    """The images that a first head of the same strength gets wrong count `upweight` times in the second."""
    scale = Scale.of(features)
    x, positive = scale(features), np.asarray(truth) == 1
    wrong = {c: (fit_head(x, truth, c).logits(x) >= 0) != positive for c in cs}
    make = lambda choice: scale.plain(
        fit_head(x, truth, choice[0], weights=np.where(wrong[choice[0]], float(choice[1]), 1.0))
    )
    return make(_chosen(make, [(c, up) for c in cs for up in upweights], held))


def group_dro(features, truth, group, held: Held, *, cs: Sequence[float] = CS, sharpness: float = SHARPNESS) -> Head:
    """Least (1/s) log mean exp(s L_g) + ‖w‖² / (2 c n), L_g the mean loss of a group, s the sharpness, n images."""
    known = np.asarray(group) >= 0
    features, truth, group = np.asarray(features)[known], np.asarray(truth)[known], np.asarray(group)[known]
    scale = Scale.of(features)
    x = scale(features)
    make = lambda c: scale.plain(_dro(x, truth, group, c, sharpness))
    return make(_chosen(make, cs, held))


def _dro(x, truth, group, c: float, sharpness: float) -> Head:
    sign = np.where(truth == 1, 1.0, -1.0)
    there, place = np.unique(group, return_inverse=True)
    sizes = np.bincount(place)

    def loss(parameters):
        margin = sign * (x @ parameters[:-1] + parameters[-1])
        of_group = np.bincount(place, np.logaddexp(0, -margin)) / sizes
        value = (logsumexp(sharpness * of_group) - np.log(len(there))) / sharpness
        slope = -sign * expit(-margin) * (softmax(sharpness * of_group) / sizes)[place]
        penalty = parameters[:-1] / (c * len(x))
        return value + penalty @ parameters[:-1] / 2, np.r_[x.T @ slope + penalty, slope.sum()]

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return Head(found[:-1], float(found[-1]))


def balanced(
    features, truth, group, learn, *, cs: Sequence[float] = CS, draws: int = DRAWS, extremes=None, seed: int = 0
) -> Head:
    """The mean of the heads of `draws` draws of rows with as many of each of the four groups.

    C is that whose head of the rows `learn`, of one draw, has the best worst group on the others; the last fits are on all.

    Args:
        group: int [n] of `groups`; -1 is not drawn.
        learn: bool [n].
        extremes: (score [n], count): `extreme_rows` in place of balanced draws, one fit.
    """
    features, truth, group, learn = (np.asarray(x) for x in (features, truth, group, learn))

    def make(c: float, within: np.ndarray, draw: int = 0) -> Head:
        places = np.flatnonzero(within)
        if extremes:
            rows = places[extreme_rows(np.asarray(extremes[0])[places], truth[places], extremes[1])]
        else:
            rows = places[balanced_rows(group[places], seed + draw)]
        scale = Scale.of(features[rows])
        return scale.plain(fit_head(scale(features[rows]), truth[rows], c))

    c = _chosen(lambda c: make(c, learn), cs, Held(features[~learn], truth[~learn], group[~learn]))
    everything = np.ones(len(truth), bool)
    return mean_head([make(c, everything, draw) for draw in range(1 if extremes else draws)])


def on_all(method: Callable[..., Head], features, truth, group, learn, *, cs: Sequence[float] = CS) -> Head:
    """As `balanced` chooses: the strength by fits of the rows `learn` and the others' worst group, the head from all rows.

    method: `erm`, or another of (features, truth, held, cs); `group_dro`, which takes the groups after the truth.
    """
    features, truth, group, learn = (np.asarray(x) for x in (features, truth, group, learn))
    held = Held(features[~learn], truth[~learn], group[~learn])

    def make(c: float, rows) -> Head:
        grouped = (group[rows],) if method is group_dro else ()
        return method(features[rows], truth[rows], *grouped, held, cs=(c,))

    return make(_chosen(lambda c: make(c, learn), cs, held), np.ones(len(truth), bool))


def mean_head(heads: Sequence[Head]) -> Head:
    """The head whose logit is the mean of theirs."""
    return Head(np.mean([head.weights for head in heads], axis=0), float(np.mean([head.bias for head in heads])))


class Ensemble(NamedTuple):
    """Heads, one a hypothesis, mixed for each image by how much of each attribute it has; no label is used.

    gate = softmax over hypotheses of ((s - mean) / spread) / temperature, mean and spread being those of the validation
    part, so that no hypothesis wins by the scale of its scores. Where a score is unknown its gate is that of the mean.
    """

    heads: tuple[Head, ...]
    mean: np.ndarray  # float64 [m], of the scores of the validation part
    spread: np.ndarray  # float64 [m]
    temperature: float = 1.0

    @classmethod
    def of(cls, heads: Sequence[Head], scores, temperature: float = 1.0) -> "Ensemble":
        """scores: float [n, m] of the validation part; a column that is unknown throughout has the mean 0."""
        scores = np.asarray(scores, np.float64)
        known = ~np.isnan(scores)
        number = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, scores, 0.0).sum(axis=0) / number
        spread = np.sqrt((np.where(known, scores - mean, 0.0) ** 2).sum(axis=0) / number)
        return cls(tuple(heads), mean, np.where(spread > 0, spread, 1.0), temperature)

    def gates(self, scores) -> np.ndarray:
        """Float64 [n, m], rows that sum to one, of scores [n, m]."""
        standard = (np.asarray(scores, np.float64) - self.mean) / self.spread
        return softmax(np.where(np.isnan(standard), 0.0, standard) / self.temperature, axis=1)

    def logits(self, features, scores) -> np.ndarray:
        """Float64 [n]: the heads' logits, weighed by their gates."""
        each = np.stack([head.logits(features) for head in self.heads], axis=1)
        return (self.gates(scores) * each).sum(axis=1)
