"""What the scores of a model mean, as measured once and stored with it: probabilities, and places among known scores.

`weights.calibration_file` keeps the entries, which `python -m mammoclip_jax.calibrate` measures: one for each way of
scoring of each state of the weights. JSON:

    fingerprint, looks, prompts    what was scored, and how: an entry says nothing of anything else
    step, unit, labels, classes, method, dataset
    fitted_on   {split, images, patients}
    levels      {level: {label: {"map": {...}, "n", "positives"}}}; of classes one map, under CLASSES
    tested_on   {split, images, patients, metrics: {"LABEL/METRIC": {value, low, high, n}}}
    reference   {split: {"images", "patients", "levels": {level: {"n", "patients", "quantiles": {label: [...]}}}}}

A level is what has a score: "image", "breast" and "exam" by the mean over their views, "breast_max" and "exam_max".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import lookup

LEVELS = ("image", "breast", "breast_max", "exam", "exam_max")
CLASSES = "classes"  # stands for the labels together where they are classes
QUANTILES = 201  # of a set's scores that are kept: a place among them is known to half a per cent
CONFIDENCE = 0.95
LEAST = 1e-7  # probability whose logarithm is still taken


class Platt(NamedTuple):
    """probability = sigmoid(slope * x + intercept), where x is the score, or with `odds` the logarithm of its odds."""

    slope: float
    intercept: float
    odds: bool = False

    def __call__(self, score) -> np.ndarray:
        return expit(self.slope * coordinate(score, self.odds) + self.intercept)


class Temperature(NamedTuple):
    """Probabilities with their logits divided by `temperature`; above 1 the model was too sure."""

    temperature: float

    def __call__(self, probability) -> np.ndarray:
        """[n] of the positive class, or [n, K], of which rows stay distributions."""
        p = np.clip(np.asarray(probability, dtype=np.float64), LEAST, 1 - LEAST)
        return expit(logit(p) / self.temperature) if p.ndim == 1 else softmax(np.log(p) / self.temperature, axis=1)


class Isotonic(NamedTuple):
    """A rising line through points, and level beyond the first and the last."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, score) -> np.ndarray:
        return np.interp(np.asarray(score, dtype=np.float64), self.scores, self.probabilities)


MAPS = {"platt": Platt, "temperature": Temperature, "isotonic": Isotonic}


def coordinate(score, odds: bool) -> Float[np.ndarray, " n"]:
    """float64: what `Platt` multiplies."""
    score = np.asarray(score, dtype=np.float64)
    return logit(np.clip(score, LEAST, 1 - LEAST)) if odds else score


def to_json(fitted: Platt | Temperature | Isotonic) -> dict[str, Any]:
    """JSON of a map: its kind and its numbers."""
    kind = next(name for name, cls in MAPS.items() if isinstance(fitted, cls))
    return {"kind": kind} | fitted._asdict()


def from_json(values: Mapping[str, Any]) -> Platt | Temperature | Isotonic:
    """The map that `to_json` wrote.

    Raises:
        UserError: a kind of map that this version does not know.
    """
    numbers = {name: value for name, value in values.items() if name != "kind"}
    return lookup(MAPS, values["kind"], "kind of calibration")(**numbers)


class Place(NamedTuple):
    """Where a score lies among those of a set."""

    percentile: float  # per cent of the set's scores that are below it, and half of those that equal it
    low: float  # 95 % interval (Clopper and Pearson) for that many patients: their images are not independent
    high: float
    n: int  # scores

    def to_json(self) -> dict[str, Any]:
        """JSON: percentile, low and high with one digit behind the point; n."""
        return {name: round(value, 1) for name, value in self._asdict().items()} | {"n": self.n}


def quantiles(scores: Float[np.ndarray, " n"]) -> list[float]:
    """QUANTILES of the scores, from the lowest to the highest."""
    return np.quantile(np.asarray(scores, np.float64), np.linspace(0, 1, QUANTILES)).tolist()


def place(score: float, of: Sequence[float], n: int, patients: int) -> Place:
    """Where a score lies among `n` scores of so many patients, whose quantiles are `of`."""
    among = np.linspace(0, 1, len(of))
    below, above = (np.searchsorted(of, score, side=side) for side in ("left", "right"))
    if above > below:  # it is one of them, or several are alike
        share = (among[below] + among[above - 1]) / 2
    else:
        share = float(np.interp(score, of, among))
    interval = binomtest(round(share * patients), patients).proportion_ci(CONFIDENCE)
    return Place(100 * float(share), 100 * interval.low, 100 * interval.high, n)


