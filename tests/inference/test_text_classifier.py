"""Classes of a detector by their texts: where the vectors come from, and other classes without training."""

import jax
import numpy as np
import pytest
import tiny_subject
from tiny_subject import DIM, RESNET, meta_of, variables_of

from mammoclip_jax import models, run, tasks
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.heads import Detector
from mammoclip_jax.inference.text_classifier import of_labels, renamed
from mammoclip_jax.training.mesh import make_mesh

HEIGHT, WIDTH = 64, 32
PROMPTS = {"mass": ["a mass", "mass in the breast"], "calcification": ["left breast"], "asymmetry": ["no"]}
FEW = {"limit": 10, "candidates": 100, "threshold": 0.0, "class_aware": True}


def config_of(dim=DIM):
    config = defaults()
    config.task.kind = "detector"
    config.data.folders.phantom = "phantom"
    config.image.channels = 1
    config.model.image.update(name="resnet", variant="18", width=4, depths=(1, 1, 1, 1))
    config.model.update(labels=("mass", "calcification"), stages=("stage2", "stage3", "stage4"), features=4)
    config.model.text_classifier.update(dim=dim, concepts="phantom" if dim else "")
    config.warm_start.texts = dict(weights="towers" if dim else "", load=("texts/prompts",))
    config.compilation_cache = ""
    return config


@pytest.fixture(scope="module")
def texts():
    return tiny_subject.model_of(RESNET, batch_size=8, devices=1)


def fresh_of(config):
    shapes = jax.eval_shape(models.detector(config.model).init, jax.random.key(0), np.zeros((1, HEIGHT, WIDTH, 1)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.abs(rng.normal(0, 0.3, x.shape)).astype(np.float32), shapes)


def detector_of(config, variables):
    meta = {"config": config.to_dict(), "provenance": {}, "preprocessing": {"height": HEIGHT, "width": WIDTH}}
    return Detector(variables, meta, 1, batch_size=2, mesh=make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def detector(texts):
    config = config_of()
    variables = fresh_of(config)
    rng = np.random.default_rng(5)
    output = variables["params"]["classification"]["output"]
    output["kernel"] = rng.normal(0, 0.5, output["kernel"].shape).astype(np.float32)
    variables["batch_stats"]["texts"]["prompts"]["vectors"] = of_labels(texts, PROMPTS, config.model.labels)
    return detector_of(config, variables)


def test_a_detector_starts_from_the_vectors_of_its_prompts_and_says_whose_they_are(texts, tmp_path):
    config, fresh = config_of(), fresh_of(config_of())
    source = meta_of(RESNET) | {"kind": "dual_encoder", "step": 5, "provenance": {}}
    meta = {"config": config.to_dict(), "preprocessing": {}, "provenance": {}, "trained_on": None}
    opened = []

    def open_weights(name):
        opened.append(name)
        return variables_of(RESNET), source

    variables = run.start_variables(fresh, config, tmp_path, meta, open_weights)
    assert opened == ["towers"]
    wanted = of_labels(texts, "phantom", ("mass", "calcification"))
    np.testing.assert_allclose(variables["batch_stats"]["texts"]["prompts"]["vectors"], wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-5)
    assert np.array_equal(
        variables["params"]["classification"]["output"]["kernel"], fresh["params"]["classification"]["output"]["kernel"]
    )
    parent = meta["provenance"]["parents"][0]
    assert parent["what"] == "towers" and parent["kind"] == "dual_encoder" and parent["report"]["loaded"] == 1


def test_a_class_is_found_alike_among_others_and_a_new_one_by_its_prompts(detector, texts):
    images = np.random.default_rng(1).integers(0, 255, (2, HEIGHT, WIDTH), dtype=np.uint8)
    asked = renamed(detector, texts, PROMPTS, ("asymmetry", "mass"))
    assert asked.labels == ("asymmetry", "mass") and detector.labels == ("mass", "calcification")
    own, other = detector.detect(images, **FEW), asked.detect(images, **FEW)

    def of(found, label, labels):
        return [found.scores[n][found.valid[n] & (found.classes[n] == labels.index(label))] for n in range(len(images))]

    for here, there in zip(of(own, "mass", detector.labels), of(other, "mass", asked.labels)):
        few = min(len(here), len(there))
        assert few > 0
        np.testing.assert_allclose(here[:few], there[:few], rtol=1e-4)
    assert any(len(scores) for scores in of(other, "asymmetry", asked.labels))


def test_what_cannot_be_asked_is_said(detector, texts):
    with pytest.raises(UserError, match="no prompt for 'implant'"):
        renamed(detector, texts, PROMPTS, ("implant",))
    config = config_of(dim=4)
    with pytest.raises(UserError, match=f"vectors have {DIM} numbers, those of this detector 4"):
        renamed(detector_of(config, fresh_of(config)), texts, PROMPTS, ("mass",))
    plain = config_of(dim=0)
    with pytest.raises(UserError, match="it knows mass, calcification alone"):
        renamed(detector_of(plain, fresh_of(plain)), texts, PROMPTS, ("mass",))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config: config.warm_start.texts.update(weights=""), "name the lexicon of their prompts"),
        (lambda config: config.model.text_classifier.update(concepts=""), "name the lexicon of their prompts"),
        (lambda config: config.model.text_classifier.update(dim=0), "is read only with the dim"),
    ],
)
def test_a_config_without_texts_to_compare_with_is_refused(change, message):
    config = config_of()
    tasks.check(config)
    change(config)
    with pytest.raises(UserError, match=message):
        tasks.check(config)
