"""Calibrated scores and percentiles in use: each level by its own map, places by counting."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import beta
from toys import Toy, breasts

from mammoclip_jax.config import defaults
from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import calibration
from mammoclip_jax.inference.calibration import Isotonic, Platt, Reference, Temperature, meant
from mammoclip_jax.inference.exam import predict
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.predict import scoring

SLOPES = {"image": 1.0, "breast": 2.0, "breast_max": 0.5, "exam": 3.0, "exam_max": 0.25}
SCORES = {"mass": np.linspace(0, 0.5, 41) ** 2, "calcification": np.linspace(0.5, 1, 41)}


def entry(model, **more):
    """As `calibrate` stores: Platt on the odds, with another slope at each level; 41 scores of 20 patients."""
    kept = {
        "n": 41,
        "patients": 20,
        "quantiles": {label: calibration.quantiles(scores) for label, scores in SCORES.items()},
    }
    maps = {
        level: {
            label: {"map": calibration.to_json(Platt(slope, place - 0.5, True)), "n": 41, "positives": 9}
            for place, label in enumerate(model.labels)
        }
        for level, slope in SLOPES.items()
    }
    return json.loads(
        json.dumps(
            model.key()
            | {
                "step": 5,
                "labels": list(model.labels),
                "classes": False,
                "method": "platt",
                "dataset": "phantom",
                "fitted_on": {"split": "val", "images": 41, "patients": 20},
                "levels": maps,
                "reference": {
                    "train": {"split": "train", "images": 41, "patients": 20, "levels": {"image": kept, "exam": kept}}
                },
            }
            | more
        )
    )


def platt(score, slope, intercept):
    odds = min(max(score, 1e-7), 1 - 1e-7)
    return 1 / (1 + math.exp(-(slope * math.log(odds / (1 - odds)) + intercept)))


def test_classify_gives_calibrated_scores_where_they_were_measured():
    images, model = breasts(), Toy()
    with pytest.raises(UserError, match="nothing is stored with this model.*python -m mammoclip_jax.calibrate"):
        model.classify(images, calibrated=True)
    model.calibration = [entry(model)]
    raw, found = model.classify(images), model.classify(images, calibrated=True)
    for i, k in np.ndindex(raw.shape):
        assert found[i, k] == pytest.approx(platt(float(raw[i, k]), 1.0, k - 0.5), abs=1e-5)
    model.calibrated = True
    np.testing.assert_array_equal(model.classify(images), found)
    np.testing.assert_array_equal(model.classify(images, calibrated=False), raw)
    model.config.task.unit = "breast"
    whole = model.classify_views(images[:4].reshape(2, 2, *images.shape[1:]), np.ones((2, 2), bool))
    assert whole[1, 0] == pytest.approx(platt(float(raw[2:4, 0].mean()), 2.0, -0.5), abs=1e-5)


def test_what_was_measured_of_other_weights_or_looks_says_nothing():
    model = Toy()
    model.calibration = [entry(model)]
    with pytest.raises(UserError, match=r"of other ways to score \(plain\), and this is mirror=True"):
        Mirrored(model).classify(breasts(), calibrated=True)
    model.name = "after more training"
    with pytest.raises(UserError, match="of other weights"):
        model.reference()
    newer, older = entry(model, method="isotonic"), entry(model)
    model.calibration = [older, newer]
    assert model.reference().entry == newer


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate.generate(out, 1, Parameters(height=160, width=128))
    (folder,) = (out / "exams").iterdir()
    return folder


def test_predict_calibrates_each_level_and_keeps_the_scores_as_they_are(exam):
    model = Toy(size=(96, 64))
    raw = predict(model, exam)["exams"][0]
    assert "percentiles" not in raw["views"][0] and "uncalibrated" not in raw
    model.calibration = [entry(model)]
    found = predict(model, exam, calibrated=True, percentile=True)
    (scored,) = found["exams"]
    for own, plain in zip(scored["views"], raw["views"], strict=True):
        assert own["uncalibrated"] == plain["scores"]
        assert own["scores"]["mass"] == pytest.approx(platt(plain["scores"]["mass"], 1.0, -0.5), abs=1e-5)
        place = own["percentiles"]["calcification"]["train"]
        score = plain["scores"]["calcification"]
        assert place["percentile"] == pytest.approx(
            100 * np.interp(score, SCORES["calcification"], np.linspace(0, 1, 41)), abs=0.6
        )
        assert place["n"] == 41
    for part, plain, level in (
        *((b, p, "breast") for b, p in zip(scored["breasts"], raw["breasts"], strict=True)),
        (scored, raw, "exam"),
    ):
        for how in ("mean", "max"):
            slope = SLOPES[level if how == "mean" else f"{level}_max"]
            expected = platt(plain["scores"]["calcification"][how], slope, 0.5)
            assert part["scores"]["calcification"][how] == pytest.approx(expected, abs=1e-5)
    assert set(scored["percentiles"]["mass"]["mean"]) == {"train"} and scored["percentiles"]["mass"]["max"] == {}
    assert found["aggregation"]["view"].startswith("calibrated probability (platt, fitted on 41 images of 20 patients")
    assert "tested" not in found["aggregation"]["view"] and "a map of its own" in found["aggregation"]["exam"]
    assert found["options"]["calibrated"] and found["options"]["measured"]["sets"] == {
        "train": {"images": 41, "patients": 20}
    }
    json.dumps(found, allow_nan=False)


def test_a_place_among_scores_is_the_share_below_with_the_interval_of_so_many_patients():
    scores = np.random.default_rng(0).normal(size=401)
    for score in (-9.0, -0.3, 0.0, 1.7, 9.0):
        found = calibration.place(score, calibration.quantiles(scores), 401, 100)
        below = (scores < score).mean()
        assert found.percentile == pytest.approx(100 * below, abs=0.6) and found.n == 401
        hits = round(found.percentile)
        low = 0.0 if hits == 0 else beta.ppf(0.025, hits, 101 - hits)
        high = 1.0 if hits == 100 else beta.ppf(0.975, hits + 1, 100 - hits)
        assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=1e-6)
    many = calibration.quantiles(np.r_[np.zeros(60), np.ones(40)])
    assert calibration.place(0.0, many, 100, 100).percentile == pytest.approx(30, abs=1)  # half of those that equal it


def test_maps_come_back_from_json_and_are_their_formulas():
    for fitted in (Platt(2.0, -1.0), Platt(0.5, 0.1, True), Temperature(1.7), Isotonic((0.1, 0.4), (0.2, 0.9))):
        assert calibration.from_json(json.loads(json.dumps(calibration.to_json(fitted)))).__class__ is type(fitted)
    np.testing.assert_allclose(Isotonic((0.1, 0.4), (0.2, 0.9))([0.0, 0.25, 1.0]), [0.2, 0.55, 0.9])
    assert Platt(1.0, 0.0, True)([0.3]) == pytest.approx([0.3])  # what is calibrated stays as it is
    with pytest.raises(UserError, match="no kind of calibration 'plat'"):
        calibration.from_json({"kind": "plat"})


def test_classes_are_calibrated_together_and_a_label_without_a_map_is_an_error():
    maps = {level: {"classes": {"map": {"kind": "temperature", "temperature": 2.0}}} for level in SLOPES}
    reference = Reference({"labels": ["A", "B"], "classes": True, "levels": maps, "reference": {}})
    found = meant(reference, {"A": 0.8, "B": 0.2}, "image", True, False)
    assert found["scores"]["A"] == pytest.approx(2 / 3) and sum(found["scores"].values()) == pytest.approx(1)
    model = Toy()
    lacking = entry(model)
    del lacking["levels"]["image"]["mass"]
    model.calibration = [lacking]
    with pytest.raises(UserError, match="nothing was fitted to calibrate 'mass' at the level 'image'"):
        model.classify(breasts(), calibrated=True)


def test_flags_of_predict_go_before_the_config():
    settings = defaults().predict
    settings.update(mirror=True, windows=2.0, pool="mean", calibrated=True)
    none = SimpleNamespace(mirror=None, windows=None, pool=None, calibrated=None, percentile=None)
    assert scoring(none, settings) == {
        "mirror": True,
        "windows": 2.0,
        "pool": "mean",
        "calibrated": True,
        "percentile": False,
    }
    given = SimpleNamespace(mirror=False, windows=0.0, pool=None, calibrated=None, percentile=True)
    assert scoring(given, settings) == {
        "mirror": False,
        "windows": 0.0,
        "pool": "",
        "calibrated": True,
        "percentile": True,
    }
