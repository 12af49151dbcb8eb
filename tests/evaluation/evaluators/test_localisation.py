"""Boxes from maps: what the figures are on made-up data, and whether they follow from the table of images."""

import json

import numpy as np
import pytest
from fakes import FakeDataset, FakeModel
from naive_boxes import naive_iou

from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.evaluators import localisation as module
from mammoclip_jax.evaluation.evaluators.localisation import localisation
from mammoclip_jax.evaluation.page.display import heading, headlines


class TwoMaps(FakeModel):
    """HiResCAM is brightness times the place from left to right; all other maps are the brightness."""

    def saliency(self, images, texts, *, stage, method, raw, **options):
        assert raw and np.shape(texts) == (len(images), 2) and (stage is None) == (method == "brightness")
        bright = images.astype(np.float32) / 255
        return bright * np.linspace(0, 1, bright.shape[2]) if method == "hires_cam" else bright

    def map_stage(self, method, stage=None):
        return "" if method == "brightness" else super().map_stage(method, stage)


@pytest.fixture(scope="module")
def found():
    return localisation(TwoMaps(), FakeDataset(12), method="similarity", resamples=30, gallery=4)


def test_a_bright_mass_is_found_by_its_brightness(found):
    values = {name: entry["value"] for name, entry in found.metrics.items()}
    assert values["mass/similarity/published/recall@0.5"] == values["mass/similarity/breast/recall@0.5"] > 0.8
    assert values["mass/similarity/published/recall@0.25_minus_brightness"] == 0
    assert values["mass/hires_cam/published/recall@0.5_minus_brightness"] < 0
    assert values["mass/centre/published/recall@0.5"] < 0.3 and values["mass/centre/published/regions"] == 1
    assert values["mass/similarity/published/ap@0.5"] >= values["mass/similarity/published/ap@0.5_with_normals"]
    assert (
        found.metrics["calcification/similarity/published/recall@0.25"]["reason"] == "no image has a box of this label"
    )
    assert not any("brightness/published" in name and "minus" in name for name in found.metrics)


def test_with_as_many_regions_as_brightness_only_the_strongest_count(found):
    rows = found.tables["images"].query("rule == 'published' and boxes > 0").set_index(["map", "image"])
    regions = found.tables["regions"]
    dataset = FakeDataset(12)
    hits = 0
    for _, row in dataset.index.iterrows():
        if row["image"] not in rows.loc["hires_cam"].index:
            continue
        image = dataset.images[row.name].astype(np.float32) / 255
        heat = image * np.linspace(0, 1, image.shape[1])
        boxes, _ = of_maps.located(heat, of_maps.above(heat, heat > 0, 0.95))
        (truth,) = (item["box"] for item in json.loads(row["boxes_canvas"]))
        few = boxes[: rows.loc["brightness", row["image"]]["regions"]]
        hits += any(naive_iou(truth, box) >= 0.25 for box in few)
    count = len(rows.loc["hires_cam"])
    assert found.metrics["mass/hires_cam/published/recall@0.25_as_many"]["value"] == pytest.approx(hits / count)
    less = found.metrics["mass/hires_cam/published/recall@0.25_as_many_minus_brightness"]["value"]
    assert less == pytest.approx((hits - rows.loc["brightness"]["found_0.25"].sum()) / count)
    assert len(regions) == found.tables["images"].query("map == 'similarity' and rule == 'published'")["regions"].sum()


@pytest.mark.parametrize("name", ["similarity", "hires_cam", "brightness", "centre"])
@pytest.mark.parametrize("rule", of_maps.RULES)
def test_figures_follow_from_the_images(found, name, rule):
    table = found.tables["images"].query("map == @name and rule == @rule")
    dataset = FakeDataset(12)
    assert len(table) == len(dataset) and set(table["label"]) == {"mass"}
    positive = table[table["boxes"] > 0]
    for least in (0.25, 0.5):
        for end in ("", "_small", "_medium", "_large"):
            metric = f"mass/{name}/{rule}/recall@{least:g}{end}"
            if boxes := positive[f"boxes{end}"].sum():
                hits = positive[f"found_{least:g}{end}"].sum()
                assert found.metrics[metric]["value"] == pytest.approx(hits / boxes)
            else:
                assert metric not in found.metrics
    assert found.metrics[f"mass/{name}/{rule}/regions"]["value"] == pytest.approx(positive["regions"].mean())
    assert found.metrics[f"mass/{name}/{rule}/regions_with_normals"]["value"] == pytest.approx(table["regions"].mean())


