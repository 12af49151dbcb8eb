import cv2
import numpy as np
import pytest
from fakes import SHAPE, FakeDataset, FakeModel

from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation import features
from mammoclip_jax.evaluation.evaluators.saliency import inside, pointing_game, saliency
from mammoclip_jax.explain.maps import peak_of

BOX = np.array([[2.0, 3.0, 5.0, 7.0]])  # columns 2 to 4, rows 3 to 6


def peak(y, x, shape=(10, 8)):
    heat = np.full(shape, 0.1, dtype=np.float32)
    heat[y, x] = 1.0
    return heat


@pytest.mark.parametrize("y, x, expected", [(3, 2, 1), (6, 4, 1), (7, 4, 0), (6, 5, 0), (2, 2, 0), (3, 1, 0)])
def test_the_maximum_must_lie_in_the_box_whose_far_edges_are_exclusive(y, x, expected):
    assert pointing_game(peak(y, x), BOX, np.ones((10, 8), dtype=bool)).hit == expected


def test_tolerance_grows_the_box_for_map_and_baselines_alike():
    breast = np.zeros((10, 8), dtype=bool)
    breast[8, 4] = True
    near = pointing_game(peak(7, 4), BOX, breast, tolerance=2.0)
    assert (near.hit, near.centre, near.chance) == (1.0, 1.0, 1.0)
    exact = pointing_game(peak(7, 4), BOX, breast)
    assert (exact.hit, exact.centre, exact.chance) == (0.0, 0.0, 0.0)


def test_any_of_several_boxes_counts():
    boxes = np.array([[0, 0, 1, 1], [6, 8, 8, 10]], dtype=float)
    assert pointing_game(peak(9, 7), boxes, np.ones((10, 8), dtype=bool)).hit == 1.0
    assert inside(np.array([[0.5, 0.5], [5.5, 8.5]]), boxes).tolist() == [True, False]


def test_shared_maxima_count_by_their_share_and_a_flat_map_is_a_miss():
    heat = peak(3, 2)
    heat[9, 7] = 1.0
    assert pointing_game(heat, BOX, np.ones((10, 8), dtype=bool)).hit == 0.5
    flat = pointing_game(np.zeros((10, 8), dtype=np.float32), BOX, np.ones((10, 8), dtype=bool))
    assert flat.hit == 0.0 and flat.flat and flat.energy == 0.0
    assert peak_of(np.zeros((4, 4))) is None and peak_of(peak(3, 2)) == (2.5, 3.5)


def test_energy_and_shares_by_hand():
    heat = np.zeros((10, 8), dtype=np.float32)
    heat[3, 2], heat[0, 0] = 3.0, 1.0
    breast = np.zeros((10, 8), dtype=bool)
    breast[:, :4] = True  # 40 pixels, of the box's 12 pixels 8 are breast
    found = pointing_game(heat, BOX, breast)
    assert found.energy == pytest.approx(0.75)
    assert found.box_share == pytest.approx(8 / 40) == found.chance
    assert found.centre == 1.0  # the centroid is (2, 5): x = 2 is the first edge of the box, inside


