"""Pseudo-labels: never what a label of the image denies, nothing of an image that nothing is known of."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax.data.store import region_tables as tables
from mammoclip_jax.data.text import concepts
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.region_methods import teacher
from mammoclip_jax.losses.regions import pseudo_labels

LEXICON = concepts.load("phantom")
NAMES = [concept.name for concept in LEXICON]
LABELS = [{"mass": a, "calcification": b} for a in (0, 1) for b in (0, 1)] + [{"mass": 0}, {"density": "B"}, {}]
PREPARED = {"height": 40, "width": 30}


class FakeTeacher:
    """Vectors of regions and texts at random, of the sort that would see everything everywhere."""

    kind, step, preprocessing, logit_scale = "dual_encoder", 7, PREPARED, 20.0
    region_heads = ()

    def fingerprint(self):
        return "0123"

    def _random(self, *shape):
        vectors = np.random.default_rng(shape[0]).normal(size=(*shape, 6))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)

    def embed_text(self, texts):
        return self._random(len(texts))

    def embed_crops(self, images, boxes, context):
        assert images.shape == (len(boxes), 40, 30) and boxes.shape[1] == 10 and context == 2.0
        return self._random(*boxes.shape[:2])

    def embed_regions(self, images, boxes):
        return self._random(*boxes.shape[:2])[..., ::-1]


@pytest.fixture
def dataset(tmp_path):
    """An image with each of LABELS, ten regions in each but the first; no region of the last but one is without label."""
    index = pd.DataFrame({"labels": list(map(json.dumps, LABELS)), "boxes_canvas": "[]"})
    (tmp_path / "dataset.json").write_text(json.dumps({"fingerprint": "a"}))
    rows = [(row, 1, 1, 5 + k, 6, 1.0, "", []) for row in range(1, len(LABELS)) for k in range(10)]
    frame = pd.DataFrame(rows, columns=tables.COLUMNS.names)
    tables.write(tmp_path, "some", frame, {"method": "sliding"})
    return SimpleNamespace(path=tmp_path, index=index, info={"preprocessing": PREPARED})


def found(dataset, model=None, **options):
    method = teacher.teacher(dataset, model=model or FakeTeacher(), regions="some", concepts="phantom", **options)
    return method, method.find(range(len(LABELS)), np.zeros((len(LABELS), 40, 30), np.uint8))


def test_no_concept_that_a_label_denies(dataset):
    _, each = found(dataset, threshold=0.0)
    assert not len(each[0].boxes)
    for labels, image in zip(LABELS[1:], each[1:]):
        wanted = {NAMES[place] for place in np.flatnonzero(concepts.allowed(LEXICON, labels))}
        assert set(image.labels) <= wanted | {""} and len(image.boxes) == 10
        assert ("" in image.labels) == (not wanted) and all((x is None) == (not wanted) for x in image.cosines)
    assert {"mass", "calcification"} <= {label for image in each for label in image.labels}
    assert each[-1].unlabelled == {teacher.BELOW: 0, teacher.UNKNOWN: 10} and not each[-1].scores.any()


def test_the_label_is_that_of_training_with_the_same_cosines(dataset):
    """`losses.regions.pseudo_labels` says the same of what the table holds."""
    method, each = found(dataset, threshold=0.95)
    assert method.made_by["options"]["temperature"] == 1 / 20
    sure = 0
    for labels, image in zip(LABELS[1:-2], each[1:-2]):
        allowed = np.tile(concepts.allowed(LEXICON, labels), (10, 1))
        wanted = pseudo_labels(jnp.asarray(np.array(image.cosines)), allowed, temperature=1 / 20, threshold=0.95)
        assert list(image.labels) == [NAMES[place] if place >= 0 else "" for place in wanted.labels]
        np.testing.assert_allclose(image.scores, np.exp(wanted.log_probabilities.max(axis=1)), rtol=1e-4)
        assert image.unlabelled[teacher.BELOW] == image.labels.count("")
        sure += sum(label != "" for label in image.labels)
    assert 0 < sure < 40


def test_a_label_of_the_region_narrows_the_concepts(dataset):
    frame = tables.read(dataset.path, "some").frame.assign(label="Mass, Other")
    tables.write(dataset.path, "some", frame, {"method": "boxes"})
    _, each = found(dataset, threshold=0.0)
    for labels, image in zip(LABELS[1:], each[1:]):
        known = concepts.allowed(LEXICON, labels).any() and labels.get("mass") != 0
        assert set(image.labels) == ({"mass"} if known else {""})


def test_a_head_of_regions_is_used_where_there_is_one(dataset):
    model = FakeTeacher()
    crops, (method, each) = found(dataset)[1], found(dataset, model)
    model.region_heads = ("regions",)
    method, heads = found(dataset, model)
    assert method.made_by["options"]["space"] == "regions" and "context" not in method.made_by["options"]
    np.testing.assert_array_equal(each[1].cosines, crops[1].cosines)
    assert np.abs(np.array(heads[1].cosines) - crops[1].cosines).max() > 0.1


def test_what_does_not_fit_is_refused(dataset):
    with pytest.raises(UserError, match="no regions 'other'"):
        teacher.teacher(dataset, model=FakeTeacher(), regions="other", concepts="phantom")
    with pytest.raises(UserError, match="lexicon"):
        teacher.teacher(dataset, model=FakeTeacher(), regions="some", concepts="nothing")
    with pytest.raises(UserError, match="threshold=1"):
        found(dataset, threshold=1)
    detector = FakeTeacher()
    detector.kind = "detector"
    with pytest.raises(UserError, match="needs a dual encoder, and --weights is a detector"):
        found(dataset, detector)
    dataset.info = {"preprocessing": PREPARED | {"height": 80}}
    with pytest.raises(UserError, match="prepared otherwise .*height 80, there 40"):
        found(dataset)
