"""How a metric differs between subgroups: breast density, age, vendor, view, site, data set, laterality.

Most of a difference between subgroups of a small test set is chance; the interval of the gap to the whole, from the
same resamples of patients as both values, says how much.
"""

import json
from collections.abc import Iterator

import numpy as np
import pandas as pd

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.choices import BY as BY  # handed on
from mammoclip_jax.evaluation.comparison import LEVEL_NAMES, METRICS, metrics_of
from mammoclip_jax.evaluation.features import label_texts
from mammoclip_jax.evaluation.metrics.classification import Scored, scored
from mammoclip_jax.evaluation.predictions import Predicted, labels
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.evaluation.statistics.bootstrap import bootstrap
from mammoclip_jax.evaluation.statistics.discrimination import few_classes
from mammoclip_jax.evaluation.statistics.paired import lacking
from mammoclip_jax.names import check_name

AGE_BANDS = (40, 50, 60, 70)  # years: lower edges of the bands after the first
UNKNOWN = "unknown"
AUROC, MACRO = "auroc", "macro_auroc"
_FINER = {"view": "image", "laterality": "breast"}  # an exam has several, a breast several views


def attributes(index: pd.DataFrame, age_bands: tuple[int, ...] = AGE_BANDS) -> pd.DataFrame:
    """The subgroup of each image of a data set's index: dataset, image, and the columns BY, all str.

    Density, age and site come from `labels` (data/manifest.py); what is not known is "unknown".
    """
    table = index[["dataset", "image", "vendor", "view", "laterality"]].astype(str)
    ages = [_age(json.loads(labels).get("age"), age_bands) for labels in index["labels"]]
    table = table.assign(density=label_texts(index, "density"), site=label_texts(index, "site"), age=ages)
    return table[["dataset", "image", *(by for by in BY if by != "dataset")]].replace("", UNKNOWN)


def _age(value, bands: tuple[int, ...]) -> str:
    try:
        age = float(value)
    except (TypeError, ValueError):
        return ""
    if not np.isfinite(age):
        return ""
    edges = [edge for edge in bands if edge <= age]
    above = [edge for edge in bands if edge > age]
    if not above:
        return f"{edges[-1]}+"
    return f"{edges[-1]}-{above[0] - 1}" if edges else f"<{above[0]}"


