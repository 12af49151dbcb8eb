"""A classifier's result: its predictions against the labels, of images or of whole breasts and exams."""

import json

import numpy as np
import pandas as pd
import pytest
from fakes import FakeDataset
from sklearn.metrics import roc_auc_score

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators.classification import classification
from mammoclip_jax.evaluation.metrics.calibration import choose_threshold, platt


class FakeClassifier:
    """The probability of a mass is the brightest pixel's; of a breast or exam the highest of the views that are there."""

    kind, step, labels = "classifier", 3, ("mass",)

    def __init__(self, **task):
        self.config = defaults()
        self.config.task.update(kind="classifier", **task)

    def classify(self, images):
        score = images.reshape(len(images), -1).max(axis=1) / 255
        return np.stack([score, 1 - score], axis=1)[:, : len(self.labels)]

    def classify_views(self, images, there):
        scores = images.reshape(*images.shape[:2], -1).max(axis=2) / 255
        score = np.where(there, scores, 0).max(axis=1)
        return np.stack([score, 1 - score], axis=1)[:, : len(self.labels)]


def test_images_are_scored_and_kept():
    dataset = FakeDataset(8)
    found = classification(FakeClassifier(), dataset, resamples=20)
    truth = [json.loads(labels)["mass"] for labels in dataset.index["labels"]]
    scores = [image.max() / 255 for image in dataset.images]
    assert found.metrics["mass/auroc_image"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert found.metrics["mass/auroc_image"]["n"] == 32 and found.metrics["mass/auroc"]["n"] == 16
    table = found.tables["predictions"]
    assert table["truth"].tolist() == truth and table["score"].tolist() == pytest.approx(scores)


@pytest.mark.parametrize("unit, count, metric", [("breast", 16, "auroc"), ("exam", 8, "auroc_exam")])
def test_breasts_and_exams_are_scored_whole(unit, count, metric):
    dataset = FakeDataset(8)
    found = classification(FakeClassifier(unit=unit), dataset, resamples=0)
    groups = dataset.index.groupby(["patient", "laterality"] if unit == "breast" else ["patient"], sort=False).indices
    scores = [max(dataset.images[i].max() / 255 for i in members) for members in groups.values()]
    truth = [max(json.loads(dataset.index["labels"][i])["mass"] for i in members) for members in groups.values()]
    assert found.metrics[f"mass/{metric}"] | {"low": None, "high": None} == {
        "value": pytest.approx(roc_auc_score(truth, scores)),
        "low": None,
        "high": None,
        "n": count,
    }
    assert "mass/auroc_image" not in found.metrics


def test_a_view_that_is_not_there_counts_for_nothing():
    dataset = FakeDataset(4)
    dataset.index = dataset.index.drop([0, 5]).reset_index(drop=True)
    dataset.images = [image for i, image in enumerate(dataset.images) if i not in (0, 5)]
    found = classification(FakeClassifier(unit="exam"), dataset, resamples=0)
    groups = dataset.index.groupby("patient", sort=False).indices
    scores = [max(dataset.images[i].max() / 255 for i in members) for members in groups.values()]
    assert found.tables["predictions"]["score"].tolist() == pytest.approx(scores)


def test_an_exam_of_six_views_is_scored_by_its_four_standard_ones():
    dataset = FakeDataset(1)
    six = dataset.index.iloc[[0, 1, 0, 2, 3, 2]].reset_index(drop=True)
    dataset.index = six.assign(view=["ML", "MLO", "CC", "ML", "MLO", "CC"], image=list("abcdef"))
    dataset.images = [np.full((4, 4), 40 * place, np.uint8) for place in range(6)]
    seen = []

    class Looking(FakeClassifier):
        def classify_views(self, images, there):
            seen.extend(images[0, there[0], 0, 0] // 40)
            return super().classify_views(images, there)

    classification(Looking(unit="exam"), dataset, resamples=0)
    assert sorted(seen) == [1, 2, 4, 5]


def test_classes_of_a_label():
    dataset = FakeDataset(8)
    dataset.index["labels"] = [
        json.dumps({"density": "D" if json.loads(x)["mass"] else "A"}) for x in dataset.index["labels"]
    ]
    model = FakeClassifier(label="density")
    model.labels = ("D", "A")
    found = classification(model, dataset, resamples=0)
    table = found.tables["predictions"]
    right = np.where(table["p_D"] >= table["p_A"], "D", "A") == table["truth"]
    assert found.metrics["density/accuracy_image"]["value"] == pytest.approx(right.mean())


@pytest.mark.parametrize("choose_on", ["", "val"])
def test_two_classes_0_and_1_are_scored_as_a_yes_no_label(choose_on):
    dataset = FakeDataset(12, seed=1)
    patients = dataset.index["patient"].unique()
    dataset.index["split"] = np.where(dataset.index["patient"].isin(patients[:6]), "val", "test")

    class Two(FakeClassifier):
        labels = ("0", "1")

        def classify(self, images):
            return super().classify(images)[:, ::-1]

    options = dict(choose_on=choose_on, resamples=0)
    yes, two = (classification(model, dataset, **options) for model in (FakeClassifier(), Two(label="mass")))
    assert two.metrics == yes.metrics and two.protocol == yes.protocol
    pd.testing.assert_frame_equal(two.tables["predictions"], yes.tables["predictions"], check_dtype=False)


def test_a_label_that_is_not_the_models_is_named():
    with pytest.raises(UserError, match="holds 0, which is not in"):
        classification(FakeClassifier(), FakeDataset(2), label="mass")


def test_a_threshold_and_a_scaling_come_from_the_validation_part():
    dataset = FakeDataset(12, seed=1)
    patients = dataset.index["patient"].unique()
    dataset.index["split"] = np.where(dataset.index["patient"].isin(patients[:6]), "val", "test")
    model = FakeClassifier()
    plain = classification(model, dataset, resamples=0)
    found = classification(model, dataset, choose_on="val", resamples=0)
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics
    parts = {}
    for split in ("val", "test"):
        places = np.flatnonzero(dataset.index["split"] == split)
        parts[split] = (
            np.array([json.loads(dataset.index["labels"][i])["mass"] for i in places]),
            np.array([dataset.images[i].max() / 255 for i in places]),
        )
    cut = choose_threshold(*parts["val"])
    truth, score = parts["test"]
    assert found.metrics["mass/threshold_image"]["value"] == cut
    assert found.metrics["mass/sensitivity_image"]["value"] == (score[truth == 1] >= cut).mean()
    scaled = platt(*parts["val"])(score)
    assert found.metrics["mass/brier_recalibrated_image"]["value"] == pytest.approx(((scaled - truth) ** 2).mean())
    assert found.metrics["mass/brier_recalibrated_image"]["value"] < found.metrics["mass/brier_image"]["value"]
    assert "Chosen on split val" in found.protocol and "Chosen" not in plain.protocol
    assert parts["test"][0].size == found.metrics["mass/sensitivity_image"]["n"]
    dataset.index["labels"] = np.where(dataset.index["split"] == "val", '{"mass": 0}', dataset.index["labels"])
    reason = classification(model, dataset, choose_on="val", resamples=0).metrics["mass/threshold"]["reason"]
    assert "needs positive and negative cases" in reason


@pytest.mark.parametrize(
    "choose_on, split, reason",
    [("test", "test", "flatters"), ("val", "all", "flatters"), ("dev", "test", "no split 'dev'")],
)
def test_where_nothing_can_be_chosen_the_rest_is_scored_and_a_reason_given(choose_on, split, reason):
    dataset, model = FakeDataset(6, seed=1), FakeClassifier()
    plain = classification(model, dataset, split=split, resamples=0)
    found = classification(model, dataset, split=split, choose_on=choose_on, resamples=0)
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics
    for name in ("threshold_image", "kappa", "brier_recalibrated_exam"):
        entry = found.metrics[f"mass/{name}"]
        assert (
            entry["value"] is None
            and reason in entry["reason"]
            and entry["n"]
            == plain.metrics[
                "mass/auroc" + {"threshold_image": "_image", "kappa": "", "brier_recalibrated_exam": "_exam"}[name]
            ]["n"]
        )
    assert reason in found.protocol
