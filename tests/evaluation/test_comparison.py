"""Two tables of predictions: the values, the order of images does not matter, and refusals that name what differs."""

import made_predictions as made
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import comparison
from mammoclip_jax.evaluation.comparison import compare
from mammoclip_jax.evaluation.metrics.classification import binary, multiclass
from mammoclip_jax.evaluation.statistics import paired

QUICK = {"resamples": 60, "permutations": 39}
INDEX = made.index()
GOOD, BAD = made.yes_no(INDEX, 0.7, seed=1), made.yes_no(INDEX, 4, seed=2)


def test_values_are_those_of_classification_and_the_difference_is_theirs():
    found = compare(GOOD, BAD, metrics=("auroc", "auprc", "ece"), **QUICK)
    table = found.tables["comparison"].set_index("metric")
    for side, table_of in (("a", GOOD), ("b", BAD)):
        values = binary(table_of, table_of["truth"], table_of["score"], resamples=0)
        assert table[side].to_dict() == {name: values[name]["value"] for name in ("auroc", "auprc", "ece")}
    difference = table.loc["auroc", "a"] - table.loc["auroc", "b"]
    assert found.metrics["mass/auroc_difference"]["value"] == pytest.approx(difference)
    assert (table["low"] < table["difference"]).all() and (table["difference"] < table["high"]).all()
    assert table.loc["auroc", "p_delong"] < 0.001 and table.loc["auroc", "p_permutation"] == 1 / 40
    assert np.isnan(table.loc["auprc", "p_delong"])
    assert table.loc["auroc", ["n", "patients"]].tolist() == [80, 40]
    assert "Obuchowski" in found.protocol


def test_delongs_test_is_the_one_over_patients():
    found = compare(GOOD, BAD, level="image", metrics=("auroc",), **QUICK).tables["comparison"].iloc[0]
    expected = paired.delong(GOOD["truth"], GOOD["score"], BAD["score"], GOOD["patient"])
    assert found["p_delong"] == pytest.approx(expected.p) and found["n"] == 160


def test_the_order_of_images_does_not_matter():
    shuffled = BAD.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(
        compare(GOOD, BAD, **QUICK).tables["comparison"], compare(GOOD, shuffled, **QUICK).tables["comparison"]
    )


def test_of_few_positive_patients_only_the_permutation_test_is_left():
    few = GOOD["patient"].isin(GOOD["patient"][GOOD["truth"] == 1].unique()[:3])
    a, b = (table.assign(truth=table["truth"].where(few, 0.0)) for table in (GOOD, BAD))
    row = compare(a, b, metrics=("auroc",), **QUICK).tables["comparison"].iloc[0]
    assert row["difference"] > 0 and row["low"] is None and np.isnan(row["p_delong"]) and row["p_permutation"] > 0
    assert row["reason"].startswith("no interval: 3 patients of the rarest class, 10 are needed; nor DeLong's test; p")


def test_a_model_is_no_better_than_itself():
    row = compare(GOOD, GOOD, **QUICK).tables["comparison"].iloc[0]
    assert (row["difference"], row["p_delong"], row["p_permutation"]) == (0, 1, 1)


def test_several_labels_get_q_values_and_classes_their_metrics():
    classes = [made.density(INDEX, noise, seed=3) for noise in (1, 3)]
    a = pd.concat([GOOD, GOOD.assign(label="calcification", score=BAD["score"]), classes[0]])
    b = pd.concat([BAD, BAD.assign(label="calcification"), classes[1]])
    table = compare(a, b, **QUICK).tables["comparison"]
    assert set(table[table["label"] == "density"]["metric"]) == {"macro_auroc", "accuracy", "kappa_quadratic"}
    aurocs = table[table["metric"] == "auroc"]
    np.testing.assert_allclose(aurocs["q_delong"], paired.benjamini_hochberg(aurocs["p_delong"]))
    assert aurocs["q_delong"].tolist()[0] == pytest.approx(2 * aurocs["p_delong"].tolist()[0])
    chances = classes[0][[f"p_{c}" for c in "ABCD"]]
    values = multiclass(classes[0], classes[0]["truth"].to_numpy(), chances, "ABCD", resamples=0)
    row = table[(table["label"] == "density") & (table["metric"] == "kappa_quadratic")].iloc[0]
    assert row["a"] == values["kappa_quadratic"]["value"] and pd.isna(row["positives"])


def test_classes_in_another_order_are_the_same():
    a, b = made.density(INDEX, 1, seed=3), made.density(INDEX, 2, seed=4)
    turned = b[[*b.columns[:8], "p_D", "p_B", "p_C", "p_A"]]
    pd.testing.assert_frame_equal(
        compare(a, b, **QUICK).tables["comparison"], compare(a, turned, **QUICK).tables["comparison"]
    )


def test_a_label_of_one_class_has_a_reason():
    a, b = GOOD.assign(truth=0.0), BAD.assign(truth=0.0)
    found = compare(a, b, metrics=("auroc",), **QUICK)
    assert found.metrics["mass/auroc_difference"]["value"] is None
    assert "both classes" in found.tables["comparison"]["reason"].iloc[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda b: b[2:], "theirs lacks 2 images of label 'mass' that mine has: made/0LCC, made/0LMLO"),
        (lambda b: pd.concat([b, b[:5].assign(image=[*"vwxyz"])]), "mine lacks 5 images.*made/v, made/w, made/x, …"),
        (lambda b: b.assign(label="cancer"), "theirs lacks 1 labels that mine has: mass"),
        (lambda b: b.assign(truth=[1 - b["truth"][0], *b["truth"][1:]]), "truth of 1 images differs.*'0LCC'"),
        (lambda b: b.assign(patient=["other", *b["patient"][1:]]), "patient of 1 images differs"),
        (lambda b: b.drop(columns="score").assign(truth="x", p_x=1.0), "mine has the classes -, theirs x"),
    ],
)
def test_tables_of_different_images_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        compare(GOOD, change(BAD), names=("mine", "theirs"), **QUICK)


def test_unknown_names_are_explained():
    with pytest.raises(UserError, match="Did you mean 'auroc'"):
        compare(GOOD, BAD, metrics=("aurok",))
    with pytest.raises(UserError, match="no level 'breasts'"):
        compare(GOOD, BAD, level="breasts")
    with pytest.raises(UserError, match="none of the labels has the metrics macro_auroc"):
        compare(GOOD, BAD, metrics=("macro_auroc",))


def test_the_levels_have_the_names_of_what_they_score():
    assert {name: level.unit for name, level in comparison.LEVEL_NAMES.items()} == {
        "breast": "breast",
        "breast_max": "breast",
        "image": "image",
        "exam": "exam",
        "exam_max": "exam",
    }
    assert {name for name, level in comparison.LEVEL_NAMES.items() if level.how == "max"} == {"breast_max", "exam_max"}
