"""How metrics are shown to people: headings, number formats, tables for the page."""

import re
from typing import Any, NamedTuple

from mammoclip_jax.evaluation import EVALUATORS
from mammoclip_jax.evaluation.result import Result

# End of a metric's name -> what it is of.
_LEVELS = {
    "": "per breast, mean of views",
    "_max": "per breast, max of views",
    "_image": "per image",
    "_exam": "per exam, mean of breasts",
    "_exam_max": "per exam, max of images",
}
# Last part of a metric's name -> heading and kind of number.
_HEADINGS = (
    *((f"auroc{level}", f"AUROC {of}", "plain") for level, of in _LEVELS.items()),
    *((f"macro_auroc{level}", f"Macro AUROC {of}", "plain") for level, of in _LEVELS.items()),
    *((f"accuracy{level}", f"Accuracy {of}", "percent") for level, of in _LEVELS.items()),
    *((f"balanced_accuracy{level}", f"Balanced accuracy {of}", "percent") for level, of in _LEVELS.items()),
    (r"majority.*", "always the commonest", "percent"),
    (r"balanced_chance.*", "one class alone", "percent"),
    (r"no_prediction.*", "No prediction, a view is missing", "percent"),
    (r"answered_right.*", "Right of all, also those without prediction", "percent"),
    (r"auprc.*", "AUPRC", "plain"),
    (r"best_f1.*", "Best F1, its threshold chosen here", "plain"),
    (r"sensitivity_at_specificity_(\d+).*", r"Sensitivity at \1 % specificity", "percent"),
    (r"specificity_at_sensitivity_(\d+).*", r"Specificity at \1 % sensitivity", "percent"),
    (r"pf1.*", "Probabilistic F1", "plain"),
    (r"brier_recalibrated.*", "Brier score, recalibrated", "plain"),
    (r"brier.*", "Brier score", "plain"),
    (r"ece_recalibrated.*", "Calibration error (ECE), recalibrated", "plain"),
    (r"ece.*", "Calibration error (ECE)", "plain"),
    (r"recall@(\d+)", r"R@\1", "percent"),
    (r"chance@(\d+)", "chance", "percent"),
    (r"commonest@(\d+)", "commonest texts", "percent"),
    (r"median_rank", "Median rank", "count"),
    (r"mean_rank", "Mean rank", "count"),
    (r"chance_rank", "chance", "count"),
    (r"precision@(\d+)", r"Agree in the first \1", "percent"),
    (r"precision_chance", "chance", "percent"),
    (r"ap@(0\.\d+)_with_normals", r"AP with normals, IoU \1", "plain"),
    (r"m?ap@(.+)", r"AP, IoU \1", "plain"),
    (r"m?ap_coco@(.+)", r"COCO AP, IoU \1", "plain"),
    (r"sensitivity@([\d.]+)_fp", r"Sensitivity at \1 FP/image", "percent"),
    (r"sensitivity@([\d.]+)_fp_minus_brightness", r"Less that of brightness, \1 FP/image", "percent"),
    (r"mean_sensitivity", "mean of these", "percent"),
    (r"covered@(.+)", r"Boxes that any region finds, IoU \1", "percent"),
    (r"macro_auroc_minus_size_and_brightness", "Macro AUROC less that of size and brightness", "plain"),
    (r"best_region_iou_([\d.]+)", r"Best region over a box, IoU \1", "percent"),
    (r"best_region_iou_([\d.]+)_minus_brightness", r"Less those of the brightest region, IoU \1", "percent"),
    (r"without_region", "Images without a region", "count"),
    (r"(?:dice|iou)_(brightness|place|component)", r"\1", "plain"),
    (r"dice_over_(\w+)", r"Dice less that of \1", "plain"),
    (r"dice_pooled", "Dice of all pixels", "plain"),
    (r"dice", "Dice", "plain"),
    (r"iou", "IoU", "plain"),
    (r"clean", "Nothing found where nothing is", "percent"),
    (r"pointing_game", "Pointing game hits", "percent"),
    (r"pointing_game_minus_brightness", "Hits less those of brightness", "percent"),
    (r"localised_([\d.]+)_iou_([\d.]+)", r"Boxes found, quantile \1, IoU \2", "percent"),
    (
        r"localised_([\d.]+)_iou_([\d.]+)_minus_brightness",
        r"Found less those of brightness, quantile \1, IoU \2",
        "percent",
    ),
    (r"recall@(0\.\d+)", r"Boxes found, IoU \1", "percent"),
    (r"recall@(0\.\d+)_(small|medium|large)", r"Boxes found, \2, IoU \1", "percent"),
    (r"recall@(0\.\d+)_minus_brightness", r"Found less those of brightness, IoU \1", "percent"),
    (r"recall@(0\.\d+)_as_many", r"Found with as many regions as brightness, IoU \1", "percent"),
    (r"recall@(0\.\d+)_as_many_minus_brightness", r"The same less those of brightness, IoU \1", "percent"),
    (r"regions", "Regions an image", "count"),
    (r"regions_with_normals", "Regions an image, with normals", "count"),
    (r"regions_minus_brightness", "Regions less those of brightness", "count"),
    (r"without_sentence", "Images without a sentence", "count"),
    (r"centre_guess", "centre guess", "percent"),
    (r"chance", "random pixel", "percent"),
    (r"ratio_to_centre", "Hits ÷ centre guess", "times"),
    (r"ratio_to_chance", "Hits ÷ random pixel", "times"),
    (r"hit_rate", "Column found", "percent"),
    (r"hit_rate_rebuilt", "Column found by attention", "percent"),
    (r"column_chance", "random column", "percent"),
    (r"same_column", "own column", "percent"),
    (r"shuffled.*", "columns shuffled", "percent"),
    (r"ratio_to_column_chance", "Found ÷ random column", "times"),
    (r"ratio_to_column_chance_rebuilt", "Found by attention ÷ random column", "times"),
    (r"ratio_to_same_column", "Found ÷ own column", "times"),
    (r"ratio_to_same_column_rebuilt", "Found by attention ÷ own column", "times"),
    (r"ratio_to_shuffled", "Found ÷ columns shuffled", "times"),
    (r"ratio_to_shuffled_rebuilt", "Found by attention ÷ columns shuffled", "times"),
    (r"scored", "Breasts with a box that are scored", "percent"),
    (r"energy_in_box", "Energy in box", "percent"),
    (r"box_share", "box's share of the breast", "percent"),
    (r"energy_ratio", "Energy ÷ share", "times"),
)
# Baselines stand in the cell of the metric that they belong to, not in columns of their own.
_BASELINES = (
    (r"recall@(\d+)", (r"chance@\1", r"commonest@\1")),
    (r"mean_rank", ("chance_rank",)),
    (r"precision@\d+", ("precision_chance",)),
    (r"accuracy(_.*|)", (r"majority\1",)),
    (r"balanced_accuracy(_.*|)", (r"balanced_chance\1",)),
    (r"pointing_game", ("centre_guess", "chance")),
    (r"hit_rate(_rebuilt|)", ("column_chance", "same_column", r"shuffled\1")),
    (r"energy_in_box", ("box_share",)),
    (r"(dice|iou)", (r"\1_brightness", r"\1_place", r"\1_component")),
)
_FEW = 20  # a figure over fewer cases says too little to stand on top
# What the page puts first: pattern on the metric's name, heading, the baseline's metric or number or None, its name.
_LEARNT = {"zero_shot": "Zero-shot ", "linear_probe": "Linear probe: "}  # before the heading, by evaluator
_HEADLINES = (
    (r"(?P<what>.+)/auroc", "AUROC, {what}", 0.5, "a coin"),
    (r"(?P<what>[^@]+)/accuracy", "Accuracy, {what}", "{what}/majority", "always the commonest"),
    (
        r"(?P<what>[^/]+)/factor/published/recall@0\.25_as_many",
        "Boxes of {what} found at IoU 0.25, learnt from no boxes, with as many regions as brightness",
        "{what}/brightness/published/recall@0.25",
        "brightness",
    ),
    (r"(?P<what>[^@]+)(?<!/published)(?<!/breast)/ap@0\.5", "Boxes of {what}: AP at IoU 0.5", None, ""),
    (r"(?P<what>[^/]+)/dice", "Masks of {what}: Dice", "{what}/dice_brightness", "brightness"),
    (r"image_to_text/recall@(?P<what>10)", "Image to report, R@{what}", "image_to_text/chance@{what}", "chance"),
    (r"text_to_image/recall@(?P<what>10)", "Report to image, R@{what}", "text_to_image/chance@{what}", "chance"),
    (r"(?P<what>[^/]+)/pointing_game", "Map points at the {what}", "{what}/centre_guess", "centre guess"),
)


