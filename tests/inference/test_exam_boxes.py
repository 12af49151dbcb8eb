"""predict with a detector: boxes and overlays lie on the original images."""

import json

import cv2
import numpy as np
import pytest
from fakes import FakeModel

from mammoclip_jax.data.phantom import generate
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.data.pixels.render import Preprocessing
from mammoclip_jax.inference.exam import predict
from mammoclip_jax.inference.scorers import BEST_BOX, original_grey
from mammoclip_jax.models.nms import Detections


class Brightest(FakeModel):
    """A box of 8 x 6 pixels around the brightest pixel of a canvas is a mass."""

    kind, labels = "detector", ("mass", "calcification")
    preprocessing = {"geometry": "fit", "height": 96, "width": 64, "intensity": "voi", "bits": 8, "crop": "robust"}

    def detect(self, images):
        boxes, scores = np.zeros((len(images), 2, 4), np.float32), np.zeros((len(images), 2), np.float32)
        for i, image in enumerate(images):
            y, x = np.unravel_index(cv2.GaussianBlur(image, (3, 3), 0).argmax(), image.shape)
            boxes[i, 0], scores[i, 0] = (x - 3.5, y - 2.5, x + 4.5, y + 3.5), 0.75
        valid = scores > 0
        return Detections(boxes, scores, np.where(valid, 0, -1), valid)


def test_boxes_lie_on_the_original(tmp_path):
    generate.generate(tmp_path / "set", 1, Parameters(height=160, width=128))
    (exam,) = (tmp_path / "set" / "exams").iterdir()
    found = predict(Brightest(), exam, tmp_path / "out")
    json.dumps(found, allow_nan=False)
    assert found["method"] == "boxes" and found["prompts"] == {} and found["aggregation"]["view"] == BEST_BOX
    views = found["exams"][0]["views"]
    assert {view["transform"]["flip_horizontal"] for view in views} == {True, False}
    for view in views:
        (box,) = view["boxes"]
        assert box["label"] == "mass" and box["score"] == 0.75
        assert view["scores"] == {"mass": 0.75, "calcification": 0.0}
        left, top, right, bottom = box["box"]
        height, width = view["original"]
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        grey = cv2.GaussianBlur(original_grey(exam / view["file"], Preprocessing()), (5, 5), 0)
        inside = grey[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        assert inside.max() >= 0.9 * grey.max()
        assert view["peaks"]["mass"] == pytest.approx([(left + right) / 2, (top + bottom) / 2])
        assert view["peaks"]["calcification"] is None
        picture = cv2.imread(str(tmp_path / "out" / view["overlays"]["mass"])).astype(int)
        assert list(picture.shape[:2]) == view["original"]
        orange = np.abs(picture - [0, 159, 230]).sum(-1) < 30
        rows, columns = np.nonzero(orange)
        assert left - 2 <= columns.min() and bottom - 3 <= rows.max() <= bottom + 2
        clean = cv2.imread(str(tmp_path / "out" / view["overlays"]["calcification"])).astype(int)
        assert not (np.abs(clean - [0, 159, 230]).sum(-1) < 30).any()
    assert found["exams"][0]["scores"]["mass"] == {"mean": 0.75, "max": 0.75}
