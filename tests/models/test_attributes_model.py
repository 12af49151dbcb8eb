"""Adapters of attributes equal a naive loop over attributes and channels; what they know of a channel, and what they refuse."""

import jax
import numpy as np
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.errors import UserError
from mammoclip_jax.models.attributes import Adapters, AttributeModel

RNG = np.random.default_rng(0)
MAPS = {
    "early": RNG.normal(size=(3, 4, 3, 5)).astype(np.float32),
    "late": RNG.normal(size=(3, 2, 1, 7)).astype(np.float32),
}
DIM = 6


def made(**options):
    model = AttributeModel(None, tuple(MAPS), 2, DIM, **options)
    variables = jax.device_get(model.init(jax.random.key(0), MAPS, method="image_scores"))
    vectors = RNG.normal(size=(2, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return model, {**variables, "batch_stats": {"attributes": {"dictionary": vectors}}}


def naive(parameters, maps, vectors, image, channel, attribute):
    cells = maps[image, :, :, channel].ravel()
    first, second = parameters["first"], parameters["second"]
    hidden = cells @ first["kernel"][attribute] + first["bias"][attribute]
    if "channels" in parameters:
        known = parameters["channels"]
        hidden = hidden + known["code"][channel] @ known["kernel"][attribute]
    z = np.maximum(hidden, 0) @ second["kernel"][attribute] + second["bias"][attribute]
    return z @ vectors[attribute] / np.linalg.norm(z)


@pytest.mark.parametrize("options", [{}, {"hidden": 4, "channel_code": 2}])
def test_it_equals_a_naive_loop(options):
    model, variables = made(**options)
    found = model.apply(variables, MAPS, method="channel_scores")
    vectors = variables["batch_stats"]["attributes"]["dictionary"]
    highest = np.full((3, 2), -np.inf)
    for stage, maps in MAPS.items():
        assert found[stage].shape == (3, maps.shape[3], 2) and found[stage].dtype == np.float32
        for image, channel, attribute in np.ndindex(3, maps.shape[3], 2):
            parameters = variables["params"][f"adapters_{stage}"]
            expected = naive(parameters, maps, vectors, image, channel, attribute)
            assert found[stage][image, channel, attribute] == pytest.approx(expected, abs=1e-5)
            highest[image, attribute] = max(highest[image, attribute], expected)
    np.testing.assert_allclose(model.apply(variables, MAPS, method="image_scores"), highest, atol=1e-5)


def test_equal_channels_are_told_apart_only_by_a_code():
    same = np.repeat(MAPS["early"][..., :1], 2, axis=-1)
    for code in (0, 3):
        adapters = Adapters(2, DIM, code=code)
        z = np.asarray(adapters.apply(adapters.init(jax.random.key(1), same), same))
        assert np.allclose(z[:, :, 0], z[:, :, 1]) == (code == 0)


def test_initial_values_are_those_of_a_linear_layer_of_torch():
    parameters = made()[1]["params"]["adapters_early"]
    assert parameters["first"]["kernel"].shape == (2, 12, 12) and parameters["second"]["bias"].shape == (2, DIM)
    for layer in parameters.values():
        bound = layer["kernel"].shape[1] ** -0.5
        for values in layer.values():
            assert 0.7 * bound < np.abs(values).max() <= bound


def test_wrong_options_are_explained():
    def config_of(**model):
        config = defaults()
        config.model.image.update(name="resnet", variant="18", width=4, depths=(1, 1))
        config.model.update(labels=("mass",), stages=("stage2",))
        config.model.update(model)
        return config

    models.attribute_model(config_of().model)
    for change, message in (
        (dict(stages=()), "name the stages"),
        (dict(stages=("stage2", "stage2")), "each once"),
        (dict(attributes=dict(dim=0)), "length of the dual encoder's vectors"),
        (dict(labels=()), "needs at least one label"),
    ):
        with pytest.raises(UserError, match=message):
            models.attribute_model(config_of(**change).model)
    plain = config_of(stages=("stage9",)).model
    with pytest.raises(UserError, match="'stage9', and the image encoder has the stages stem, stage1"):
        jax.eval_shape(models.attribute_model(plain).init, jax.random.key(0), np.zeros((1, 16, 16, 1)))
    with pytest.raises(UserError, match="no option 'hiden'. Did you mean 'hidden'"):
        models.attribute_model(plain.to_dict() | {"attributes": {"dim": 4, "hiden": 3}})
