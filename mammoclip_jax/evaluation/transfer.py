"""Train on one data set, test on several: the table of transfer between data sets."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.result import COLUMNS, Result
from mammoclip_jax.names import suggestion


def read_metrics(path: str | Path) -> pd.DataFrame:
    """The metrics.csv that `result.save` wrote: a file, or the one in a folder of results.

    Raises:
        UserError: none there, several, or a table without the columns `result.COLUMNS`.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("metrics.csv"))
    if len(files) != 1:
        names = ", ".join(map(str, files)) or "none"
        raise UserError(f"{path} should be a metrics.csv of evaluate, or a folder with one of them; found: {names}.")
    table = pd.read_csv(files[0])
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise UserError(f"{files[0]} is no metrics.csv of evaluate: it has no column {', '.join(missing)}.")
    return table


def transfer(runs: Mapping[str, str | Path], metric: str, evaluator: str | None = None) -> Result:
    """One metric of several models, each tested on several data sets.

    Args:
        runs: {training set: folder of its results, or metrics.csv}.
        metric: full name, "mass/auroc".
        evaluator: where several evaluators have the metric, the one to take: results are "data set/evaluator".

    Returns:
        metrics "TRAIN to TEST/metric"; tables "transfer" (train, test, value, low, high, n, reason) and "transfer_grid"
        (a row a training set, a column a test set, the values).

    Raises:
        UserError: a run without the metric, or with it from several evaluators.
    """
    parts = [_of_run(train, path, metric, evaluator) for train, path in runs.items()]
    table = pd.concat(parts, ignore_index=True)
    tests = list(dict.fromkeys(table["test"]))
    grid = table.pivot(index="train", columns="test", values="value").reindex(index=list(runs), columns=tests)
    entries = {f"{row.train} to {row.test}/{metric.rpartition('/')[2]}": _entry(row) for row in table.itertuples()}
    protocol = (
        f"{metric}; a row a training set, a column a test set. Intervals are of the test patients, not of "
        "repeated training."
    )
    return Result("transfer", protocol, entries, {"transfer": table, "transfer_grid": grid.reset_index()})


def _of_run(train: str, path, metric: str, evaluator: str | None) -> pd.DataFrame:
    whole = read_metrics(path)
    names = whole["result"].str.rpartition("/")
    table = whole.assign(train=train, test=names[0], evaluator=names[2])
    table = table[(table["metric"] == metric) & ((evaluator is None) | (table["evaluator"] == evaluator))]
    if table.empty:
        near = suggestion(metric, whole["metric"].astype(str))
        raise UserError(f"{path} has no metric {metric!r}" + (f" of {evaluator!r}." if evaluator else ".") + near)
    if table["test"].duplicated().any():
        raise UserError(
            f"{path} has {metric!r} from several evaluators "
            f"({', '.join(sorted(set(table['evaluator'])))}): say which one."
        )
    return table[["train", "test", "value", "low", "high", "n", "reason"]]


def _entry(row) -> dict:
    numbers = {
        key: None if pd.isna(value) else float(value)
        for key, value in (("value", row.value), ("low", row.low), ("high", row.high))
    }
    reason = {} if pd.isna(row.reason) else {"reason": str(row.reason)}
    return numbers | {"n": int(row.n)} | reason
