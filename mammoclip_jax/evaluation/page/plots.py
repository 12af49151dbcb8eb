"""Curves for the page as SVG, each once for a light and once for a dark background."""

import contextlib
import io
import re
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# What is plotted of metrics.jsonl: title, pattern on the names, horizontal line to compare with.
_CURVES = (
    ("Training loss", r"loss", None),
    ("Zero-shot AUROC on the way", r"eval/.+/auroc", 0.5),
    ("Retrieval on the way", r"eval/.+/recall@\d+", None),
    ("Saliency on the way", r"eval/.+/(pointing_game|energy_in_box)", None),
    ("Images per second", r"images_per_second", None),
    ("Gradient norm", r"gradient_norm", None),
    ("Factor on cosines (logit scale)", r"logit_scale", None),
)
# Okabe and Ito's colours, which colour-blind readers can tell apart; blue is lightened for the dark page.
LINES = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "dark": ("#56B4E9", "#E8833A", "#2DBE93", "#DDA0C4", "#F0B93A", "#9AC7E8"),
}
INK = {"light": "#3d4852", "dark": "#b8c2cc"}
_DPI = 160  # of PNG
GRID = {"light": "#e3e7eb", "dark": "#2c343c"}


class Plot(NamedTuple):
    """One plot as two SVG documents."""

    title: str
    light: bytes
    dark: bytes


def curves(history: list[dict[str, Any]]) -> list[Plot]:
    """Line plots over the steps of the rows of a metrics.jsonl: {"step": int, name: float or None, ...}."""
    names = list(dict.fromkeys(name for row in history for name in row if name != "step"))
    plots = []
    for title, pattern, level in _CURVES:
        series = {}
        for name in (n for n in names if re.fullmatch(pattern, n)):
            points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
            if points:
                series[name.removeprefix("eval/")] = tuple(zip(*points))
        if series:
            plots.append(Plot(title, *(_lines(series, level, shade) for shade in ("light", "dark"))))
    return plots


def _lines(series: dict[str, tuple], level: float | None, shade: str) -> bytes:
    with canvas(shade, (4.8, 2.9)) as (axes, buffer):
        for (name, (steps, values)), colour in zip(series.items(), LINES[shade] * len(series)):
            axes.plot(
                steps,
                values,
                color=colour,
                linewidth=1.6,
                label=name,
                marker="o" if len(steps) < 30 else "",
                markersize=3.5,
            )
        if level is not None:
            axes.axhline(level, color=INK[shade], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("step")
        axes.grid(axis="y", color=GRID[shade], linewidth=0.8)
        if len(series) > 1:
            axes.legend(
                frameon=False,
                fontsize=8,
                labelcolor=INK[shade],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=1,
            )
    return buffer.getvalue()


@contextlib.contextmanager
def canvas(shade: str, size: tuple[float, float], form: str = "svg"):
    """(axes, buffer): what is drawn on the axes is in the buffer afterwards, as "svg" or, on white, as "png"."""
    ink = INK[shade]
    style = {
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "svg.hashsalt": "mammoclip_jax",
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        yield figure.subplots(), buffer
        options = {"transparent": True, "metadata": {"Date": None}} if form == "svg" else {"dpi": _DPI}
        figure.savefig(buffer, format=form, bbox_inches="tight", **options)