def test_the_regions_of_an_image_are_those_of_its_map(found):
    dataset, rows = FakeDataset(12), found.tables["regions"]
    for place in (0, 5, 11):
        heat = dataset.images[place].astype(np.float32) / 255
        boxes, scores = of_maps.located(heat, of_maps.above(heat, heat > 0, 0.95))
        own = rows[rows["image"] == dataset.index["image"][place]]
        np.testing.assert_allclose(own[["x0", "y0", "x1", "y1", "score"]], np.c_[boxes, scores])
        assert (np.diff(scores) <= 0).all()


def test_pictures_show_hits_and_misses_and_the_page_has_headings(found):
    shown = found.tables["pictures"]
    assert set(shown["figure"]) == set(found.figures) and (shown["boxes"] == 1).all() and len(shown) == 4
    misses = found.tables["images"].query(
        "map == 'similarity' and rule == 'published' and boxes > 0 and `found_0.25` == 0"
    )
    assert (shown["found"] == 0).sum() == min(2, len(misses))
    assert heading("mass/factor/published/recall@0.25_small") == ("Boxes found, small, IoU 0.25", "percent")
    assert heading("mass/factor/published/ap@0.25_with_normals") == ("AP with normals, IoU 0.25", "plain")
    assert not headlines([found])
    assert "stated in no text that could be opened" in found.protocol


def test_what_does_not_fit_is_an_error():
    dataset = FakeDataset(2)
    with pytest.raises(UserError, match="the evaluator localisation got iou"):
        localisation(FakeModel(), dataset, iou=(0.0,))
    with pytest.raises(UserError, match="label of the evaluator localisation"):
        localisation(FakeModel(), dataset, labels=("masss",))


def test_regions_are_connected_over_corners_and_their_boxes_end_behind_them():
    heat = np.zeros((6, 7))
    heat[1, 1], heat[2, 2], heat[4, 5], heat[0, 6] = 0.5, 0.9, 0.7, 0.2
    boxes, scores = of_maps.located(heat, heat > 0)
    assert boxes.tolist() == [[1, 1, 3, 3], [5, 4, 6, 5], [6, 0, 7, 1]] and scores.tolist() == [0.9, 0.7, 0.2]
    assert naive_iou(boxes[0], [1, 1, 3, 3]) == 1
    boxes, scores = of_maps.located(heat, heat > 1)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_the_published_rule_is_strict_and_over_the_whole_map():
    heat = np.arange(21.0).reshape(3, 7)  # the 0.95 quantile is the value 19 itself
    tissue = heat < 11
    assert np.argwhere(of_maps.above(heat, tissue, 0.95)).tolist() == [[2, 6]]
    assert not of_maps.above(np.full((3, 7), 0.3), tissue, 0.95).any()
    assert heat[of_maps.RULES["breast"](heat, tissue, 0.95)].tolist() == [10]


def test_hires_cam_may_be_another_encoders(monkeypatch):
    class Other(TwoMaps):
        def saliency(self, images, texts, **options):
            return np.zeros(images.shape, np.float32)

    dataset = FakeDataset(4)
    monkeypatch.setattr(module, "load", lambda name: Other())
    found = localisation(TwoMaps(), dataset, method="similarity", dual_encoder="theirs", resamples=0, gallery=0)
    assert found.metrics["mass/hires_cam/published/regions"]["value"] == 0  # a flat map has none
    assert "of the dual encoder theirs" in found.protocol
    own = localisation(TwoMaps(), dataset, method="hires_cam", dual_encoder="theirs", resamples=0, gallery=0)
    assert own.metrics["mass/hires_cam/published/regions"]["value"] > 0
    assert own.metrics["mass/hires_cam_of_dual_encoder/published/regions"]["value"] == 0
    monkeypatch.setattr(Other, "kind", "classifier")
    with pytest.raises(UserError, match="must be a dual encoder whose images were prepared as the model's"):
        localisation(TwoMaps(), dataset, method="similarity", dual_encoder="theirs")
