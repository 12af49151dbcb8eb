"""Many figures of many models with their intervals, and their gains over one of them, from one set of resamples."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.statistics.bootstrap import Metric, flat, interval, left_out_weights, patient_weights
from mammoclip_jax.evaluation.statistics.few import count


class Figure(NamedTuple):
    """A metric of some of the images."""

    metric: Metric
    truth: np.ndarray  # int [n]
    prediction: np.ndarray  # [n] or [n, K]
    used: np.ndarray  # bool [n]: the images that it is of
    base: Hashable = None  # key of the figure that its gain is over


class Measured(NamedTuple):
    """Entries of a figure and of what it is above its base, which is None without one."""

    entry: dict[str, Any]
    gain: dict[str, Any] | None


def measured(
    figures: Mapping[Hashable, Figure], patients, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> dict[Hashable, Measured]:
    """Of every figure what `statistics.estimate` and `paired.difference` say, but with all patients [n] resampled as one
    set, so that each resample is drawn once for all."""
    patients = np.asarray(patients, dtype=str)
    cut = {key: _cut(figure, patients) for key, figure in figures.items()}
    reasons = {key: _reason(*one) for key, one in cut.items()}
    values = {key: one[0].point(*one[1:3]) for key, one in cut.items() if not reasons[key]}
    drawn = {key: np.empty(0) for key in values}
    left_out = dict(drawn)
    if resamples and values:
        summaries = {key: cut[key][0].summary(*cut[key][1:3]) for key in values}

        def stacked(blocks) -> dict[Hashable, np.ndarray]:
            parts = [
                {key: cut[key][0].of(make(w[:, figures[key].used])) for key, make in summaries.items()} for w in blocks
            ]
            return {key: np.concatenate([part[key] for part in parts]) for key in summaries}

        drawn, left_out = stacked(patient_weights(patients, resamples, seed)), stacked(left_out_weights(patients))
    out = {}
    for key, figure in figures.items():
        metric, truth, prediction, own = cut[key]
        if reasons[key]:
            entry = statistics.entry(None, n=len(truth), reason=reasons[key])
        elif not resamples or metric.few(truth, prediction, own) or metric.biased or flat(drawn[key]):
            entry = statistics.estimate({"": metric}, truth, prediction, own, resamples=resamples, seed=seed)[""]
        else:
            trials = min(count(own[truth == label]) for label in np.unique(truth))
            entry = interval(values[key], drawn[key], left_out[key], n=len(truth), trials=trials)
        gain = None
        if figure.base is not None:
            gain = _gain(key, figure.base, cut, reasons, values, drawn, left_out, resamples)
        out[key] = Measured(entry, gain)
    return out


def _cut(figure: Figure, patients: np.ndarray) -> tuple[Metric, np.ndarray, np.ndarray, np.ndarray]:
    return figure.metric, figure.truth[figure.used], figure.prediction[figure.used], patients[figure.used]


def _reason(metric: Metric, truth, prediction, patients) -> str:
    del patients
    return "nothing to score" if not len(truth) else metric.lacks(truth, prediction)


def _gain(key, base, cut, reasons, values, drawn, left_out, resamples: int) -> dict[str, Any]:
    n = len(cut[key][1])
    if reason := reasons[key] or reasons[base]:
        return statistics.entry(None, n=n, reason=reason)
    value = values[key] - values[base]
    few = next((why for one in (key, base) if (why := cut[one][0].few(*cut[one][1:]))), "")
    if not resamples or few:
        return statistics.entry(value, n=n, reason=few or None)
    return interval(value, drawn[key] - drawn[base], left_out[key] - left_out[base], n=n)
