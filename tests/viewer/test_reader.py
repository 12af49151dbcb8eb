"""What the page asks of each kind of model."""

import numpy as np
import pytest
from fakes import FakeModel
from small_set import PROMPTS

from mammoclip_jax.errors import UserError
from mammoclip_jax.models.nms import Detections
from mammoclip_jax.viewer.reader import SIDE, Reader

IMAGES = np.stack([np.full((64, 48), value, np.uint8) for value in (40, 200)])


class Labelled(FakeModel):
    """A model of two labels; its map is 1 in the rows of the label."""

    kind = "classifier"
    labels = ("mass", "cancer")

    def classify(self, images):
        return np.stack([images.mean((1, 2)) / 255, np.zeros(len(images))], 1).astype(np.float32)

    attribute_scores = classify

    def image_features(self, images):
        return np.stack([images.mean((1, 2)), np.ones(len(images))], 1)

    def saliency(self, images, towards, *, stage, method):
        return np.ones(images.shape, np.float32) * np.asarray(towards)[:, :1, None]

    def detect(self, images):
        boxes = np.array([[[1, 2, 11, 12], [0, 0, 0, 0]]] * len(images), np.float32)
        valid = np.array([[True, False]] * len(images))
        return Detections(boxes, np.array([[0.9, 0.0]] * len(images)), np.array([[1, -1]] * len(images)), valid)

    def probabilities(self, images):
        return np.stack([images / 255, 1 - images / 255], -1)


def reader(kind, **more):
    model = Labelled()
    model.kind = kind
    for name, value in more.items():
        setattr(model, name, value)
    return Reader(model, kind, "")


def asked(one, label="", phrase="", method="grad_cam", stage=""):
    return one.maps("exam", lambda: IMAGES, label, phrase, method, stage)


@pytest.mark.parametrize("kind", ["classifier", "attributes"])
def test_labels_have_scores_and_maps(kind):
    one = reader(kind)
    assert one.scores(IMAGES)["mass"] == pytest.approx([40 / 255, 200 / 255])
    assert asked(one, "mass").min() == 255 and asked(one, "cancer").max() == 0
    np.testing.assert_allclose(np.linalg.norm(one.vectors(IMAGES), axis=1), 1, rtol=1e-6)
    about = one.about()
    assert not about["phrases"] and "dual encoder" in about["no_phrase"] and about["labels"] == ["mass", "cancer"]
    for call in (lambda: one.phrases(["a mass"]), lambda: asked(one, phrase="a mass")):
        with pytest.raises(UserError, match="phrases need a dual encoder"):
            call()


def test_a_classifier_of_whole_exams_scores_no_single_image():
    config = Labelled.config.copy_and_resolve_references()
    config.task.unit = "exam"
    one = reader("classifier", config=config)
    assert one.scores(IMAGES) == {} and not one.about()["scores"]


def test_a_detector_has_boxes_and_the_score_of_its_best():
    one = reader("detector")
    found = one.detections(IMAGES)
    assert found[0] == [{"label": "cancer", "score": 0.9, "box": [1.0, 2.0, 11.0, 12.0]}] and len(found) == 2
    assert one.scores(IMAGES)["cancer"] == pytest.approx([0.9, 0.9]) and one.scores(IMAGES)["mass"].max() == 0
    assert one.about()["detects"]


def test_a_segmentation_shows_its_probabilities():
    one = reader("segmenter")
    assert asked(one, "mass", method="probability")[:, 0, 0].tolist() == [40, 200]
    assert asked(one, "cancer", method="probability")[:, 0, 0].tolist() == [215, 55]
    with pytest.raises(UserError, match="no method"):
        asked(one, "mass")


def test_an_encoder_alone_has_neighbours_and_no_maps():
    one = reader("image_encoder", labels=())
    about = one.about()
    assert about["methods"] == {} and about["method"] == "" and len(one.vectors(IMAGES)) == 2


def test_a_method_that_does_not_fit_is_refused_with_its_reason():
    def map_stage(method, stage=None):
        if method == "attention_rollout":
            raise UserError("it needs tokens")
        if stage == "stem":
            raise UserError("not there")
        return stage or "head"

    one = reader("classifier", map_stage=map_stage, stages=("stem", "head"))
    assert one.refused == {"attention_rollout": "it needs tokens"} and "attention_rollout" not in one.methods
    assert one.methods["grad_cam"] == {"title": "Grad-CAM", "stages": ["head"], "stage": "head"}


def test_maps_are_kept_and_sent_small():
    one, calls = Reader(FakeModel(), "one", PROMPTS), []
    large = np.zeros((1, 1200, 600), np.uint8)

    def read():
        calls.append(1)
        return large

    for _ in range(2):
        assert one.maps("a", read, "mass", "", "grad_cam", "").shape == (1, SIDE, SIDE // 2)
    one.maps("b", read, "mass", "", "grad_cam", "")
    assert len(calls) == 2


def test_weights_without_a_tokenizer_have_pictures_alone():
    model = FakeModel()
    model._tokenize = None
    one = Reader(model, "one", PROMPTS)
    assert "tokenizer" in one.no_phrase and one.labels == () and one.scores(IMAGES) == {}
    assert one.about()["phrases"] is False
