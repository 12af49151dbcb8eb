"""The heights of curves and bands; that every plot is a picture, also where there is nothing to plot."""

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from mammoclip_jax.evaluation.metrics import calibration
from mammoclip_jax.evaluation.page import curves
from mammoclip_jax.evaluation.statistics.discrimination import curve

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 80)
LINE = curves.Scores(TRUTH, np.round(RNG.normal(size=80) + TRUTH, 1), np.arange(80) // 2)


def found_curve():
    return curve(LINE.truth, LINE.score)(np.ones((1, 80)))


def test_the_roc_curve_is_scikit_learns():
    false_positive, sensitivity, _ = roc_curve(LINE.truth, LINE.score, drop_intermediate=False)
    found = curves._sensitivity(found_curve())[0]
    for x, y in zip(curves._GRID, found):
        at = np.isclose(false_positive, x)
        expected = sensitivity[at].max() if at.any() else np.interp(x, false_positive, sensitivity)
        assert y == pytest.approx(expected, abs=1e-6)


def test_precision_is_that_of_the_highest_threshold_which_reaches_the_recall():
    precision, recall, _ = precision_recall_curve(LINE.truth, LINE.score)
    found = curves._precision(found_curve())[0]
    for x, y in list(zip(curves._GRID, found))[1:]:
        assert y == pytest.approx(precision[np.flatnonzero(recall >= x - 1e-9)[-1]])


def test_a_resample_of_one_class_has_no_curve():
    weights = np.stack([np.where(TRUTH == 1, 1.0, 0.0), np.ones(80)])
    for heights in (curves._sensitivity, curves._precision):
        found = heights(curve(LINE.truth, LINE.score)(weights))
        assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


def test_wilsons_interval():
    low, high = curves._wilson(pd.Series([0.0, 0.5]), pd.Series([10, 10]))
    np.testing.assert_allclose([low, high], [[0, 0.2366], [0.2775, 0.7634]], atol=1e-3)


ONE_CLASS = curves.Scores(np.zeros(4, dtype=int), np.arange(4.0), np.arange(4))
SUBGROUPS = pd.DataFrame(
    {
        "by": ["all", "density"],
        "group": ["all", "B"],
        "metric": "auroc",
        "value": [0.8, None],
        "low": [0.7, None],
        "high": [0.9, None],
        "n": [40, 3],
        "positives": [20, 0],
    }
)
PLOTS = {
    "roc": lambda **o: curves.roc({"a": LINE, "b": ONE_CLASS}, resamples=20, **o),
    "roc without a band": lambda **o: curves.roc({"a": LINE}, resamples=0, **o),
    "precision_recall": lambda **o: curves.precision_recall({"a": LINE}, resamples=20, **o),
    "reliability": lambda **o: curves.reliability_diagram(
        {f"{b} bins": calibration.reliability(LINE.truth, 1 / (1 + np.exp(-LINE.score)), bins=b) for b in (5, 9)}, **o
    ),
    "confusion": lambda **o: curves.confusion_matrix([[3, 1], [0, 0]], ["benign", "malignant"], **o),
    "forest": lambda **o: curves.forest(SUBGROUPS, title="mass", **o),
    "forest of nothing": lambda **o: curves.forest(SUBGROUPS[1:], **o),
}


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_a_png_and_an_svg_that_do_not_change(name):
    png = PLOTS[name]()
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert min(image.shape[:2]) > 50 and np.ptp(image) > 100
    svg = PLOTS[name](form="svg", shade="dark")
    assert b"<svg" in svg and svg == PLOTS[name](form="svg", shade="dark")
