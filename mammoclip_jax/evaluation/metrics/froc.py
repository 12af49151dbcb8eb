"""Free-response ROC: the share of findings that are found, at so many false positives per image.

A detection that overlaps a finding enough hits it; several may hit the same, which counts once, and one that hits no
finding is a false positive. A finding is found at the threshold of the highest score that hits it, so what matters of
it is the rate of false positives at that threshold: the sensitivity at a rate is the share of the findings whose own
is not above it (a step function: nothing is interpolated between thresholds). Chakraborty 1989, doi:10.1118/1.596358.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mammoclip_jax.boxes import area, iou
from mammoclip_jax.evaluation.metrics.average_precision import Case, owners, tally
from mammoclip_jax.evaluation.statistics.bootstrap import entry, given, interval, left_out_weights, patient_weights
from mammoclip_jax.evaluation.statistics.few import binomial, effective, too_few

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)  # false positives per image
SIZES = ("small", "medium", "large")
CURVE = tuple(np.geomspace(1 / 16, 8, 43))  # where the curve is drawn; RATES are among them
_SLACK = 1e-9  # of a rate that should reach a wanted one


class Marks(NamedTuple):
    """The findings and the false positives of one label at one IoU; patients by their place among all."""

    lesion_owner: np.ndarray  # int [L]: patient of each finding
    lesion_score: np.ndarray  # float [L]: the highest that hits it, -inf where none does
    lesion_breast: np.ndarray  # int [L]
    lesion_area: np.ndarray  # float [L]: share of the image
    false_owner: np.ndarray  # int [F]: patient of each false positive
    false_score: np.ndarray  # float [F]
    false_normal: np.ndarray  # bool [F]: in an image without a finding
    images: np.ndarray  # int [P]: of each patient
    normals: np.ndarray  # int [P]: those without a finding


def marks(cases: Sequence[Case], breasts: Sequence[int], pixels: int, least: float, patients: np.ndarray) -> Marks:
    """What `cases` come down to.

    Args:
        breasts: of each image.
        pixels: of an image, for the shares.
        least: IoU from which a detection hits a finding.
        patients: str, sorted: of all images.
    """
    owner = owners(cases, patients)
    lesions, false = [np.zeros((0, 4))], [np.zeros((0, 3))]
    for i, (case, breast) in enumerate(zip(cases, breasts, strict=True)):
        boxes, scores = case.found
        hit = iou(case.truth[:, None], boxes) >= least
        best = np.where(hit, scores, -np.inf).max(axis=1, initial=-np.inf)
        shares = area(case.truth) / pixels
        lesions.append(np.stack([np.full(len(best), owner[i]), best, np.full(len(best), breast), shares], axis=1))
        missed = scores[~hit.any(axis=0)]
        normal = not len(case.truth)
        false.append(np.stack([np.full(len(missed), owner[i]), missed, np.full(len(missed), normal)], axis=1))
    lesions, false = np.concatenate(lesions), np.concatenate(false)
    normal = np.array([not len(case.truth) for case in cases], bool)
    count = len(patients)
    return Marks(
        lesions[:, 0].astype(int),
        lesions[:, 1],
        lesions[:, 2].astype(int),
        lesions[:, 3],
        false[:, 0].astype(int),
        false[:, 1],
        false[:, 2].astype(bool),
        np.bincount(owner, minlength=count),
        np.bincount(owner[normal], minlength=count),
    )


class Group(NamedTuple):
    """Findings, or breasts with a finding, that a sensitivity is taken over."""

    owner: np.ndarray  # int [L]
    score: np.ndarray  # float [L]
    normals: bool = False  # false positives of images without a finding alone, per such image


def groups(marks: Marks, sizes: tuple[float, float]) -> dict[str, Group]:
    """By name: "lesion", the same with the rates on "normals" and of each size, and "breast".

    A breast with findings is found with any of them, in any of its views.
    """
    owner, score = marks.lesion_owner, marks.lesion_score
    out = {"lesion": Group(owner, score), "lesion_normals": Group(owner, score, normals=True)}
    size = np.searchsorted(sizes, marks.lesion_area, side="right")
    out |= {f"lesion_{name}": Group(owner[size == k], score[size == k]) for k, name in enumerate(SIZES)}
    _, first, number = np.unique(marks.lesion_breast, return_index=True, return_inverse=True)
    best = np.full(len(first), -np.inf)
    np.maximum.at(best, number, score)
    return out | {"breast": Group(owner[first], best)}


def rates_of(marks: Marks, group: Group):
    """`weights [r, P] -> [r, L]`: the false positives per image at the threshold at which each is found; inf: never.

    The threshold is the score itself: false positives of the same score count.
    """
    order = np.argsort(-group.score, kind="stable")
    score = group.score[order]
    kept = marks.false_normal if group.normals else slice(None)
    column = np.searchsorted(-score, -marks.false_score[kept], side="left")  # the first that is not above it
    counts = tally(marks.false_owner[kept], column, (len(marks.images), len(score)))[:, np.argsort(order)]
    images, never = (marks.normals if group.normals else marks.images), np.isneginf(group.score)

    def of(weights):
        seen = weights.astype(np.float64) @ images
        rate = np.divide(
            weights @ counts, seen[:, None], out=np.full((len(weights), len(score)), np.nan), where=seen[:, None] > 0
        )
        return np.where(never, np.inf, rate)

    return of


def sensitivities(marks: Marks, group: Group, rates: Sequence[float]):
    """`weights [r, P] -> [r, len(rates)]`; NaN where no finding or no image counts."""
    rate_of = rates_of(marks, group)

    def of(weights):
        own, each = rate_of(weights), weights[:, group.owner].astype(np.float64)
        total = each.sum(1)
        hits = np.stack([(each * (own <= rate + _SLACK)).sum(1) for rate in rates], axis=1)
        seen = weights @ (marks.normals if group.normals else marks.images) > 0
        there = (total > 0) & seen
        return np.where(there[:, None], hits / np.maximum(total, 1)[:, None], np.nan)

    return of


def entries(marks: Marks, group: Group, rates: Sequence[float], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """The metric's entry at each of `rates`, and their mean's; n is the number of findings or breasts.

    Of few patients with findings they are rates in these (`few.binomial`), no more uncertain than each found whole or
    not at all.
    """
    count, trials = len(group.owner), len(np.unique(group.owner))
    of = sensitivities(marks, group, rates)
    patients = [f"{place:09d}" for place in range(len(marks.images))]  # names that sort as their places do
    values = of(np.ones((1, len(patients))))[0]
    if np.isnan(values).any():
        reason = "no image is without a finding" if count else "no finding of this kind"
        return [entry(None, n=count, reason=reason)] * (len(rates) + 1)
    values = np.append(values, values.mean())
    if not resamples:
        return [entry(value, n=count) for value in values]
    if reason := too_few(group.owner, "with a finding"):
        return [given(value, binomial(value, effective(group.owner)), reason, n=count) for value in values]
    drawn, left_out = (
        np.concatenate([of(weights) for weights in blocks])
        for blocks in (patient_weights(patients, resamples, seed), left_out_weights(patients))
    )
    drawn, left_out = (np.c_[each, each.mean(1)] for each in (drawn, left_out))
    return [interval(value, drawn[:, i], left_out[:, i], n=count, trials=trials) for i, value in enumerate(values)]


def plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> bytes:
    """PNG bytes of the curves {name: entries at CURVE}, with their intervals as bands."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.8, 3.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for name, points in curves.items():
            value, low, high = (
                [np.nan if point[key] is None else point[key] for point in points] for key in ("value", "low", "high")
            )
            (line,) = axes.plot(CURVE, value, drawstyle="steps-post", label=name)
            axes.fill_between(CURVE, low, high, step="post", alpha=0.2, linewidth=0, color=line.get_color())
        axes.set(xscale="log", xlabel="false positives per image", ylabel="sensitivity", ylim=(0, 1.02), title=title)
        axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4"], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
