"""Plots of metrics: ROC and precision-recall curves with bootstrap bands, reliability, confusion, subgroups.

Each returns the bytes of a picture: PNG on white, for a Result's figures, or SVG for a light or a dark page.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.page.plots import GRID, INK, LINES, canvas
from mammoclip_jax.evaluation.statistics import few
from mammoclip_jax.evaluation.statistics.discrimination import Curve, curve

_GRID = np.linspace(0, 1, 201)  # places on the horizontal axis where bands are measured
_BAND = "; bands 95 %, bootstrap over patients"


class Scores(NamedTuple):
    """One line of a plot: truth int [n], score [n], patients [n]."""

    truth: np.ndarray
    score: np.ndarray
    patients: np.ndarray


def roc(
    lines: Mapping[str, Scores],
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    form: str = "png",
    shade: str = "light",
) -> bytes:
    """ROC curves with pointwise bands, none of few patients (see `few`); names carry the AUROC."""
    with canvas(shade, (3.9, 3.7), form) as (axes, buffer):
        axes.plot([0, 1], [0, 1], color=INK[shade], linewidth=0.8, linestyle=(0, (4, 3)))
        _draw(axes, lines, "AUROC", _sensitivity, statistics.auroc, resamples, seed, shade)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return buffer.getvalue()


def precision_recall(
    lines: Mapping[str, Scores],
    *,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    form: str = "png",
    shade: str = "light",
) -> bytes:
    """Precision-recall curves with pointwise bands; names carry the average precision. Dashes: chance."""
    with canvas(shade, (3.9, 3.7), form) as (axes, buffer):
        for level in {float(np.mean(line.truth)) for line in lines.values()}:
            axes.axhline(level, color=INK[shade], linewidth=0.8, linestyle=(0, (4, 3)))
        _draw(axes, lines, "average precision", _precision, statistics.average_precision, resamples, seed, shade)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    return buffer.getvalue()


def _draw(
    axes,
    lines: Mapping[str, Scores],
    name_of_area: str,
    heights: Callable[[Curve], np.ndarray],
    area,
    resamples,
    seed,
    shade,
) -> None:
    for (name, line), colour in zip(lines.items(), LINES[shade] * len(lines)):
        entry = area(*line, resamples=resamples, seed=seed)
        if entry["value"] is None:
            axes.plot([], [], color=colour, label=f"{name}: {entry['reason']}")
            continue
        of = curve(line.truth, line.score)
        if resamples and not few.rarest_class(line.truth, line.score, line.patients):
            drawn = np.concatenate([heights(of(w)) for w in statistics.patient_weights(line.patients, resamples, seed)])
            low, high = np.nanquantile(drawn, [(1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2], axis=0)
            axes.fill_between(_GRID, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            _GRID,
            heights(of(np.ones((1, len(line.truth)))))[0],
            color=colour,
            linewidth=1.6,
            label=f"{name} {_range(entry)}",
        )
    axes.grid(color=GRID[shade], linewidth=0.8)
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK[shade],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        title=name_of_area + (_BAND if resamples else ""),
        title_fontsize=7,
    )


def _range(entry: Mapping[str, Any]) -> str:
    bounds = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return f"{entry['value']:.3f}{bounds}"


def _sensitivity(counts: Curve) -> np.ndarray:
    """Sensitivity [r, 201] where 1 - specificity is _GRID, straight between thresholds; NaN rows lack a class."""
    rows = np.full((len(counts.positive), len(_GRID)), np.nan)
    for r, (tp, fp) in enumerate(zip(*counts)):
        if tp[-1] > 0 and fp[-1] > 0:
            # Points of one false positive rate are set apart leftwards, so that the highest of them counts there.
            apart = 1e-12 * np.arange(len(fp) + 1)[::-1]
            rows[r] = np.interp(_GRID, np.r_[0, fp / fp[-1]] - apart, np.r_[0, tp / tp[-1]])
    return rows


def _precision(counts: Curve) -> np.ndarray:
    """Precision [r, 201] of the highest threshold that reaches the recall _GRID, as average precision sums it."""
    rows = np.full((len(counts.positive), len(_GRID)), np.nan)
    for r, (tp, fp) in enumerate(zip(*counts)):
        if tp[-1] > 0 and fp[-1] > 0:
            reached = np.searchsorted(tp / tp[-1], _GRID - 1e-9)
            reached = np.maximum(reached, np.argmax(tp > 0))
            rows[r] = tp[reached] / (tp[reached] + fp[reached])
    return rows


def reliability_diagram(tables: Mapping[str, pd.DataFrame], *, form: str = "png", shade: str = "light") -> bytes:
    """Observed rate against mean probability, and below it how many cases each bin holds.

    tables: {name: table of `calibration.reliability`}. The bars of a rate are Wilson's 95 % intervals of the bin, cases
    counted as independent.
    """
    with canvas(shade, (3.9, 4.6), form) as (axes, buffer):
        counts = axes.inset_axes([0, -0.42, 1, 0.24], sharex=axes)
        axes.plot([0, 1], [0, 1], color=INK[shade], linewidth=0.8, linestyle=(0, (4, 3)))
        for (name, table), colour in zip(tables.items(), LINES[shade] * len(tables)):
            full = table[table["n"] > 0]
            low, high = _wilson(full["rate"], full["n"])
            axes.errorbar(
                full["probability"],
                full["rate"],
                yerr=[full["rate"] - low, high - full["rate"]],
                marker="o",
                markersize=3.5,
                color=colour,
                linewidth=1.4,
                elinewidth=0.8,
                label=name,
            )
            counts.stairs(table["n"], [*table["low"], table["high"].iloc[-1]], color=colour, linewidth=1.2)
        axes.set(ylabel="observed rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        counts.set(xlabel="predicted probability", ylabel="cases", yscale="symlog")
        counts.set_ylim(bottom=0)
        for part in (axes, counts):
            part.grid(color=GRID[shade], linewidth=0.8)
            part.spines[["top", "right"]].set_visible(False)
        if len(tables) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK[shade], loc="upper left")
    return buffer.getvalue()


def _wilson(rate: pd.Series, n: pd.Series, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a rate out of n (Wilson 1927)."""
    rate, n = rate.to_numpy(), n.to_numpy()
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return np.minimum(middle - half, rate), np.maximum(middle + half, rate)


