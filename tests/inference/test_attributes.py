"""Attributes from a run's first step to use: the dictionary and the terms of the weights it starts from, scores and channels,
files, resuming, and another encoder."""

import json

import jax
import numpy as np
import pytest
import small_phantoms
import tiny_subject
from test_resume import assert_same_bits

from mammoclip_jax import run
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.suite import evaluate
from mammoclip_jax.inference import attributes
from mammoclip_jax.inference.loading import load
from mammoclip_jax.training import checkpoint
from mammoclip_jax.weights import actions, folder, warm_start

HEIGHT, WIDTH, DIM, RESNET = tiny_subject.HEIGHT, tiny_subject.WIDTH, tiny_subject.DIM, tiny_subject.RESNET
LICENCE = {"weights": "parent", "licence": "CC-BY-NC-SA-4.0", "title": "CC BY-NC-SA 4.0", "stated": True, "layout": ""}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return small_phantoms.prepared(tmp_path_factory.mktemp("phantoms"), exams=6, height=HEIGHT, width=WIDTH)


def towers(place, dataset, seed=0):
    """A model folder of a dual encoder."""
    meta = tiny_subject.meta_of(RESNET) | {
        "kind": "dual_encoder",
        "step": 5,
        "provenance": {"data": {}, "licences": [LICENCE], "versions": {}},
        "preprocessing": dataset.info["preprocessing"],
        "trained_on": None,
    }
    actions.write_folder(place, tiny_subject.variables_of(RESNET, seed), meta)
    return place


