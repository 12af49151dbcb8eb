"""Regions by a detector, a segmentation and attributes, and what they have to say of the weights."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.region_methods import weights
from mammoclip_jax.inference.region_methods.detector import detector
from mammoclip_jax.inference.region_methods.factor import factor
from mammoclip_jax.inference.region_methods.unet import unet
from mammoclip_jax.models.nms import Detections

PREPARED = {"height": 20, "width": 10}
DATASET = SimpleNamespace(path="set", info={"preprocessing": PREPARED})
IMAGES = np.zeros((2, 20, 10), np.uint8)


def model(kind, labels, **more):
    return SimpleNamespace(
        kind=kind, labels=labels, step=3, preprocessing=PREPARED, fingerprint=lambda: "abc", trained_on="x", **more
    )


def test_detections_without_the_empty_places():
    given = Detections(
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.array([[0.9, 0.4, 0], [0.6, 0, 0]], np.float32),
        np.array([[1, 0, -1], [0, -1, -1]]),
        np.array([[True, True, False], [True, False, False]]),
    )
    asked = {}
    one = model("detector", ("mass", "calcification"), detect=lambda images, **options: asked.update(options) or given)
    method = detector(DATASET, model=one, threshold=0.3)
    first, second = method.find([0, 1], IMAGES)
    assert first.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and first.labels == ["calcification", "mass"]
    assert second.boxes.tolist() == [[12, 13, 14, 15]] and second.scores.tolist() == [np.float32(0.6)]
    assert asked == method.made_by["options"] == {
        "threshold": 0.3, "overlap": 0.5, "limit": 64, "class_aware": True,
    }  # fmt: skip
    assert method.made_by["weights"] == {"kind": "detector", "step": 3, "fingerprint": "abc"}
    with pytest.raises(UserError, match="needs a segmenter, and --weights is a detector"):
        unet(DATASET, model=one)


def test_parts_of_predicted_masks():
    likely = np.zeros((2, 20, 10, 3), np.float32)
    likely[0, 2:6, 3:8, 1], likely[0, 2:6, 3:8, 0] = 0.8, 0.9
    likely[1, 10:15, 1:4, 2] = 0.4
    one = model("segmenter", ("breast", "mass", "calcification"), probabilities=lambda images: likely)
    first, second = unet(DATASET, model=one).find([0, 1], IMAGES)
    assert first.boxes.tolist() == [[3, 2, 8, 6]] and first.labels == ["mass"] and not len(second.boxes)
    np.testing.assert_allclose(first.scores, 0.8, rtol=1e-6)
    method = unet(DATASET, model=one, threshold=0.3, channels="calcification")
    assert method.find([0, 1], IMAGES)[1].boxes.tolist() == [[1, 10, 4, 15]]
    assert method.made_by["options"]["channels"] == ["calcification"]


def test_terms_go_on_and_what_they_forbid_is_refused():
    entry = {"weights": "somebody's", "licence": "mammo_clip", "title": "CC BY-NC-SA 4.0 (Mammo-CLIP)", "stated": True}
    free = model("detector", (), provenance={"licences": [entry]}, config={"name": "a run"})
    origin = weights.about(free, "/home/somebody/runs/mine/checkpoints/3")["origin"]
    assert origin["licences"] == [entry] and origin["name"] == "mine" and origin["trained_on"] == "x"
    bound = model("detector", (), provenance={"licences": [entry | {"licence": "mammo_fm"}]}, config={"name": "b"})
    with pytest.raises(UserError, match=r"finding what another model learns from .*--override_licence"):
        weights.about(bound, "b")
    assert weights.about(bound, "b", "written permission")["origin"]["overrides"][0]["override"] == "written permission"


def test_pseudo_boxes_are_of_affirmed_attributes_alone():
    heat = np.zeros((2, 20, 10), np.float32) - 0.5
    heat[0, 3:5, 2:5], heat[0, 12:14, 6:9], heat[1, 8:10, 1:3] = 2.0, 1.5, 1.0
    asked = []

    def saliency(images, labels, *, method, stage, raw):
        asked.append((len(images), labels[0], method, stage, raw))
        return heat[[int(image[0, 0]) for image in images]] * (1 if labels[0] == "mass" else -1)

    cosines = np.array([[0.6, -0.2], [0.2, 0.4]], np.float32)
    one = model(
        "attributes",
        ("mass", "calcification"),
        saliency=saliency,
        attribute_scores=lambda images: cosines,
        map_stage=lambda method, stage: stage or "stage2",
    )
    images = IMAGES.copy()
    images[1, 0, 0] = 1
    index = pd.DataFrame({"labels": ['{"mass": 1, "calcification": 0}', '{"calcification": null}']})
    dataset = SimpleNamespace(path="set", info={"preprocessing": PREPARED}, index=index)
    first, second = factor(dataset, model=one).find([0, 1], images)
    assert first.boxes.tolist() == [[2, 3, 5, 5]] and list(first.labels) == ["mass"] and not len(second.boxes)
    np.testing.assert_allclose(first.scores, 0.8, rtol=1e-6)
    assert asked == [(1, "mass", "factor", "stage2", True)]
    method = factor(dataset, model=one, images="all", limit=2, quantile=0.9)
    first, second = method.find([0, 1], images)
    assert first.boxes.tolist()[:2] == [[2, 3, 5, 5], [6, 12, 9, 14]] and list(second.labels) == ["mass"]
    np.testing.assert_allclose(first.scores[:2], [0.8, 0.6], rtol=1e-6)
    assert method.made_by["options"]["limit"] == 2 and method.made_by["method"] == "factor"
    with pytest.raises(UserError, match="choice of images"):
        factor(dataset, model=one, images="some")
    with pytest.raises(UserError, match="needs a model of attributes, and --weights is a detector"):
        factor(dataset, model=model("detector", ()))
