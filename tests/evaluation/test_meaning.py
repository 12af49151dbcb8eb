"""What scores mean, measured: fitted on one split, tested on another, by formulas of their own."""

import json

import numpy as np
import pytest
from fakes import SHAPE, FakeDataset, FakeModel
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.meaning import measure
from mammoclip_jax.evaluation.metrics import calibration
from mammoclip_jax.inference.calibration import Reference
from mammoclip_jax.inference.looks import Meant
from mammoclip_jax.inference.prompt_files import load_prompts


class Bright(Meant):
    """A mass shows in the brightest pixels, through noise that depends on the image alone; far too sure of itself."""

    kind, labels, step, trained_on, provenance = "classifier", ("mass",), 3, "", {}
    preprocessing = FakeModel.preprocessing

    def __init__(self, **task):
        self.config = defaults()
        self.config.task.update(kind="classifier", **task)

    def fingerprint(self):
        return "f"

    def classify(self, images, *, calibrated=None):
        peak = images.reshape(len(images), -1).max(axis=1) / 255
        noise = images[:, SHAPE[0] // 2, 1:9].astype(float).std(axis=1) / 2
        return self._meant(expit(3 * (4 * (peak - 0.7) + 3 * np.clip(noise - 2.8, -1, 1)))[:, None], calibrated)


@pytest.fixture(scope="module")
def dataset():
    made = FakeDataset(60, seed=3)
    patient = made.index["patient"].str[1:].astype(int)
    made.index["split"] = np.select([patient < 20, patient < 40], ["train", "val"], "test")
    return made


@pytest.fixture(scope="module")
def measured(dataset):
    return measure(Bright(), dataset, resamples=0)


def of(dataset, split):
    rows = np.flatnonzero(dataset.index["split"] == split)
    scores = Bright().classify(np.stack([dataset.images[i] for i in rows]))[:, 0]
    truth = np.array([json.loads(dataset.index["labels"][i])["mass"] for i in rows])
    return truth, scores, dataset.index.iloc[rows]


def test_maps_are_fitted_on_validation_and_tested_on_test(dataset, measured):
    entry, found = measured
    truth, scores, _ = of(dataset, "val")
    theirs = LogisticRegression(C=1e9).fit(logit(scores)[:, None], truth)
    own = entry["levels"]["image"]["mass"]
    assert own["map"]["odds"] and own["n"] == 80 and own["positives"] == truth.sum()
    assert own["map"]["slope"] == pytest.approx(theirs.coef_[0, 0], rel=0.1)
    test_truth, test_scores, rows = of(dataset, "test")
    after = expit(own["map"]["slope"] * logit(test_scores) + own["map"]["intercept"])
    assert found.metrics["mass/brier_image"]["value"] == pytest.approx(((test_scores - test_truth) ** 2).mean())
    assert found.metrics["mass/brier_calibrated_image"]["value"] == pytest.approx(((after - test_truth) ** 2).mean())
    assert found.metrics["mass/brier_calibrated_image"]["value"] < found.metrics["mass/brier_image"]["value"]
    assert entry["tested_on"]["images"] == 80 and entry["fitted_on"] == {"split": "val", "images": 80, "patients": 20}
    assert entry["tested_on"]["metrics"]["mass/brier_image"]["value"] == found.metrics["mass/brier_image"]["value"]
    table = found.tables["predictions"]
    np.testing.assert_allclose(table["score"], test_scores)
    assert table["image"].tolist() == rows["image"].tolist()


def test_each_level_has_its_own_map(dataset, measured):
    entry, _ = measured
    truth, scores, rows = of(dataset, "val")
    highest, any_mass = {}, {}
    for score, real, patient, side in zip(scores, truth, rows["patient"], rows["laterality"]):
        highest[patient] = max(score, highest.get(patient, 0))
        any_mass[patient] = max(real, any_mass.get(patient, 0))
    again = calibration.platt(list(any_mass.values()), list(highest.values()), odds=True)
    assert entry["levels"]["exam_max"]["mass"]["map"]["slope"] == pytest.approx(again.slope, rel=1e-4)
    assert entry["levels"]["exam_max"]["mass"]["n"] == 20 and set(entry["levels"]) == {
        "image",
        "breast",
        "breast_max",
        "exam",
        "exam_max",
    }


def test_the_figures_are_those_of_the_evaluator(dataset, measured):
    """`classification` with choose_on fits the same, but on scores where this fits on their odds."""
    from mammoclip_jax.evaluation.evaluators.classification import classification

    theirs = classification(Bright(), dataset, resamples=0).metrics
    for name in ("mass/brier_image", "mass/ece", "mass/auroc_exam"):
        assert measured[1].metrics[name]["value"] == pytest.approx(theirs[name]["value"])


def test_percentiles_are_of_the_splits_named(dataset, measured):
    reference = Reference(json.loads(json.dumps(measured[0])))
    for split in ("train", "val"):
        _, scores, _ = of(dataset, split)
        found = reference.places({"mass": float(np.median(scores))})["mass"][split]
        assert found["percentile"] == pytest.approx(50, abs=1.5) and found["n"] == 80
        assert found["low"] < 35 and found["high"] > 65  # 20 patients


def test_isotonic_calibration_is_scikit_learns(dataset):
    entry, _ = measure(Bright(), dataset, method="isotonic", resamples=0)
    truth, scores, _ = of(dataset, "val")
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, truth)
    grid = np.linspace(0, 1, 50)
    np.testing.assert_allclose(Reference(entry).one("mass", grid), theirs.predict(grid), atol=1e-6)


def test_a_dual_encoder_is_calibrated_with_its_prompts(dataset):
    class Dual(FakeModel, Meant):
        def fingerprint(self):
            return "f"

    pairs = load_prompts({"mass": {"positive": "mass", "negative": "no mass"}})
    entry, found = measure(Dual(), dataset, pairs=pairs, resamples=0)
    assert entry["prompts"] and not entry["levels"]["image"]["mass"]["map"]["odds"]
    assert "mass/brier_image" not in found.metrics and found.metrics["mass/brier_calibrated_image"]["value"] < 0.25
    model = Dual()
    model.calibration = [entry]
    assert model.reference(pairs).labels == ("mass",)
    with pytest.raises(UserError, match="by prompts"):
        model.reference()


def test_what_cannot_be_measured_is_refused(dataset):
    classes = Bright()
    classes.config.model.activation = "softmax"
    for model, options, said in (
        (Bright(), {"test_on": "val"}, "name two splits"),
        (Bright(), {"fit_on": "vall"}, "no image is in split 'vall'"),
        (Bright(), {"method": "plat"}, "Did you mean 'platt'"),
        (classes, {"method": "isotonic"}, "method='temperature'"),
    ):
        with pytest.raises(UserError, match=said):
            measure(model, dataset, resamples=0, **options)
    segmenter = Bright()
    segmenter.kind = "segmenter"
    with pytest.raises(UserError, match="are not calibrated"):
        measure(segmenter, dataset)
