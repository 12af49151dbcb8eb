"""Images per second as a picture: over device counts where rows differ in them, else a bar a row."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure

UNITS = ("images_per_second", "decode_images_per_second", "seconds")  # of a row, the first that it has is shown
NAMES = ("side", "model", "batch", "form", "work", "way", "codec", "function", "remat", "bits", "threads", "workers")


def save(path: str | Path, rows: Sequence[dict], title: str) -> None:
    """A PNG of `rows`, which have one of UNITS."""
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    counts = [row.get("devices") for row in rows]
    if len(set(counts)) > 1:
        rates = [row["images_per_second"] for row in rows]
        axes.plot(counts, rates, "o-", label="measured")
        axes.plot(counts, [rates[0] * count / counts[0] for count in counts], "--", color="gray", label="linear")
        axes.set(xlabel="devices", ylabel="images / s", xticks=counts)
        axes.legend()
    else:
        unit = next(unit for unit in UNITS if unit in rows[0])
        names = [" ".join(str(row[key]) for key in NAMES if key in row) for row in rows]
        middle = [row.get(unit) or 0 for row in rows]  # a step that did not fit has none
        # p10 and p90 are of the seconds in training rows and of the rate in others.
        bars = axes.barh(range(len(rows)), middle)
        axes.bar_label(bars, fmt="%.3g")
        axes.set(yticks=range(len(rows)), yticklabels=names, xlabel=unit.replace("_", " "))
        axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=120)
