"""A model of attributes in use: maps, exams, scores and boxes, from end to end."""

import json

import cv2
import numpy as np
import pytest
from fakes import FakeDataset, FakeModel
from tiny_attributes import LABELS, STAGES, attributes_of

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.regions import of_maps
from mammoclip_jax.evaluation.page import report
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.explain.maps import over_image
from mammoclip_jax.inference import pointing
from mammoclip_jax.inference.exam import predict

EXAM = {"geometry": "fit", "height": 48, "width": 32, "intensity": "voi", "bits": 8, "crop": "robust"}


@pytest.fixture(scope="module")
def model():
    return attributes_of(EXAM)


def images(count):
    return np.random.default_rng(0).integers(0, 255, (count, EXAM["height"], EXAM["width"]), dtype=np.uint8)


def test_maps_are_channels_by_their_scores(model):
    shown = images(3)
    scores, maps = model.channel_scores(shown), model._stage_maps(model._variables, shown)[1]
    for stage in STAGES:
        own = scores[stage][..., 1] / np.linalg.norm(scores[stage][..., 1], axis=1, keepdims=True)
        cells = np.einsum("nhwc,nc->nhw", maps[stage], own)
        found = model.saliency(shown, ["calcification"] * 3, method="factor", stage=stage, raw=True)
        laid = np.stack([over_image(each, model.stage_grid(stage), shown.shape[1:], True) for each in cells])
        np.testing.assert_allclose(found, laid, atol=1e-4 * np.abs(laid).max())
    assert model.map_stage("factor") == "stage1+stage2" and model.map_stage("hires_cam") == "stage1"
    gradient = model.saliency(shown, ["mass"] * 3, method="hires_cam", raw=True)
    assert (np.ptp(gradient, axis=(1, 2)) > 0).all()


def test_what_is_said_of_an_image(model):
    shown = images(3)
    said, scores = pointing.found(model, shown, "factor", "stage2"), model.attribute_scores(shown)
    channels = model.channel_scores(shown)
    heats = model.saliency(shown, ["mass"] * 3, method="factor", stage="stage2", raw=True)
    for i, own in enumerate(said):
        assert sorted(a["label"] for a in own) == sorted(LABELS) and own[0]["score"] >= own[1]["score"]
        for a in own:
            k = LABELS.index(a["label"])
            assert a["score"] == pytest.approx(scores[i, k]) == a["channels"][0]["score"]
            for c in a["channels"]:
                assert c["score"] == pytest.approx(channels[c["stage"]][i, c["channel"], k])
        mass = next(a for a in own if a["label"] == "mass")
        x0, y0, x1, y1 = mass["box"].astype(int)
        assert heats[i, y0:y1, x0:x1].max() == heats[i].max()


def test_exams_say_which_channels_and_where_and_the_page_too(model, tmp_path):
    generate.generate(tmp_path / "set", 1, Parameters(height=160, width=128))
    (exam,) = (tmp_path / "set" / "exams").iterdir()
    found = predict(model, exam, tmp_path / "out")
    json.dumps(found, allow_nan=False)
    assert found["method"] == "factor" and found["stage"] == "stage1+stage2" and found["prompts"] == {}
    assert found["aggregation"]["view"] == pointing.MEANING
    for view in found["exams"][0]["views"]:
        assert [a["score"] for a in view["attributes"]] == sorted(view["scores"].values(), reverse=True)
        height, width = view["original"]
        for a in view["attributes"]:
            left, top, right, bottom = a["box"]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        picture = cv2.imread(str(tmp_path / "out" / view["overlays"]["mass"]))
        assert list(picture.shape[:2]) == view["original"]
    assert set(found["exams"][0]["scores"]) == set(LABELS)
    page = report.write(
        tmp_path / "page", [], model=FakeModel(), datasets={}, predictions=[(found, tmp_path / "out")]
    ).read_text()
    assert pointing.MEANING in page and "attributes, the channels that show them most" in page
    first = found["exams"][0]["views"][0]["attributes"][0]["channels"][0]
    assert f"{first['stage']} #{first['channel']} {first['score']:+.3f}" in page


def test_scores_and_boxes_of_attributes_are_evaluated():
    dataset = FakeDataset(6)
    model = attributes_of(dataset.info["preprocessing"])
    results = evaluate(
        model,
        {"fake": dataset},
        {"classification": {"resamples": 0}, "localisation": {"resamples": 0, "labels": ("mass",), "gallery": 2}},
    )
    scores, boxes = ({name: entry["value"] for name, entry in result.metrics.items()} for result in results)
    for level in ("", "_max", "_image", "_exam", "_exam_max"):
        assert 0 <= scores[f"mass/auroc{level}"] <= 1
    assert not any("brier" in name or "ece" in name for name in scores) and "(1 + cosine) / 2" in results[0].protocol
    table = results[0].tables["predictions"].query("label == 'mass'")
    wanted = (1 + model.attribute_scores(np.stack(dataset.images))[:, 0]) / 2
    np.testing.assert_allclose(table["score"], wanted, rtol=1e-5)
    for name in ("factor", "hires_cam", "brightness", "centre"):
        for rule in of_maps.RULES:
            assert boxes[f"mass/{name}/{rule}/regions"] >= 0 and 0 <= boxes[f"mass/{name}/{rule}/recall@0.25"] <= 1
    assert "factor: Mammo-FActOR at stage stage1+stage2" in results[1].protocol