def test_the_breast_is_found_without_its_marker():
    canvas = FakeDataset(1).images[0].copy()
    truth = np.zeros(SHAPE, dtype=np.uint8)
    cv2.ellipse(truth, (0, SHAPE[0] // 2), (34, 28), 0, -90, 90, 1, -1)
    canvas[2:6, 40:46] = 255  # a marker
    mask = breast_mask(canvas)
    assert not mask[2:6, 40:46].any()
    assert (mask & truth.astype(bool)).sum() / (mask | truth.astype(bool)).sum() > 0.9
    assert np.array_equal(mask, breast_mask(canvas.astype(np.uint16) * 257))
    assert breast_mask(np.zeros((5, 5), dtype=np.uint8)).all()


def test_a_map_of_the_mass_hits_and_beats_both_guesses():
    dataset = FakeDataset(12)
    result = saliency(FakeModel(), dataset, resamples=50)
    count = dataset.index["labels"].str.contains("1").sum()
    assert result.metrics["mass/pointing_game"] == {**result.metrics["mass/pointing_game"], "value": 1.0, "n": count}
    assert result.metrics["mass/chance"]["value"] < 0.1
    assert result.metrics["mass/ratio_to_chance"]["value"] > 5
    assert result.metrics["calcification/pointing_game"]["reason"] == "no image has boxes of this label"
    assert len(result.figures) == 6 and set(result.figures) == set(result.tables["gallery"]["figure"])
    assert all(png.startswith(b"\x89PNG") for png in result.figures.values())


def test_the_chunk_size_does_not_matter(monkeypatch):
    dataset = FakeDataset(7)
    expected = saliency(FakeModel(), dataset, resamples=20, gallery=0)
    monkeypatch.setattr(features, "CHUNK", 3)
    found = saliency(FakeModel(), dataset, resamples=20, gallery=0)
    assert found.metrics == expected.metrics and not found.figures


def test_without_boxes_the_gallery_shows_images_that_have_the_label():
    dataset = FakeDataset(6, boxes=False)
    result = saliency(FakeModel(), dataset, gallery=2)
    assert result.metrics["mass/pointing_game"]["value"] is None
    assert len(result.figures) == 2


def test_regions_of_the_hottest_pixels_are_scored():
    """A mass is the brightest square, and the map its brightness: half its quantile away from the box."""
    result = saliency(FakeModel(), FakeDataset(8), labels=("mass",), quantiles=(0.5, 0.97), resamples=20, gallery=0)
    at = {name.removeprefix("mass/"): entry["value"] for name, entry in result.metrics.items()}
    assert at["iou_0.97"] > 2 * at["iou_0.5"] > 0 and 1 >= at["dice_0.97"] >= at["iou_0.97"]
    assert at["localised_0.97_iou_0.25"] == 1 >= at["localised_0.97_iou_0.5"] and at["localised_0.5_iou_0.5"] == 0
    assert at["regions_0.97"] >= 1
    assert not any("insertion" in name or "randomised" in name for name in at)


def test_curves_become_their_areas():
    """The fake's insertion curve rises evenly to the mean heat, its deletion curve falls so."""
    dataset = FakeDataset(5)
    result = saliency(FakeModel(), dataset, labels=("mass",), deletion_steps=4, resamples=20, gallery=0)
    heats = [
        image.astype(np.float32) / image.max()
        for image, labels in zip(dataset.images, dataset.index["labels"])
        if "1" in labels
    ]
    for name in ("insertion_auc", "deletion_auc"):
        assert result.metrics[f"mass/{name}"]["value"] == pytest.approx(
            np.mean([h.mean() for h in heats]) / 2, rel=1e-5
        )
        assert "10 are needed" in result.metrics[f"mass/{name}"]["reason"]  # for an interval


def test_random_weights_stand_beside_the_trained_ones():
    """The fake's random map is upside down."""
    model, dataset = FakeModel(), FakeDataset(8)
    plain = saliency(model, dataset, labels=("mass",), resamples=20, gallery=0)
    result = saliency(model, dataset, labels=("mass",), resamples=20, gallery=0, sanity=True, cascade=("stage_3",))
    assert {name: result.metrics[name] for name in plain.metrics} == plain.metrics
    value = {name.removeprefix("mass/"): entry["value"] for name, entry in result.metrics.items()}
    assert value["energy_ratio"] > 1 and value["pointing_game"] == 1 > value["pointing_game_randomised"]
    assert value["box_share_randomised"] == value["box_share"]
    assert -1 <= value["rank_correlation_randomised"] < 0.9 and value["ssim_randomised"] < 0.9
    assert value["rank_correlation_above_stage_3"] == pytest.approx(value["rank_correlation_randomised"])
    assert "energy_ratio_above_stage_3" not in value and model.weights is None
    assert set(result.tables["images"]["weights"]) == {"trained", "randomised", "above_stage_3"}
    assert "random weights" in result.protocol and "random weights" not in plain.protocol


def test_a_method_and_its_options_reach_the_model():
    class Model(FakeModel):
        def saliency(self, images, texts, *, stage, method, **options):
            assert (method, options) == ("occlusion", {"window": 8})
            return super().saliency(images, texts, stage=stage, method=method)

    result = saliency(Model(), FakeDataset(3), method="occlusion", options={"window": 8}, resamples=0, gallery=0)
    assert "occlusion at stage head, window=8 of the cosine" in result.protocol


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_classifier_is_asked_about_its_labels(kind):
    class Labelled(FakeModel):
        labels = ("calcification", "mass")

        def saliency(self, images, directions, *, stage, method, **options):
            asked.append(directions)
            return super().saliency(images, directions, stage=stage, method=method)

    asked, model = [], Labelled()
    model.kind = kind
    result = saliency(model, FakeDataset(6), resamples=0, gallery=0)
    assert all((directions == [0, 1]).all() for directions in asked) and asked  # no image has a calcification's box
    assert result.metrics["mass/pointing_game"]["value"] == 1
    assert "of the label's logit" in result.protocol and "texts" not in result.protocol


def test_labels_that_are_not_there_are_errors():
    with pytest.raises(UserError, match="no label of the evaluator saliency 'masss'. Did you mean 'mass'"):
        saliency(FakeModel(), FakeDataset(2), labels=("masss",))
    model = FakeModel()
    model.labels = ("A", "B")
    with pytest.raises(UserError, match="this model is asked about A, B: give its option labels"):
        saliency(model, FakeDataset(2))
