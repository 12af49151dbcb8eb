"""How metrics are shown to people: headings, number formats, tables for the terminal and the page."""

import re
from typing import Any, NamedTuple

from mammoclip_jax.evaluation.result import Result

# Last part of a metric's name -> heading and kind of number. `\1` is what the group holds.
_HEADINGS = (
    (r"auroc", "AUROC per breast, mean of views", "plain"),
    (r"auroc_max", "AUROC per breast, max of views", "plain"),
    (r"auroc_image", "AUROC per image", "plain"),
    (r"recall@(\d+)", r"R@\1", "percent"),
    (r"chance@(\d+)", r"R@\1 of chance", "percent"),
    (r"commonest@(\d+)", r"R@\1 of the commonest texts", "percent"),
    (r"median_rank", "Median rank", "count"),
    (r"pointing_game", "Pointing game hits", "percent"),
    (r"centre_guess", "Hits of guessing the breast's centre", "percent"),
    (r"chance", "Hits of a random pixel of the breast", "percent"),
    (r"ratio_to_centre", "Hits ÷ centre guess", "times"),
    (r"ratio_to_chance", "Hits ÷ random pixel", "times"),
    (r"energy_in_box", "Energy in box", "percent"),
    (r"box_share", "Box share of the breast", "percent"),
    (r"energy_ratio", "Energy ÷ box share", "times"),
    (r"flat_maps", "Maps without a maximum", "percent"),
)
# What the page puts first: pattern on the metric's name, heading, name of the baseline's metric or its number.
_HEADLINES = (
    (r"(?P<what>.+)/auroc", "Zero-shot AUROC, {what}", 0.5, "a coin"),
    (r"image_to_text/recall@(?P<what>5)", "Image to report, R@{what}", "image_to_text/chance@{what}", "chance"),
    (r"text_to_image/recall@(?P<what>5)", "Report to image, R@{what}", "text_to_image/chance@{what}", "chance"),
    (r"(?P<what>.+)/pointing_game", "Grad-CAM points at the {what}", "{what}/centre_guess", "centre guess"),
)


class Headline(NamedTuple):
    """One figure of the top of the page, with the value to compare it to."""

    title: str
    dataset: str
    kind: str
    entry: dict[str, Any]
    baseline: float | None
    baseline_name: str


def heading(metric: str) -> tuple[str, str]:
    """(heading, kind of number) of a metric by the last part of its name."""
    name = metric.rpartition("/")[2]
    for pattern, text, kind in _HEADINGS:
        if match := re.fullmatch(pattern, name):
            return match.expand(text), kind
    return name.replace("_", " "), "plain"


def number(value: float | None, kind: str) -> str:
    """A number as text: 0.83, 61 %, 3.2×; a dash for none."""
    if value is None:
        return "–"
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "times":
        return f"{value:.2f}×"
    return f"{value:.1f}" if kind == "count" else f"{value:.3f}"


def interval(entry: dict[str, Any], kind: str) -> str:
    """"0.78 to 0.88", or "" where there is none."""
    if entry["low"] is None and entry["high"] is None:
        return ""
    return f"{number(entry['low'], kind)} to {number(entry['high'], kind)}"


def pivot(result: Result) -> dict[str, Any]:
    """The metrics "row/column" of a result as a table: {"columns": [heading], "rows": [{"name", "cells"}]}.

    A cell is {"value", "interval", "n", "reason"}, all text, or None where the row has no such metric.
    """
    columns, rows = [], {}
    for metric, entry in result.metrics.items():
        row, _, _ = metric.rpartition("/")
        text, kind = heading(metric)
        if text not in columns:
            columns.append(text)
        rows.setdefault(row, {})[text] = {
            "value": number(entry["value"], kind), "interval": interval(entry, kind), "n": str(entry["n"]),
            "reason": entry.get("reason", "")}
    return {"columns": columns, "rows": [{"name": name.replace("_", " "), "cells": [cells.get(c) for c in columns]}
                                         for name, cells in rows.items()]}


def headlines(results: list[Result]) -> list[Headline]:
    """The figures for the top of the page, those without a value left out."""
    found = []
    for pattern, title, baseline, baseline_name in _HEADLINES:
        for result in results:
            for metric, entry in result.metrics.items():
                match = re.fullmatch(pattern, metric)
                if match and entry["value"] is not None:
                    what = match["what"]
                    value = baseline if isinstance(baseline, float) else _value(result, baseline.format(what=what))
                    found.append(Headline(title.format(what=what), result.name.partition("/")[0], heading(metric)[1], entry,
                                          value, baseline_name))
    return found


def _value(result: Result, metric: str) -> float | None:
    return result.metrics.get(metric, {}).get("value")


def text_table(results: list[Result]) -> str:
    """All metrics as lines for a terminal: name, value, interval, n."""
    lines = [("metric", "value", "95 % interval", "n")]
    for result in results:
        for metric, entry in result.metrics.items():
            kind = heading(metric)[1]
            value = number(entry["value"], kind) if entry["value"] is not None else f"– ({entry.get('reason', '')})"
            lines.append((f"{result.name}/{metric}", value, interval(entry, kind), str(entry["n"])))
    widths = [max(len(line[i]) for line in lines if i != 1 or len(line[1]) < 24) for i in range(4)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])
