"""What an evaluation says on the terminal: a line on the way, a short table at the end; the long one is a file."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mammoclip_jax import terminal
from mammoclip_jax.evaluation.page.display import heading, interval, leading, number
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.files import write_text

LINES = 12  # of the short table, with its head and what stands under it
NAME = "metrics.txt"  # the long one
_HEAD = ("metric", "value", "95 % interval", "n")
_FIGURES = 3  # of a result in a line


def show(results: Sequence[Result], folder: Path) -> None:
    """Prints the short table and writes the long one to `folder`."""
    path = Path(folder, NAME)
    write_text(path, long_table(results) + "\n")
    print(short_table(results, path, terminal.width()))


def line(results: Sequence[Result]) -> str:
    """The first figures of each result, as "phantom/zero_shot mass/auroc 0.831, calcification/auroc 0.612"."""
    said = []
    for result in results:
        first = _first(result)
        lead = [metric for metric in leading(result) if metric in first]
        figures = [f"{metric} {_cells(result, metric)[1]}" for metric in (lead or first)[:_FIGURES]]
        said.append(f"{result.name} {', '.join(figures) or 'nothing could be measured'}")
    return "; ".join(said)


def short_table(results: Sequence[Result], path: Path, width: int | None = None) -> str:
    """The figures that say most, of each result the first before the second of any, in `LINES` lines of `width` columns (None: as
    many as they need): name, value, interval or why there is none, n; under them where all are."""
    total = sum(len(result.metrics) for result in results)
    missing = sum(entry["value"] is None for result in results for entry in result.metrics.values())
    turns = itertools.zip_longest(*([(place, metric) for metric in _first(r)] for place, r in enumerate(results)))
    ranked = [chosen for turn in turns for chosen in turn if chosen]
    for count in range(len(ranked), -1, -1):
        order = {id(result): list(result.metrics) for result in results}
        kept = sorted(ranked[:count], key=lambda one: (one[0], order[id(results[one[0]])].index(one[1])))
        under = f"{total} figures" + (f", {missing} of them not measured and why" if missing else "") + f": {path}"
        rows = [_cells(results[place], metric) for place, metric in kept]
        lines = terminal.table([_HEAD, *rows], width) if rows else []
        lines += textwrap.wrap(under, width or len(under), break_long_words=False, break_on_hyphens=False)
        if len(lines) <= LINES:
            break
    return "\n".join(lines)


def long_table(results: Sequence[Result]) -> str:
    """The metrics as lines: name, value, interval or why there is none, n; then what could not be measured, and why: groups of
    metrics by their common name where none of them could."""
    rows, missing = [_HEAD], {}
    for result in results:
        measured = {m.rpartition("/")[0] for m, entry in result.metrics.items() if entry["value"] is not None}
        for metric, entry in result.metrics.items():
            if entry["value"] is None:
                group = metric.rpartition("/")[0]
                row = f"{result.name}/{metric if group in measured else group}".rstrip("/")
                missing[row] = entry.get("reason", "no value")
            else:
                rows.append(_cells(result, metric))
    return "\n".join([*terminal.table(rows), *(f"not measured: {name}: {why}" for name, why in missing.items())])


def _first(result: Result) -> list[str]:
    """Metrics with a value: those that lead, then the others."""
    measured = [metric for metric, entry in result.metrics.items() if entry["value"] is not None]
    leaders = [metric for metric in leading(result) if metric in measured]
    return leaders + [metric for metric in measured if metric not in leaders]


def _cells(result: Result, metric: str) -> tuple[str, str, str, str]:
    entry: dict[str, Any] = result.metrics[metric]
    kind = heading(metric)[1]
    bounds = interval(entry, kind) or entry.get("reason", "")
    return f"{result.name}/{metric}", number(entry["value"], kind), bounds, str(entry["n"])