def subgroups(
    predictions: pd.DataFrame,
    index: pd.DataFrame,
    *,
    by: tuple[str, ...] = BY,
    metric: str | None = None,
    level: str = "breast",
    age_bands: tuple[int, ...] = AGE_BANDS,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """A metric of each label in each subgroup.

    Args:
        predictions: see `predictions`.
        index: of the data set, or of several one after the other.
        by: from BY; what all images share is left out.
        metric: a name from `comparison.METRICS`; labels that cannot have it are passed over. None: auroc of yes/no labels,
            macro_auroc of labels with classes.
        level: what is scored; by view it is always images, by laterality at the coarsest breasts.

    Returns:
        metrics "mass/density=B/auroc"; the table "subgroups": label, by, group ("all": the whole), metric, value, low,
        high, n, patients, positives, and gap, gap_low, gap_high, the subgroup's value minus the whole's.

    Raises:
        UserError: an unknown metric, level or subgroup; an image that the index does not have.
    """
    if metric is not None:
        check_name(metric, METRICS, "metric for subgroups")
    check_name(level, LEVEL_NAMES, "level")
    for name in by:
        check_name(name, BY, "subgroup")
    known = attributes(index, age_bands).set_index(["dataset", "image"])
    rows, entries = [], {}
    for label in labels(predictions):
        own = metric or (MACRO if label.classes else AUROC)
        if own not in metrics_of(label, (own,)):
            continue
        for row in _of_label(label, known, by, own, level, {"resamples": resamples, "seed": seed}):
            rows.append(row)
            entry = {key: row[key] for key in ("value", "low", "high", "n")}
            entry |= {"reason": row["reason"]} if row["reason"] else {}
            name = "all" if row["by"] == "all" else f"{row['by']}={row['group']}"
            entries[f"{label.label}/{name}/{own}"] = entry
    if not rows:
        raise UserError(f"no label of the predictions can have the metric {metric!r}.")
    protocol = (
        f"{metric or f'{AUROC}, of classes {MACRO},'} at the level {level} in subgroups, by view of single images; "
        "what all images share is left out. gap: a subgroup's value minus that "
        f"of the whole. Intervals: {statistics.INTERVAL}, of a gap over the patients of the whole."
    )
    return Result("subgroups", protocol, entries, {"subgroups": pd.DataFrame(rows)})


def _of_label(label: Predicted, known: pd.DataFrame, by, metric: str, level: str, options) -> Iterator[dict]:
    """Rows of the table: the whole, then each subgroup, but no subgroup that is the whole again."""
    measure = METRICS[metric]
    keys = pd.MultiIndex.from_frame(label.rows[["dataset", "image"]].astype(str))
    absent = ~keys.isin(known.index)
    if absent.any():
        raise UserError(
            f"{absent.sum()} images of the predictions are not in the index, first "
            f"{'/'.join(keys[absent.argmax()])}; give the data set that was evaluated."
        )
    whole = scored(label.rows, label.truth, label.prediction, LEVEL_NAMES[level])
    start = {"label": label.label, "by": "all", "group": "all", "metric": metric}
    yield start | _measured(measure, whole, np.ones(len(whole.truth), dtype=bool), label, options)
    for name in by:
        finer = _finer(level, name)
        units = whole if finer == level else scored(label.rows, label.truth, label.prediction, LEVEL_NAMES[finer])
        keys = pd.MultiIndex.from_frame(units.rows[["dataset", "image"]].astype(str))
        group = (known.loc[keys, name] if name != "dataset" else units.rows["dataset"]).to_numpy(dtype=object)
        values = sorted(set(group), key=lambda text: (text == UNKNOWN, not text.startswith("<"), text))
        for value in values if len(values) > 1 else ():
            yield start | {"by": name, "group": value} | _measured(measure, units, group == value, label, options)


def _finer(level: str, by: str) -> str:
    wanted = _FINER.get(by)
    if wanted == "image" or (wanted == "breast" and level.startswith("exam")):
        return wanted
    return level


def _measured(metric, units: Scored, member: np.ndarray, label: Predicted, options) -> dict:
    """A metric over the members, and the gap to its value over all units."""
    truth, prediction = units.truth[member], units.prediction[member]
    entry = statistics.estimate({"": metric}, truth, prediction, units.patients[member], **options)[""]
    row = {
        **entry,
        "reason": entry.get("reason", ""),
        "patients": len(set(units.patients[member])),
        "positives": None if label.classes else int(truth.sum()),
        "gap": None,
        "gap_low": None,
        "gap_high": None,
    }
    if entry["value"] is None or member.all() or lacking(metric, units.truth, units.prediction):
        return row
    absent = [label.classes[k] for k in np.setdiff1d(units.truth, truth)] if label.classes else []
    if absent and metric.lacks is few_classes:  # the two are means over different classes
        return row | {
            "reason": f"none is of class {', '.join(absent)}: a mean over the others, with no gap to the whole"
        }
    part, whole = metric.summary(truth, prediction), metric.summary(units.truth, units.prediction)
    few = metric.few(truth, prediction, units.patients[member].astype(str))
    gap = bootstrap(
        entry["value"] - metric.point(units.truth, units.prediction),
        lambda w: metric.of(part(w[:, member])) - metric.of(whole(w)),
        units.patients,
        few=few,
        **options,
    )
    reason = row["reason"] or (f"gap: {gap['reason']}" if "reason" in gap else "")
    return row | {"gap": gap["value"], "gap_low": gap["low"], "gap_high": gap["high"], "reason": reason}
