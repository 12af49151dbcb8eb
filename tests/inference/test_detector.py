"""A detector in use: its boxes are those of its raw outputs, whatever the batch, the devices and the input's size."""

import jax
import numpy as np
import pytest
from naive_boxes import naive_iou

from mammoclip_jax import models
from mammoclip_jax.boxes import decode
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference import loading
from mammoclip_jax.inference.heads import Detector
from mammoclip_jax.inference.mirrored import Mirrored
from mammoclip_jax.models.nms import Detections
from mammoclip_jax.models.retinanet import anchors
from mammoclip_jax.training import augment
from mammoclip_jax.training.mesh import make_mesh
from mammoclip_jax.weights import folder

HEIGHT, WIDTH = 96, 64
FEW = {"limit": 20, "candidates": 200}


def meta_of(input_size=()):
    config = defaults()
    config.image.channels = 1
    config.model.image.update(name="resnet", variant="18", width=4)
    config.model.update(
        labels=("mass", "calcification"), stages=("stage2", "stage3", "stage4"), features=8, input_size=input_size
    )
    return {
        "kind": "detector",
        "config": config.to_dict(),
        "tokenizer": None,
        "provenance": {},
        "step": 3,
        "preprocessing": {"height": HEIGHT, "width": WIDTH},
    }


@pytest.fixture(scope="module")
def variables():
    """With outputs that differ from anchor to anchor, some above one half."""
    module = models.detector(meta_of()["config"]["model"])
    values = jax.jit(module.init)(jax.random.key(0), np.zeros((1, HEIGHT, WIDTH, 1), np.float32))
    rng = np.random.default_rng(0)
    for head, bias in (("classification", -1.0), ("regression", 0.0)):
        output = values["params"][head]["output"]
        output["kernel"] = rng.normal(0, 0.02, output["kernel"].shape).astype(np.float32)
        output["bias"] = np.full(output["bias"].shape, bias, np.float32)
    return jax.device_get(values)


@pytest.fixture(scope="module")
def detector(variables):
    return Detector(variables, meta_of(), 3, batch_size=8)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 255, (11, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture(scope="module")
def found(detector, images):
    return detector.detect(images, **FEW)


def same(ours, theirs):
    for name, tolerance in (("valid", 0), ("classes", 0), ("scores", 1e-5), ("boxes", 1e-3)):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=tolerance, err_msg=name)


def test_detections_are_boxes_of_the_raw_outputs(detector, variables, images, found):
    assert isinstance(found, Detections) and found.boxes.shape == (11, 20, 4) and found.boxes.dtype == np.float32
    assert found.valid[:, 0].all() and (np.diff(found.scores, axis=1) <= 0).all()
    module = models.detector(detector.config.model)
    pixels = augment.eval_images(images, augment.preprocess_options(detector.config))
    logits, deltas = jax.jit(module.apply)(variables, pixels)
    boxes = np.asarray(decode(deltas, anchors(HEIGHT, WIDTH), (HEIGHT, WIDTH)))
    scores = np.asarray(jax.nn.sigmoid(logits))
    np.testing.assert_allclose(found.scores[:, 0], scores.max(axis=(1, 2)), atol=1e-5)
    for i in range(len(images)):
        for box, score, kind in zip(found.boxes[i], found.scores[i], found.classes[i]):
            nearest = np.abs(boxes[i] - box).max(-1) + np.abs(scores[i, :, kind] - score)
            assert nearest.min() < 1e-2
    assert set(np.unique(found.classes)) == {0, 1}


def test_neither_the_batch_nor_the_devices_change_the_boxes(detector, variables, images, found):
    same(jax.tree.map(lambda x: x[3:4], found), detector.detect(images[3:4], **FEW))
    alone = Detector(variables, meta_of(), 3, batch_size=4, mesh=make_mesh({"data": 1}, jax.devices()[:1]))
    same(alone.detect(images, **FEW), found)


def test_options_reach_the_suppression(detector, images, found):
    high = detector.detect(images, threshold=0.9, **FEW)
    assert (high.scores[high.valid] > 0.9).all() and 0 < high.valid.sum() < found.valid.sum()
    agnostic = detector.detect(images, class_aware=False, **FEW)
    assert (agnostic.scores <= found.scores + 1e-6).all() and (agnostic.scores < found.scores).any()
    with pytest.raises(UserError, match="'treshold'.*Did you mean 'threshold'"):
        detector.detect(images, treshold=0.5)


def test_both_looks_of_a_detector_are_merged_as_a_loop_does(detector, images, found):
    """Suppression of all boxes together; then each look says what its best box of the class there is worth."""
    mirrored = detector.detect(images[..., ::-1], **FEW)
    ours = Mirrored(detector).detect(images, **FEW)
    for i in (0, 7):
        known = [(float(s), b.tolist(), int(c), 0) for b, s, c, v in zip(*(part[i] for part in found)) if v]
        for (x0, y0, x1, y1), score, kind, valid in zip(*(part[i] for part in mirrored)):
            known += [(float(score), [WIDTH - x1, y0, WIDTH - x0, y1], int(kind), 1)] if valid else []
        kept, left = [], sorted(known, key=lambda item: -item[0])
        while left and len(kept) < FEW["limit"]:
            best = left[0]
            left = [item for item in left if item[2] != best[2] or naive_iou(item[1], best[1]) <= 0.5]
            near = [item for item in known if item[2] == best[2] and naive_iou(item[1], best[1]) > 0.5]
            kept.append(sum(max((s for s, *_, look in near if look == k), default=0) for k in (0, 1)) / 2)
        expected = sorted((score for score in kept if score > 0.05), reverse=True)
        np.testing.assert_allclose(ours.scores[i][ours.valid[i]], expected, atol=1e-5)


def test_stretched_images_give_boxes_on_the_canvas(variables, images):
    """As a detector of images of that size, and its boxes stretched back."""
    small = Detector(variables, meta_of((64, 96)), 3, batch_size=8)
    ours = small.detect(images[:8], **FEW)
    module = models.detector(small.config.model)
    pixels = augment.eval_images(images[:8], augment.preprocess_options(small.config))
    pixels = jax.image.resize(pixels, (8, 64, 96, 1), "linear")
    logits, deltas = jax.jit(module.apply)(variables, pixels)
    scores = np.asarray(jax.nn.sigmoid(logits)).max(-1)
    best = scores.argmax(1)
    boxes = np.asarray(decode(deltas, anchors(64, 96), (64, 96)))[np.arange(8), best]
    np.testing.assert_allclose(ours.scores[:, 0], scores.max(1), atol=1e-5)
    np.testing.assert_allclose(ours.boxes[:, 0], boxes * ([64 / 96, 96 / 64] * 2), atol=1e-2)
    with pytest.raises(UserError, match="input_size is .64, 96.*96, 64"):
        small.saliency(images[:1], ["mass"], stage="stage4")


def test_maps_explain_the_highest_logit(detector, images):
    maps = detector.saliency(images[:2], ["mass", "calcification"], stage="stage4")
    assert maps.shape == (2, HEIGHT, WIDTH) and maps.max() == 1 and maps.min() >= 0


def test_a_model_folder_is_the_detector(detector, variables, images, found, tmp_path):
    folder.write(tmp_path / "m", variables, meta_of(), card="# A card")
    again = loading.load(tmp_path / "m", batch_size=8)
    assert again.kind == "detector" and again.step == 3 and again.labels == ("mass", "calcification")
    same(again.detect(images, **FEW), found)
