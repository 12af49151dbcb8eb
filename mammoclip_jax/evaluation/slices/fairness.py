"""How a classifier's sensitivity, specificity and calibration differ between the values of columns, at one threshold.

Each value is compared with all other known ones of its column. Beside the gap stand its interval by bootstrap over
patients, a two-sided p (of the rates Fisher's, with the design effect of patients with several images; of calibration the
gap in units of its bootstrap standard error, t with the patients of the smaller side), and q after Benjamini and Hochberg
over the table. Calibration is probability minus outcome, on average: above 0 the model expects more cancers than there are.
"""

import numpy as np
import pandas as pd
from scipy.stats import t

from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.slices import fisher
from mammoclip_jax.evaluation.slices.hypotheses import texts_of
from mammoclip_jax.evaluation.statistics.bootstrap import interval, left_out_weights, patient_weights
from mammoclip_jax.evaluation.statistics.discrimination import share
from mammoclip_jax.evaluation.statistics.few import count, too_few
from mammoclip_jax.evaluation.statistics.paired import benjamini_hochberg

FIGURES = ("sensitivity", "specificity", "calibration")
LEAST = 30  # images on either side
MOST_VALUES = 30  # of a column


def fairness(
    truth,
    decision,
    probability,
    columns: pd.DataFrame,
    patients,
    *,
    least: int = LEAST,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """A row for each column, value and figure: column, value, figure, n, n_rest, here, rest, gap, low, high, p, q, reason.

    Args:
        truth, decision: int [n]; patients: str [n].
        probability: float [n], mapped on validation data (`metrics.calibration.platt`); None: no calibration.
        columns: texts or numbers, a row an image; "" and "unknown" are left out, columns of one value or more than
            MOST_VALUES too.
        least: images of the figure on either side below which there is no gap.
    """
    truth, decision = np.asarray(truth), np.asarray(decision)
    patients = np.asarray(patients, dtype=str)
    values = {
        "sensitivity": np.where(truth == 1, decision == truth, np.nan),
        "specificity": np.where(truth == 0, decision == truth, np.nan),
    }
    if probability is not None:
        values["calibration"] = np.asarray(probability, np.float64) - truth
    rows, sides = [], []
    for column in columns:
        texts = texts_of(columns[column])
        known = sorted(set(texts) - {""})
        for value in known if 1 < len(known) <= MOST_VALUES else ():
            for figure, numbers in values.items():
                here, rest = (where & ~np.isnan(numbers) & (texts != "") for where in (texts == value, texts != value))
                row = {
                    "column": column,
                    "value": value,
                    "figure": figure,
                    "n": int(here.sum()),
                    "n_rest": int(rest.sum()),
                }
                row |= dict.fromkeys(("here", "rest", "gap", "low", "high", "p"), np.nan) | {"reason": ""}
                rows.append(row)
                row["reason"] = _small(here, rest, patients, least)
                if here.any() and rest.any():
                    row["here"], row["rest"] = float(numbers[here].mean()), float(numbers[rest].mean())
                if not row["reason"]:
                    row["gap"], known = row["here"] - row["rest"], here | rest
                    if figure != "calibration":
                        counts = fisher.worth(numbers[known] == 1, here[known], patients[known])
                        row["p"] = float(fisher.different(*counts))
                    sides.append((row, np.nan_to_num(numbers), here, rest))
    if resamples and sides:
        _intervals(sides, patients, resamples, seed)
    order = ["column", "value", "figure", "n", "n_rest", "here", "rest", "gap", "low", "high", "p", "q", "reason"]
    table = pd.DataFrame(rows, columns=[name for name in order if name != "q"])
    return table.assign(q=benjamini_hochberg(table["p"].to_numpy(np.float64)))[order]


def _small(here, rest, patients, least: int) -> str:
    fewest = min(here.sum(), rest.sum())
    if fewest < least:
        return f"{fewest} images on one side, {least} are needed"
    return too_few(patients[here], "with the value") or too_few(patients[rest], "with another value")


def _intervals(sides, patients, resamples: int, seed: int) -> None:
    """Fills low and high, and p of calibration, all on the same resamples of patients."""
    here, rest = (np.stack([side[i] for side in sides], axis=1).astype(np.float32) for i in (2, 3))
    numbers = np.stack([side[1] for side in sides], axis=1).astype(np.float32)
    marks = np.concatenate([here * numbers, here, rest * numbers, rest], axis=1)

    def gaps(blocks) -> np.ndarray:
        total, n, total_rest, n_rest = np.split(
            np.concatenate([weights @ marks for weights in blocks]).astype(np.float64), 4, axis=1
        )
        return share(total, n) - share(total_rest, n_rest)

    drawn, left_out = gaps(patient_weights(patients, resamples, seed)), gaps(left_out_weights(patients))
    for place, (row, _, member, others) in enumerate(sides):
        entry = interval(row["gap"], drawn[:, place], left_out[:, place], n=row["n"])
        row["low"], row["high"] = (np.nan if entry[end] is None else entry[end] for end in ("low", "high"))
        row["reason"] = entry.get("reason", "")
        spread = np.nanstd(drawn[:, place], ddof=1)
        if row["figure"] == "calibration" and spread > 1e-9:
            fewest = min(count(patients[side]) for side in (member, others))
            row["p"] = float(2 * t.sf(abs(row["gap"]) / spread, fewest - 1))