class Headline(NamedTuple):
    """One figure of the top of the page, with the value to compare it to."""

    title: str
    source: str  # the data set, and the evaluator where its name says more than the title
    kind: str
    entry: dict[str, Any]
    baseline: float | None
    baseline_name: str


def heading(metric: str) -> tuple[str, str]:
    """(heading, kind of number) of a metric by the last part of its name."""
    name = metric.rpartition("/")[2]
    learnt = name.removesuffix("_randomised")
    weights = ", random weights" if name != learnt else ""
    for pattern, text, kind in _HEADINGS:
        if match := re.fullmatch(pattern, learnt):
            return match.expand(text) + weights, kind
    return learnt.replace("_", " ") + weights, "plain"


def number(value: float | None, kind: str, more: int = 0) -> str:
    """A number as text: 0.83, 61 %, 3.2×; a dash for none. With so many `more` digits than usual."""
    if value is None:
        return "–"
    if kind == "percent":
        return f"{100 * value:.{1 + more}f}\u00a0%"
    if kind == "times":
        return f"{value:.{2 + more}f}×"
    return f"{value:.{1 + more}f}" if kind == "count" else f"{value:.{3 + more}f}"


def interval(entry: dict[str, Any], kind: str) -> str:
    """As "0.78 to 0.88", with as many digits as tell the two apart, or "" where there is none."""
    if entry["low"] is None and entry["high"] is None:
        return ""
    for more in range(4):
        low, high = number(entry["low"], kind, more), number(entry["high"], kind, more)
        if low != high:
            break
    return low.rstrip("\u00a0%×") + f" to {high}"