class Reference:
    """One entry of the file, in use."""

    def __init__(self, entry: Mapping[str, Any]):
        self.entry = entry
        self.labels, self.classes = tuple(entry["labels"]), bool(entry["classes"])
        self._maps = {
            level: {label: from_json(fitted["map"]) for label, fitted in maps.items()}
            for level, maps in entry["levels"].items()
        }

    def one(self, label: str, scores, level: str = "image") -> np.ndarray:
        """float64: calibrated scores [n] of a label, or [n, K] of the classes, at a level.

        Raises:
            UserError: nothing was fitted there.
        """
        maps, name = self._maps.get(level, {}), CLASSES if self.classes else label
        if name not in maps:
            raise UserError(
                f"nothing was fitted to calibrate {label!r} at the level {level!r}: the validation images had too few "
                "positive or negative cases. Calibrate on a larger split, or take the scores as they are."
            )
        return maps[name](scores)

    def probabilities(self, scores: Float[np.ndarray, "n labels"], level: str = "image") -> np.ndarray:
        """float32 [n, labels]: the calibrated scores of a level, in the order of the labels.

        Raises:
            UserError: nothing was fitted at this level, or for one of the labels.
        """
        if self.classes:
            return self.one(CLASSES, scores, level).astype(np.float32)
        columns = [self.one(label, scores[:, k], level) for k, label in enumerate(self.labels)]
        return np.stack(columns, axis=1).astype(np.float32)

    def places(self, scores: Mapping[str, float], level: str = "image") -> dict[str, dict[str, Any]]:
        """{label: {split: `Place` as JSON}} of scores as they are, before calibration."""
        known = {
            split: found["levels"][level]
            for split, found in self.entry["reference"].items()
            if level in found["levels"]
        }
        return {
            label: {
                split: place(scores[label], found["quantiles"][label], found["n"], found["patients"]).to_json()
                for split, found in known.items()
            }
            for label in self.labels
        }

    def said(self) -> dict[str, Any]:
        """JSON, for people who read a score: method, data set, and what it was fitted and tested on."""
        kept = ("method", "dataset", "fitted_on", "step")
        return {name: self.entry[name] for name in kept} | {
            "sets": {
                split: {"images": found["images"], "patients": found["patients"]}
                for split, found in self.entry["reference"].items()
            }
        }


def meant(
    reference: Reference, scores: Mapping[str, Any], level: str, calibrated: bool, percentile: bool
) -> dict[str, Any]:
    """What becomes of the scores of a view, breast or exam: "scores", "uncalibrated" and "percentiles", as asked for.

    Args:
        scores: {label: number}, or of a breast or exam {label: {"mean", "max"}}; {} has no meaning.
        level: "image", "breast" or "exam".
    """
    if not scores:
        return {}
    if level == "image":
        parts = {"": dict(scores)}
    else:
        parts = {how: {label: own[how] for label, own in scores.items()} for how in ("mean", "max")}
    levels = {"": level, "mean": level, "max": f"{level}_max"}
    found: dict[str, Any] = {"scores": {}, "percentiles": {}}
    for how, values in parts.items():
        row = np.array([[values[label] for label in reference.labels]], np.float64)
        made = {
            "scores": reference.probabilities(row, levels[how])[0].tolist() if calibrated else row[0].tolist(),
            "percentiles": reference.places(values, levels[how]).values() if percentile else (),
        }
        for name, each in made.items():
            for label, value in zip(reference.labels, each):
                if how:
                    found[name].setdefault(label, {})[how] = value
                else:
                    found[name][label] = value
    more = {"uncalibrated": dict(scores)} if calibrated else {}
    return {"scores": found["scores"]} | more | ({"percentiles": found["percentiles"]} if percentile else {})


def find(entries: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> Reference:
    """The newest of the entries that speaks of `key`: fingerprint, looks and prompts.

    Raises:
        UserError: there is none; the message says what there is instead.
    """
    for entry in reversed(entries):
        if all(entry[name] == value for name, value in key.items()):
            return Reference(entry)
    of_weights = [entry for entry in entries if entry["fingerprint"] == key["fingerprint"]]
    if not entries:
        why = "nothing is stored with this model that says what its scores mean"
    elif not of_weights:
        why = "what is stored with this model is of other weights"
    else:
        ways = "; ".join(sorted({described(entry) for entry in of_weights}))
        why = f"what is stored with this model is of other ways to score ({ways}), and this is {described(key)}"
    raise UserError(
        f"no calibration and no percentile: {why}. Measure it: python -m mammoclip_jax.calibrate --weights=MODEL, with "
        "the same options."
    )


def described(key: Mapping[str, Any]) -> str:
    """A way of scoring for people: "mirror=True, windows=1.5", or "plain"."""
    parts = [f"{name}={value}" for name, value in key["looks"].items() if value]
    parts += ["by prompts"] if key.get("prompts") else []
    return ", ".join(parts) or "plain"


def prompts_key(pairs: Mapping[str, Any]) -> str:
    """16 hex digits of the texts that a dual encoder is asked with; "" without any."""
    if not pairs:
        return ""
    said = {label: [list(side) for side in pair] for label, pair in pairs.items()}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
