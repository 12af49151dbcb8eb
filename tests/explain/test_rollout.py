"""Against a product of matrices of weights that NumPy makes of what the layers' own queries and keys were."""

import jax
import numpy as np
import pytest
from tiny_subject import RESNET, VIT, directions, images, model_of, subject_of

from mammoclip_jax.errors import UserError
from mammoclip_jax.explain import rollout
from mammoclip_jax.models import attention

PATCHES = (6, 4)


def captured(module, variables, pixels):
    """Mean attention weights [L, L] of each layer, from the outputs of its dense layers."""
    _, state = jax.jit(
        lambda: module.apply(variables, pixels, train=False, method="encode_image", capture_intermediates=True)
    )()
    layers = state["intermediates"]["image_encoder"]["encoder"]
    for i in range(3):
        dense = layers[f"layer_{i}"]["attention"]["attention"]
        query, key = (np.asarray(dense[name]["__call__"][0])[0] for name in ("query", "key"))
        heads = []
        for part in np.split(np.arange(query.shape[1]), 2):
            scores = query[:, part] @ key[:, part].T / np.sqrt(len(part))
            heads.append(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
        yield np.mean(heads, axis=0)


@pytest.mark.parametrize("pooling, registers", [("cls", 0), ("mean", 2), ("all", 2), ("cls+mean", 0)])
def test_it_is_the_product_of_the_layers_weights(pooling, registers, monkeypatch):
    monkeypatch.setattr(rollout, "_CHUNK", 10)  # 25 or 27 tokens: the last part is filled up
    with jax.enable_x64(True):
        subject, module, variables, pixels, direction = subject_of(VIT | {"pooling": pooling, "registers": registers})
        found = np.asarray(jax.jit(lambda: rollout.attention_rollout(subject, pixels, direction, ""))())
        product = np.eye(1 + registers + 24)
        for weights in captured(module, variables, pixels):
            product = (0.5 * weights + 0.5 * np.eye(len(weights))) @ product
    patches = product[:, 1 + registers :]
    rows = {"cls": patches[0], "mean": patches[1 + registers :].mean(0), "all": patches.mean(0)}
    expected = rows.get(pooling, (rows["cls"] + rows["mean"]) / 2).reshape(PATCHES)
    assert found.shape == PATCHES and np.ptp(expected) > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-6)  # its rows are float32


def test_it_is_the_same_for_every_text_and_lies_over_the_image():
    model, pictures = model_of(VIT), images(2)
    found = model.saliency(pictures, directions(2), method="attention_rollout", raw=True)
    np.testing.assert_array_equal(found, model.saliency(pictures, -directions(2), method="attention_rollout", raw=True))
    assert found.shape == pictures.shape and np.ptp(found[0]) > 0 and abs(found[0] - found[1]).max() > 0


def test_recording_changes_nothing_and_layers_are_in_order():
    with jax.enable_x64(True):
        subject, _, _, pixels, _ = subject_of(VIT | {"depth": 11, "stages": (11,)})
        plain, _ = jax.jit(subject.encode)(pixels)
        (same, _), state = jax.jit(lambda: subject.encode(pixels, mutable=["intermediates"]))()
    layers, found = state["intermediates"]["image_encoder"]["encoder"], attention.recorded(state["intermediates"])
    np.testing.assert_allclose(plain, same, rtol=1e-12)
    assert len(found) == 11 and found[0][0].shape == (1, 2, 25, 8)
    for i in (2, 10):
        query, key = layers[f"layer_{i}"]["attention"]["attention"]["queries_and_keys"][0]
        assert found[i][0] is query and found[i][1] is key


def test_an_encoder_without_such_attention_is_refused():
    model = model_of(RESNET)
    with pytest.raises(UserError, match=r"attention_rollout needs an encoder in which every token.*not ResNet: use"):
        model.saliency(images(1), directions(1), method="attention_rollout")
