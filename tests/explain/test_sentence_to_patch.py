"""Sentence to patch similarity against NumPy, from the parameters and running statistics of the head."""

import jax
import numpy as np
import pytest
from tiny_subject import DIM, HEADED, LOCAL, RESNET, images, model_of, module_of, subject_of, variables_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain.local_alignment import local_alignment

# The fourth sentence is one too many, and the second text is cut within its second one.
TEXTS = ["a mass. no mass; a mass. mass", "There is a mass. No mass in the left breast", "one. two", ""]


def mlp(variables, part, x):
    """Linear, BN of running statistics, ReLU, linear, BN without affine, of one vector."""
    params, stats = (variables[kind]["heads"]["near"][part] for kind in ("params", "batch_stats"))
    for layer in ("hidden", "out"):
        x = x @ params[layer]["kernel"] + params[layer]["bias"]
        norm = stats[f"{layer}_norm"]
        x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5)
        if layer == "hidden":
            x = np.maximum(x * params["hidden_norm"]["scale"] + params["hidden_norm"]["bias"], 0)
    return x / np.linalg.norm(x)


def test_the_map_is_the_cosine_of_each_patch_of_the_breast():
    with jax.enable_x64(True):
        subject, _, variables, pixels, direction = subject_of(HEADED)
        pixels = pixels.at[:, :18, 14:].set(pixels.min())  # the upper right 2 x 2 cells, and a quarter of those beside
        found = np.asarray(local_alignment(subject, pixels, direction, "stage2"))
        features = np.asarray(subject.encode(pixels)[1]["stage2"])[0]
    direction = np.asarray(direction)
    bright = np.asarray(pixels)[0, ..., 0] > np.asarray(pixels).min()
    for i, j in np.ndindex(6, 4):
        counts = bright[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() >= LOCAL["lit"]
        expected = mlp(variables, "patches", features[i, j]) @ direction if counts else -1
        assert found[i, j] == pytest.approx(expected, rel=1e-6), (i, j)
    assert (found == -1).sum() == 4 and found.shape == (6, 4)


def test_sentences_are_pooled_as_in_training():
    """The mean of the states of a sentence's tokens, which stand between its words' ends."""
    model, variables = model_of(HEADED), variables_of(HEADED)
    vectors, there = model.embed_sentences(TEXTS)
    np.testing.assert_array_equal(there.sum(axis=1), [3, 1, 2, 0])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), there, atol=1e-6)
    ids, mask = model._tokenize.encode(TEXTS[:1], 16)
    _, states = module_of(HEADED).apply(variables, ids, mask, method="encode_text")
    assert model._tokenize.tokens(ids[0])[:12] == "[CLS] a mass . n ##o mass ; a mass . mass".split()
    for number, tokens in enumerate((slice(1, 4), slice(4, 8), slice(8, 11))):
        expected = mlp(variables, "sentences", np.asarray(states)[0, tokens].mean(axis=0))
        np.testing.assert_allclose(vectors[0, number], expected, rtol=1e-4, atol=1e-5)


def test_a_text_is_explained_by_the_mean_of_its_sentences():
    model, pictures = model_of(HEADED), images(len(TEXTS))
    vectors, there = model.embed_sentences(TEXTS)
    maps = [
        model.saliency(pictures, vectors[:, k], method="local_alignment", raw=True) for k in range(LOCAL["sentences"])
    ]
    found = model.saliency(pictures, TEXTS, method="local_alignment", raw=True)
    inside = maps[0] > -0.9  # of unlit cells the value is the same whatever the sentence
    expected = np.einsum("knyx,nk->nyx", maps, there / np.maximum(there.sum(axis=1, keepdims=True), 1))
    assert inside[0].mean() > 0.9
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert np.ptp(found[3]) < 1e-6 and np.ptp(found[0]) > 0.1


def test_its_stage_is_that_of_the_head():
    model = model_of(HEADED)
    assert model.map_stage("local_alignment") == model.map_stage("local_alignment", "stage2") == "stage2"
    with pytest.raises(UserError, match="no local head at the stage 'stage1'.*Known: stage2"):
        model.map_stage("local_alignment", "stage1")
    with pytest.raises(UserError, match="no head of kind local 'nearer'. Did you mean 'near'"):
        model.embed_sentences(["a mass"], "nearer")
    for ask in (
        lambda plain: plain.embed_sentences(["a mass"]),
        lambda plain: plain.saliency(images(1), ["a mass"], method="local_alignment"),
    ):
        with pytest.raises(UserError, match=r"needs a .*head of kind local \(config.model.heads\), and this model has"):
            ask(model_of(RESNET))
    assert model.text_directions(["a mass"], "local_alignment").shape == (1, DIM)
