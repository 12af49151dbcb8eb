"""What every evaluator returns: values with intervals, tables, pictures, and a sentence on how they came about."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.evaluation.page.tables import latex_table

COLUMNS = ("result", "metric", "value", "low", "high", "n", "reason")


class Result(NamedTuple):
    """One evaluator's result on one data set.

    metrics: {name: {"value", "low", "high", "n"}}; value is None where it cannot be computed, "reason" then says why.
    tables: {name: DataFrame}; figures: {name: PNG bytes}.
    """

    name: str
    protocol: str
    metrics: dict[str, dict[str, Any]]
    tables: dict[str, pd.DataFrame] = {}
    figures: dict[str, bytes] = {}


def to_rows(results: list[Result]) -> list[dict[str, Any]]:
    """One dict a metric, with the columns `COLUMNS`."""
    return [
        {"result": r.name, "metric": metric, **{c: entry.get(c) for c in COLUMNS[2:]}}
        for r in results
        for metric, entry in r.metrics.items()
    ]


def scalars(results: list[Result], prefix: str = "eval") -> dict[str, float]:
    """Flat {"eval/phantom/zero_shot/mass/auroc": 0.83} for the metrics log; metrics without a value are left out."""
    return {
        f"{prefix}/{r.name}/{metric}": float(entry["value"])
        for r in results
        for metric, entry in r.metrics.items()
        if entry["value"] is not None
    }


def to_json(results: list[Result]) -> dict[str, Any]:
    """{"metrics": {"result/metric": {value, low, high, n}}, "protocol": {result: sentence}}, ready for `json.dump`."""
    return {
        "metrics": plain({f"{r.name}/{m}": entry for r in results for m, entry in r.metrics.items()}),
        "protocol": {r.name: r.protocol for r in results},
    }


def save(results: list[Result], out: Path) -> None:
    """Writes `metrics.csv`, `.json` and `.tex`, and every table and figure in folders named after the results.

    What an earlier evaluation left in `out` goes: nobody shall compare its predictions with figures that are not theirs.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out)
    metrics = pd.DataFrame(to_rows(results), columns=list(COLUMNS))
    metrics.to_csv(out / "metrics.csv", index=False)
    (out / "metrics.tex").write_text(latex_table(metrics.fillna({"reason": ""})), encoding="utf-8")
    write_json(out / "metrics.json", to_json(results))
    for result in results:
        folder = out / result.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in result.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
            write_json(folder / f"{name}.json", table.to_dict(orient="records"))
        for name, png in result.figures.items():
            (folder / f"{name}.png").write_bytes(png)


def _remove_earlier(out: Path) -> None:
    """Removes the folders of the results that metrics.json names."""
    noted = out / "metrics.json"
    if not noted.exists():
        return
    with contextlib.suppress(json.JSONDecodeError, AttributeError):  # half written by a program that was killed
        for name in json.loads(noted.read_text(encoding="utf-8")).get("protocol", {}):
            folder = out / name
            if folder.is_dir() and out.resolve() in folder.resolve().parents:
                shutil.rmtree(folder)
    noted.unlink()


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NumPy values become plain ones, and what is not finite becomes null."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """`value` in the types that JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
