"""Regions are told apart as their vectors do, whatever their size and brightness say."""

import numpy as np
import pytest
from region_fakes import CONCEPTS, RegionDataset, RegionModel
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.region_classification import few, region_classification

CLASSES = ["mass", "calcification", "normal_tissue"]


@pytest.fixture(scope="module")
def dataset():
    return RegionDataset(18)


@pytest.fixture(scope="module")
def result(dataset):
    return region_classification(
        RegionModel(), dataset, concepts=CONCEPTS, boxes=(4,), draws=3, cs=(1.0,), resamples=50
    )


def test_a_model_that_sees_is_right_and_each_figure_is_that_of_its_table(result):
    at, table = {name: entry["value"] for name, entry in result.metrics.items()}, result.tables["regions"]
    assert at["zero_shot/macro_auroc"] == 1 == at["stages/macro_auroc"] == at["stages/balanced_accuracy"]
    target = np.array([CLASSES.index(label) for label in table["label"]])
    for way in ("zero_shot", "size_and_brightness", "size", "brightness"):
        p = table[[f"{way}_p_{name}" for name in CLASSES]].to_numpy()
        areas = [roc_auc_score(target == k, p[:, k]) for k in range(3)]
        assert at[f"{way}/macro_auroc"] == pytest.approx(np.mean(areas))
        assert [at[f"{way}/{name}/auroc"] for name in CLASSES] == pytest.approx(areas)
        assert at[f"{way}/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, p.argmax(1)))
    difference = result.metrics["zero_shot/macro_auroc_minus_size_and_brightness"]
    assert difference["value"] == pytest.approx(1 - at["size_and_brightness/macro_auroc"])
    assert at["chance/macro_auroc"] == 0.5 and at["chance/balanced_accuracy"] == pytest.approx(1 / 3)
    assert at["size/macro_auroc"] < at["size_and_brightness/macro_auroc"]


def test_few_boxes_are_drawn_several_times(result):
    entry = result.metrics["stages_4_boxes/macro_auroc"]
    assert entry["sd"] >= 0 and "4 patients of the rarest class" in entry["reason"]
    beside = result.metrics["stages_4_boxes/macro_auroc_minus_size_and_brightness"]["value"]
    few_boxes = result.metrics["size_and_brightness_4_boxes/macro_auroc"]["value"]
    assert beside == pytest.approx(entry["value"] - few_boxes)  # with the baseline of as many boxes


def test_few_holds_so_many_of_each_class_and_of_more_those_of_fewer():
    target = np.repeat([0, 1, 2], [10, 3, 8])
    taken = few(target, 4, seed=0)
    assert np.bincount(target[taken]).tolist() == [4, 3, 4] and set(few(target, 2, seed=0)) < set(taken)
    assert set(few(target, 4, seed=1)) != set(taken)


def test_a_blind_model_is_at_chance_and_no_region_is_in_two_splits(dataset):
    result = region_classification(
        RegionModel(blind=True), dataset, concepts=CONCEPTS, boxes=(), cs=(1.0,), resamples=0
    )
    at = {name: entry["value"] for name, entry in result.metrics.items()}
    assert at["zero_shot/macro_auroc"] == 0.5 == at["stages/macro_auroc"]
    assert at["zero_shot/balanced_accuracy"] == pytest.approx(at["chance/balanced_accuracy"])
    counts = result.tables["counts"].set_index("split")
    assert counts.loc[["train", "val", "test"], "patients"].tolist() == [6, 6, 6]
    assert len(result.tables["regions"]) == counts.loc["test", CLASSES].sum()
    alone = region_classification(
        RegionModel(), dataset, concepts=CONCEPTS, train_split="", labels=("mass",), resamples=0
    )
    assert not any(name.startswith(("stages", "size")) for name in alone.metrics)
    assert alone.metrics["zero_shot/macro_auroc"]["value"] == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "train"}, "learns from split 'train': test on another"),
        ({"vectors": "stages"}, "no kind of vectors beside texts 'stages'"),
        ({"labels": ("asymmetry",), "concepts": {"asymmetry": ["x"], "normal_tissue": ["y"]}}, "no box of asymmetry"),
        ({"split": "tests"}, "no image is in split 'tests'"),
    ],
)
def test_what_is_wrong_is_said(dataset, options, message):
    with pytest.raises(UserError, match=message):
        region_classification(RegionModel(), dataset, **{"concepts": CONCEPTS} | options)