def pivot(result: Result) -> dict[str, Any]:
    """The metrics "row/column" of a result as a table: {"columns": [heading], "rows": [{"name", "cells", "reason"}]}.

    A cell is {"value", "interval", "baselines", "reason"}, all text, or None where the row has no such metric. A row
    where nothing could be measured, for one reason, has no cells.
    """
    grid: dict[str, dict[str, dict]] = {}
    for metric, entry in result.metrics.items():
        row, _, name = metric.rpartition("/")
        grid.setdefault(row, {})[name] = entry
    used = {name for metrics in grid.values() for metric in metrics for name in baselines(metric)}
    names = list(dict.fromkeys(n for metrics in grid.values() for n in metrics if n not in used))
    rows = []
    for row, metrics in grid.items():
        reasons = {entry.get("reason") if entry["value"] is None else None for entry in metrics.values()}
        reason = reasons.pop() if len(reasons) == 1 else None
        cells = [] if reason else [_cell(name, metrics) for name in names]
        rows.append({"name": row.replace("_", " "), "cells": cells, "reason": reason or ""})
    return {"columns": [heading(name)[0] for name in names], "rows": rows}


def baselines(metric: str) -> list[str]:
    """Names of the metrics that a metric is to be compared with."""
    for pattern, names in _BASELINES:
        if match := re.fullmatch(pattern, metric):
            return [match.expand(name) for name in names]
    return []


def _cell(name: str, metrics: dict[str, dict]) -> dict[str, Any] | None:
    if name not in metrics:
        return None
    entry, (_, kind) = metrics[name], heading(name)
    beside = [f"{heading(b)[0]} {number(metrics[b]['value'], heading(b)[1])}" for b in baselines(name) if b in metrics]
    return {
        "value": number(entry["value"], kind),
        "interval": interval(entry, kind),
        "baselines": beside,
        "reason": entry.get("reason", ""),
    }


def headlines(results: list[Result]) -> list[Headline]:
    """The figures for the top of the page; those without a value or over few cases are left out, and no two have one title."""
    figures = []
    for pattern, title, baseline, baseline_name in _HEADLINES:
        for result in results:
            for metric, entry in result.metrics.items():
                match = re.fullmatch(pattern, metric)
                if match and entry["value"] is not None and entry["n"] >= _FEW:
                    what = match["what"]
                    named = baseline.format(what=what) if isinstance(baseline, str) else ""
                    value = _value(result, named) if named else baseline
                    how = _LEARNT.get(result.name.rpartition("/")[2], "")
                    figures.append(
                        Headline(
                            how + title.format(what=what),
                            _source(result),
                            heading(metric)[1],
                            entry,
                            value,
                            baseline_name,
                        )
                    )
    titles = [figure.title for figure in figures]
    return [f._replace(title=f"{f.title}, {f.source}") if titles.count(f.title) > 1 else f for f in figures]


def _source(result: Result) -> str:
    dataset, _, evaluator = result.name.partition("/")
    return dataset if evaluator in EVALUATORS else f"{dataset}, {evaluator.replace('_', ' ')}"


def _value(result: Result, metric: str) -> float | None:
    return result.metrics.get(metric, {}).get("value")


def leading(result: Result) -> list[str]:
    """Names of the metrics that the top of a page would take, however few cases they are over."""
    return [metric for pattern, *_ in _HEADLINES for metric in result.metrics if re.fullmatch(pattern, metric)]
