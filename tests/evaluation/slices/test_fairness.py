"""The fairness table: gaps by loops, what is too small, and how often it sees gaps where there are none."""

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.evaluation.slices.fairness import fairness
from mammoclip_jax.evaluation.statistics.paired import benjamini_hochberg


def made(seed=0, n=900, gap=0.25):
    rng = np.random.default_rng(seed)
    truth, vendor = rng.integers(0, 2, n), rng.choice(["GE", "Hologic", "unknown"], n, p=[0.4, 0.4, 0.2])
    right = rng.random(n) < np.where((vendor == "GE") & (truth == 1), 0.9 - gap, 0.9)
    probability = np.clip(0.2 + 0.6 * truth + rng.normal(size=n) * 0.1 + 0.2 * (vendor == "GE"), 0, 1)
    columns = pd.DataFrame({"vendor": vendor, "density": rng.choice(list("ABCD"), n), "one": "x"})
    return truth, np.where(right, truth, 1 - truth), probability, columns, rng.integers(0, n // 2, n).astype(str)


def test_gaps_by_a_loop_and_the_planted_ones_are_found():
    truth, decision, probability, columns, patients = made()
    table = fairness(*made(), resamples=300)
    assert set(table["column"]) == {"vendor", "density"} and len(table) == (2 + 4) * 3
    for row in table.to_dict("records"):
        values = columns[row["column"]].to_numpy()
        sides = values == row["value"], (values != row["value"]) & (values != "unknown")
        if row["figure"] == "calibration":
            means = [(probability - truth)[side].mean() for side in sides]
        else:
            label = int(row["figure"] == "sensitivity")
            means = [(decision == truth)[side & (truth == label)].mean() for side in sides]
        assert (row["here"], row["rest"]) == pytest.approx(tuple(means)) and row["gap"] == pytest.approx(
            means[0] - means[1]
        )
        assert row["low"] < row["gap"] < row["high"]
    np.testing.assert_allclose(table["q"], benjamini_hochberg(table["p"]))
    sure = table[table["q"] < 0.05]
    assert set(zip(sure["column"], sure["figure"])) == {("vendor", "sensitivity"), ("vendor", "calibration")}
    ge = table[(table["value"] == "GE")].set_index("figure")
    assert ge["high"]["sensitivity"] < 0 and ge["low"]["calibration"] > 0.1


def test_small_values_have_no_gap_and_without_probabilities_there_is_no_calibration():
    truth, decision, _, columns, patients = made()
    columns["vendor"] = np.where(np.arange(900) < 25, "rare", "GE")
    table = fairness(truth, decision, None, columns, patients, resamples=0)
    assert "calibration" not in set(table["figure"])
    rare = table[table["value"] == "rare"]
    assert (
        rare["gap"].isna().all() and rare["reason"].str.contains("30 are needed").all() and rare["here"].notna().all()
    )
    nothing = fairness(truth, decision, None, columns[["one"]] if "one" in columns else columns, patients)
    assert len(nothing) == 0 and "q" in nothing


def test_where_there_is_no_gap_few_are_seen():
    found = []
    for seed in range(25):
        truth, decision, probability, columns, patients = made(seed, 500, 0.0)
        found.append(fairness(truth, decision, probability, columns[["density"]], patients, resamples=100))
    p = pd.concat(found).groupby("figure")["p"]
    seen = p.agg(lambda values: (values < 0.05).mean())
    assert (seen < 0.09).all() and seen["calibration"] > 0.01
