"""The classification head: logits are pooled @ kernel + bias, over views too, and what config.model must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.heads import ACTIVATIONS

IMAGE = {"name": "resnet", "variant": "18", "width": 4, "depths": (1, 1, 1, 1)}
OPTIONS = {"image": IMAGE, "labels": ("A", "B", "C"), "activation": "softmax", "dtype": "float32"}


@pytest.fixture(scope="module")
def classifier():
    model = models.classifier(OPTIONS)
    x = np.random.default_rng(0).normal(size=(2, 40, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    variables["params"]["classification_head"]["bias"] = jnp.array([1.0, 2.0, 3.0])
    return model, variables, x


def test_logits_are_linear_in_the_encoder_features(classifier):
    model, variables, x = classifier
    logits, stages = model.apply(variables, x)
    below = {name: tree["image_encoder"] for name, tree in variables.items() if "image_encoder" in tree}
    pooled, maps = models.image_encoder(IMAGE).apply(below, x)
    head = variables["params"]["classification_head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
    assert list(stages) == list(maps) and set(variables["params"]) == {"image_encoder", "classification_head"}
    features, _ = model.apply(variables, x, method="features")
    np.testing.assert_array_equal(features, pooled)


def test_offsets_reach_the_logits(classifier):
    model, variables, x = classifier
    logits, stages = model.apply(variables, x)
    moved, _ = model.apply(variables, x, offsets={"stage4": jnp.ones_like(stages["stage4"])})
    head = variables["params"]["classification_head"]["kernel"]
    np.testing.assert_allclose(moved - logits, np.broadcast_to(head.sum(0), logits.shape), rtol=1e-4, atol=1e-5)


def test_training_drops_features_and_moves_the_statistics():
    options = OPTIONS | {"image": {"name": "efficientnet", "width": 0.25, "depth": 0.2, "drop_rate": 0.5}}
    model = models.classifier(options)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    (features, _), new = jax.jit(
        lambda: model.apply(
            variables, x, train=True, method="features", rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"]
        )
    )()
    assert 0.3 < np.mean(np.asarray(features) == 0) < 0.7
    before, after = (tree["batch_stats"]["image_encoder"]["stem_bn"]["mean"] for tree in (variables, new))
    assert np.abs(np.asarray(before) - after).max() > 0


def test_activations():
    logits = np.log(np.array([[1.0, 3.0]]))
    np.testing.assert_allclose(ACTIVATIONS["sigmoid"](logits), [[0.5, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["softmax"](logits), [[0.25, 0.75]], rtol=1e-6)


def test_config_completed_with_the_defaults_of_a_dual_encoder_is_taken():
    config = defaults()
    with config.unlocked():
        config.update(ConfigDict({"model": OPTIONS}))
    assert models.classifier(config.model).classes == 3


def test_logits_stay_float32_in_low_precision():
    model = models.classifier(OPTIONS | {"dtype": "bfloat16"})
    (logits, stages), _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    assert logits.dtype == jnp.float32 and stages["stage4"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"activation": "sigmoidal"}, "'sigmoidal'.*Did you mean 'sigmoid'"),
        ({"labels": ()}, "at least one label"),
        ({"labels": ("A", "A")}, "no label twice"),
    ],
)
def test_wrong_options_say_what_is_right(change, message):
    with pytest.raises(UserError, match=message):
        models.classifier(OPTIONS | change)


def test_missing_field_is_named():
    with pytest.raises(UserError, match="lacks activation"):
        models.classifier({name: value for name, value in OPTIONS.items() if name != "activation"})


THERE = np.array([[True, True, True, True], [True, False, True, False], [False, False, False, True]])


@pytest.fixture(scope="module")
def views():
    return np.random.default_rng(1).normal(size=(12, 32, 32, 3)).astype(np.float32)


def view_weights(params, features, combine):
    """[3, 4] in plain NumPy."""
    if combine == "mean":
        return THERE / THERE.sum(axis=1, keepdims=True)
    attention = jax.tree.map(np.asarray, params["view_attention"])
    tanh, gate = (features @ attention[name]["kernel"] + attention[name]["bias"] for name in ("tanh", "gate"))
    scores = (np.tanh(tanh) / (1 + np.exp(-gate)) @ attention["score"]["kernel"])[..., 0]
    return np.exp(scores) * THERE / (np.exp(scores) * THERE).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("combine", ["mean", "max", "attention"])
def test_views_are_combined_and_one_that_is_not_there_changes_nothing(combine, views):
    model = models.classifier(OPTIONS | {"combine": combine})
    variables = jax.jit(model.init)(jax.random.key(0), views[:1])
    assert ("view_attention" in variables["params"]) == (combine == "attention")
    logits = jax.jit(lambda x, there: model.apply(variables, x, there, method="of_views"))
    features = np.asarray(model.apply(variables, views, method="features")[0]).reshape(3, 4, -1)
    if combine == "max":
        whole = np.where(THERE[..., None], features, -np.inf).max(axis=1)
    else:
        whole = (features * view_weights(variables["params"], features, combine)[..., None]).sum(axis=1)
    head = variables["params"]["classification_head"]
    found = logits(views, THERE)
    np.testing.assert_allclose(found, whole @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits(np.where(THERE.reshape(-1, 1, 1, 1), views, 9.0), THERE), found)
    alone = model.apply(variables, views, np.ones((12, 1), bool), method="of_views")
    np.testing.assert_allclose(alone, model.apply(variables, views)[0], rtol=1e-5, atol=1e-6)