def confusion_matrix(matrix, names: Sequence[str], *, form: str = "png", shade: str = "light") -> bytes:
    """Counts and the shares of their row, which colour the cell; rows the truth. `matrix` int [K, K]."""
    matrix = np.asarray(matrix)
    total = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    size = 1.4 + 0.75 * len(names)
    with canvas(shade, (size, size), form) as (axes, buffer):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*matrix.shape):
            axes.text(
                j,
                i,
                f"{int(matrix[i, j])}\n{shares[i, j]:.0%}" if total[i] else "0",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[i, j] > 0.55 else "#22303a",
            )
        axes.set(xlabel="predicted", ylabel="truth", xticks=range(len(names)), yticks=range(len(names)))
        axes.set_xticklabels(names, rotation=0 if max(map(len, map(str, names))) < 8 else 30)
        axes.set_yticklabels(names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return buffer.getvalue()


def forest(table: pd.DataFrame, *, title: str = "", form: str = "png", shade: str = "light") -> bytes:
    """Forest plot of one label's rows of `subgroups`' table: value and interval each, a band for the whole."""
    table = table[table["value"].notna()].reset_index(drop=True)
    ink, colour = INK[shade], LINES[shade][0]
    with canvas(shade, (4.2, 0.5 + 0.23 * (len(table) + table["by"].nunique())), form) as (axes, buffer):
        places, ticks, previous = [], [], None
        place = 0.0
        for row in table.itertuples():
            place += 1.0 if row.by == previous else 1.6  # a gap before each kind of subgroup
            previous = row.by
            places.append(place)
            known = [value for value in (row.low, row.high) if value is not None and np.isfinite(value)]
            if len(known) == 2:
                axes.plot(known, [place, place], color=colour, linewidth=1.4)
            axes.plot(row.value, place, marker="D" if row.by == "all" else "o", color=colour, markersize=4)
            ticks.append("all" if row.by == "all" else f"{row.by} {row.group}")
            counts = f"{row.n}" if pd.isna(row.positives) else f"{int(row.positives)} / {row.n}"
            axes.annotate(counts, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=ink)
        whole = table[table["by"] == "all"]
        if len(whole) and pd.notna(whole["low"].iloc[0]):
            axes.axvspan(whole["low"].iloc[0], whole["high"].iloc[0], color=colour, alpha=0.12, linewidth=0)
        head = "n" if table["positives"].isna().all() else "positive / n"
        axes.annotate(head, (1.02, 0.4), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=ink)
        axes.set_yticks(places, ticks)
        axes.set_ylim(max(places, default=1) + 0.8, 0)
        axes.set(xlabel=table["metric"].iloc[0] if len(table) else "", title=title)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=GRID[shade], linewidth=0.8)
    return buffer.getvalue()
