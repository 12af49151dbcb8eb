"""A metric in subgroups: values, gaps with their intervals, which units, and who is unknown."""

import json

import made_predictions as made
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.subgroups import attributes, subgroups

INDEX = made.index()
MASS = made.yes_no(INDEX, 1.5)
QUICK = {"resamples": 50}


def test_attributes_come_from_the_index():
    rows = pd.DataFrame(
        [
            {
                "dataset": "d",
                "image": i,
                "vendor": vendor,
                "view": "CC",
                "laterality": "L",
                "labels": json.dumps(labels),
            }
            for i, (vendor, labels) in enumerate(
                [
                    ("A", {"density": "b", "age": 39.9, "site": "north"}),
                    ("", {"age": 70}),
                    ("B", {"age": "unknown"}),
                    ("B", {"age": 55, "density": 4}),
                ]
            )
        ]
    )
    found = attributes(rows)
    assert found["age"].tolist() == ["<40", "70+", "unknown", "50-59"]
    assert found["density"].tolist() == ["B", "unknown", "unknown", "D"]
    assert found["site"].tolist() == ["north", "unknown", "unknown", "unknown"]
    assert found["vendor"].tolist() == ["A", "unknown", "B", "B"]


def test_values_are_those_of_the_members():
    found = subgroups(MASS, INDEX, **QUICK)
    table = found.tables["subgroups"].set_index(["by", "group"])
    density = np.array([json.loads(labels)["density"] for labels in INDEX["labels"]])
    breast, truth = MASS["score"].to_numpy().reshape(-1, 2).mean(1), MASS["truth"].to_numpy()[::2]
    assert table.loc[("all", "all"), "value"] == pytest.approx(roc_auc_score(truth, breast))
    for group in "ABCD":
        member = density[::2] == group
        row = table.loc[("density", group)]
        assert row["value"] == pytest.approx(roc_auc_score(truth[member], breast[member]))
        assert row["n"] == 20 and row["patients"] == 10 and row["positives"] == truth[member].sum()
        assert row["gap"] == pytest.approx(row["value"] - table.loc[("all", "all"), "value"])
        # Some six patients of a density have the finding: too few for the interval of a gap.
        assert np.isnan(row["gap_low"]) and "patients of the rarest class, 10 are needed" in row["reason"]
    for group in ("A Inc", "B_Ltd"):
        row = table.loc[("vendor", group)]
        assert row["gap_low"] < row["gap"] < row["gap_high"] and not row["reason"]
    assert found.metrics["mass/density=B/auroc"]["n"] == 20
    single = MASS[(INDEX["view"] == "CC").to_numpy()]
    assert table.loc[("view", "CC"), "value"] == pytest.approx(roc_auc_score(single["truth"], single["score"]))
    # One site and one data set: no subgroup that is the whole again.
    assert set(table.index.get_level_values("by")) == {"all", "density", "age", "vendor", "view", "laterality"}


def test_the_interval_of_a_gap_is_that_of_explicit_resamples():
    row = subgroups(MASS, INDEX, by=("vendor",), metric="brier", resamples=80).tables["subgroups"].iloc[1]
    error = (MASS["score"].to_numpy().reshape(-1, 2).mean(1) - MASS["truth"].to_numpy()[::2]) ** 2
    member = (INDEX["vendor"] == row["group"]).to_numpy()[::2]
    patients = "made/" + INDEX["patient"].to_numpy(dtype=object)[::2]
    weights = np.concatenate(list(statistics.patient_weights(patients, 80, 0)))
    drawn = [np.average(error[member], weights=w[member]) - np.average(error, weights=w) for w in weights]
    assert row["gap"] == pytest.approx(error[member].mean() - error.mean())
    assert min(abs(row["gap_low"] - np.array(drawn))) < 1e-6 and min(abs(row["gap_high"] - np.array(drawn))) < 1e-6


def test_exams_are_split_by_side_as_breasts_and_by_view_as_images():
    table = subgroups(MASS, INDEX, level="exam", **QUICK).tables["subgroups"]
    assert table.groupby("by")["n"].sum().to_dict() == {
        "all": 40,
        "age": 40,
        "density": 40,
        "laterality": 80,
        "vendor": 40,
        "view": 160,
    }


def test_a_subgroup_without_positives_has_a_reason_and_no_gap():
    truth = MASS["truth"].where(INDEX["vendor"] == "A Inc", 0.0)
    table = subgroups(MASS.assign(truth=truth), INDEX, by=("vendor",), **QUICK).tables["subgroups"].set_index("group")
    row = table.loc["B_Ltd"]
    assert row["reason"].startswith("all 40 are negative") and np.isnan(row["value"]) and np.isnan(row["gap"])


def test_classes_have_subgroups_too_and_other_labels_are_passed_over():
    both = pd.concat([MASS, made.density(INDEX, 1)])
    table = subgroups(both, INDEX, by=("vendor",), metric="kappa_quadratic", **QUICK).tables["subgroups"]
    assert table["label"].unique().tolist() == ["density"] and table["positives"].isna().all()
    # Within a vendor of this index only two densities occur.
    assert table["value"].notna().all()


def test_without_a_metric_each_label_has_the_one_that_fits_it():
    both = pd.concat([MASS, made.density(INDEX, 1)])
    table = subgroups(both, INDEX, by=("vendor",), **QUICK).tables["subgroups"]
    assert dict(zip(table["label"], table["metric"])) == {"mass": "auroc", "density": "macro_auroc"}
    alone = subgroups(made.density(INDEX, 1), INDEX, by=("vendor",), **QUICK)  # of a softmax classifier: was an error
    assert "density/all/macro_auroc" in alone.metrics


def test_a_mean_over_fewer_classes_has_no_gap():
    row = (
        subgroups(made.density(INDEX, 1), INDEX, by=("vendor",), metric="macro_f1", **QUICK).tables["subgroups"].iloc[1]
    )
    assert row["value"] > 0 and row["gap"] is None and "a mean over the others" in row["reason"]


def test_errors():
    with pytest.raises(UserError, match="Did you mean 'density'"):
        subgroups(MASS, INDEX, by=("densities",))
    with pytest.raises(UserError, match="no label of the predictions"):
        subgroups(MASS, INDEX, metric="macro_auroc")
    with pytest.raises(UserError, match="160 images of the predictions are not in the index, first made/0LCC"):
        subgroups(MASS, INDEX.assign(dataset="other"))