def config_of(dataset, weights, steps=4):
    config = defaults()
    config.task.update(kind="attributes", temperature=0.05)
    config.data.folders.phantom = str(dataset.path)
    config.data.read_threads = 0
    config.image.update(channels=1, mean=tiny_subject.MEAN, std=tiny_subject.STD)
    config.model.image.update(RESNET)
    config.model.update(labels=("mass", "calcification"), stages=("stage1", "stage2"))
    config.model.attributes.update(dim=DIM, prompts="phantom", hidden=8)
    config.warm_start.encoder = dict(weights=str(weights), load=("image_encoder/.*", "attributes/dictionary"))
    config.train.update(steps=steps, batch_size=8, warmup_steps=0, lr=1e-3, schedule="constant", checkpoint_every=2)
    config.compilation_cache = ""
    config.mesh.data = -1
    return config


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, phantoms):
    return towers(tmp_path_factory.mktemp("towers") / "model", phantoms)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, phantoms, encoder):
    """A run of four steps."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run.pretrain(config_of(phantoms, encoder), workdir)
    return workdir


@pytest.fixture(scope="module")
def model(finished):
    return load(finished, batch_size=8)


def images_of(phantoms):
    return np.stack([phantoms.read(row) for row in range(5)])


def test_the_dictionary_is_the_mean_of_projected_sentences_that_are_no_unit_vectors(encoder, model):
    texts = load(encoder, batch_size=8)
    vectors = np.asarray(model._variables["batch_stats"]["attributes"]["dictionary"])
    for label, vector in zip(model.labels, vectors):
        raw = texts.project_texts(model.sentences[label])
        np.testing.assert_allclose(
            raw / np.linalg.norm(raw, axis=1, keepdims=True), texts.embed_text(model.sentences[label]), atol=1e-5
        )
        mean = np.mean([texts.project_texts([sentence])[0] for sentence in model.sentences[label]], axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_run_keeps_the_terms_and_the_bits_of_what_it_starts_from(finished, encoder):
    _, variables, meta = checkpoint.load(finished)
    _, towers, _ = folder.read(encoder)
    for part in ("params", "batch_stats"):
        assert_same_bits(variables[part]["image_encoder"], towers[part]["image_encoder"])
    assert [entry["title"] for entry in meta["provenance"]["licences"]] == [LICENCE["title"]]
    assert meta["provenance"]["parents"][0]["kind"] == "dual_encoder"
    about = meta["attributes"]
    assert len(about["sentences"]["mass"]) == 8 and about["sentences"]["mass"] != about["sentences"]["calcification"]
    assert about["grids"] == {"stage1": [12, 8, 4], "stage2": [6, 4, 8]}


def test_scores_are_the_highest_of_the_channels(model, phantoms):
    images = images_of(phantoms)
    scores, channels = model.attribute_scores(images), model.channel_scores(images)
    assert scores.dtype == np.float32 and model.attribute_stages == ("stage1", "stage2")
    joined = np.concatenate([channels[stage] for stage in model.attribute_stages], axis=1)
    np.testing.assert_allclose(scores, joined.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(model.classify(images), (1 + scores) / 2, atol=1e-6)
    found = model.top_channels(images, 3)
    assert found.stage.shape == found.channel.shape == found.score.shape == (5, 2, 3)
    np.testing.assert_allclose(found.score[..., 0], scores, atol=1e-6)
    assert (np.diff(found.score, axis=2) <= 0).all()
    for place in np.ndindex(found.channel.shape):
        image, attribute, _ = place
        own = channels[found.stage[place]][image, found.channel[place], attribute]
        assert own == pytest.approx(found.score[place], abs=1e-6)
    with pytest.raises(UserError, match="from 1 to 12"):
        model.top_channels(images, 13)


def test_methods_of_explain_see_the_scores_of_the_channels(model, phantoms):
    images = images_of(phantoms)
    subject = model._subject(model._variables)
    features = subject.encode(model._pixels(images[0]))[1]["stage2"][0]
    weights = np.array([0.5, -1.0], np.float32)
    expected = model.channel_scores(images)["stage2"][0] @ weights
    np.testing.assert_allclose(subject.channel_scores(features, "stage2", weights), expected, atol=1e-5)
    with pytest.raises(UserError, match="similarity projects the cells"):
        model.saliency(images, ["mass"] * 5, method="similarity")
    assert model.saliency(images, ["mass"] * 5, method="hires_cam", stage="stage2").shape == images.shape


def test_attributes_are_scored_as_a_classifier_is(model, phantoms):
    (result,) = evaluate(
        model, {"phantom": phantoms}, {"classification": {"resamples": 0}}, split="all", allow_training_patients=True
    )
    for label in model.labels:
        for level in ("", "_max", "_image", "_exam", "_exam_max"):
            assert f"{label}/auroc{level}" in result.metrics
        assert f"{label}/brier" not in result.metrics
    assert "cosine" in result.protocol


@pytest.mark.slow
def test_a_run_that_goes_on_ends_with_the_same_bits(finished, phantoms, encoder, tmp_path):
    run.pretrain(config_of(phantoms, encoder, steps=2), tmp_path / "run")
    before = (tmp_path / "run" / "maps" / "stage1.maps").stat().st_mtime_ns
    run.pretrain(config_of(phantoms, encoder), tmp_path / "run")
    assert (tmp_path / "run" / "maps" / "stage1.maps").stat().st_mtime_ns == before
    (_, one, about), (_, other, again) = checkpoint.load(finished), checkpoint.load(tmp_path / "run")
    assert_same_bits(one, other)
    assert about["attributes"] == again["attributes"]


def test_a_model_folder_is_the_model(model, finished, phantoms, tmp_path):
    variables, meta = run.open_weights(finished)
    meta["config"]["model"]["attributes"]["prompts"] = "/home/someone/prompts/mine.json"
    actions.write_folder(tmp_path / "model", variables, meta)
    again = load(tmp_path / "model", batch_size=8)
    np.testing.assert_array_equal(
        again.attribute_scores(images_of(phantoms)), model.attribute_scores(images_of(phantoms))
    )
    assert again.sentences == model.sentences
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    assert document["attributes"] == meta["attributes"]
    assert document["config"]["model"]["attributes"]["prompts"] == "mine.json"
    assert LICENCE["title"] in (tmp_path / "model" / "README.md").read_text()


def test_another_encoder_is_refused(model, finished, phantoms, encoder, tmp_path):
    variables, meta = run.open_weights(finished)
    other = towers(tmp_path / "other", phantoms, seed=1)
    theirs = folder.read(other)[1]["params"]["image_encoder"]
    swapped = {**variables, "params": {**variables["params"], "image_encoder": theirs}}
    with pytest.raises(UserError, match="the image encoder of these weights is another"):
        attributes.Attributes(swapped, meta, 1)
    with pytest.raises(UserError, match="the image encoder of these weights is another"):
        model.set_variables(swapped, 1)
    changed = jax.tree.map(lambda x: x, variables)
    statistics = changed["batch_stats"]["image_encoder"]
    changed["batch_stats"]["image_encoder"] = jax.tree.map(lambda x: np.asarray(x) * 1.001, statistics)
    with pytest.raises(UserError, match="is another"):
        attributes.Attributes(changed, meta, 1)
    with pytest.raises(UserError, match="do not say which encoder"):
        attributes.Attributes(variables, {**meta, "attributes": None}, 1)


def test_adapters_do_not_begin_on_another_encoder():
    mine = {"encoder": "a"}
    report = warm_start.Report("run", ["adapters_stage2/first/kernel"], 1, [], [], [])
    for theirs, refused in (("a", False), ("b", True)):
        started = warm_start.Started({"old": report}, {"old": {"attributes": {"encoder": theirs}}}, [])
        if refused:
            with pytest.raises(UserError, match="config.warm_start.old loads adapters of another encoder"):
                attributes.check_adapters(mine, started)
        else:
            attributes.check_adapters(mine, started)


def test_texts_that_do_not_fit_are_explained(phantoms, encoder):
    opened = attributes.with_dictionary(run.open_weights, config_of(phantoms, encoder))
    assert opened(str(encoder))[0]["batch_stats"]["attributes"]["dictionary"].shape == (2, DIM)
    config = config_of(phantoms, encoder)
    config.model.attributes.dim = 7
    with pytest.raises(UserError, match="have 6 numbers, and config.model.attributes.dim is 7"):
        attributes.with_dictionary(run.open_weights, config)(str(encoder))
    config = config_of(phantoms, encoder)
    config.model.labels = ("mass", "mas")
    with pytest.raises(UserError, match="no label in the prompts 'phantom': 'mas'. Did you mean 'mass'"):
        attributes.with_dictionary(run.open_weights, config)(str(encoder))
