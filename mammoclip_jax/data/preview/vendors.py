"""Plots and figures by vendor."""

import io
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mammoclip_jax.data.pixels.geometry import Transform
from mammoclip_jax.data.preview.cards import UNKNOWN, flags_of, words

_INK, _BAR = "#012345", "#3d8fc9"  # the ink becomes the page's text colour
_MARKS = ("#3d8fc9", "#d9722e", "#1fa37c", "#c374a3", "#d19a1a", "#8a7fd6")
_FLAGS = 14


class Plot(NamedTuple):
    """An SVG element for the page; ink in the page's text colour."""

    title: str
    svg: str
    note: str
    wide: bool = False


def measures(rows: pd.DataFrame) -> pd.DataFrame:
    """vendor, scale (canvas pixels per original pixel), height and width of the original, flags, of index rows."""
    transforms = [Transform.from_json(text) for text in rows["transform"]]
    return pd.DataFrame(
        {
            "vendor": rows["vendor"].replace("", UNKNOWN).to_numpy(),
            "scale": [transform.scale[0] for transform in transforms],
            "height": [transform.original[0] for transform in transforms],
            "width": [transform.original[1] for transform in transforms],
            "flags": [flags_of(text) for text in rows["flags"]],
        }
    )


def plots(measured: pd.DataFrame, looked_at: pd.DataFrame, of: str) -> list[Plot]:
    """The plots by vendor.

    Args:
        measured: of `measures`, one row an image.
        looked_at: vendor, grey (mean inside the breast, 0 to 255), share (of the canvas, in %): one row an image.
        of: what `measured` is, e.g. "all 322 images".
    """
    if measured.empty:
        return []
    vendors = list(measured["vendor"].value_counts(sort=True).index)
    n = f"n = {len(looked_at)}, drawn at random" if len(looked_at) < len(measured) else of
    charts = [
        Plot("Images", _bars(measured, vendors), of),
        Plot("Scale: pixels of the canvas for one of the original", _spread(measured, vendors, "scale"), of),
        Plot("Size of the original", _sizes(measured, vendors), of),
        Plot("Mean grey inside the breast, of 255", _spread(looked_at, vendors, "grey"), n),
        Plot("Breast in % of the canvas", _spread(looked_at, vendors, "share"), n),
    ]
    flags = _flags(measured, vendors)
    return charts + ([Plot("Flags, in % of the vendor's images", flags, of, wide=True)] if flags else [])


def _bars(measured: pd.DataFrame, vendors: list[str]) -> str:
    counts = measured["vendor"].value_counts()

    def draw(axes):
        bars = axes.barh(vendors, [counts[vendor] for vendor in vendors], color=_BAR, height=0.6)
        axes.bar_label(bars, padding=3)
        axes.set_ylim(len(vendors) - 0.5, -0.5)
        axes.margins(x=0.12)

    return _svg(draw, len(vendors))


def _spread(table: pd.DataFrame, vendors: list[str], column: str) -> str:
    def draw(axes):
        for place, vendor in enumerate(vendors):
            values = table.loc[table["vendor"] == vendor, column].to_numpy()
            if not values.size:
                continue
            low, quarter, middle, three, high = np.percentile(values, (5, 25, 50, 75, 95))
            axes.plot([low, high], [place, place], color=_BAR, linewidth=1.5)
            axes.plot([quarter, three], [place, place], color=_BAR, linewidth=8, solid_capstyle="butt", alpha=0.55)
            axes.plot([middle], [place], color=_INK, marker="|", markersize=12, markeredgewidth=2)
        axes.set_yticks(range(len(vendors)), vendors)
        axes.set_ylim(len(vendors) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("median, middle 50 %, middle 90 %")

    return _svg(draw, len(vendors))


def _sizes(measured: pd.DataFrame, vendors: list[str]) -> str:
    counts = measured.groupby(["vendor", "width", "height"]).size().reset_index(name="images")

    def draw(axes):
        for vendor, colour in zip(vendors, _MARKS * len(vendors)):
            part = counts[counts["vendor"] == vendor]
            sizes = 14 + 160 * part["images"] / counts["images"].max()
            axes.scatter(part["width"], part["height"], s=sizes, color=colour, alpha=0.6, linewidths=0, label=vendor)
        axes.locator_params(nbins=6)
        axes.set_xlabel("width")
        axes.set_ylabel("height")
        axes.margins(0.15)
        if len(vendors) > 1:
            legend = axes.legend(
                frameon=False, labelcolor=_INK, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2)
            )
            for handle in legend.legend_handles:
                handle.set_sizes([30])

    return _svg(draw, 6)


def _flags(measured: pd.DataFrame, vendors: list[str]) -> str:
    """A mark for each vendor's share of each flag, "" without any flag."""
    every = measured[["vendor", "flags"]].explode("flags").dropna()
    if every.empty:
        return ""
    names = list(every["flags"].value_counts().index[:_FLAGS])
    images = measured["vendor"].value_counts()
    counts = every.groupby(["vendor", "flags"]).size()

    def draw(axes):
        for vendor, colour in zip(vendors, _MARKS * len(vendors)):
            shares = [100 * counts.get((vendor, name), 0) / images[vendor] for name in names]
            axes.plot(
                shares,
                range(len(names)),
                color=colour,
                marker="o",
                markersize=6,
                alpha=0.75,
                linestyle="",
                label=vendor,
                clip_on=False,
            )
        axes.set_yticks(range(len(names)), [words(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", color=_INK, alpha=0.15)
        if len(vendors) > 1:
            axes.legend(frameon=False, labelcolor=_INK, loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, len(names), 6.5)


def _svg(draw, lines: int, width: float = 4.6) -> str:
    """What `draw` draws on axes high enough for so many lines; `width` in inches."""
    style = {
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "svg.hashsalt": "mammoclip_jax",
        "svg.fonttype": "none",
        "text.parse_math": False,
    }  # a dollar in a vendor's name is one
    buffer = io.StringIO()
    with rc_context(style):
        figure = Figure(figsize=(width, 0.9 + 0.3 * lines))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.grid(axis="x", color=_INK, alpha=0.15, linewidth=0.8)
        draw(axes)
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue().replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    text = re.sub(r"(font: [^;\"]*?)'[^;\"]*", r"\1system-ui, sans-serif", text)
    return text[text.index("<svg") :]
